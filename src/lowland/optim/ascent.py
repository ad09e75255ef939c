"""The two-pass step: gradients at the weights, a move uphill, gradients there, and an exact return.

Deviations from the papers:

1. The ascent is rho g / ||g|| without an added constant, and 0 where the norm is 0 or not finite, so that the scale of
   the loss (GradScaler's included) does not change a bit.
2. The weights come back from a saved copy; subtracting the move would drift and would keep an infinity for ever.
3. A first pass that overflowed leaves NaN in the step's gradients, so that a scaler skips the step; the papers' code
   would take a plain one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.contexts import held_interrupts, perturbed_pass
from lowland.core.errors import InputError, LowlandWarning, MissingPass
from lowland.optim.holder import Holder
from lowland.optim.moves import ascend, copy_all, lost_share, shards
from lowland.optim.parts import Method
from lowland.optim.passes import Entry, entries_of, noise_state, owned, parts_of, replayed, unsynced, world_size
from lowland.optim.phases import Phase

__all__ = ["first_pass", "perturbed", "run_closure"]

_CLEAR = "clear gradients by optimizer.zero_grad()"


@contextmanager
def first_pass(held: Holder, model: nn.Module | None) -> Generator[None, None, None]:
    """Mark a first forward and backward pass."""
    scratch, options = held.scratch, held.options
    _notice_cleared(held, writes=1)
    if not (scratch.phase is Phase.READY and options.ascent == "micro-batch"):
        held.require("first_pass()")
    if not held.wants_pass():
        yield
        return
    with ExitStack() as stack:
        if options.distributed == "local" and world_size() > 1:
            stack.enter_context(unsynced(scratch.model if model is None else model))
        if scratch.phase is Phase.READY:
            for parameter in held.parameters():
                if parameter.grad is not None:
                    scratch.aside[parameter] = owned(parameter.grad)
                    parameter.grad = None
        if options.rng == "replay" and not (options.ascent == "step" and scratch.random):
            scratch.random = noise_state(held.parameters())
        scratch.phase = Phase.FIRST
        try:
            yield
        except BaseException:
            scratch.phase = Phase.GATHERING
            raise
        if scratch.phase is Phase.FIRST:  # a closure may have run both passes
            scratch.phase = Phase.MARKED


def _notice_cleared(held: Holder, *, writes: int) -> None:
    """Begin a new step if gradients were cleared behind the optimizer's back, as after a scaler's skip."""
    # Cleared gradients are gone, or were written to more often than by the backward pass that may have come since.
    scratch = held.scratch
    if scratch.phase is Phase.READY:
        written = scratch.writes()
        if written is None or written >= writes:
            scratch.forget()


@contextmanager
def perturbed(held: Holder) -> Generator[None, None, None]:
    """Move the weights uphill along the present gradients, and bring them back bit for bit at the end."""
    _check_may_perturb(held)
    scratch, method = held.scratch, held.method
    assert method is not None
    step = held.steps
    entries = entries_of(held.groups(), lambda group: method.radius(group, step), held.options.moves)
    scratch.phase = Phase.PERTURBED
    try:
        with ExitStack() as stack:
            if held.options.batch_norm == "first":
                trainable = [p for p in held.parameters() if p.requires_grad]
                stack.enter_context(scratch.buffers.kept(scratch.model, trainable))
            stack.callback(_come_back, held)
            _go_up(held, method, entries)
            del entries  # or the first gradients would live on through the second pass, in the way of its memory
            if held.options.rng == "replay":
                stack.enter_context(replayed(scratch.random))
            stack.enter_context(perturbed_pass())
            yield
        _finish(held, method)
    except BaseException:
        scratch.phase = Phase.GATHERING
        held.clear()
        raise
    scratch.phase = Phase.READY
    scratch.watch(held.parameters())


def _check_may_perturb(held: Holder) -> None:
    scratch, options = held.scratch, held.options
    _notice_cleared(held, writes=2)
    if scratch.phase is not Phase.PERTURBED and not held.evaluating and not held.wants_pass():
        raise InputError(
            "perturb()",
            "must not be entered when the step wants no second pass",
            held.steps,
            "ask needs_perturbation() first",
        )
    held.require("perturb()")
    marked = scratch.phase in (Phase.FIRST, Phase.MARKED)
    if options.rng == "replay" and not marked:
        raise InputError("rng", '"replay" needs the first pass inside first_pass()', "replay")
    if options.distributed == "local" and world_size() > 1:
        if not marked:
            raise InputError("distributed", '"local" needs the first pass inside first_pass(model)', "local")
        if scratch.phase is Phase.FIRST:
            raise InputError(
                "perturb()", 'must be entered after first_pass(model) under distributed="local"', "inside",
                "the second pass would not be synced",
            )  # fmt: skip
    if not scratch.aside and scratch.untouched(held.parameters()):
        raise MissingPass(
            "`perturb()` found no gradient of a first pass, along which to move; nothing was changed: run the first "
            "forward and backward pass after zero_grad() and before `with optimizer.perturb():`"
        )


@torch.no_grad()
def _go_up(held: Holder, method: Method, entries: list[Entry]) -> None:
    scratch = held.scratch
    parameters = [entry.parameter for entry in entries]
    copies = [held.backup(parameter) for parameter in parameters]
    low = any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters) and not scratch.warned
    with held_interrupts():
        copy_all(copies, parameters)
        scratch.moved, scratch.norms, scratch.watched = (parameters, copies), [], {}
        _move(held, method, entries, consume=not method.keeps_first and not low)
        if method.keeps_first:
            scratch.first = {p: owned(p.grad) for p in held.parameters() if p.grad is not None}
            everything = held.options.weight_decay == "excluded" and held.options.distributed == "synced"
            whole = everything and len(scratch.norms) == 1 and len(entries) == len(scratch.first)
            scratch.norm = scratch.norms[0] if whole else None
        if low:
            _warn_of_rounding(held, entries, copies)
        for parameter in held.parameters():
            parameter.grad = None if method.combines else scratch.aside.get(parameter)
        if scratch.aside and not method.combines:
            scratch.watch(held.parameters())
        torch.clear_autocast_cache()


def _move(held: Holder, method: Method, entries: list[Entry], *, consume: bool) -> None:
    for part in parts_of(entries, held.options.norm):
        gradients = [entry.gradient for entry in part]
        parameters = [entry.parameter for entry in part]
        if held.options.weight_decay == "included":
            gradients = [g.add(p, alpha=e.decay) for g, p, e in zip(gradients, parameters, part, strict=True)]
        directions, norm = method.direction(parameters, gradients)
        held.scratch.norms.append(norm)
        for rho in dict.fromkeys(entry.rho for entry in part):
            chosen = [i for i, entry in enumerate(part) if entry.rho == rho]
            ascend([parameters[i] for i in chosen], [directions[i] for i in chosen], norm, rho, consume=consume)


def _warn_of_rounding(held: Holder, entries: list[Entry], copies: list[Tensor]) -> None:
    held.scratch.warned = True
    share = lost_share(copies, [e.parameter for e in entries], [e.gradient for e in entries])
    if share > 0.5:
        warnings.warn(
            f"rounding swallows {share:.0%} of the ascent in {entries[0].parameter.dtype} weights; keep float32 "
            f"weights and use autocast, or raise rho",
            LowlandWarning,
            stacklevel=5,
        )


def _come_back(held: Holder) -> None:
    with held_interrupts():
        copy_all(*held.scratch.moved)
        held.scratch.moved = [], []
        torch.clear_autocast_cache()


@torch.no_grad()
def _finish(held: Holder, method: Method) -> None:
    scratch = held.scratch
    if (scratch.norms or not scratch.aside) and scratch.untouched(held.parameters()):
        raise MissingPass(
            "no backward pass ran inside `with optimizer.perturb():`, so that the step has no gradient at the "
            "perturbed weights; weights are back, gradients are cleared: run the second forward and backward pass "
            "inside the block"
        )
    if method.combines:
        _combine(held, method)
    elif method.keeps_first:
        for parameter, gradient in scratch.first.items():
            if parameter in scratch.kept:
                scratch.kept[parameter].add_(gradient)
            else:
                scratch.kept[parameter] = gradient
    scratch.first = {}
    _carry_overflow(held)
    if method.combines and scratch.aside:
        held.average(list(scratch.aside.values()))  # what was combined before was not synced since
        for parameter, gradient in scratch.aside.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _combine(held: Holder, method: Method) -> None:
    first = held.scratch.first
    parameters = [p for p in held.parameters() if p in first or p.grad is not None]
    for parameter in parameters:  # a pass that did not reach a parameter has the gradient 0 there
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter not in first:
            first[parameter] = torch.zeros_like(parameter)
    plain = [first[p] for p in parameters]
    if held.options.distributed == "local":
        held.average(plain)  # else every rank would take another step
    method.combine(plain, [p.grad for p in parameters if p.grad is not None], held.scratch.norm)


def _carry_overflow(held: Holder) -> None:
    """Spoil the step's gradients if a norm of the first pass was not finite; the host never learns which."""
    # Minus zero is the number that changes no bit of what it is added to; times infinity it is NaN. It is added to the
    # smallest gradient, since a scaler skips the step for any.
    gradients = shards(p.grad for p in held.parameters() if p.grad is not None and p.grad.layout == torch.strided)
    gradients = [gradient for gradient in gradients if gradient.numel()]
    norms = held.scratch.norms
    if gradients and norms:
        target = min(gradients, key=Tensor.numel)
        norm = norms[0] if len(norms) == 1 else torch.stack([n.to(norms[0].device) for n in norms]).sum()
        target.add_(norm.to(target.device) * -0.0)


