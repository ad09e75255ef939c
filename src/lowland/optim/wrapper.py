"""The one optimizer: bases, a method and slow weights as parts, an explicit phase, one state_dict.

Everything mutable lives in one `Holder` that is mutated and never rebound: Fabric and Lightning hand methods a proxy,
and an assignment to ``self`` would land on the proxy and be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Self, Unpack

import torch
from torch import nn

from lowland.core.contexts import recalibrate as renew_statistics
from lowland.core.errors import InputError, MissingPass
from lowland.core.params import unwrap
from lowland.core.types import as_batch
from lowland.optim import checkpoint
from lowland.optim.ascent import first_pass, perturbed, run_closure
from lowland.optim.bases import Base, OptimizerViews, check_parts, checked_bases, forget_old_marks, refuse_ports
from lowland.optim.holder import PREFIX, Holder
from lowland.optim.options import AscentKeywords, AscentOptions
from lowland.optim.parts import Method, Part
from lowland.optim.phases import Phase

__all__ = ["Ascent", "Wrapper"]


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
        base: An optimizer instance, several with disjoint parameters, or one of ours, around which the parts go.
        *parts: The parts, innermost first.
        model: The model whose buffers are protected; None meets it in the perturbed pass. DDP and compiled models are
            fine.
        **options: How a two-pass step behaves, see `AscentOptions`.

    Raises:
        InputError: If a base is a class, needs a closure, holds complex parameters, or does not go with the parts.

    Example:
        >>> from lowland.optim import EMA, SAM
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = EMA(SAM(torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.1), decay=0.9)
        >>> optimizer.method, optimizer.rho, optimizer.phase
        ('EMA(SAM)', 0.1, <Phase.GATHERING: 'gathering gradients'>)
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Answer what migrators type first by the line to write."""
        refuse_ports(cls.__name__, args, options)
        return super().__new__(cls)

    def __init__(
        self, base: Base, *parts: Part, model: nn.Module | None = None, **options: Unpack[AscentKeywords]
    ) -> None:
        chosen = AscentOptions(**options)
        held = base._held if isinstance(base, Wrapper) else Holder(checked_bases(base), chosen)
        check_parts(held, parts, chosen.distributed)
        super().__init__([{"params": []}], {})
        fresh = not held.parts
        self._held = held
        if fresh:
            forget_old_marks(held)
        for part in parts:
            if isinstance(part, Method):
                part.options = chosen
        self._adopt_parts(parts)
        self.param_groups[0][PREFIX] = held.numbers
        if model is not None:
            held.scratch.model = model

    def __getattr__(self, name: str) -> Any:
        """Read a setting of a part, the outermost first."""
        held = vars(self).get("_held")
        if held is not None and not name.startswith("_"):
            for part in reversed(held.parts):
                if hasattr(part, name):
                    return getattr(part, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # What it is.

    @property
    def method(self) -> str:
        """Its name in checkpoints, such as ``EMA(SAM)``."""
        names = list(dict.fromkeys(part.name for part in reversed(self._held.parts)))
        return "(".join(names) + ")" * (len(names) - 1)

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
    def phase(self) -> Phase:
        """Where the step stands."""
        return self._held.phase

    def settings(self) -> dict[str, Any]:
        """Return what must agree when a run goes on.

        Returns:
            Setting by name, those of inner parts under the part's name where an outer one has the same.
        """
        found: dict[str, Any] = {}
        for part in reversed(self._held.parts):
            for name, value in vars(part).items():
                if not name.startswith("_"):
                    found[name if name not in found else f"{part.name}.{name}"] = value
        if self.options.only is not None:
            found["only"] = len(list(self.options.only))
        return found

    # The passes.

    def needs_perturbation(self) -> bool:
        """Tell whether the coming step wants a second pass at perturbed weights.

        Returns:
            True if ``perturb()`` has to be entered before ``step()``; without a closure.
        """
        return self._held.wants_pass()

    def first_pass(self, model: nn.Module | None = None) -> AbstractContextManager[None]:
        """Mark a first forward and backward pass.

        Needed with several micro-batches under ``ascent="micro-batch"`` (earlier gradients are held aside), under
        ``distributed="local"`` (the pass runs in the model's ``no_sync()``) and with ``rng="replay"``; allowed always.

        Args:
            model: The DDP model, for local ascent; None takes the one given to the constructor.

        Returns:
            The context. Entering it raises `InputError` where the table of phases or a local ascent forbids it.
        """
        return first_pass(self._held, model)

    def perturb(self) -> AbstractContextManager[None]:
        """Move the weights uphill along the present gradients, and bring them back bit for bit at the end.

        Inside, gradients are clear (or hold earlier micro-batches'), and the second forward and backward pass runs as
        the first did: under the same autocast, scaler and accumulation.

        Returns:
            The context. Entering it raises `InputError` where the table of phases forbids it or no second pass is
            wanted, and `MissingPass` without a first gradient; so does leaving it if no backward pass ran inside.
        """
        return perturbed(self._held)

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
        return self._hooked(lambda: self._step(closure), closure)

    step.hooked = True  # type: ignore[attr-defined]  # not to be wrapped by torch: see `_hooked`

    def _step(self, closure: Callable[[], Any] | None) -> Any:
        held = self._held
        held.require("step()")
        if closure is None and held.is_initializing():
            with torch.no_grad():
                held.begin()
            self._base_step()
            return None
        loss = None if closure is None else run_closure(held, closure)
        skipped = closure is not None and not held.has_gradients()  # a trainer leaves a batch out
        if not (held.phase is Phase.READY or skipped or held.options.allow_plain) and held.wants_pass():
            raise MissingPass(
                f"step {self.steps} of {type(self).__name__} wanted a second pass and got none; nothing was changed: "
                f"run the second forward and backward pass inside `with optimizer.perturb():` when "
                f"needs_perturbation() is True, or call step(closure)"
            )
        try:
            with torch.no_grad():
                held.begin()
                for part in held.parts:
                    part.prepare(held)
                self._base_step()
                held.numbers["steps"] += 1
                for part in held.parts:
                    part.commit(held)
        finally:  # whatever failed, the next step begins anew
            held.scratch.forget()
            torch.clear_autocast_cache()
        return loss

    def wrap_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that runs every pass the coming step wants, for frameworks that call closures themselves.

        Args:
            closure: Runs one forward and backward pass and returns the loss.

        Returns:
            A closure that returns the loss of the first pass; ``step()`` has to follow.
        """
        return lambda: run_closure(self._held, closure)

    def drive(self, whole: bool) -> None:
        """Say whether closures given to ``step()`` run every pass by themselves.

        Args:
            whole: True: they are called once.
        """
        self._held.scratch.driven = whole

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; inside ``perturb()`` they are clear already and earlier micro-batches' are kept.

        Args:
            set_to_none: As in torch.
        """
        if self._held.scratch.phase is not Phase.PERTURBED:
            self._held.clear(set_to_none)

    def first_step(self, zero_grad: bool = False) -> None:
        """Open ``perturb()`` without a with block; for loops written for the common SAM port.

        Args:
            zero_grad: Taken for compatibility; gradients are clear in any case.

        Raises:
            InputError: If it is open already: the weights are back then, and the next step can begin.
        """
        del zero_grad
        scratch = self._held.scratch
        stale, scratch.opened = scratch.opened, None
        if stale is not None:  # an exception came between the two
            error = InputError(
                "first_step()", "must be followed by second_step()", advice="the weights are back: begin the step anew"
            )
            stale.__exit__(InputError, error, None)
            raise error
        stack = ExitStack()
        stack.enter_context(self.perturb())
        scratch.opened = stack

    def second_step(self, zero_grad: bool = False) -> None:
        """Close what ``first_step()`` opened, and step.

        Args:
            zero_grad: Clear the gradients afterwards.

        Raises:
            InputError: If ``first_step()`` did not come before.
        """
        scratch = self._held.scratch
        stack, scratch.opened = scratch.opened, None
        if stack is None:
            raise InputError("second_step()", "must follow first_step()", advice="do not mix it with perturb()")
        stack.close()
        self.step()
        if zero_grad:
            self.zero_grad()

    # Evaluation weights.

    def eval(self) -> None:
        """Put the evaluation weights into the model; calling it twice does nothing more.

        Raises:
            InputError: Inside ``perturb()``.
        """
        self._held.require("eval()")
        self._held.switch(evaluating=True)

    def train(self, mode: bool = True) -> None:
        """Put the trained weights back into the model; calling it twice does nothing more.

        Args:
            mode: False is the same as ``eval()``.
        """
        if not mode:
            self.eval()
        elif self._held.phase is not Phase.PERTURBED:  # trainers call it before every pass
            self._held.switch(evaluating=False)

    @contextmanager
    def averaged(self) -> Generator[None, None, None]:
        """Hold the evaluation weights inside the block, whatever the mode was.

        Yields:
            Nothing.
        """
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
        scratch = self._held.scratch
        known = scratch.buffers.modules(scratch.model if model is None else model)
        if len(known) != 1:
            raise InputError("model", "must be given: the optimizer has not met the model", len(known))
        if self._held.evaluating and not scratch.trained_buffers:
            scratch.trained_buffers = {b: b.detach().clone() for b in known[0].buffers()}
        target = unwrap(known[0])
        device = next(iter(self._held.parameters())).device
        return renew_statistics(target, (as_batch(raw).to(device) for raw in loader))

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with ours added; the same in training and evaluation mode.

        Returns:
            ``state`` and ``param_groups`` as torch's, which a bare base loads, and ``"lowland"``.
        """
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
        >>> from lowland.optim import EMA, SAM
        >>> isinstance(EMA(SAM(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))), Ascent)
        True
    """
