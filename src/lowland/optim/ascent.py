"""The two-pass step: gradients at the weights, a move uphill, gradients there, and an exact return.

Deviations from the papers:

1. The ascent is rho g / ||g|| without an added constant, and 0 where the norm is 0 or not finite, so that a scale of
   the loss that is a power of two, as GradScaler's is, does not change a bit; any other one rounds otherwise.
2. The weights come back from a saved copy; subtracting the move would drift and would keep an infinity for ever.
3. A first pass that overflowed leaves NaN in the step's gradients, so that a scaler skips the step; the papers' code
   would take a plain one.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lowland.core.contexts import perturbed_pass
from lowland.core.errors import InputError, LowlandWarning, MissingPass, require
from lowland.core.interrupts import held_interrupts
from lowland.optim.holder import Holder
from lowland.optim.moves import ascend, copy_all, lost_share, shards
from lowland.optim.parts import Method
from lowland.optim.passes import Entry, both_gradients, entries_of, noise_state, own_gradients, replayed
from lowland.optim.phases import Phase
from lowland.optim.ranks import unsynced, world_size


@contextmanager
def first_pass(held: Holder, model: nn.Module | None) -> Generator[None, None, None]:
    """Mark a first forward and backward pass."""
    scratch, options = held.scratch, held.options
    scratch.group = getattr(model, "process_group", scratch.group)
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
            scratch.aside = {}  # it holds what is ready, too
            own_gradients(held, held.parameters())
            scratch.aside = {p: p.grad for p in held.parameters() if p.grad is not None}
            for parameter in scratch.aside:
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
    own_gradients(held, held.parameters())  # first gradients are overwritten
    sets = entries_of(held, method)
    scratch.phase = Phase.PERTURBED
    try:
        with ExitStack() as stack:
            if held.options.batch_norm == "first":
                trainable = [p for p in held.parameters() if p.requires_grad]
                stack.enter_context(scratch.buffers.kept(scratch.model, trainable))
            stack.callback(_come_back, held)
            _go_up(held, method, sets)
            del sets  # or the first gradients would live on through the second pass, in the way of its memory
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
    held.require("perturb()")
    rule = "must not be entered when the step wants no second pass"
    require(held.wants_pass(), "perturb()", rule, held.steps, "ask needs_perturbation() first")
    marked, local = scratch.phase in (Phase.FIRST, Phase.MARKED), options.distributed == "local" and world_size() > 1
    require(options.rng != "replay" or marked, "rng", '"replay" needs the first pass inside first_pass()', "replay")
    require(not local or marked, "distributed", '"local" needs the first pass inside first_pass(model)', "local")
    if local and scratch.phase is Phase.FIRST:
        rule = 'must be entered after first_pass(model) under distributed="local"'
        raise InputError("perturb()", rule, "inside", "the second pass would not be synced")
    if not scratch.aside and scratch.untouched(held.parameters()):
        raise MissingPass(
            "`perturb()` found no gradient of a first pass, along which to move; nothing was changed: run the first "
            "forward and backward pass after zero_grad() and before `with optimizer.perturb():`"
        )


@torch.no_grad()
def _go_up(held: Holder, method: Method, sets: list[list[Entry]]) -> None:
    scratch, entries = held.scratch, [entry for one in sets for entry in one]
    parameters = [entry.parameter for entry in entries]
    copies = [held.backup(parameter) for parameter in parameters]
    low = not {p.dtype for p in parameters}.isdisjoint((torch.bfloat16, torch.float16)) and not scratch.warned
    with held_interrupts():
        copy_all(copies, parameters)
        scratch.moved, scratch.norms = (parameters, copies), []
        _move(held, method, sets, consume=not method.keeps_first and not low)
        if method.keeps_first:
            scratch.first = held.gradients()
            everything = held.options.weight_decay == "excluded" and held.options.distributed == "synced"
            whole = everything and len(scratch.norms) == 1 and len(entries) == len(scratch.first)
            scratch.norm = scratch.norms[0] if whole else None
        if low:
            _warn_of_rounding(held, entries, copies)
        for parameter in held.parameters():
            parameter.grad = None
        if not method.combines:
            for parameter, gradient in scratch.aside.items():
                parameter.grad = gradient
            scratch.watch(scratch.aside)
        torch.clear_autocast_cache()


def _move(held: Holder, method: Method, sets: list[list[Entry]], *, consume: bool) -> None:
    for part in sets:
        gradients = [entry.gradient for entry in part]
        parameters = [entry.parameter for entry in part]
        if held.options.weight_decay == "included":
            gradients = [g.add(p, alpha=e.decay) for g, p, e in zip(gradients, parameters, part, strict=True)]
        directions, norm = method.direction(held, parameters, gradients)
        held.scratch.norms.append(norm)
        for rho in dict.fromkeys(entry.rho for entry in part):
            chosen = [i for i, entry in enumerate(part) if entry.rho == rho]
            ascend([parameters[i] for i in chosen], [directions[i] for i in chosen], norm, rho, consume=consume)


def _warn_of_rounding(held: Holder, entries: list[Entry], copies: list[Tensor]) -> None:
    held.scratch.warned = True
    share = lost_share(copies, [e.parameter for e in entries], [e.gradient for e in entries])
    if share > 0.5:
        lost = f"rounding swallows {share:.0%} of the ascent in {entries[0].parameter.dtype} weights"
        warnings.warn(f"{lost}; keep float32 weights and use autocast, or raise rho", LowlandWarning, stacklevel=5)


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
        for p, gradient in scratch.first.items():
            scratch.kept[p] = scratch.kept[p].add_(gradient) if p in scratch.kept else gradient
    scratch.first = {}
    _carry_overflow(held)
    scratch.perturbations += 1
    if method.combines and scratch.aside:
        held.average(list(scratch.aside.values()))  # what was combined before was not synced since
        for parameter, gradient in scratch.aside.items():
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
    if method.measures:
        scratch.length = held.length()


def _combine(held: Holder, method: Method) -> None:
    plain, perturbed_ones = both_gradients(held, held.scratch.first)
    if held.options.distributed == "local":
        held.average(plain)  # else every rank would take another step
    combined = method.combine(plain, perturbed_ones, held.scratch.norm)
    for parameter, gradient in zip(held.gradients(), combined, strict=True):
        parameter.grad = gradient


def _carry_overflow(held: Holder) -> None:
    """Spoil the step's gradients if a norm of the first pass was not finite; the host never learns which."""
    # Minus zero is the number that changes no bit of what it is added to; times infinity it is NaN. It is added to the
    # smallest gradient, since a scaler skips the step for any.
    norms = held.scratch.norms
    dense = list(held.gradients()) if norms else []
    sizes = [part.numel() for part in shards(dense)]
    smallest = min(filter(None, sizes), default=None)
    if smallest is not None:
        parameter = dense[sizes.index(smallest)]
        own_gradients(held, [parameter])
        assert parameter.grad is not None
        target = shards([parameter.grad])[0]
        norm = norms[0] if len(norms) == 1 else torch.stack([n.to(norms[0].device) for n in norms]).sum()
        target.add_(norm.to(target.device) * -0.0)
