"""One batch measured by a loss and metrics, or by a function of the user, after a look at what may be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.core.batches import Batch, batch_tensors, take
from lowland.core.contexts import buffers_restored, forked_rng, same_bits
from lowland.core.errors import InputError, NotDeterministic, require
from lowland.core.look import check_own_mean, compiler_loaded, uneven, watched
from lowland.core.moments import Pair
from lowland.core.per_sample import Loss, accuracy, has_reduction, measured_pair, of_torch, per_sample_loss
from lowland.core.seeds import torch_seed
from lowland.core.types import Evaluate, Metric, fitting, forward

_Pairs: TypeAlias = dict[str, Pair]

_FEW: Final = 61
"""Samples that are looked at; a prime number, which no other axis is likely to have."""


class BatchMeasure:
    """Measures batches of a model that is prepared; ``noise`` is the seed of a stochastic loss at fixed noise."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        metrics: Mapping[str, Metric],
        evaluate: Evaluate | None,
        noise: int | None,
    ) -> None:
        self.model, self.loss, self.metrics, self.evaluate, self.noise = model, loss, metrics, evaluate, noise
        self._with_graph = False
        self._looked: set[int] = set()
        self._uneven: tuple[str, tuple[float, float]] | None = None
        self._mean = False  # whether the loss is given as one
        self._axes: tuple[int, ...] = ()

    def __call__(self, batch: Batch, *, loss_alone: bool = False) -> _Pairs:
        """Return numerators and denominators by name, after a look at the first two batches."""
        if batch.number < 2 and batch.number not in self._looked:
            # beside the measurement: fused kernels step aside while functions are watched, and give other bits
            with forked_rng(), torch.no_grad(), buffers_restored(self.model):
                seen = self.look_at(batch)
                if batch.number == 0:
                    self._look_again(seen)
        if self._uneven and batch.number:
            name, numbers = self._uneven
            rule = "must be a mean over samples, whatever each is beside in its batch, and that of two parts differs"
            advice = "return a value of each sample alone, (values, weights), or (sum, weight) where it is no mean"
            raise InputError(name, rule, numbers, advice)
        if self._mean:
            self._check_axes(batch)
        # metrics have no part in a graph
        return self._run(batch, self._loss_alone if loss_alone and self.evaluate is None else self._all)

    def _run(self, batch: Batch, measure: Callable[[Batch], _Pairs]) -> _Pairs:
        with (
            nullcontext() if self.noise is None else forked_rng(torch_seed(self.noise, "probe", "noise", batch.number))
        ):
            if torch.is_grad_enabled():
                return measure(batch)
            if not self._with_graph:
                try:
                    return measure(batch)
                except RuntimeError as error:  # a model that differentiates by its input (PINN, forces)
                    if "does not require grad" not in str(error):
                        raise
                    self._with_graph = True
            with torch.enable_grad():
                found = measure(batch)
            return {name: (values.detach(), weights) for name, (values, weights) in found.items()}

    def look_at(self, batch: Batch) -> Batch:
        """Look at a few samples, which tell as much as all, or at all where they cannot be taken; return them."""
        if (batch.known_size or 0) > _FEW:
            # what fails may be of a kind that is not cut, or a model for batches of one size, or wrong with all too
            before = self._uneven
            with suppress(Exception):
                few = take(batch, range(_FEW))
                self._run(few, self._look)
                self._looked.add(batch.number)
                return few
            self._uneven = before
        self._run(batch, self._look)
        self._looked.add(batch.number)
        return batch

    def _look_again(self, batch: Batch) -> None:
        """Refuse what gives other numbers each time, beyond what the order of sums can do."""
        first, second = (self._run(batch, self._all) for _ in range(2))
        for name, (values, _) in first.items():
            others = second[name][0]
            bound = 1000 * torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
            if values.shape != others.shape or not torch.allclose(values, others, bound, bound, equal_nan=True):
                raise NotDeterministic(self.what_changes(name, batch))

    def _check_axes(self, batch: Batch) -> None:
        """Refuse a mean over entries whose number of samples could be the first axis as well as the second."""
        sides = [part.shape for part in (batch.input, batch.target) if isinstance(part, Tensor) and part.ndim > 1]
        if batch.count is not None or len(sides) < 2 or sides[0][:2] != sides[1][:2]:
            return
        self._axes = self._axes or sides[0][:2]
        if sides[0][1] != self._axes[1]:
            rule = "must not be one mean where input and target share two axes and batches differ in the second"
            advice = "return one value per sample, (sum, weight), or give samples_of="
            raise InputError("loss", rule, [tuple(self._axes), tuple(sides[0][:2])], advice)

    def _look(self, batch: Batch) -> _Pairs:
        loaded = compiler_loaded()
        found = self._look_once(batch)
        # a model or a loss that compiles something when it is first called was not seen through
        return found if compiler_loaded() == loaded else self._look_once(batch)

    def _look_once(self, batch: Batch) -> _Pairs:
        output: Any = None
        found: Pair | None = None
        before: list[Tensor] = []
        with watched(self.model, batch):
            if self.evaluate is not None or self.loss is None:
                self._all(batch)
            else:
                with fitting("model", batch.input):
                    output = forward(self.model, batch)
                before = [tensor.clone() for tensor in batch_tensors(output)]
                with fitting("loss", output, batch.target):
                    found = self._of(output, batch)["loss"]
                for name, metric in self.metrics.items():
                    measured_pair(name, metric(output, batch), batch)
        if before and not same_bits(before, batch_tensors(output)):
            rule, advice = "and metrics must not write to the model's output", "o - t instead of o.sub_(t)"
            raise InputError("loss", rule, advice=advice)
        if self.loss is not None and found is not None:
            check_own_mean(self.loss, output, batch.target, found)
        for name, measure in self._raw(batch).items():
            if name == "loss":
                value = measure(output, batch)
                self._mean = isinstance(value, Tensor) and value.ndim == 0
            numbers = uneven(name, measure, output, batch, self._output)
            if numbers:
                self._uneven = name, numbers
        return {}

    def _raw(self, batch: Batch) -> dict[str, Callable[[Any, Batch], Any]]:
        """Return what is not split into samples by us, each as a function of output and batch."""
        evaluate, loss = self.evaluate, self.loss
        if evaluate is not None:
            if any(isinstance(m, _NormBase) and (m.training or m.running_mean is None) for m in self.model.modules()):
                return {}  # parts of a batch have other statistics
            return {name: partial(self._entry, name) for name in evaluate(self.model, batch)}
        own: dict[str, Callable[[Any, Batch], Any]] = {}
        if loss is not None and not has_reduction(loss):
            own = {"loss": lambda o, b: loss(o, b.target)}
        elif loss is not None and not of_torch(loss):
            own = {"loss": lambda o, b: self._of(o, b)["loss"][0]}
        return {**self.metrics, **own}

    def _entry(self, name: str, _: Any, batch: Batch) -> Any:
        assert self.evaluate is not None
        return self.evaluate(self.model, batch)[name]

    def _output(self, batch: Batch) -> Any:
        return None if self.evaluate is not None else forward(self.model, batch)

    def _all(self, batch: Batch) -> _Pairs:
        if self.evaluate is not None:
            found: Any = self.evaluate(self.model, batch)
            if not isinstance(found, Mapping):
                rule = 'must return a mapping from names to values, {"loss": ...}'
                raise InputError("evaluate", rule, type(found).__name__)
            return {name: measured_pair(name, value, batch) for name, value in found.items()}
        output = forward(self.model, batch)
        result = self._of(output, batch)
        hits = accuracy(output, batch.target, self.loss) if "accuracy" not in self.metrics else None
        if hits is not None:
            result["accuracy"] = hits
        for name, metric in self.metrics.items():
            result[name] = measured_pair(name, metric(output, batch), batch)
        return result

    def _loss_alone(self, batch: Batch) -> _Pairs:
        return self._of(forward(self.model, batch), batch)

    def _of(self, output: Any, batch: Batch) -> _Pairs:
        assert self.loss is not None
        return {"loss": per_sample_loss(self.loss, output, batch.target, batch=batch)}

    def what_changes(self, name: str, batch: Batch) -> str:
        """Say whether the model or the loss gives something else each time."""
        advice = "; make it deterministic in evaluation mode, or measure at fixed noise by seeded=True"
        if self.evaluate is not None:
            return f"`evaluate` gives another {name} each time (random numbers in the model or in `evaluate`?)" + advice
        outputs = [batch_tensors(forward(self.model, batch)) for _ in range(2)]
        if same_bits(*outputs):
            return f"`{name}` gives another value each time on the same output of the model" + advice
        reason = "dropout that ignores the mode, or random numbers in forward?"
        return f"`model` gives another output, and {name}, each time although in evaluation mode ({reason})" + advice


def check_callables(metrics: Any, **functions: Any) -> None:
    """Check that functions are functions, and that metrics have names of their own."""
    if not isinstance(metrics or {}, Mapping):
        raise InputError("metrics", "must be a mapping from names to functions", type(metrics).__name__)
    for name, function in {**functions, **dict(metrics or {})}.items():
        if function is not None and (not callable(function) or isinstance(function, type)):
            raise InputError(name, "must be a function or an object to call", function)
    require("loss" not in (metrics or {}), "metrics", "must not be named like the loss", "loss")


def written(model: nn.Module, before: list[Tensor]) -> str:
    """Return the first parameter that has not the bits that it had before."""
    named = zip(model.named_parameters(), before, strict=True)
    return next(name for (name, p), old in named if not same_bits([old], [p]))
