"""Rules of sharpness-aware optimizers: what one step does to the weights, the gradients and the buffers."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.core.contexts import same_bits
from lowland.testing.adapters import OptimizerAdapter
from lowland.testing.networks import bits, flat, mlp, normed
from lowland.testing.problems import BASES, Training, groups_of
from lowland.testing.rulebook import NotOffered, demand, rule


def _two_passes(adapter: OptimizerAdapter) -> None:
    if adapter.moves == "never":
        raise NotOffered("a method of one pass")


def _moves_by_rho(adapter: OptimizerAdapter, tolerance: float, when: str, **options: Any) -> None:
    if adapter.moves != "rho":
        raise NotOffered("the method does not move by rho along the gradient")
    length, rho = float(Training(adapter, **options).moved().norm()), adapter.rho
    demand(abs(length - rho) < tolerance * rho, f"{when} the move has length {length:.4g}, rho is {rho:.4g}")


@rule("With a norm per group the usual split into decayed and undecayed weights makes the move sqrt(2) too long.")
def one_norm_over_groups(adapter: OptimizerAdapter) -> None:
    """The move has length rho over all parameter groups together, however they are cut."""
    for groups in (1, 2, 4):
        _moves_by_rho(adapter, 1e-6, f"with {groups} group(s)", groups=groups)


@rule("A move that grows with the loss is another radius for every problem, and 65536 times rho under GradScaler.")
def scale_of_loss_cancels(adapter: OptimizerAdapter) -> None:
    """The length of the move does not depend on the scale of the loss."""
    for exponent in (-20, 20):
        _moves_by_rho(adapter, 1e-3, f"with the loss times 2^{exponent}", scale=2.0**exponent)


@rule("Decay belongs to the update; inside the ascent it makes the method depend on the size of the weights.")
def weight_decay_stays_outside(adapter: OptimizerAdapter) -> None:
    """The base optimizer's weight decay does not change where the second pass is run."""
    _two_passes(adapter)
    # at rate 0 decay can act through the ascent alone
    plain = Training(adapter, options={"lr": 0.0, "weight_decay": 0.0}).moved()
    decayed = Training(adapter, options={"lr": 0.0, "weight_decay": 0.5}).moved()
    if not len(plain):
        raise NotOffered("no second pass in twelve steps")
    gap = float((plain[: len(decayed)] - decayed).norm()) if len(decayed) else math.inf
    demand(gap < 1e-9, f"with decay 0.5 the second pass is {gap:.2g} away from where it is without")


@rule("Anything else is another method under SAM's name; checked over five steps of SGD with momentum and decay.")
def step_is_the_formula(adapter: OptimizerAdapter) -> None:
    """A step is the base optimizer's step at the weights with the gradient found at w + rho g / norm(g)."""
    if adapter.formula != "sam":
        raise NotOffered("the method is not SAM itself")
    options = {"weight_decay": 0.01}
    training = Training(adapter, options=options)
    twin = mlp()
    base = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for index in range(5):
        training.step(index)
        _plain_sam_step(twin, base, training.batches[index], adapter.rho)
    gap = float((flat(training.model) - flat(twin)).abs().max())
    demand(gap < 1e-9, f"after five steps the weights are {gap:.2g} away from algorithm 1 of Foret et al. 2021")


def _plain_sam_step(model: nn.Module, base: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], rho: float) -> None:
    """Take a step of SAM written out, the slow way."""
    parameters = list(model.parameters())
    saved = [p.detach().clone() for p in parameters]
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), parameters)
    norm = flat(gradients).norm()
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p.add_(rho * g / norm)
    second = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), parameters)
    with torch.no_grad():
        for p, old, g in zip(parameters, saved, second, strict=True):
            p.copy_(old)
            p.grad = g
    base.step()


@rule("Subtracting what was added rounds: the weights drift, most in low precision.")
def weights_come_back(adapter: OptimizerAdapter) -> None:
    """A base optimizer that does nothing leaves every bit of the weights as it was, in half precision too."""
    _two_passes(adapter)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        training = Training(adapter, "still", model=mlp(dtype))
        before = bits(training.model)
        training.run(0, 10)
        demand(same_bits(before, bits(training.model)), f"{dtype} weights changed in ten steps that do nothing")


