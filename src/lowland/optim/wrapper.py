"""The one optimizer: bases, a method and slow weights as parts, an explicit phase, one state_dict.

Everything mutable lives in one `Holder` that is mutated and never rebound: Fabric and Lightning hand methods a proxy,
and an assignment to ``self`` would land on the proxy and be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self, Unpack

from torch import nn

from lowland.core.contexts import recalibrate as renew_statistics
from lowland.core.errors import require
from lowland.core.facts import table_of
from lowland.core.params import unwrap
from lowland.core.types import as_batch
from lowland.optim import checkpoint
from lowland.optim.ascent import first_pass, perturbed
from lowland.optim.bases import OptimizerViews, check_parts, checked_bases, refuse_ports
from lowland.optim.holder import Holder
from lowland.optim.options import AscentFields, AscentOptions, Base, check_keywords, takes_ascent
from lowland.optim.parts import Method, Part
from lowland.optim.phases import Phase
from lowland.optim.stepping import close_pass, open_pass, run_closure, take_step
from lowland.optim.tracing import Untraced, untraced
from lowland.optim.words import in_words, nested, rows_of


class Wrapper(OptimizerViews):
    """A real ``torch.optim.Optimizer`` around optimizer instances, made of parts that ``SAM``, ``EMA`` ... name.

    A step goes through phases, and what may be called in which is this table ("no" is `InputError`, "missing" is
    `MissingPass` where the step wants a second pass, "aside" is allowed under ``ascent="micro-batch"``):

    ===================  =========  =======  =======  =========  =====  ==========
    call                 gathering  first    marked   perturbed  ready  evaluating
    ===================  =========  =======  =======  =========  =====  ==========
    first_pass()         yes        yes      yes      no         aside  yes
    perturb()            yes        yes      yes      no         no     no
    step()               missing    missing  missing  no         yes    no
    zero_grad()          yes        yes      yes      yes        yes    yes
    eval()               yes        yes      yes      no         yes    yes
    train()              yes        yes      yes      yes        yes    yes
    state_dict()         yes        yes      yes      no         yes    yes
    load_state_dict()    yes        yes      yes      no         yes    yes
    add_param_group()    yes        yes      yes      no         yes    yes
    ===================  =========  =======  =======  =========  =====  ==========

    ``first_pass()`` leads from gathering to first and marked, ``perturb()`` to perturbed and ready, ``step()`` back to
    gathering; so do ``zero_grad()`` (it does nothing when perturbed; nor does ``train()``) and every exception.

    Args:
        base: An optimizer instance, several that share a step and one norm, or one of ours, around which the parts go.
        *parts: The parts, innermost first.
        model: The model whose buffers are protected and recalibrated; None meets it in a perturbed pass or a closure.
            DDP and compiled models are fine.
        **options: How a two-pass step behaves, see `AscentOptions`.

    Raises:
        InputError: If a base is a class, needs a closure, holds complex parameters, or does not go with the parts; or
            if a keyword is unknown, or a setting of a part breaks a rule.

    Example:
        >>> import torch
        >>> from lowland.optim import EMA, SAM
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = EMA(SAM(torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.1), decay=0.9)
        >>> optimizer.method, optimizer.rho, optimizer.phase
        ('EMA(SAM)', 0.1, <Phase.GATHERING: 'gathering gradients'>)
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Answer what migrators type first by the line to write."""
        refuse_ports(cls.__name__, args, options)
        if not takes_ascent(cls):
            check_keywords(cls, options)
        return super().__new__(cls)

    def __init__(
        self, base: Base, *parts: Part, model: nn.Module | None = None, **options: Unpack[AscentFields]
    ) -> None:
        check_keywords(type(self), options)
        chosen = AscentOptions(**options)
        held = base._held if isinstance(base, Wrapper) else Holder(checked_bases(base), chosen)
        check_parts(held, parts, chosen.distributed)
        super().__init__(held)
        held.adopt(parts, chosen)
        if model is not None:
            self.protect(model)

    def __getattr__(self, name: str) -> Any:
        """Read a setting of a part, the outermost first."""
        for part in reversed(self._held.parts if not name.startswith("_") else []):
            if hasattr(part, name):
                return getattr(part, name)
        # AdafactorSchedule asks for the rate that an optimizer chose itself; ZeRO's state is gathered before a save
        if name in ("_get_lr", "consolidate_state_dict"):
            return getattr(self._held.bases[0], name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # What it is.

    @property
    def method(self) -> str:
        """Its name in checkpoints, such as ``EMA(SAM)``."""
        return nested(part.name for part in reversed(self._held.parts))

    def __repr__(self) -> str:
        """Return the parts with their settings and the bases with their groups, in one line."""
        return in_words(self._held)

    def _repr_html_(self) -> str:
        return table_of(rows_of(self._held))

    @property
    def ascent_method(self) -> Method | None:
        """The part with a second pass; None for an optimizer with one."""
        return self._held.method

    @property
    def options(self) -> AscentOptions:
        """How a two-pass step behaves."""
        return self._held.options

    @property
    def evaluation(self) -> str | None:
        """What is evaluated: a name of own tensors, ``"base"`` for a base that averages; None: the trained weights."""
        return self._held.evaluation or ("base" if self._held.switching else None)

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return self._held.steps

    @property
    def accumulated(self) -> bool:
        """Whether gradients of earlier micro-batches are held aside or ready."""
        return bool(self._held.scratch.aside) or self._held.has_gradients()

    @property
    def owns_rate(self) -> bool:
        """Whether a part writes the learning rates, so that no schedule may."""
        return any(part.owns_rate for part in self._held.parts)

    @property
    def phase(self) -> Phase:
        """Where the step stands."""
        return self._held.phase

    def settings(self) -> dict[str, Any]:
        """Return the settings that must agree when a run goes on; an inner part's with its name where two stand."""
        found: dict[str, Any] = {}
        for part in reversed(self._held.parts):
            for name, value in vars(part).items():
                if not name.startswith("_"):
                    found[name if name not in found else f"{part.name}.{name}"] = value
        if self.options.only is not None:
            found["only"] = len(list(self.options.only))
        return found

    # The passes.

    @untraced
    def needs_perturbation(self) -> bool:
        """Tell whether the coming step wants a second pass: ``perturb()`` before ``step()``, or a closure."""
        return self._held.wants_pass()

    @untraced
    def first_pass(self, model: nn.Module | None = None) -> AbstractContextManager[None]:
        """Mark a first forward and backward pass.

        Needed with several micro-batches under ``ascent="micro-batch"`` (earlier gradients are held aside), under
        ``distributed="local"`` (the pass runs in the model's ``no_sync()``) and with ``rng="replay"``; allowed always.

        Args:
            model: The DDP model, for local ascent; None takes the one given to the constructor.

        Returns:
            The context. Entering it raises `InputError` where the table of phases or a local ascent forbids it.
        """
        return Untraced(first_pass(self._held, model))

    @untraced
    def perturb(self) -> AbstractContextManager[None]:
        """Move the weights uphill along the present gradients, and bring them back bit for bit at the end.

        Inside, gradients are clear (or hold earlier micro-batches'), and the second forward and backward pass runs as
        the first did: under the same autocast, scaler and accumulation.

        Returns:
            The context. Entering it raises `InputError` where the table of phases forbids it or no second pass is
            wanted, and `MissingPass` without a first gradient; so does leaving it if no backward pass ran inside.
        """
        return Untraced(perturbed(self._held))

    @untraced
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Clears gradients, runs forward and backward, returns the loss; it is called first, and again at
                perturbed weights when the method wants it.

        Returns:
            The loss of the first pass; None without a closure.

        Raises:
            InputError: In evaluation mode, or inside ``perturb()``.
            MissingPass: If the step wanted a second pass and got none; nothing was changed.
        """
        return self._hooked(lambda: take_step(self._held, closure, type(self).__name__), closure)

    step.hooked = True  # type: ignore[attr-defined]  # not to be wrapped by torch: see `_hooked`

    def wrap_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that runs every pass the coming step wants; ``step()`` has to follow.

        Args:
            closure: Runs one forward and backward pass and returns the loss.

        Returns:
            A closure that returns the loss of the first pass.
        """
        return lambda: run_closure(self._held, closure)

    def protect(self, model: nn.Module) -> None:
        """Keep the buffers of a whole model, such as both networks of a GAN, from perturbed passes."""
        self._held.scratch.model = model

    def use_scaler(self, scaler: Any) -> None:
        """Name the ``GradScaler`` that scales this optimizer's losses, for methods that must know by how much.

        Args:
            scaler: The scaler; None: losses are not scaled. Copies of the optimizer must be told again.
        """
        self._held.scratch.scaler = scaler

    @property
    def _step_supports_amp_scaling(self) -> bool:  # GradScaler asks it before each step, so that it shows itself here
        for part in self._held.parts:
            part.check_scaler(self._held.scratch.scaler is not None)
        return False

    def drive(self, whole: bool) -> None:
        """Say whether closures given to ``step()`` run every pass by themselves, so that they are called once."""
        self._held.scratch.driven = whole

    @untraced
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; inside ``perturb()`` they are clear already and earlier micro-batches' are kept."""
        if self._held.scratch.phase is not Phase.PERTURBED:
            self._held.clear(set_to_none)

    @untraced
    def first_step(self, zero_grad: bool = False) -> None:
        """Open ``perturb()`` without a with block, which clears gradients, for loops written for the common SAM port.

        Args:
            zero_grad: Taken for compatibility.

        Raises:
            InputError: If it is open already: the weights are back then, and the next step can begin.
        """
        del zero_grad
        open_pass(self._held)

    @untraced
    def second_step(self, zero_grad: bool = False) -> None:
        """Close what ``first_step()`` opened, and step.

        Args:
            zero_grad: Clear the gradients afterwards.

        Raises:
            InputError: If ``first_step()`` did not come before.
        """
        close_pass(self._held)
        self.step()
        if zero_grad:
            self.zero_grad()

    # Evaluation weights.

    def eval(self) -> None:
        """Put the evaluation weights into the model; twice does nothing more."""
        self._held.require("eval()")
        self._held.switch(evaluating=True)

    def train(self, mode: bool = True) -> None:
        """Put the trained weights back into the model (False: as ``eval()``); twice does nothing more."""
        if not mode:
            self.eval()
        elif self._held.phase is not Phase.PERTURBED:  # trainers call it before every pass
            self._held.switch(evaluating=False)

    @contextmanager
    def averaged(self) -> Generator[None, None, None]:
        """Hold the evaluation weights inside the block, whatever the mode was."""
        before = self._held.evaluating
        self.eval()
        try:
            yield
        finally:
            self._held.switch(evaluating=before)

    def recalibrate(self, loader: Iterable[Any], model: nn.Module | None = None) -> int:
        """Renew the batch-norm statistics that go with the weights now in the model.

        In evaluation mode the statistics of the trained weights come back with ``train()``.

        Args:
            loader: Batches in a fixed order, in any form that Lowland takes.
            model: The model; None takes the one given to the constructor, or met in a perturbed pass or a closure.

        Returns:
            Number of batches used; 0 if the model keeps no statistics.

        Raises:
            InputError: If the model is not known, or there are no batches.
        """
        held = self._held
        known = held.scratch.buffers.modules(held.scratch.model if model is None else model)
        require(len(known) == 1, "model", "must be given: the optimizer has not met the model", len(known))
        if held.evaluating:
            trained = held.scratch.trained
            trained |= {b: b.detach().clone() for b in known[0].buffers() if b not in trained}
        device = next(iter(held.parameters())).device
        return renew_statistics(unwrap(known[0]), (as_batch(raw).to(device) for raw in loader))

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with ours under ``"lowland"``; a bare base loads it. The same in either mode."""
        self._held.require("state_dict()")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        packed = checkpoint.export(self._held, self.method)
        for after in self._optimizer_state_dict_post_hooks.values():
            packed = after(self, packed) or packed
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of ours or of the bare base; what it lacks of ours starts fresh.

        Load the model first: for methods with two sets of weights this puts the trained ones back too.

        Args:
            state_dict: A checkpoint.

        Raises:
            CheckpointError: If it is of another method or does not fit; nothing was changed.
        """
        held = self._held
        held.require("load_state_dict()")
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        checkpoint.load(held, state_dict, self.method)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_optimizer_", "_zero_grad", "_warned", "_opt_called", "step")
        return {key: value for key, value in vars(self).items() if not key.startswith(dropped)}


class _HasMethod(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(getattr(instance, "ascent_method", None), Method)


class Ascent(Wrapper, metaclass=_HasMethod):
    """What every optimizer with a second pass is an instance of, whatever stands around its method; not to be built.

    Example:
        >>> import torch
        >>> from lowland.optim import EMA, SAM
        >>> isinstance(EMA(SAM(torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1))), Ascent)
        True
    """
