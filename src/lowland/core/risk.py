"""The empirical risk: a model, what is measured, and fixed data; the one thing everything measures by.

Batches are fixed (see `lowland.core.batches`), and small data stay resident on the device.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from lowland.core.batches import batch_bytes, batch_tensors, fixed_batches
from lowland.core.contexts import (
    BatchNormMode,
    batch_norm_mode,
    effective_weights,
    forked_rng,
    gradients_aside,
    recalibrate,
    same_bits,
)
from lowland.core.errors import InputError, NotDeterministic
from lowland.core.params import ParameterSpace, unwrap
from lowland.core.per_sample import Estimate, Loss, accuracy, all_moments, loss_settings, per_sample_loss
from lowland.core.provenance import fingerprint
from lowland.core.types import Batch, Evaluate, Metric, as_batch, forward

__all__ = ["EmpiricalRisk"]

_RESIDENT_BYTES: Final = 1 << 30
"""Data up to this size are kept on the device when ``resident="auto"``."""


class EmpiricalRisk:
    """What is measured, on which data, in which batch-norm mode.

    The risk of a metric is ``sum_i v_i / sum_i w_i`` over all samples (see `lowland.core.per_sample`), the same
    number for every batching. Models are always measured in evaluation mode (dropout off) and restored bit for bit.

    Args:
        model: The model; DDP, Fabric and compile wrappers are looked through.
        loss: A torch loss, a function with a ``reduction`` argument, or a callable ``(output, target) -> Tensor``;
            whatever its reduction, the risk is the mean. None if ``evaluate`` is given.
        batches: A DataLoader, a list of batches, or any iterable that yields the same batches each time.
        evaluate: Measures a batch by itself: ``(model, batch) -> {name: values}``, see `lowland.core.types.Measured`;
            must give ``"loss"`` for gradients and curvature. Replaces ``loss`` and ``metrics``.
        metrics: Further quantities by name, ``(output, batch) -> values``. Default: ``accuracy`` where the target is a
            class.
        batch_norm: ``"running"`` statistics (default, what a deployed model uses), ``"batch"`` statistics of the fixed
            partition, or ``"recalibrated"`` at the weights measured.
        recalibration: Batches to recalibrate on; default the risk's own.
        samples: Take a fixed random subset of this many samples; None takes all. Needs a DataLoader over a map-style
            data set, or in-memory batches of tensors.
        seed: Seed of the subset. Default 0.
        device: Where data go; default the device of the model's first parameter.
        resident: Keep the batches on the device: True, False, or ``"auto"`` (up to 1 GiB). Default ``"auto"``.

    Raises:
        InputError: If arguments contradict each other or the data are empty.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 2, 3])
        >>> risk = EmpiricalRisk(nn.Linear(4, 4), nn.CrossEntropyLoss(), [(x[:3], y[:3]), (x[3:], y[3:])])
        >>> risk.evaluate()["loss"].samples
        4
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None = None,
        batches: Iterable[Any] | None = None,
        *,
        evaluate: Evaluate | None = None,
        metrics: Mapping[str, Metric] | None = None,
        batch_norm: BatchNormMode = "running",
        recalibration: Iterable[Any] | None = None,
        samples: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        resident: bool | Literal["auto"] = "auto",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError("model", "must be a torch.nn.Module", type(model).__name__)
        if (loss is None) == (evaluate is None):
            raise InputError("loss", "must be given, or `evaluate` instead of it, not both")
        if batches is None:
            raise InputError("batches", "must be given", None, "pass a DataLoader or a list of batches")
        if batch_norm not in ("running", "batch", "recalibrated"):
            raise InputError("batch_norm", 'must be "running", "batch" or "recalibrated"', batch_norm)
        self.model = unwrap(model)
        self.loss, self.metrics, self.custom = loss, dict(metrics or {}), evaluate
        self.batch_norm: BatchNormMode = batch_norm
        self.samples, self.seed, self.resident = samples, seed, resident
        first = next(self.model.parameters(), None)
        self.device = torch.device(device if device is not None else first.device if first is not None else "cpu")
        self._source = fixed_batches(batches, samples, seed)
        self._cache: list[Batch] | None = None
        self._recalibration = None if recalibration is None else fixed_batches(recalibration, None, seed)
        self._fingerprint: str | None = None

    def replaced(self, *, batches: Iterable[Any] | None = None, evaluate: Evaluate | None = None) -> EmpiricalRisk:
        """Return a risk of the same model, mode and recalibration data on other batches or by another measure.

        Args:
            batches: Other data; None keeps the data.
            evaluate: Another measure; None keeps the measure.

        Returns:
            A new risk; this one is not changed.
        """
        other = copy.copy(self)
        other._fingerprint = None
        if batches is not None:
            if self.batch_norm == "recalibrated" and self._recalibration is None:
                other._recalibration = self._source
            other._source, other._cache, other.samples = fixed_batches(batches, None, self.seed), None, None
        if evaluate is not None:
            other.custom = evaluate
        return other

    def batches(self) -> Iterator[Batch]:
        """Yield the batches on the device, always the same ones in the same order.

        Yields:
            Each batch.

        Raises:
            InputError: If there are none.
        """
        if self._cache is not None:
            yield from self._cache
            return
        kept: list[Batch] | None = [] if self.resident else None
        size, count = 0, 0
        for raw in self._source:
            batch = as_batch(raw).to(self.device)
            count += 1
            if kept is not None:
                size += batch_bytes(batch)
                kept.append(batch)
                if self.resident == "auto" and size > _RESIDENT_BYTES:
                    kept = None
            yield batch
        if count == 0:
            raise InputError("batches", "must hold at least one batch", 0)
        self._cache = kept

    @contextmanager
    def prepared(self) -> Generator[None, None, None]:
        """Bring the model into the state that is measured, and restore it bit for bit at the end.

        Inside: evaluation mode, the risk's batch-norm mode, effective instead of parametrized weights, no gradients,
        forked random state. `measure` and `loss_terms` are to be called inside; make a `ParameterSpace` inside too.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            stack.enter_context(forked_rng())
            stack.enter_context(gradients_aside(self.model))
            stack.enter_context(effective_weights(self.model))
            stack.enter_context(batch_norm_mode(self.model, self.batch_norm))
            yield

    def recalibrate(self) -> None:
        """Renew batch-norm statistics at the present weights if the risk's mode asks for it; only inside `prepared`."""
        if self.batch_norm == "recalibrated":
            source = self.batches() if self._recalibration is None else self._recalibration_batches()
            recalibrate(self.model, source)

    def _recalibration_batches(self) -> Iterator[Batch]:
        assert self._recalibration is not None
        for raw in self._recalibration:
            yield as_batch(raw).to(self.device)

    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float | None]]:
        """Measure one batch at the present weights: per-sample numerators and denominators by name, with graph.

        Args:
            batch: One of `batches`.

        Returns:
            Name -> (values, weights), see `lowland.core.types.Measured`; weights None means ones.
        """
        if self.custom is not None:
            return {name: _pair(name, value) for name, value in self.custom(self.model, batch).items()}
        assert self.loss is not None
        output = forward(self.model, batch)
        result: dict[str, tuple[Tensor, Tensor | float | None]] = {
            "loss": per_sample_loss(self.loss, output, batch.target)
        }
        ignored = getattr(self.loss, "ignore_index", -100)
        hits = accuracy(output, batch.target, ignore_index=ignored) if "accuracy" not in self.metrics else None
        if hits is not None:
            result["accuracy"] = hits
        for name, metric in self.metrics.items():
            result[name] = _pair(name, metric(output, batch))
        return result

    def loss_terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch as a sum with graph and its weight; only inside `prepared`.

        Args:
            batch: One of `batches`.

        Returns:
            The total of the numerators and the total of the denominators, scalars.

        Raises:
            InputError: If ``evaluate`` gives no ``"loss"``.
        """
        if self.custom is None:  # the loss alone: metrics have no part in a graph
            assert self.loss is not None
            values, weights = _pair("loss", per_sample_loss(self.loss, forward(self.model, batch), batch.target))
        else:
            measured = self.measure(batch)
            if "loss" not in measured:
                raise InputError("evaluate", 'must give "loss" for gradients and curvature', sorted(measured))
            values, weights = measured["loss"]
        if weights is None:
            weights = float(values.numel())
        total = weights.sum() if isinstance(weights, Tensor) else torch.as_tensor(float(weights), device=values.device)
        return values.sum(), total.detach()

    def evaluate(self) -> dict[str, Estimate]:
        """Measure every quantity on all data at the present weights.

        Returns:
            Name -> estimate with standard error.

        Example:
            >>> risk = EmpiricalRisk(nn.Linear(2, 1), nn.MSELoss(), [(torch.zeros(3, 2), torch.zeros(3, 1))])
            >>> sorted(risk.evaluate())
            ['loss']
        """
        with self.prepared():
            self.recalibrate()
            return {name: Estimate.of(sums) for name, sums in self.sums().items()}

    @torch.no_grad()
    def sums(self) -> dict[str, Tensor]:
        """Return the moments of every quantity at the present weights; only inside `prepared`.

        Returns:
            Name -> sums of `lowland.core.per_sample.moments`, on the device.
        """
        totals: dict[str, Tensor] = {}
        for batch in self.batches():
            for name, part in all_moments(self.measure(batch)).items():
                totals[name] = totals[name] + part if name in totals else part
        return totals

    def gradient(self, *, modules: list[str] | None = None) -> dict[str, Tensor]:
        """Return the exact gradient of the risk by parameter name; unused parameters give zeros.

        Args:
            modules: Only parameters of these submodules; None takes all trainable ones.

        Returns:
            Name -> gradient, of the parameters' shape and type.
        """
        with self.prepared():
            self.recalibrate()
            space = ParameterSpace(self.model, modules=modules)
            total, weight = space.zeros(), 0.0
            for batch in self.batches():
                loss, part = self.loss_terms(batch)
                weight += float(part)
                grads = torch.autograd.grad(loss, space.tensors, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(total, list(grads))
            torch._foreach_div_(total, weight)
            return space.named(total)

    def check_deterministic(self) -> None:
        """Measure the first batch twice, read it twice, and demand the same bits.

        Raises:
            NotDeterministic: If the data or the outputs differ between two passes.
        """
        first, again = self._read_twice()
        if not same_bits(batch_tensors(first), batch_tensors(again)):
            raise NotDeterministic(
                "`batches` changes between two passes over it (random augmentation or a shuffling iterable?); "
                "pass data without augmentation in a fixed order, or a list of batches"
            )
        with self.prepared(), torch.no_grad():
            self.recalibrate()
            batch = first.to(self.device)
            results = [self.measure(batch) for _ in range(2)]
        for name in results[0]:
            if not same_bits([results[0][name][0]], [results[1][name][0]]):
                raise NotDeterministic(
                    f"`model` gives another {name} each time although it is in evaluation mode (dropout that ignores "
                    "the mode, or random numbers in forward?); make forward deterministic in evaluation mode"
                )

    def _read_twice(self) -> tuple[Batch, Batch]:
        found = [next(iter(self._source), None) for _ in range(2)]
        if found[0] is None or found[1] is None:
            raise InputError("batches", "must hold at least one batch", 0)
        return as_batch(found[0]), as_batch(found[1])

    def data_fingerprint(self) -> str:
        """Return a fingerprint of all data in their order (one pass over them, kept).

        Returns:
            Sixteen hexadecimal digits.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for batch in self.batches():
                digest.update(fingerprint(batch_tensors(batch)).encode())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return what must agree for two results to be comparable, as plain values.

        Returns:
            Loss, metrics, batch-norm mode, samples, seed, fingerprint of the data.
        """
        named = {name: getattr(metric, "__qualname__", repr(metric)) for name, metric in self.metrics.items()}
        what = self.custom if self.custom is not None else self.loss
        return {
            "loss": repr(what) if isinstance(what, nn.Module) else getattr(what, "__qualname__", repr(what)),
            "loss_settings": loss_settings(what),
            "metrics": named,
            "batch_norm": self.batch_norm,
            "samples": self.samples,
            "subset_seed": self.seed if self.samples is not None else None,
            "data": self.data_fingerprint(),
        }


def _pair(name: str, value: Any) -> tuple[Tensor, Tensor | float | None]:
    if isinstance(value, Tensor):
        return value, None if value.ndim else 1.0
    if isinstance(value, tuple) and len(value) == 2:
        first = value[0] if isinstance(value[0], Tensor) else torch.as_tensor(float(value[0]))
        return first, value[1]
    raise InputError(name, "must be measured as per-sample values or (sum, weight)", type(value).__name__)
