"""A curve over training: both ends of the Hessian's spectrum, and how near the optimizer is to the stability edge."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from lowland.core.contexts import BatchNormMode
from lowland.core.errors import InputError, require
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, SpectrumEnds, measurement_interval, stability, warm_started_extremes
from lowland.training.hooks import FitState, Hook
from lowland.training.metrics import write_rows
from lowland.training.risks import check_survey, training_risk

CURVATURE_COLUMNS = (
    "step",  # optimizer steps done
    "lambda_max",
    "lambda_max_residual",  # an eigenvalue lies within it of lambda_max
    "lambda_min",
    "lambda_min_residual",
    "stability",  # 1 is the edge; empty where it is not known, and before the first step
    "learning_rate",  # of the first group, at this step; empty before the first
    "products",  # Hessian products of this measurement
    "seconds",  # spent in this measurement
)
"""Columns of curvature.csv."""

_KNOWN_BY = ("lambda_max", "lambda_max_residual", "lambda_min", "lambda_min_residual", "stability")


class CurvatureCurve(Hook):
    """Measures lambda_max, lambda_min and the ratio to the stability edge along training, by warm-started products.

    Measured is the plain criterion on a fixed subset of the training data, at the weights that are trained. Every
    measurement starts from the eigenvectors of the one before, so that a few products suffice for lambda_max;
    lambda_min lags behind where weights move fast, as its residual says. All go into ``curvature.csv`` of the run's
    folder, the last of each epoch into ``metrics.csv``, and `rows` holds them where there is no folder. The ratio is
    ``eta lambda_max / (2 (1 + beta))`` for SGD, and that of the preconditioned Hessian for Adam and its kin, which
    takes further products (see `lowland.curvature.stability`); it is NaN where it is not known.

    Args:
        samples: Size of the subset; fewer where there are fewer. Default 256.
        products: Products of a warm measurement. Default 6.
        share: Largest share of the run's cost; it sets the number of steps between measurements (see
            `lowland.curvature.measurement_interval`). Default 0.03.
        every_steps: Steps between measurements instead; None takes them from ``share``.
        batch_norm: ``"running"`` statistics (default) or the ``"batch"`` statistics of the subset, which are nearer to
            what a step sees: with running ones a bias before batch norm, whose gradient is rounding noise in training,
            makes an adaptive method's ratio huge.
        seed: Seed of subset and start vectors. Default 0.

    Raises:
        InputError: If an argument is out of range; at the start of the run, if it is too short for the share.

    Example:
        >>> from lowland import data, models
        >>> from lowland.training import fit
        >>> curve = CurvatureCurve(samples=32, every_steps=1)
        >>> model = models.create("resnet8", width=4, channels=1, seed=0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> digits = data.load("digits", train_size=64)
        >>> _ = fit(model, optimizer, torch.nn.CrossEntropyLoss(), digits, epochs=2, hooks=[curve])
        >>> [int(row["step"]) for row in curve.rows]
        [0, 1, 2]
    """

    def __init__(
        self,
        *,
        samples: int = 256,
        products: int = 6,
        share: float = 0.03,
        every_steps: int | None = None,
        batch_norm: BatchNormMode = "running",
        seed: int = 0,
    ) -> None:
        check_survey(batch_norm, samples=samples, products=products, every_steps=every_steps)
        require(0 < share <= 1, "share", "must lie in (0, 1]", share)
        self.samples, self.products, self.share, self.every_steps = samples, products, share, every_steps
        self.batch_norm: BatchNormMode = batch_norm
        self.seed = seed
        self.rows: list[dict[str, float]] = []
        self._every = 0
        self._risk: EmpiricalRisk | None = None
        self._starts: dict[str, Tensor] = {}  # eigenvectors of the last measurement, by operator

    def interval(self, optimizer: torch.optim.Optimizer, samples: int, steps_per_epoch: int, epochs: int) -> int:
        """Return the number of steps between measurements in a run.

        Args:
            optimizer: The optimizer of the run; an adaptive one takes a second Krylov run in its own metric.
            samples: Size of the training part.
            steps_per_epoch: 0 where the length of an epoch is not known.
            epochs: Length of the run.

        Returns:
            Steps.

        Raises:
            InputError: If the run is too short for the share.
        """
        if self.every_steps is not None:
            return self.every_steps
        if not (steps_per_epoch and epochs):
            raise InputError("every_steps", "must be given where the length of the run is not known", None)
        group = optimizer.param_groups[0]
        runs = 2 if "betas" in group or "alpha" in group else 1
        return measurement_interval(
            steps=epochs * steps_per_epoch,
            batch_size=math.ceil(samples / steps_per_epoch),
            samples=min(self.samples, samples),
            products=runs * self.products,
            first=runs * _FIRST,
            share=self.share,
        )

    def on_fit_start(self, run: FitState) -> None:
        """Choose the subset and the interval, and measure the start unless the run goes on."""
        train: Any = run.data.train
        count: int = len(getattr(train, "dataset", train))
        self._every = self.interval(run.optimizer, count, run.steps_per_epoch, run.epochs)
        if run.rank:
            return
        self._risk = training_risk(run, samples=self.samples, seed=self.seed, batch_norm=self.batch_norm)
        if run.step == 0:
            self.rows, self._starts = [], {}
            self._measure(run)

    def on_step_end(self, run: FitState) -> None:
        """Measure if this step is one of those to measure at."""
        if self._risk is not None and run.step % self._every == 0:
            self._measure(run)

    def on_epoch_end(self, run: FitState) -> None:
        """Put the last measurement into the epoch's row."""
        if self.rows:
            last = self.rows[-1]
            run.row.update({name: last[name] for name in _KNOWN_BY if not math.isnan(last[name])})

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far and the eigenvectors that the next measurement starts from."""
        return {"rows": [dict(row) for row in self.rows], "starts": dict(self._starts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.rows, self._starts = [dict(row) for row in state["rows"]], dict(state["starts"])

    def _measure(self, run: FitState) -> None:
        assert self._risk is not None
        started = time.perf_counter()
        with Hessian(self._risk, check=not self._starts) as operator:
            ends = warm_started_extremes(
                operator, self._starts.get("plain"), products=self.products, first=_FIRST, seed=self.seed
            )
            self._starts["plain"] = ends.vectors.cpu()
            ratio = self._ratio(operator, run.optimizer, ends) if run.step else math.nan
        # at the start the schedule has not set a rate yet
        rate = float(run.optimizer.param_groups[0]["lr"]) if run.step else math.nan
        values = (
            run.step,
            ends.lambda_max,
            ends.residual_max,
            ends.lambda_min,
            ends.residual_min,
            ratio,
            rate,
            operator.products,
            time.perf_counter() - started,
        )
        self.rows.append(dict(zip(CURVATURE_COLUMNS, map(float, values), strict=True)))
        if run.folder is not None:
            known = [{name: value for name, value in row.items() if not math.isnan(value)} for row in self.rows]
            write_rows(run.folder / "curvature.csv", CURVATURE_COLUMNS, known)

    def _ratio(self, operator: Hessian, optimizer: torch.optim.Optimizer, ends: SpectrumEnds) -> float:
        start = self._starts.get("preconditioned")
        try:
            edge = stability(
                operator,
                optimizer,
                ends=ends,
                start=None if start is None else start.to(operator.device),
                max_products=_FIRST if start is None else self.products,
                min_products=3,
                seed=self.seed,
            )
        except InputError:  # no metric is known of this optimizer, or not before its first step
            return math.nan
        if edge.ends is not ends:
            self._starts["preconditioned"] = edge.ends.vectors.cpu()
        return edge.ratio


_FIRST = 30
"""Most products of a cold measurement."""