@rule(
    "Exchanging ``p.data`` leaves views, flattened recurrent weights and CUDA graphs on the old storage, and is "
    "without effect on sharded parameters."
)
def weights_stay_in_place(adapter: OptimizerAdapter) -> None:
    """Parameters keep their storage."""
    training = Training(adapter)
    before = [p.data_ptr() for p in training.model.parameters()]
    training.run(0, 4)
    demand(before == [p.data_ptr() for p in training.model.parameters()], "parameters have another storage")


@rule("Layers that are dropped at random, and experts that get no token, otherwise keep the move for ever.")
def unused_in_second_pass(adapter: OptimizerAdapter) -> None:
    """A parameter without a gradient in the second pass comes back too."""
    _two_passes(adapter)
    training = Training(adapter, "still")
    before = flat(training.model)
    last = list(training.model.parameters())[-1]

    def drop(number: int) -> None:
        if number > 1:
            last.grad = None

    training.step(0, drop)
    gap = float((flat(training.model) - before).abs().max())  # bits are what `weights_come_back` asks for
    demand(gap < 1e-9, "a parameter without a second gradient keeps the move")


@rule("A move kept from an earlier step is otherwise subtracted again.")
def unused_in_both_passes(adapter: OptimizerAdapter) -> None:
    """A parameter without any gradient is not touched, and nothing left over from earlier steps moves it."""
    training = Training(adapter, "still")
    last = list(training.model.parameters())[-1]

    training.step(0)
    before = flat([last])
    for index in range(1, 4):
        training.step(index, lambda _: setattr(last, "grad", None))
        for place in (*training.seen, flat([last])):
            demand(torch.equal(before, place[-len(before) :]), "a parameter without gradients was moved")


@rule("Frozen models, and the first step of some trainers, are like that.")
def nothing_to_train(adapter: OptimizerAdapter) -> None:
    """A step in which no parameter has a gradient does nothing and does not fail."""
    training = Training(adapter)
    before = bits(training.model)
    training.step(0, lambda _: training.model.zero_grad())
    demand(same_bits(before, bits(training.model)), "weights changed without any gradient")


@rule("0 / 0 in the norm turns all weights into NaN.")
def zero_gradient(adapter: OptimizerAdapter) -> None:
    """A gradient of zero gives no move and no NaN."""
    training = Training(adapter)
    before = bits(training.model)
    for index in range(3):
        training.step(index, lambda _: training.model.zero_grad(set_to_none=False))
        demand(all(bool(torch.isfinite(place).all()) for place in training.seen), "the second pass is run at NaN")
    demand(same_bits(before, bits(training.model)), "zero gradients changed the weights")


@rule("It is what GradScaler meets now and then; subtracting an infinite move leaves NaN for ever.")
def infinity_in_first_pass(adapter: OptimizerAdapter) -> None:
    """An infinite gradient in the first pass does not stay in the weights."""
    _two_passes(adapter)
    training = Training(adapter, "still")
    before = bits(training.model)

    def spoil(number: int) -> None:
        for parameter in training.model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(math.inf if number == 1 else 0.5)

    training.step(0, spoil)
    demand(same_bits(before, bits(training.model)), "an infinite gradient of the first pass is left in the weights")


@rule("A batch that runs out of memory is often skipped; the move must not stay.")
def failure_in_second_pass(adapter: OptimizerAdapter) -> None:
    """An exception in the second pass leaves the weights as they were."""
    _two_passes(adapter)
    training = Training(adapter, "still")
    before = bits(training.model)

    def fail(number: int) -> None:
        if number > 1:
            raise MemoryError("second pass")

    for index in range(12):
        try:
            training.step(index, fail)
        except MemoryError:
            break
    demand(same_bits(before, bits(training.model)), "after an exception in the second pass the weights stay moved")


@rule("Trainers that know nothing of two passes otherwise train plain SGD, or a mixture, without a word.")
def missing_pass_is_an_error(adapter: OptimizerAdapter) -> None:
    """``step()`` after one pass only, where the method wants two, raises and changes nothing."""
    _two_passes(adapter)
    training, twin = Training(adapter), Training(adapter)
    for index in range(12):
        twin.step(index)
        if len(twin.seen) > 1:
            break
        training.step(index)
    else:
        raise NotOffered("no second pass in twelve steps")
    before = bits(training.model)
    training.closure(0)()
    try:
        training.optimizer.step()
    except Exception:
        # which error is the tool's choice
        demand(same_bits(before, bits(training.model)), "the error comes after the weights were changed")
        return
    demand(False, "step() without a second pass goes on silently")


