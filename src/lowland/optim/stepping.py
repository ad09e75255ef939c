"""One step: the closure's passes, the parts around the base's step, and the form that the common SAM port has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final
from weakref import ref

import torch

from lowland.core.errors import InputError, MissingPass
from lowland.optim.ascent import first_pass, perturbed
from lowland.optim.holder import Holder
from lowland.optim.phases import Phase

_CLEAR = "clear gradients by optimizer.zero_grad()"

_IN_TRAINERS: Final = "in a trainer add LightningCallback, TrainerMixin or AcceleratePasses of lowland.integrations"


def take_step(held: Holder, closure: Callable[[], Any] | None, name: str) -> Any:
    """Take one step, or none where it wanted a second pass and got none."""
    held.require("step()")
    if closure is None and held.is_initializing():
        with torch.no_grad():
            held.begin()
        _base_step(held)
        return None
    loss = None if closure is None else run_closure(held, closure)
    skipped = closure is not None and not held.has_gradients()  # a trainer leaves a batch out
    if not (held.phase is Phase.READY or skipped or held.options.allow_plain) and held.wants_pass():
        raise MissingPass(
            f"step {held.steps} of {name} wanted a second pass and got none; nothing was changed: run the second "
            f"forward and backward pass inside `with optimizer.perturb():` when needs_perturbation() is True, or call "
            f"step(closure); {_IN_TRAINERS}"
        )
    try:
        with torch.no_grad():
            held.begin()
            held.average_kept()
            for part in held.parts:
                part.prepare(held)
            _base_step(held)
            held.numbers["steps"] += 1
            for part in held.parts:
                part.commit(held)
    finally:  # whatever failed, the next step begins anew
        held.scratch.forget()
        torch.clear_autocast_cache()
    return loss


def _base_step(held: Holder) -> None:
    for base in held.bases:
        base.step()
    held.stepped = True


def open_pass(held: Holder) -> None:
    """Enter the perturbed pass without a with block."""
    scratch = held.scratch
    stale, scratch.opened = scratch.opened, None
    if stale is not None:  # an exception came between the two
        advice = "the weights are back: begin the step anew"
        with stale:
            raise InputError("first_step()", "must be followed by second_step()", advice=advice)
    stack = ExitStack()
    stack.enter_context(perturbed(held))
    scratch.opened = stack


def close_pass(held: Holder) -> None:
    """Leave the perturbed pass that was opened without a with block."""
    stack, held.scratch.opened = held.scratch.opened, None
    if stack is None:
        raise InputError("second_step()", "must follow first_step()", advice="do not mix it with perturb()")
    stack.close()


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
    before = [(p, ref(p.grad)) for p in held.parameters() if p.grad is not None]  # to hold them would take memory
    zeroings = scratch.zeroings
    with first_pass(held, None):
        set_aside = bool(scratch.aside)
        loss = closure()
    if scratch.phase is Phase.READY or not (scratch.aside or held.has_gradients()):
        return loss  # the closure ran both passes, or none
    if (
        not set_aside
        and zeroings == scratch.zeroings
        and any(p.grad is not None and p.grad is seen() for p, seen in before)
    ):
        rule = "must not find gradients of earlier micro-batches: the second pass would lose them"
        advice = f"{_CLEAR} in the closure, or run each inside first_pass() and perturb(); {_IN_TRAINERS}"
        raise InputError("step(closure)", rule, advice=advice)
    with perturbed(held):
        closure()
    return loss
