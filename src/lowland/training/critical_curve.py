"""A curve over training: the critical sharpness along the optimizer's own steps, by forward passes alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lowland.core.batches import Batch, take
from lowland.core.contexts import BatchNormMode, weights_restored
from lowland.core.effective import effective_weights
from lowland.core.params import ParameterSpace, global_norm
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import CriticalSharpness, critical_sharpness
from lowland.training.evaluation import plain_loss
from lowland.training.hooks import FitState, Hook
from lowland.training.metrics import write_rows
from lowland.training.risks import check_survey

_FEWEST = 8
"""Samples of a measurement at least, where the number is not given: batch norm needs several."""

CRITICAL_COLUMNS = (
    "step",  # the optimizer step that was followed
    "critical_sharpness",  # 2 / eta_c, with eta_c in units of the learning rate; empty where none was found
    "critical_sharpness_se",  # over the samples measured
    "critical_ratio",  # learning rate over eta_c: from 1 on the step does not lower the loss that it was taken on
    "learning_rate",  # of the first group, at this step
    "passes",  # forward passes over the samples measured
    "seconds",  # spent in this measurement
)
"""Columns of critical.csv; further data have columns of their own behind them."""

_KNOWN_BY = ("critical_sharpness", "critical_ratio")


class CriticalCurve(Hook):
    """Follows some of the optimizer's own steps to where the loss of their batch is back at its value before.

    The step is the one that was taken, whatever made it: momentum, weight decay, clipping, a sharpness-aware method.
    What is measured is the plain criterion, dropout off, on a part of that step's batch, at the weights before the
    step. On a quadratic and without momentum ``critical_ratio`` is at most ``lowland.curvature.stability``'s. All
    measurements go into ``critical.csv`` of the run's folder, the median of each epoch into ``metrics.csv``, and `rows`
    holds them where there is no folder.

    Args:
        every_steps: Steps between measurements. Default 100: with ``samples`` as it is, less than half a per cent of a
            run whose steps take longer than what surrounds a measurement (some milliseconds).
        samples: Samples of the batch that are measured; None (default) takes an eighth (at least 8), so that six
            forward passes are a quarter of a step.
        batch_norm: ``"batch"`` statistics (default), which are what a step sees, or ``"running"`` ones.
        beside: Further risks of the same model by name, such as other data: their loss along the same steps is the
            relative critical sharpness, ``critical_sharpness_NAME``.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> from lowland import data, models
        >>> from lowland.training import fit
        >>> curve = CriticalCurve(every_steps=1, samples=32)
        >>> model = models.create("resnet8", width=4, channels=1, seed=0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> digits = data.load("digits", train_size=64)
        >>> _ = fit(model, optimizer, torch.nn.CrossEntropyLoss(), digits, epochs=2, hooks=[curve])
        >>> [(int(row["step"]), row["passes"] <= 6) for row in curve.rows]
        [(1, True), (2, True)]
    """

    def __init__(
        self,
        *,
        every_steps: int = 100,
        samples: int | None = None,
        batch_norm: BatchNormMode = "batch",
        beside: Mapping[str, EmpiricalRisk] | None = None,
    ) -> None:
        check_survey(batch_norm, every_steps=every_steps, samples=samples)
        self.every_steps, self.samples, self.beside = every_steps, samples, dict(beside or {})
        self.batch_norm: BatchNormMode = batch_norm
        self.rows: list[dict[str, float]] = []
        self._before: list[Tensor] = []
        self._part = _Part()
        self._risk: EmpiricalRisk | None = None  # one for all measurements, since a new one looks at its data first
        self._starts: dict[str, float] = {}  # eta_c of the last measurement, by risk

    def on_fit_start(self, run: FitState) -> None:
        """Forget another run, and keep the weights if the coming step is to be followed."""
        if run.step == 0:
            self.rows, self._starts = [], {}
        if run.rank == 0 and run.loss is not None:
            mode, loss = self.batch_norm, plain_loss(run.loss)
            self._risk = EmpiricalRisk(run.model, loss, self._part, batch_norm=mode, resident=False)
        self._keep(run)

    def on_step_end(self, run: FitState) -> None:
        """Follow the step just taken if it is one of those, and keep the weights if the next one is."""
        if self._before and run.batch is not None:
            self._measure(run)
        self._keep(run)

    def on_epoch_end(self, run: FitState) -> None:
        """Write the measurements, and put the median of the epoch's into its row."""
        if self.rows and run.folder is not None and run.rank == 0:  # not at every measurement, which must cost little
            known = [{name: value for name, value in row.items() if not math.isnan(value)} for row in self.rows]
            write_rows(run.folder / "critical.csv", [*self.rows[0]], known)
        begun = run.rows[-1]["step"] if run.rows else 0
        for name in (*_KNOWN_BY, *map(_named, self.beside)):
            found = [row[name] for row in self.rows if row["step"] > begun and not math.isnan(row[name])]
            if found:
                run.row[name] = median(found)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far and the steps that the next measurement starts from."""
        return {"rows": [dict(row) for row in self.rows], "starts": dict(self._starts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.rows, self._starts = [dict(row) for row in state["rows"]], dict(state["starts"])

    def _keep(self, run: FitState) -> None:
        self._before = []
        if self._risk is not None and (run.step + 1) % self.every_steps == 0:
            with effective_weights(run.model):
                self._before = ParameterSpace(run.model).copy()

    def _measure(self, run: FitState) -> None:
        started, rate = time.perf_counter(), float(run.optimizer.param_groups[0]["lr"])
        assert self._risk is not None and run.batch is not None
        count = self.samples or max(_FEWEST, math.ceil(run.batch.size / 8))
        self._part.batch = take(run.batch, range(count)) if count < run.batch.size else run.batch
        risks = {"": self._risk, **self.beside}
        found: dict[str, CriticalSharpness] = {}
        with effective_weights(run.model):
            space = ParameterSpace(run.model)
            taken = torch._foreach_sub(self._before, [p.detach() for p in space.tensors])
            if rate > 0 and float(global_norm(taken)) > 0:
                torch._foreach_div_(taken, rate)
                with weights_restored(space):
                    space.write(self._before)
                    for name, risk in risks.items():
                        start = self._starts.get(name, rate)
                        found[name] = critical_sharpness(risk, taken, start=start, check=not self.rows)
        for name, one in found.items():
            self._starts[name] = one.step if one.value > 0 else _tried(one, rate)
        own = found.get("")
        value, error, step = (own.value, own.standard_error, own.step) if own else (math.nan,) * 3
        passes, seconds = sum(one.passes for one in found.values()), time.perf_counter() - started
        row = zip(CRITICAL_COLUMNS, (run.step, value, error, rate / step, rate, passes, seconds), strict=True)
        further = {name: found[name].value if name in found else math.nan for name in self.beside}
        self.rows.append({name: float(number) for name, number in row} | {_named(n): v for n, v in further.items()})


class _Part:
    """What is measured of the last batch, read anew for every pass."""

    batch: Batch | None = None

    def __iter__(self) -> Iterator[Batch]:
        assert self.batch is not None
        yield self.batch


def _named(data: str) -> str:
    return f"critical_sharpness_{data}"


def _tried(found: CriticalSharpness, rate: float) -> float:
    """Return where to start after a search that found nothing: where it ended."""
    low, high = found.bounds
    if not low:
        return rate
    return low if math.isinf(high) else math.sqrt(low * high)