@rule(
    "Trainers rely on it: where gradients are expected before the call, Lightning's automatic optimization trains "
    "along the gradient of the batch before, with one pass a step, and no error."
)
def closure_comes_first(adapter: OptimizerAdapter) -> None:
    """``step(closure)`` calls the closure at the weights first, as torch's own optimizers do."""
    training = Training(adapter)
    for index in range(2):
        before = flat(training.model)
        training.seen = []
        training.optimizer.step(training.closure(index))
        demand(training.seen, "the closure is not called")
        gap = float((training.seen[0] - before).norm())
        demand(gap == 0, f"the first call of the closure finds weights that are {gap:.3g} away from the model's")
    if adapter.moves == "never":
        return
    plain = Training(adapter)
    plain.run(0, 2)
    demand(training.passes == plain.passes, f"{training.passes} passes in two steps; the method takes {plain.passes}")


@rule("Loops log what ``step`` returns; the loss at the moved weights is another, larger one.")
def loss_is_returned(adapter: OptimizerAdapter) -> None:
    """A step returns the loss of the first pass, at the weights."""
    training = Training(adapter)
    for index in range(3):
        found = training.step(index)
        demand(found is not None, "a step returns None")
        demand(
            abs(float(found) - training.losses[0]) < 1e-12, f"returns {float(found):.6g}, not {training.losses[0]:.6g}"
        )


@rule("A cheaper variant that runs all passes anyway is not cheaper.")
def passes_as_defined(adapter: OptimizerAdapter) -> None:
    """Over twenty steps the method takes as many passes as its definition says."""
    training = Training(adapter)
    training.run(0, 20)
    wanted = adapter.passes(20)
    demand(training.passes == wanted, f"{training.passes} passes in 20 steps; the method needs {wanted}")


@rule("Otherwise a deployed model uses statistics of weights it never had.")
def batch_norm_counts_once(adapter: OptimizerAdapter) -> None:
    """Running statistics after a step are those of one pass at the weights, also with a cumulative average."""
    _two_passes(adapter)
    for momentum in (0.1, None):
        training = Training(adapter, model=normed(momentum))
        for index in range(6):
            twin = copy.deepcopy(training.model)
            twin(training.batches[index][0])
            training.step(index)
            found = dict(training.model.named_buffers())
            for name, value in twin.named_buffers():
                gap = float((value.double() - found[name].double()).abs().max())
                demand(gap == 0, f"after a step `{name}` is {gap:.2g} away from that of one pass (momentum={momentum})")


@rule("Otherwise accumulation changes the method, or loses all micro-batches but the last.")
def accumulated_step_is_a_large_batch(adapter: OptimizerAdapter) -> None:
    """A step on two micro-batches of half the size is the step on the whole batch."""
    whole, parts = Training(adapter), Training(adapter)
    for index in range(6):
        whole.step(index)
        x, y = parts.batches[index]
        halves = [(x[:4], y[:4]), (x[4:], y[4:])]
        losses = [lambda a=a, b=b: F.cross_entropy(parts.model(a), b) / 2 for a, b in halves]
        adapter.accumulated_step(parts.model, parts.optimizer, losses)
    gap = float((flat(whole.model) - flat(parts.model)).abs().max())
    demand(gap < 1e-9, f"after six steps the weights are {gap:.2g} away from those of whole batches")


@rule("Gradual unfreezing adds them; a wrapper with its own list forgets them silently.")
def new_group_is_trained(adapter: OptimizerAdapter) -> None:
    """Parameters added by ``add_param_group`` are trained, and share the norm of the move."""
    for base in adapter.bases:
        training = Training(adapter, base)
        head = list(training.model.parameters())[-2:]
        training.optimizer = adapter.make(training.model, groups_of(training.model[0], 1), *BASES[base])  # type: ignore[index]
        training.step(0)
        training.optimizer.add_param_group({"params": head})
        before = flat(head)
        training.run(1, 9)
        demand(float((flat(head) - before).norm()) > 0, f"the added parameters are not trained on {base}")
