"""What every wrapper shares: the base instances, one state_dict, evaluation weights, and the closure contract.

Everything mutable lives in one `Holder` that is mutated and never rebound: Fabric and Lightning hand methods a proxy,
and an assignment to ``self`` would land on the proxy and be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowland.core.contexts import held_interrupts
from lowland.core.contexts import recalibrate as renew_statistics
from lowland.core.errors import InputError
from lowland.core.params import unwrap
from lowland.core.types import as_batch
from lowland.optim.bases import Base, OptimizerViews
from lowland.optim.buffers import ModelFinder
from lowland.optim.holder import adopt, export, strip
from lowland.optim.moves import copy_all, empty_twin, swap

__all__ = ["Wrapper"]


class Wrapper(OptimizerViews):
    """Base of all wrappers: a real ``torch.optim.Optimizer`` around optimizer instances.

    Args:
        base: An optimizer instance, or several with disjoint parameters.
        model: The model; None finds it by its parameters when it is needed. DDP and compiled models are fine.

    Raises:
        InputError: If a base is a class, wraps already, needs a closure, or holds complex parameters.
    """

    method: ClassVar[str] = "Wrapper"
    """Name of the method in checkpoints."""

    own: ClassVar[tuple[str, ...]] = ()
    """Names of the own tensors, one per parameter."""

    def __init__(self, base: Base, *, model: nn.Module | None = None) -> None:
        self._model = model
        super().__init__(base)
        self._held.numbers.update(self._fresh_numbers())

    # The step.

    def needs_perturbation(self) -> bool:
        """Tell whether the coming step wants a second pass at perturbed weights.

        Returns:
            True if ``perturb()`` has to be entered before ``step()``; without a closure.
        """
        return False

    def perturb(self) -> AbstractContextManager[None]:
        """Enter the second pass; only for wrappers with an ascent.

        Raises:
            InputError: Always, for a wrapper without a second pass.
        """
        raise InputError(
            "perturb()", "must be entered only when a second pass is wanted", type(self).__name__,
            "ask needs_perturbation() first",
        )  # fmt: skip

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the method.

        Args:
            closure: Clears gradients, runs forward and backward, returns the loss; it is called first, and again at
                perturbed weights when the method wants it.

        Returns:
            The loss of the first pass; None without a closure.

        Raises:
            InputError: In evaluation mode, or inside ``perturb()``.
            MissingPass: If the step wanted a second pass and got none; nothing was changed.
        """
        held = self._held
        if held.scratch.inside:
            raise InputError("step()", "must not be called inside perturb()", advice="leave the with block first")
        if held.evaluating:
            raise InputError("step()", "must not be called in evaluation mode", advice="call optimizer.train() first")
        if closure is None and self._is_initializing():
            self._base_step()
            return None
        loss = None if closure is None else self._run_closure(closure)
        self._check_passes()
        with torch.no_grad():
            self._before_base()
            self._base_step()
            self._after_base()
        held.numbers["steps"] += 1
        held.scratch.forget()
        return loss

    def wrap_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that runs every pass the coming step wants, for frameworks that call closures themselves.

        Args:
            closure: Runs one forward and backward pass and returns the loss.

        Returns:
            A closure that returns the loss of the first pass; ``step()`` has to follow.
        """
        return lambda: self._run_closure(closure)

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return closure()

    def _check_passes(self) -> None:
        """Raise `MissingPass` when a pass is missing."""

    def _before_base(self) -> None:
        """Change gradients or weights before the base's step."""

    def _after_base(self) -> None:
        """Change weights after the base's step."""

    def _is_initializing(self) -> bool:
        """Recognize the step by which torch's distributed checkpoint makes a base create its state.

        It has no state yet, every rate is 0 and every gradient is 0; it is not a step of the method.

        Returns:
            True for such a step.
        """
        if len(self.state) or any(float(group.get("lr", 1.0)) != 0.0 for group in self.param_groups):
            return False
        return not any(bool(p.grad.any()) for p in self._held.parameters() if p.grad is not None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; inside ``perturb()`` they are clear already and earlier micro-batches' are kept.

        Args:
            set_to_none: As in torch.
        """
        scratch = self._held.scratch
        if scratch.inside:
            return
        marked, random = scratch.marked, scratch.random
        scratch.forget()
        if scratch.in_first:
            scratch.marked, scratch.random = marked, random
        scratch.zeroings += 1
        for base in self._held.bases:
            base.zero_grad(set_to_none=set_to_none)

    # Evaluation weights.

    def eval(self) -> None:
        """Put the evaluation weights into the model; calling it twice does nothing more.

        Raises:
            InputError: Inside ``perturb()``.
        """
        self._switch(evaluating=True)

    def train(self, mode: bool = True) -> None:
        """Put the trained weights back into the model; calling it twice does nothing more.

        Args:
            mode: False is the same as ``eval()``.
        """
        self._switch(evaluating=not mode)

    def _switch(self, *, evaluating: bool) -> None:
        held = self._held
        if held.evaluating == evaluating:
            return
        if held.scratch.inside:
            raise InputError("eval()", "must not be called inside perturb()")
        with held_interrupts():
            if self.evaluation is not None:
                swap(*self._own(self.evaluation))
            if not evaluating and held.scratch.trained_buffers:
                copy_all(list(held.scratch.trained_buffers), list(held.scratch.trained_buffers.values()))
                held.scratch.trained_buffers = {}
            held.evaluating = evaluating

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
            self._switch(evaluating=before)

    # Checkpoints.

    def _own_tensors(self) -> dict[str, dict[int, Tensor]]:
        own: dict[str, dict[int, Tensor]] = {}
        for index, parameter in enumerate(self._held.parameters()):
            for name, value in self._held.readable(parameter).items():
                own.setdefault(name, {})[index] = value
        return own

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with ours added; the same in training and evaluation mode.

        Returns:
            ``state`` and ``param_groups`` as torch's, which a bare base loads, and ``"lowland"``.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        packed = export(self._held, self.method, self._own_tensors())
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
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        held = self._held
        parts, ours = strip(state_dict, [len(base.param_groups) for base in held.bases], self.method)
        evaluating = held.evaluating
        self.train()
        for base, part in zip(held.bases, parts, strict=True):
            kept = [dict(group) for group in base.param_groups]
            base.load_state_dict(part)
            for group, old in zip(base.param_groups, kept, strict=True):
                for key in set(old) - set(group):  # options of ours that a bare checkpoint lacks
                    group[key] = old[key]
        held.scratch.forget()
        self._load_own(ours)
        self._switch(evaluating=evaluating)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _load_own(self, ours: dict[str, Any]) -> None:
        held = self._held
        tensors = ours.pop("tensors", {})
        parameters = list(held.parameters())
        trained = tensors.get("trained", {})
        if trained:
            chosen = [i for i in range(len(parameters)) if i in trained]
            with torch.no_grad():
                for i in chosen:
                    parameters[i].copy_(trained[i])
        held.numbers.clear()
        held.numbers.update(self._fresh_numbers() | ours)
        for name in held.tensors:
            known = list(held.tensors[name])
            index = {p: i for i, p in enumerate(parameters)}
            values = {j: tensors[name][index[p]] for j, p in enumerate(known) if index[p] in tensors.get(name, {})}
            held.tensors[name] = adopt(values, known, partial(self._fresh_tensor, name))

    def _fresh_numbers(self) -> dict[str, int | float | bool]:
        """Return the own numbers of an optimizer that has not stepped.

        Returns:
            The numbers by name.
        """
        return {"steps": 0}

    def _fresh_tensor(self, name: str, parameter: Tensor) -> Tensor:
        """Return an own tensor for a parameter that has not been stepped.

        Args:
            name: Name of the own tensors.
            parameter: The parameter.

        Returns:
            The parameter's present value; methods may begin elsewhere.
        """
        del name
        return empty_twin(parameter).copy_(parameter)

    def _adopt_group(self, group: dict[str, Any]) -> None:
        super()._adopt_group(group)
        with torch.no_grad():
            for name in self.own:
                owned = self._held.tensors.setdefault(name, {})
                owned.update({p: self._fresh_tensor(name, p) for p in group["params"] if p not in owned})

    def _own(self, name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return parameters and their own tensors, where the parameters are by now.

        Args:
            name: Name of the own tensors.

        Returns:
            Two lists in the same order.
        """
        owned = self._held.tensors[name]
        for parameter, tensor in owned.items():
            if tensor.device != parameter.device or tensor.dtype != parameter.dtype:  # the model was moved
                owned[parameter] = tensor.to(parameter.device, parameter.dtype)
        return list(owned), list(owned.values())

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_optimizer_", "_zero_grad", "_warned", "_opt_called", "_model", "step")
        return {key: value for key, value in vars(self).items() if not key.startswith(dropped)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._model = None  # a copy's parameters belong to another model, or to none
        super().__setstate__(state)

    # The model.

    def _modules(self) -> list[nn.Module]:
        scratch = self._held.scratch
        if scratch.finder is None:
            scratch.finder = ModelFinder(self._model)
        return scratch.finder.modules(list(self._held.parameters()))

    def recalibrate(self, loader: Iterable[Any], model: nn.Module | None = None) -> int:
        """Renew the batch-norm statistics that go with the weights now in the model.

        In evaluation mode the statistics of the trained weights come back with ``train()``.

        Args:
            loader: Batches in a fixed order, in any form that Lowland takes.
            model: The model; None takes the one given to the constructor, or found by its parameters.

        Returns:
            Number of batches used; 0 if the model keeps no statistics.

        Raises:
            InputError: If the model is not known, or there are no batches.
        """
        known = [model] if model is not None else self._modules()
        if len(known) != 1:
            raise InputError("model", "must be given: the parameters do not tell which", len(known))
        scratch = self._held.scratch
        if self._held.evaluating and not scratch.trained_buffers:
            scratch.trained_buffers = {b: b.detach().clone() for b in known[0].buffers()}
        target = unwrap(known[0])
        device = next(iter(self._held.parameters())).device
        return renew_statistics(target, (as_batch(raw).to(device) for raw in loader))
