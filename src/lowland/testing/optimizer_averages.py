"""Rules of optimizers that evaluate other weights than they train: averages, slow weights, weights without a shift."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress

import torch

from lowland.core.contexts import same_bits
from lowland.testing.adapters import OptimizerAdapter
from lowland.testing.networks import bits, flat
from lowland.testing.optimizer_state import packed, unpacked
from lowland.testing.problems import Training
from lowland.testing.rulebook import demand, rule


def _evaluated(training: Training) -> torch.Tensor:
    with training.adapter.averaged(training.model, training.optimizer):
        return flat(training.model)


@rule("An average that begins at zero, or at weights from before a checkpoint, evaluates a network that never was.")
def average_of_constant_weights(adapter: OptimizerAdapter) -> None:
    """The evaluation weights of a base optimizer that does nothing are the weights, from the first step on."""
    training = Training(adapter, "still")
    before = flat(training.model)
    for index in range(10):
        training.step(index)
        gap = float((_evaluated(training) - before).abs().max())
        demand(gap < 1e-12, f"after step {index + 1} the average of constant weights is {gap:.2g} away from them")


@rule("A swap that resets momentum, or leaves rounding, makes training depend on how often it is looked at.")
def evaluation_leaves_training(adapter: OptimizerAdapter) -> None:
    """Training with an evaluation after every step gives the bits of training without."""
    for base in adapter.bases:
        plain, watched = Training(adapter, base), Training(adapter, base)
        for index in range(8):
            plain.step(index)
            watched.step(index)
            before, places = bits(watched.model), [p.data_ptr() for p in watched.model.parameters()]
            _evaluated(watched)
            demand(same_bits(before, bits(watched.model)), f"after evaluation at step {index + 1} the weights changed")
            demand(places == [p.data_ptr() for p in watched.model.parameters()], "parameters have another storage")
        same = same_bits(bits(plain.model), bits(watched.model))
        demand(same, f"evaluated after every step on {base}, training ends at other weights")


@rule("An interrupted validation otherwise leaves the average in the model, and training goes on from there.")
def evaluation_ends_after_failure(adapter: OptimizerAdapter) -> None:
    """An exception during evaluation brings the trained weights back."""
    training = Training(adapter)
    training.run(0, 4)
    before = bits(training.model)
    with suppress(ArithmeticError), adapter.averaged(training.model, training.optimizer):
        raise ArithmeticError("in the middle of a validation")
    demand(same_bits(before, bits(training.model)), "after an exception during evaluation the weights stay exchanged")


@rule("An average that is not in the checkpoint begins anew at every restart.")
def average_is_resumed(adapter: OptimizerAdapter) -> None:
    """Evaluation weights of a loaded checkpoint are those that were saved, at every step and later."""
    for base in adapter.bases:
        whole, saved = Training(adapter, base), []
        for index in range(8):
            whole.step(index)
            saved.append((packed(whole.model.state_dict()), packed(whole.optimizer.state_dict()), _evaluated(whole)))
        for steps, (weights, state, average) in enumerate(saved, 1):
            resumed = Training(adapter, base)
            resumed.model.load_state_dict(unpacked(weights))
            resumed.optimizer.load_state_dict(unpacked(state))
            gap = float((_evaluated(resumed) - average).abs().max())
            demand(gap == 0, f"loaded after step {steps} on {base}, the average is {gap:.2g} away from that saved")
            resumed.run(steps, 8)
            gap = float((_evaluated(resumed) - saved[-1][2]).abs().max())
            demand(gap == 0, f"resumed after step {steps} on {base}, the average ends {gap:.2g} away")


@rule("Trainers save where they validate: the weights that were trained are gone with a checkpoint of the average.")
def saved_while_evaluating(adapter: OptimizerAdapter) -> None:
    """A checkpoint saved during evaluation, and loaded outside or inside one, trains on as if saved in training."""
    for base in adapter.bases:
        whole, saved = Training(adapter, base), []
        for index in range(8):
            whole.step(index)
            with adapter.averaged(whole.model, whole.optimizer):
                saved.append((packed(whole.model.state_dict()), packed(whole.optimizer.state_dict())))
        for steps, checkpoint in enumerate(saved, 1):
            gap = math.inf
            for inside in (False, True):
                end = _went_on(adapter, base, checkpoint, range(steps, 8), inside=inside)
                gap = min(gap, math.inf if end is None else float((end - flat(whole.model)).abs().max()))
                if gap < 1e-9:  # whether the way in and out leaves the last bit is another rule
                    break
            demand(gap < 1e-9, f"saved at the evaluation after step {steps} on {base}, training ends {gap:.2g} away")


def _went_on(
    adapter: OptimizerAdapter, base: str, checkpoint: tuple[bytes, bytes], steps: range, *, inside: bool
) -> torch.Tensor | None:
    """Return the weights that training on from a checkpoint ends at; nothing where it cannot be loaded so."""
    resumed = Training(adapter, base)
    with suppress(Exception):
        with adapter.averaged(resumed.model, resumed.optimizer) if inside else nullcontext():
            resumed.model.load_state_dict(unpacked(checkpoint[0]))
            resumed.optimizer.load_state_dict(unpacked(checkpoint[1]))
        _evaluated(resumed)  # in, where it is not already, and out: to the weights that are trained
        resumed.run(steps.start, steps.stop)
        return flat(resumed.model)
    return None


@rule("A checkpoint that is loaded from memory otherwise ties two models together: one trains the other's average.")
def loaded_average_is_a_copy(adapter: OptimizerAdapter) -> None:
    """Training on from a state that was loaded from memory leaves the evaluation weights it came from alone."""
    first, second = Training(adapter), Training(adapter)
    first.run(0, 4)
    before, average = bits(first.model), _evaluated(first)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.run(4, 8)
    demand(same_bits(before, bits(first.model)), "the weights of the model that was saved changed")
    demand(torch.equal(_evaluated(first), average), "the average of the model that was saved changed")
