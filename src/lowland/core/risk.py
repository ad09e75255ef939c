"""The empirical risk: a model, what is measured, and fixed data; the one thing everything measures by.

Batches are fixed (see `lowland.core.batches`), and small data stay resident on the device.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core.batches import Batch, as_batch, batch_bytes, batch_tensors
from lowland.core.contexts import (
    BatchNormMode,
    batch_norm_mode,
    effective_weights,
    forked_rng,
    gradients_aside,
    measuring,
    parameters_kept,
    recalibrate,
    same_bits,
)
from lowland.core.errors import InputError, NotDeterministic
from lowland.core.loaders import fixed_batches
from lowland.core.params import ParameterSpace, check_parameters, unwrap
from lowland.core.per_sample import (
    Estimate,
    Loss,
    accuracy,
    all_moments,
    loss_settings,
    measured_pair,
    merged,
    per_sample_loss,
)
from lowland.core.provenance import fingerprint
from lowland.core.seeds import torch_seed
from lowland.core.types import Evaluate, Metric, forward

__all__ = ["EmpiricalRisk"]

_Pairs: TypeAlias = dict[str, tuple[Tensor, "Tensor | float | None"]]

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
        batches: A DataLoader, a list of batches, or any iterable that yields the same batches each time. What a batch
            may be stands in `lowland.core.batches`, what becomes of samplers in `lowland.core.loaders`.
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
        adapt: Turns what ``batches`` yields into a kind that is known, such as a `Batch`.
        samples_of: Number of samples in a `Batch`, where it cannot be read off.
        seeded: Measure a loss that draws random numbers (dropout, VAE, diffusion) at fixed noise: every batch has its
            own, of ``seed``, the same at all weights. Default False: such a loss is `NotDeterministic`.

    Raises:
        InputError: If arguments contradict each other, the data are empty, or something is of no known kind.

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
        adapt: Callable[[Any], Any] | None = None,
        samples_of: Callable[[Batch], int] | None = None,
        seeded: bool = False,
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
        self.adapt, self.samples_of, self.seeded = adapt, samples_of, seeded
        check_parameters(self.model, dict(self.model.named_parameters()))
        self._source = fixed_batches(batches, samples, seed, adapt=adapt)
        self._cache: list[Batch] | None = None
        self._recalibration = None if recalibration is None else fixed_batches(recalibration, None, seed, adapt=adapt)
        self._fingerprint: str | None = None
        self._with_graph, self._checked, self._writes = False, False, True

    def replaced(self, *, batches: Iterable[Any] | None = None, evaluate: Evaluate | None = None) -> EmpiricalRisk:
        """Return a risk of the same model, mode and recalibration data on other batches or by another measure.

        Args:
            batches: Other data; None keeps the data.
            evaluate: Another measure; None keeps the measure.

        Returns:
            A new risk; this one is not changed.
        """
        other = copy.copy(self)
        other._fingerprint, other._checked = None, False
        if batches is not None:
            if self.batch_norm == "recalibrated" and self._recalibration is None:
                other._recalibration = self._source
            source = fixed_batches(batches, None, self.seed, adapt=self.adapt)
            other._source, other._cache, other.samples = source, None, None
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
            batch = self._read(raw, count)
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

    def _read(self, raw: Any, number: int) -> Batch:
        batch = as_batch(raw, self.adapt).to(self.device)
        count = batch.count
        if self.samples_of is not None and count is None:
            count = int(self.samples_of(batch))
            if count < 1:
                raise InputError("samples_of", "must give at least 1", count)
        return replace(batch, count=count, number=number) if (count, number) != (batch.count, batch.number) else batch

    @contextmanager
    def prepared(self) -> Generator[None, None, None]:
        """Bring the model into the state that is measured, and restore it bit for bit at the end.

        Inside: evaluation mode, the risk's batch-norm mode, effective instead of parametrized weights, no gradients,
        forked random state. `measure` and `loss_terms` are to be called inside; make a `ParameterSpace` inside too.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            stack.enter_context(measuring())
            stack.enter_context(forked_rng())
            stack.enter_context(gradients_aside(self.model))
            stack.enter_context(effective_weights(self.model))
            stack.enter_context(batch_norm_mode(self.model, self.batch_norm))
            yield

    @contextmanager
    def _kept(self) -> Generator[None, None, None]:
        """Prepare, and keep the weights too until a forward pass has been seen to leave them alone."""
        with self.prepared(), parameters_kept(self.model) if self._writes else nullcontext():
            yield

    def recalibrate(self) -> None:
        """Renew batch-norm statistics at the present weights if the risk's mode asks for it; only inside `prepared`."""
        if self.batch_norm == "recalibrated":
            source = self.batches() if self._recalibration is None else self._recalibration_batches()
            recalibrate(self.model, source)

    def _recalibration_batches(self) -> Iterator[Batch]:
        assert self._recalibration is not None
        for raw in self._recalibration:
            yield as_batch(raw, self.adapt).to(self.device)

    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float | None]]:
        """Measure one batch at the present weights: per-sample numerators and denominators by name, with graph.

        Args:
            batch: One of `batches`.

        Returns:
            Name -> (values, weights), see `lowland.core.types.Measured`; weights None means ones.
        """
        return self._run(batch, self._measured)

    def _run(self, batch: Batch, measure: Callable[[Batch], _Pairs]) -> _Pairs:
        """Measure at the noise of the batch where the risk is seeded, and with a graph where forward needs one."""
        with forked_rng(torch_seed(self.seed, "probe", "noise", batch.number)) if self.seeded else nullcontext():
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

    def _measured(self, batch: Batch) -> _Pairs:
        if self.custom is not None:
            found: Any = self.custom(self.model, batch)
            if not isinstance(found, Mapping):
                raise InputError(
                    "evaluate", 'must return a mapping from names to values, {"loss": ...}', type(found).__name__
                )
            return {name: measured_pair(name, value, batch) for name, value in found.items()}
        output = forward(self.model, batch)
        result = self._loss(output, batch)
        ignored = getattr(self.loss, "ignore_index", -100)
        hits = accuracy(output, batch.target, ignore_index=ignored) if "accuracy" not in self.metrics else None
        if hits is not None:
            result["accuracy"] = hits
        for name, metric in self.metrics.items():
            result[name] = measured_pair(name, metric(output, batch), batch)
        return result

    def _loss(self, output: Any, batch: Batch) -> _Pairs:
        assert self.loss is not None
        return {"loss": per_sample_loss(self.loss, output, batch.target, batch=batch)}

    def loss_terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch as a sum with graph and its weight; only inside `prepared`.

        Args:
            batch: One of `batches`.

        Returns:
            The total of the numerators and the total of the denominators, scalars.

        Raises:
            InputError: If ``evaluate`` gives no ``"loss"``.
        """
        # of a loss, that alone: metrics have no part in a graph
        alone = self.custom is None
        measured = self._run(batch, lambda b: self._loss(forward(self.model, b), b) if alone else self._measured(b))
        if "loss" not in measured:
            raise InputError("evaluate", 'must give "loss" for gradients and curvature', sorted(measured))
        values, weights = measured["loss"]
        many, weights = values.ndim > 0, 1.0 if weights is None else weights
        if isinstance(weights, Tensor):
            total = (
                weights.detach().expand(values.shape).sum() if weights.ndim < values.ndim else weights.detach().sum()
            )
        else:
            each = float(weights) * (values.numel() if many else 1)
            total = torch.as_tensor(each, dtype=torch.promote_types(values.dtype, torch.float32), device=values.device)
        return values.sum(), total

    def evaluate(self) -> dict[str, Estimate]:
        """Measure every quantity on all data at the present weights.

        Returns:
            Name -> estimate with standard error.

        Example:
            >>> risk = EmpiricalRisk(nn.Linear(2, 1), nn.MSELoss(), [(torch.zeros(3, 2), torch.zeros(3, 1))])
            >>> sorted(risk.evaluate())
            ['loss']
        """
        with self._kept():
            self.recalibrate()
            return {name: Estimate.of(sums) for name, sums in self.sums().items()}

    @torch.no_grad()
    def sums(self) -> dict[str, Tensor]:
        """Return the moments of every quantity at the present weights; only inside `prepared`.

        Returns:
            Name -> rows of `lowland.core.per_sample.moments`, one per batch, on the device.
        """
        totals: dict[str, Tensor] = {}
        for batch in self.batches():
            for name, part in all_moments(self.measure(batch)).items():
                totals[name] = merged(totals.get(name), part)
        return totals

    def gradient(self, *, modules: list[str] | None = None) -> dict[str, Tensor]:
        """Return the exact gradient of the risk by parameter name; unused parameters give zeros.

        Args:
            modules: Only parameters of these submodules; None takes all trainable ones.

        Returns:
            Name -> gradient, of the parameters' shape and type.
        """
        with self._kept():
            self.recalibrate()
            space = ParameterSpace(self.model, modules=modules)
            total, weight = space.zeros(), 0.0
            for batch in self.batches():
                loss, part = self.loss_terms(batch)
                weight += float(part)
                if not loss.requires_grad:
                    raise InputError("risk", "must depend on the parameters by differentiable operations")
                grads = torch.autograd.grad(loss, space.tensors, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(total, [grad.to_dense() if grad.is_sparse else grad for grad in grads])
            torch._foreach_div_(total, weight)
            return space.named(total)

    def check_deterministic(self, *, once: bool = False) -> None:
        """Measure the first batch twice, read it twice, and demand the same bits.

        Args:
            once: Leave it out if it has been done for this risk. Default False.

        Raises:
            NotDeterministic: If the data, the model's outputs or the loss differ between two passes; says which.
            InputError: If forward writes to its parameters.
        """
        if once and self._checked:
            return
        first, again = self._read_twice()
        if not same_bits(batch_tensors(first), batch_tensors(again)):
            raise NotDeterministic(
                "`batches` changes between two passes over it (random augmentation or a shuffling iterable?); "
                "pass data without augmentation in a fixed order, or a list of batches"
            )
        with self._kept(), torch.no_grad():
            self.recalibrate()
            before = [p.detach().clone() for p in self.model.parameters()] if self._writes else []
            results = [self.measure(first) for _ in range(2)]
            if before and not same_bits(before, list(self.model.parameters())):
                raise InputError(
                    "model", "must not write to its parameters in forward", self._written(before),
                    "keep the change out of forward (torch.nn.Embedding's own max_norm is understood)",
                )  # fmt: skip
            for name in results[0]:
                pair = [[part for part in found[name] if isinstance(part, Tensor)] for found in results]
                if not same_bits(*pair):
                    raise NotDeterministic(self._changing(name, first))
        self._checked, self._writes = True, False

    def _written(self, before: list[Tensor]) -> str:
        named = zip(self.model.named_parameters(), before, strict=True)
        return next(name for (name, p), old in named if not same_bits([old], [p]))

    def _changing(self, name: str, batch: Batch) -> str:
        """Say whether the model or the loss gives something else each time."""
        advice = "; make it deterministic in evaluation mode, or measure at fixed noise by seeded=True"
        if self.custom is not None:
            return f"`evaluate` gives another {name} each time (random numbers in the model or in `evaluate`?)" + advice
        outputs = [batch_tensors(forward(self.model, batch)) for _ in range(2)]
        if same_bits(*outputs):
            return f"`{name}` gives another value each time on the same output of the model" + advice
        return (
            f"`model` gives another output, and {name}, each time although it is in evaluation mode (dropout that "
            "ignores the mode, or random numbers in forward?)" + advice
        )

    def _read_twice(self) -> tuple[Batch, Batch]:
        with forked_rng():  # a loader draws a seed each time it is read
            found = [next(iter(self._source), None) for _ in range(2)]
        if found[0] is None or found[1] is None:
            raise InputError("batches", "must hold at least one batch", 0)
        return self._read(found[0], 0), self._read(found[1], 0)

    def data_fingerprint(self) -> str:
        """Return a fingerprint of all data in their order (one pass over them, kept).

        Returns:
            Sixteen hexadecimal digits.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            with forked_rng():
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
            **({"noise_seed": self.seed} if self.seeded else {}),
        }
