"""Rules of sharpness-aware optimizers: how groups come, ambient state, storage, and other optimizers beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from lowland.core.contexts import same_bits
from lowland.testing import ambient
from lowland.testing.adapters import OptimizerAdapter
from lowland.testing.networks import bits, flat, mlp
from lowland.testing.problems import BASES, Training
from lowland.testing.rulebook import demand, rule


@rule("Torch's own optimizers take ``model.parameters()`` in a group; a wrapper that looks first leaves it empty.")
def groups_take_generators(adapter: OptimizerAdapter) -> None:
    """Parameters of a group may come from a generator."""
    training = Training(adapter)
    model = mlp()
    training.model = model
    training.optimizer = adapter.make(model, [{"params": (p for p in model.parameters())}], *BASES["sgd"])
    before = [p.detach().clone() for p in model.parameters()]
    training.run(0, 4)
    still = [tuple(p.shape) for p, old in zip(model.parameters(), before, strict=True) if torch.equal(p, old)]
    demand(not still, f"parameters of the shapes {still} are not trained")


def _shielded(training: Training, index: int, after: Callable[[int], None] | None = None) -> Callable[[], Any]:
    """Return a closure that computes the loss the same way whatever is around the step."""
    run = training.closure(index, after)

    def shielded() -> Any:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            return run()

    return shielded


@rule("A norm taken under autocast has three digits; a number made under another default lies on another device.")
def step_ignores_surroundings(adapter: OptimizerAdapter) -> None:
    """Under ``no_grad``, autocast, deterministic algorithms and other defaults a step gives the same bits."""
    plain = Training(adapter)
    plain.run(0, 3)
    for name, around in ambient.SURROUNDINGS.items():
        inside = Training(adapter)
        for index in range(3):
            with around():
                inside.seen = []
                adapter.step(inside.model, inside.optimizer, _shielded(inside, index))
        gap = float((flat(plain.model) - flat(inside.model)).abs().max())
        demand(gap == 0, f"under {name} three steps end {gap:.2g} away")


@rule("A step that leaves gradients off, or a flag set, changes what the rest of the loop computes.")
def step_leaves_surroundings(adapter: OptimizerAdapter) -> None:
    """After a step, and after one that failed, grad mode, autocast, defaults and flags are as before."""

    def fail(number: int) -> None:
        if number > 1:
            raise ArithmeticError("second pass")

    for name, around in ({"gradients": torch.enable_grad} | ambient.SURROUNDINGS).items():
        for after in (None, fail):
            training = Training(adapter)
            with around():
                before = ambient.read(randomness=False)
                with suppress(ArithmeticError):
                    adapter.step(training.model, training.optimizer, _shielded(training, 0, after))
                changed = ambient.changed(before)
            demand(not changed, f"a step under {name} changes {changed}{' as it fails' if after else ''}")


@rule(
    "Gradients that keep their storage, as DDP's do, are overwritten by the second pass; a method that needs both "
    "then has the second twice."
)
def gradients_may_keep_their_storage(adapter: OptimizerAdapter) -> None:
    """Gradients that are cleared in place train like gradients that are set to None."""
    plain, kept = Training(adapter), Training(adapter)
    for index in range(4):
        plain.step(index)
        in_place = partial(kept.optimizer.zero_grad, set_to_none=False)
        with patch.object(kept.optimizer, "zero_grad", in_place):
            kept.step(index)
    gap = float((flat(plain.model) - flat(kept.model)).abs().max())
    demand(gap < 1e-12, f"with gradients cleared in place four steps end {gap:.2g} away")


@rule("State in a class, or in a default argument, is shared by the members of an ensemble.")
def optimizers_are_independent(adapter: OptimizerAdapter) -> None:
    """Two optimizers whose steps alternate train as each does alone."""
    alone = Training(adapter)
    alone.run(0, 6)
    pair = Training(adapter), Training(adapter)
    for index in range(6):
        for one in pair:
            one.step(index)
    same = all(same_bits(bits(alone.model), bits(one.model)) for one in pair)
    demand(same, "beside another one it trains to other weights than alone")
