"""The two-pass step: gradients at the weights, a move uphill, gradients there, and an exact return.

Shared by every method that asks for a second forward and backward pass at perturbed weights.

Deviations from the papers:

1. The ascent is rho g / ||g|| without an added constant, and 0 where the norm is 0 or not finite, so that the scale of
   the loss (GradScaler's included) does not change a bit.
2. The weights come back from a saved copy; subtracting the move would drift and would keep an infinity for ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from lowland.core.contexts import held_interrupts, perturbed_pass
from lowland.core.errors import InputError, LowlandWarning, MissingPass
from lowland.optim.bases import Base
from lowland.optim.buffers import buffers_kept
from lowland.optim.moves import ascend, copy_all, empty_twin, joint_norm, lost_share
from lowland.optim.options import AscentKeywords, AscentOptions, check_rho
from lowland.optim.passes import (
    Entry,
    average_over_ranks,
    entries_of,
    noise_state,
    parts_of,
    replayed,
    unshared,
    unsynced,
    world_size,
)
from lowland.optim.wrapper import Wrapper

__all__ = ["Ascent"]


class Ascent(Wrapper):
    """Base of the methods with a second pass at perturbed weights.

    A method's hooks: ``_wants_pass`` (asked any time before a step; changes nothing), ``_direction`` (on entering
    ``perturb()``, once per norm; may overwrite gradients unless ``keeps_first``), ``_after_second`` (on leaving it,
    with ``keeps_first``; may change gradients). Weights are moved, kept and brought back here alone.

    Args:
        base: An optimizer instance, or several under one norm.
        rho: Length of the ascent; also ``rho`` in a parameter group, where 0 leaves the group out of it.
        model: The model whose buffers are protected; None finds it by its parameters.
        **options: How the step behaves, see `AscentOptions`.

    Raises:
        InputError: If ``rho`` is negative, or local ascent is asked for sharded parameters.
    """

    keeps_first: ClassVar[bool] = False
    """Whether the method uses the first pass's gradients again after the second pass."""

    combines: ClassVar[bool] = False
    """Whether the method rewrites each micro-batch's gradient, so that earlier ones join it only afterwards."""

    def __init__(
        self, base: Base, rho: float, *, model: nn.Module | None = None, **options: Unpack[AscentKeywords]
    ) -> None:
        self.rho = check_rho(rho)
        self.options = AscentOptions(**options)
        super().__init__(base, model=model)

    def _check_group(self, group: Any) -> None:
        super()._check_group(group)
        check_rho(group.get("rho", 0.0))
        listed = group["params"]
        if self.options.distributed == "local" and any(
            hasattr(p, "device_mesh") for p in ([listed] if isinstance(listed, Tensor) else list(listed))
        ):
            raise InputError(
                "distributed", "must be \"synced\" for sharded (FSDP2) parameters", "local",
                "no rank holds a whole gradient of its own there",
            )  # fmt: skip

    def _adopt_group(self, group: dict[str, Any]) -> None:
        super()._adopt_group(group)
        group.setdefault("rho", self.rho)

    # Which step wants a second pass.

    def _factor(self) -> float:
        schedule = self.options.schedule
        return 1.0 if schedule is None else float(schedule(self.steps))

    def _radius(self, group: dict[str, Any]) -> float:
        return float(group.get("rho", self.rho)) * self._factor()

    def needs_perturbation(self) -> bool:
        """Tell whether the coming step wants a second pass at perturbed weights.

        Returns:
            True if ``perturb()`` has to be entered before ``step()``; without a closure.
        """
        options, step = self.options, self.steps
        if step < options.start or (options.stop is not None and step >= options.stop):
            return False
        if (step - options.start) % options.interval:
            return False
        return any(self._radius(group) > 0 for group in self.param_groups) and self._wants_pass()

    def _wants_pass(self) -> bool:
        """Tell whether the method itself wants a second pass in a step that may have one.

        Returns:
            True here; methods with a period know better.
        """
        return True

    # The passes.

    @contextmanager
    def first_pass(self, model: nn.Module | None = None) -> Generator[None, None, None]:
        """Mark a first forward and backward pass.

        Needed with several micro-batches under ``ascent="micro-batch"`` (earlier gradients are held aside), under
        ``distributed="local"`` (the pass runs in the model's ``no_sync()``) and with ``rng="replay"``; allowed always.

        Args:
            model: The DDP model, for local ascent; None takes the one given to the constructor.

        Yields:
            Nothing.

        Raises:
            InputError: Inside ``perturb()``, after it under ``ascent="step"``, or for local ascent without the model.
        """
        scratch = self._held.scratch
        if scratch.inside:
            raise InputError("first_pass()", "must not be entered inside perturb()")
        if not self.needs_perturbation():
            yield
            return
        with ExitStack() as stack:
            if self.options.distributed == "local" and world_size() > 1:
                stack.enter_context(unsynced(self._model if model is None else model))
            self._hold_aside()
            if self.options.rng == "replay" and not (self.options.ascent == "step" and scratch.random):
                scratch.random = noise_state(self._held.parameters())
            scratch.marked = scratch.in_first = True
            try:
                yield
            finally:
                scratch.in_first = False

    def _hold_aside(self) -> None:
        scratch = self._held.scratch
        if not scratch.ready:
            return
        if not self._second_gradients_present():
            scratch.forget()  # the step was skipped, and its gradients cleared
            return
        if self.options.ascent == "step":
            raise InputError(
                "first_pass()", "must come before perturb() under ascent=\"step\"",
                advice="accumulate all first passes, then all second passes; or pass ascent=\"micro-batch\"",
            )  # fmt: skip
        for parameter in self._held.parameters():
            if parameter.grad is not None:
                scratch.aside[parameter] = unshared(parameter.grad)
                parameter.grad = None
        scratch.ready = False

    def _second_gradients_present(self) -> bool:
        witness = self._held.scratch.witness
        return witness is not None and witness[1] is not None and witness[0].grad is witness[1]

    @contextmanager
    def perturb(self) -> Generator[None, None, None]:
        """Move the weights uphill along the present gradients, and bring them back bit for bit at the end.

        Inside, gradients are clear (or hold earlier micro-batches'), and the second forward and backward pass runs as
        the first did: under the same autocast, scaler and accumulation.

        Yields:
            Nothing.

        Raises:
            InputError: If no second pass is wanted, ``perturb()`` is open already, or the step is not at that point;
                nothing was changed.
        """
        self._check_may_perturb()
        held, scratch = self._held, self._held.scratch
        entries = entries_of(self.param_groups, self._radius)
        scratch.inside = True
        try:
            with ExitStack() as stack:
                if self.options.batch_norm == "first":
                    stack.enter_context(buffers_kept(self._modules(), scratch.buffers))
                stack.callback(self._come_back)
                self._go_up(entries)
                del entries  # or the first gradients would live on through the second pass, in the way of its memory
                if self.options.rng == "replay":
                    stack.enter_context(replayed(scratch.random))
                stack.enter_context(perturbed_pass())
                yield
            if self.keeps_first:
                self._finish_first()
        except BaseException:
            scratch.inside = False
            self.zero_grad()
            raise
        scratch.inside = False
        scratch.ready, scratch.marked = True, False
        last = next((p for p in held.parameters() if p.grad is not None), None)
        scratch.witness = None if last is None else (last, last.grad)

    def _check_may_perturb(self) -> None:
        held, scratch = self._held, self._held.scratch
        rule = "must not be entered"
        if scratch.inside:
            raise InputError("perturb()", f"{rule} while it is open", advice="do not mix it with first_step()")
        if held.evaluating:
            raise InputError("perturb()", f"{rule} in evaluation mode", advice="call optimizer.train() first")
        if not self.needs_perturbation():
            raise InputError(
                "perturb()", f"{rule} when the step wants no second pass", self.steps, "ask needs_perturbation() first"
            )
        if scratch.ready and self._second_gradients_present():
            raise InputError(
                "perturb()", f"{rule} twice in a step as it stands",
                advice="with several micro-batches pass ascent=\"micro-batch\" and run each first pass inside "
                "first_pass(); else clear gradients by optimizer.zero_grad()",
            )  # fmt: skip
        if scratch.ready:
            scratch.forget()
        if self.options.rng == "replay" and not scratch.marked:
            raise InputError("rng", '"replay" needs the first pass inside first_pass()', "replay")
        if self.options.distributed == "local" and world_size() > 1 and not scratch.marked:
            raise InputError("distributed", '"local" needs the first pass inside first_pass(model)', "local")

    @torch.no_grad()
    def _go_up(self, entries: list[Entry]) -> None:
        scratch = self._held.scratch
        parameters = [entry.parameter for entry in entries]
        copies = [self._backup(parameter) for parameter in parameters]
        with held_interrupts():
            copy_all(copies, parameters)
            scratch.moved = parameters, copies
            self._move(entries)
            if self.keeps_first:
                scratch.first = {p: p.grad for p in self._held.parameters() if p.grad is not None}
            self._warn_of_rounding(entries, copies)
            for parameter in self._held.parameters():
                parameter.grad = None if self.combines else scratch.aside.get(parameter)

    def _backup(self, parameter: Tensor) -> Tensor:
        backup = self._held.scratch.backup
        copy = backup.get(parameter)
        if copy is None or copy.device != parameter.device or copy.dtype != parameter.dtype:
            copy = backup[parameter] = empty_twin(parameter)
        return copy

    def _move(self, entries: list[Entry]) -> None:
        for part in parts_of(entries, self.options.norm):
            gradients = [entry.gradient for entry in part]
            parameters = [entry.parameter for entry in part]
            if self.options.weight_decay == "included":
                gradients = [g.add(p, alpha=e.decay) for g, p, e in zip(gradients, parameters, part, strict=True)]
            directions, norm = self._direction(parameters, gradients)
            for rho in dict.fromkeys(entry.rho for entry in part):
                chosen = [i for i, entry in enumerate(part) if entry.rho == rho]
                ascend(
                    [parameters[i] for i in chosen], [directions[i] for i in chosen], norm, rho,
                    consume=not self.keeps_first and not self._may_warn(part),
                )  # fmt: skip

    def _direction(self, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Compute where to go and the norm to divide by; may overwrite the gradients unless the method keeps them.

        Args:
            parameters: What will be moved.
            gradients: Their gradients.

        Returns:
            One direction per parameter, and a scalar.
        """
        return gradients, joint_norm(gradients)

    def _may_warn(self, entries: list[Entry]) -> bool:
        low = (torch.bfloat16, torch.float16)
        return not self._held.scratch.warned and any(entry.parameter.dtype in low for entry in entries)

    def _warn_of_rounding(self, entries: list[Entry], copies: list[Tensor]) -> None:
        if not self._may_warn(entries):
            return
        self._held.scratch.warned = True
        share = lost_share(copies, [e.parameter for e in entries], [e.gradient for e in entries])
        if share > 0.5:
            warnings.warn(
                f"rounding swallows {share:.0%} of the ascent in {entries[0].parameter.dtype} weights; keep float32 "
                f"weights and use autocast, or raise rho",
                LowlandWarning,
                stacklevel=4,
            )

    def _come_back(self) -> None:
        scratch = self._held.scratch
        with held_interrupts():
            copy_all(*scratch.moved)
            scratch.moved = [], []

    @torch.no_grad()
    def _finish_first(self) -> None:
        scratch = self._held.scratch
        self._after_second()
        scratch.first = {}
        if not self.combines:
            return
        self._average(list(scratch.aside.values()))  # what was combined before was not synced since
        for parameter, gradient in scratch.aside.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over the ranks of the distributed model."""
        if world_size() > 1:
            groups = [getattr(module, "process_group", None) for module in self._modules()]
            average_over_ranks(tensors, next((group for group in groups if group is not None), None))

    def _after_second(self) -> None:
        """Use the first pass's gradients, for methods that keep them."""

    # The closure.

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        scratch = self._held.scratch
        if scratch.driven or not self.needs_perturbation():
            return super()._run_closure(closure)
        before = [(p, p.grad) for p in self._held.parameters() if p.grad is not None]
        zeroings = scratch.zeroings
        with self.first_pass():
            set_aside = bool(scratch.aside)
            loss = super()._run_closure(closure)
        if scratch.ready:  # the closure ran both passes
            return loss
        kept = zeroings == scratch.zeroings and any(p.grad is gradient for p, gradient in before)
        if kept and not set_aside:
            raise InputError(
                "step(closure)", "must not find gradients of earlier micro-batches: the second pass would lose them",
                advice="clear gradients by optimizer.zero_grad() in the closure, or run the passes of each micro-batch "
                "inside first_pass() and perturb()",
            )  # fmt: skip
        with self.perturb():
            super()._run_closure(closure)
        return loss

    def _check_passes(self) -> None:
        scratch = self._held.scratch
        if scratch.ready or self.options.allow_plain or not self.needs_perturbation():
            return
        raise MissingPass(
            f"step {self.steps} of {type(self).__name__} wanted a second pass and got none; nothing was changed: run "
            f"the second forward and backward pass inside `with optimizer.perturb():` when needs_perturbation() is "
            f"True, or call step(closure)"
        )

    # The names of the common SAM port.

    def first_step(self, zero_grad: bool = False) -> None:
        """Open ``perturb()`` without a with block; for loops written for the common SAM port.

        Args:
            zero_grad: Taken for compatibility; gradients are clear in any case.
        """
        del zero_grad
        stack = ExitStack()
        stack.enter_context(self.perturb())
        self._held.scratch.steps_inside = stack

    def second_step(self, zero_grad: bool = False) -> None:
        """Close what ``first_step()`` opened, and step.

        Args:
            zero_grad: Clear the gradients afterwards.

        Raises:
            InputError: If ``first_step()`` did not come before.
        """
        stack = self._held.scratch.steps_inside
        if stack is None:
            raise InputError("second_step()", "must follow first_step()", advice="do not mix it with perturb()")
        self._held.scratch.steps_inside = None
        stack.close()
        self.step()
        if zero_grad:
            self.zero_grad()