@torch.enable_grad()
def run_closure(held: Holder, closure: Callable[[], Any]) -> Any:
    """Run a closure as often as the coming step wants, at the weights it wants; return the first loss."""
    scratch = held.scratch
    if scratch.driven or not held.wants_pass():
        with scratch.buffers.meeting(scratch.model, list(held.parameters())):
            return closure()
    if scratch.phase is Phase.READY and scratch.writes() is not None:  # the passes were run by hand
        scratch.watch(held.parameters())
        loss = closure()
        if scratch.phase is Phase.READY and scratch.untouched(held.parameters()):
            return loss
        raise InputError("step(closure)", "must do nothing after perturb(): the passes are done", advice=_CLEAR)
    before = [(p, p.grad) for p in held.parameters() if p.grad is not None]
    zeroings = scratch.zeroings
    with first_pass(held, None):
        set_aside = bool(scratch.aside)
        loss = closure()
    if scratch.phase is Phase.READY or not (scratch.aside or held.has_gradients()):
        return loss  # the closure ran both passes, or none
    if not set_aside and zeroings == scratch.zeroings and any(p.grad is gradient for p, gradient in before):
        raise InputError(
            "step(closure)",
            "must not find gradients of earlier micro-batches: the second pass would lose them",
            advice=f"{_CLEAR} in the closure, or run each micro-batch inside first_pass() and perturb()",
        )
    with perturbed(held):
        closure()
    return loss
