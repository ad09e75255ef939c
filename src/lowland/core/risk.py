"""The empirical risk: a model, what is measured, and fixed data; the one thing everything measures by.

Batches are fixed (see `lowland.core.batches`), and small data stay resident on the device.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowland.core import contexts
from lowland.core.batches import Batch, batch_tensors
from lowland.core.effective import effective_weights
from lowland.core.errors import InputError, NotDeterministic, require
from lowland.core.facts import ShowsFacts
from lowland.core.loaders import ResidentBatches, fixed_batches
from lowland.core.measure import BatchMeasure, check_callables, written
from lowland.core.moments import Estimate, Tally, estimates
from lowland.core.params import ParameterSpace, check_parameters, model_fingerprint, unwrap
from lowland.core.per_sample import Loss, loss_settings
from lowland.core.ranks import Ranks
from lowland.core.types import Evaluate, FirstBatch, Metric


class EmpiricalRisk(ShowsFacts):
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
        process_group: Ranks of torch.distributed that measure together: ``batches`` are this rank's shard, and every
            number is that of all shards, the same bits on all ranks; they must make the same calls in the same order.
            A `DistributedSampler` pads, so that some samples count twice: give each rank its own part instead. Default
            None: this process alone.

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
        batch_norm: contexts.BatchNormMode = "running",
        recalibration: Iterable[Any] | None = None,
        samples: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        resident: bool | Literal["auto"] = "auto",
        adapt: Callable[[Any], Any] | None = None,
        samples_of: Callable[[Batch], int] | None = None,
        seeded: bool = False,
        process_group: Any | None = None,
    ) -> None:
        require(isinstance(model, nn.Module), "model", "must be a torch.nn.Module", type(model).__name__)
        check_callables(metrics, loss=loss, evaluate=evaluate, adapt=adapt, samples_of=samples_of)
        if (loss is None) == (evaluate is None):
            raise InputError("loss", "must be given, or `evaluate` instead of it, not both")
        if batches is None:
            raise InputError("batches", "must be given", None, "pass a DataLoader or a list of batches")
        if batch_norm not in ("running", "batch", "recalibrated"):
            raise InputError("batch_norm", 'must be "running", "batch" or "recalibrated"', batch_norm)
        require(resident in (True, False, "auto"), "resident", 'must be True, False or "auto"', resident)
        self.ranks = Ranks(process_group)
        if process_group is not None and batch_norm == "recalibrated" and recalibration is None:
            rule = "must be given where ranks share the data: the same batches on all of them"
            raise InputError("recalibration", rule, None)
        self.model = unwrap(model)
        self.loss, self.metrics, self.custom = loss, dict(metrics or {}), evaluate
        self.batch_norm: contexts.BatchNormMode = batch_norm
        self.samples, self.seed, self.resident = samples, seed, resident
        first = next(self.model.parameters(), None)
        self.device = _present(device if device is not None else first.device if first is not None else "cpu")
        self.adapt, self.samples_of, self.seeded = adapt, samples_of, seeded
        check_parameters(self.model, dict(self.model.named_parameters()))
        self._data = self._on_device(batches, samples)
        self._recalibration = None if recalibration is None else self._on_device(recalibration)
        self._checked, self._writes = False, True
        self._measure = self._new_measure()

    def _on_device(self, batches: Iterable[Any], samples: int | None = None) -> ResidentBatches:
        source = fixed_batches(batches, samples, self.seed, adapt=self.adapt)
        return ResidentBatches(source, self.device, self.resident, adapt=self.adapt, samples_of=self.samples_of)

    def _new_measure(self) -> BatchMeasure:
        return BatchMeasure(self.model, self.loss, self.metrics, self.custom, self.seed if self.seeded else None)

    def replaced(self, *, batches: Iterable[Any] | None = None, evaluate: Evaluate | None = None) -> EmpiricalRisk:
        """Return a new risk of the same model, mode and recalibration data on other batches or by another measure."""
        other = copy.copy(self)
        other._checked = False
        if batches is not None:
            if self.batch_norm == "recalibrated" and self._recalibration is None:
                other._recalibration = self._data
            other._data, other.samples = self._on_device(batches), None
        if evaluate is not None:
            other.custom = evaluate
        other._measure = other._new_measure()
        return other

    def _facts(self) -> dict[str, str]:
        what = self.custom if self.custom is not None else self.loss
        name = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", type(what).__name__)
        samples = self._data.known_size
        size = "data of unknown size" if samples is None else f"{samples} samples"
        return {"": f"{type(self.model).__name__}, {name}, {size}", "batch norm": self.batch_norm}

    def batches(self) -> Iterator[Batch]:
        """Return an iterator of the batches on the device, always the same ones in the same order, or refuse none."""
        return iter(self._data)

    @contextmanager
    def prepared(self) -> Generator[None, None, None]:
        """Bring the model into the state that is measured, and restore it bit for bit at the end.

        Inside: evaluation mode, the risk's batch-norm mode, effective instead of parametrized weights, no gradients,
        forked random state. `measure` and `loss_terms` are to be called inside; make a `ParameterSpace` inside too.
        """
        with ExitStack() as stack:
            stack.enter_context(contexts.measuring())
            stack.enter_context(contexts.checkpoints_kept())
            stack.enter_context(contexts.forked_rng())
            stack.enter_context(contexts.gradients_aside(self.model))
            stack.enter_context(effective_weights(self.model))
            stack.enter_context(contexts.batch_norm_mode(self.model, self.batch_norm))
            for part in (self.loss, self.custom, *self.metrics.values()):  # those with layers and states of their own
                if isinstance(part, nn.Module):
                    stack.enter_context(contexts.evaluation_mode(part))
                    stack.enter_context(contexts.buffers_restored(part))
            yield

    @contextmanager
    def _kept(self) -> Generator[list[Tensor], None, None]:
        """Prepare, and until a forward pass has been seen to leave them alone, keep the weights and yield them."""
        kept: AbstractContextManager[list[Tensor]] = nullcontext([])
        if self._writes:
            kept = contexts.parameters_kept(self.model)
        with self.prepared(), kept as weights:
            yield weights

    def recalibrate(self) -> None:
        """Renew batch-norm statistics at the present weights if the risk's mode asks for it; only inside `prepared`."""
        if self.batch_norm == "recalibrated":
            contexts.recalibrate(self.model, self._data if self._recalibration is None else self._recalibration)

    def measure(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float | None]]:
        """Measure one of `batches`: per-sample numerators and denominators (None: ones) by name, with graph."""
        return self._measure(batch)

    def loss_terms(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the totals of numerators (with graph) and denominators of one of `batches`; only inside `prepared`."""
        measured = self._measure(batch, loss_alone=True)
        require("loss" in measured, "evaluate", 'must give "loss" for gradients and curvature', sorted(measured))
        values, weights = measured["loss"]
        wide = torch.promote_types(values.dtype, torch.float32)  # sums of half types overflow
        many, weights = values.ndim > 0, 1.0 if weights is None else weights
        if isinstance(weights, Tensor):
            counted = weights.detach()
            total = (counted.expand(values.shape) if counted.ndim < values.ndim else counted).sum()
        else:
            each = float(weights) * (values.numel() if many else 1)
            total = torch.as_tensor(each, dtype=wide, device=values.device)
        return values.sum(dtype=wide), total

    def evaluate(self) -> dict[str, Estimate]:
        """Return every quantity on all data at the present weights by name, with its standard error.

        Example:
            >>> risk = EmpiricalRisk(nn.Linear(2, 1), nn.MSELoss(), [(torch.zeros(3, 2), torch.zeros(3, 1))])
            >>> sorted(risk.evaluate())
            ['loss']
        """
        with self._kept():
            self.recalibrate()
            return self.estimates()

    @torch.no_grad()
    def estimates(self) -> dict[str, Estimate]:
        """Measure every quantity at the present weights, as `evaluate` does; only inside `prepared`."""
        with self.ranks.together():
            tally = Tally()
            for batch in self.batches():
                tally.add(self.measure(batch))
        return estimates([tally], self.ranks)[0]

    def gradient(self, *, modules: list[str] | None = None) -> dict[str, Tensor]:
        """Return the exact gradient by name of the trainable parameters (of some `modules`); unused ones give zeros."""
        with self._kept():
            self.recalibrate()
            space = ParameterSpace(self.model, modules=modules)
            _, total, _ = self.loss_and_gradient(space)
            return space.named(total)

    def loss_and_gradient(
        self, space: ParameterSpace, batches: Iterable[Batch] | None = None
    ) -> tuple[float, list[Tensor], float]:
        """Return the loss, its gradient, and the total of denominators, of all batches or some; inside `prepared`."""
        total, weight, sums = 0.0, 0.0, space.zeros()
        with self.ranks.together():
            for batch in self.batches() if batches is None else batches:
                loss, share = self.loss_terms(batch)
                require(loss.requires_grad, "risk", "must depend on the parameters by differentiable operations")
                parts = torch.autograd.grad(loss, space.tensors, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(sums, [part.to_dense() if part.is_sparse else part for part in parts])
                total, weight = total + float(loss.detach().double()), weight + float(share.double())
        total, weight = map(sum, zip(*self.ranks.gather((total, weight)), strict=True))
        self.ranks.sum(sums)
        torch._foreach_div_(sums, weight)
        return total / weight if weight else math.nan, sums, weight

    @torch.no_grad()
    def loss_alone(self, batches: Iterable[Batch] | None = None) -> tuple[float, float]:
        """Return the loss and the total of denominators, of all batches or some; inside `prepared`."""
        total, weight = 0.0, 0.0
        with self.ranks.together():
            for batch in self.batches() if batches is None else batches:
                part, share = self.loss_terms(batch)
                total, weight = total + float(part.double()), weight + float(share.double())
        total, weight = map(sum, zip(*self.ranks.gather((total, weight)), strict=True))
        return total / weight if weight else math.nan, weight

    def check_deterministic(self, *, once: bool = False) -> FirstBatch | None:
        """Read and measure the first batch twice, and demand the same bits.

        Returns:
            What was measured; None where ``once`` finds that this has been done.

        Raises:
            NotDeterministic: If the data, the model's outputs or the loss differ between two passes; says which.
            InputError: If forward writes to its parameters.
        """
        if once and self._checked:
            return None
        with self.ranks.together():
            seen = self._checked_twice()
            state = "" if self.ranks.alone else model_fingerprint(self.model)
        if len(set(self.ranks.gather(state))) > 1:
            advice = "load the same state on each; buffers of batch norm count too"
            raise InputError("model", "must have the same parameters and buffers on all ranks", "others", advice)
        return seen

    def _checked_twice(self) -> FirstBatch:
        first, again = self._data.first_twice()
        if not contexts.same_bits(batch_tensors(first), batch_tensors(again)):
            raise NotDeterministic(
                "`batches` changes between two passes over it (random augmentation or a shuffling iterable?); "
                "pass data without augmentation in a fixed order, or a list of batches"
            )
        with self._kept() as before, torch.no_grad():
            self.recalibrate()
            self._measure.look_at(first)
            results = [self.measure(first)]
            begin = time.perf_counter()
            results.append(self.measure(first))
            seconds = time.perf_counter() - begin  # with warm caches
            if before and not contexts.same_bits(before, list(self.model.parameters())):
                advice = "keep the change out of forward (torch.nn.Embedding's own max_norm is understood)"
                rule = "must not write to its parameters in forward"
                raise InputError("model", rule, written(self.model, before), advice)
            for name in results[0]:
                pair = [[part for part in found[name] if isinstance(part, Tensor)] for found in results]
                if not contexts.same_bits(*pair):
                    raise NotDeterministic(self._measure.what_changes(name, first))
        self._checked, self._writes = True, False
        return FirstBatch(
            {name: values.ndim > 0 for name, (values, _) in results[0].items()}, seconds, first.known_size
        )

    def data_fingerprint(self) -> str:
        """Return sixteen hexadecimal digits of all data in their order (one pass over them, kept)."""
        own = self._data.fingerprint()
        shards = self.ranks.gather(own)
        return own if self.ranks.alone else hashlib.sha256("".join(shards).encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return loss, metrics, batch-norm mode, samples, seed and data, which must agree for results to compare."""
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


def _present(device: torch.device | str) -> torch.device:
    """Return a device that data can be put on."""
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found, reason = None, str(error).partition("\n")[0][:80]
    else:
        reason = "it holds no data"
    if found is None or found.type == "meta":
        raise InputError("device", f"must be one that is there ({reason})", f"{device}", 'for instance "cpu"')
    return torch.device(device)
