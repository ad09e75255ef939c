"""What can be chosen about a risk, a summary of curvature and a figure, as plain data that is read without torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Final, Literal

from lowland.core.errors import check_positive, require
from lowland.core.names import METRICS, check_known


@dataclass(kw_only=True, frozen=True)
class RiskSpec:
    """What is measured on the weights of a run, and on which data.

    Args:
        weights: Which weights of the run: best (chosen on validation), last, initial, or the step of a snapshot.
        split: Which part of the data: train, validation or test.
        samples: Size of a fixed random subset (samples); none takes all.
        seed: Seed of the subset.
        batch_size: Samples per forward pass (samples).
        batch_norm: Statistics that normalize: running, batch (of the fixed partition) or recalibrated.
        metrics: What is measured beside the loss: accuracy (always there where the data have classes), or
            module:callable of an output and a batch, under the callable's name.
    """

    weights: str = "best"
    split: Literal["train", "validation", "test"] = "train"
    samples: int | None = None
    seed: int = 0
    batch_size: int = 500
    batch_norm: Literal["running", "batch", "recalibrated"] = "running"
    metrics: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_positive(samples=self.samples, batch_size=self.batch_size)
        known, rule = ("best", "last", "initial"), "must be best, last, initial or the step of a snapshot"
        require(self.weights in known or self.weights.isdigit(), "risk.weights", rule, self.weights)
        for name in self.metrics:
            check_known("risk.metrics", name, METRICS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryOptions:
    """What `lowland.curvature.summarize` measures, and how hard it tries.

    Args:
        max_products: Most Hessian-vector products for both ends of the spectrum (products).
        trace_products: Products of the trace by Hutch++ (products).
        directions: Random filter-normalized directions of the filter-weighted trace (directions); each takes a product,
            and two evaluations of the loss for the curvature of pictures.
        spacing: Distance to the center at which the same directions show their curvature as pictures do, kinks
            included (coordinate); 0.04 is that of 51 points from -1 to 1.
        rho: Radius of the SAM sharpness (weight units).
        top: Also this many of the largest eigenvalues (eigenvalues): ``top_eigenvalue`` and ``top_residual`` over
            ``rank``.
        density_probes: Also the spectral density, from this many start vectors of 40 products (vectors): ``density``,
            ``density_se`` over ``grid``, with ``eigenvalue_grid``.
        layer_probes: Also the trace of every tensor's block, from this many probes (vectors): ``layer_trace``,
            ``layer_trace_se`` over ``layer``.
        by: Also where curvature sits: trace, both ends and the rise of the loss under noise of each ``layer``,
            ``block`` or ``kind`` of layer, over ``part`` (`lowland.curvature.curvature_by_part`); none leaves it out.
        sharpness: Also average-case and worst-case sharpness, plain and adaptive, by the standard protocol: the table
            of `lowland.curvature.sharpness_table` over ``measure``.
        seed: Seed of start vector, probes and directions.

    Example:
        >>> SummaryOptions(rho=-1.0)
        Traceback (most recent call last):
        lowland.core.errors.InputError: `rho` must be positive (got -1.0)
    """

    max_products: int = 80
    trace_products: int = 30
    directions: int = 32
    spacing: float = 0.04
    rho: float = 0.05
    top: int = 0
    density_probes: int = 0
    layer_probes: int = 0
    by: Literal["layer", "block", "kind"] | None = None
    sharpness: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("max_products", "trace_products", "directions", "spacing", "rho")
        check_positive(**{name: getattr(self, name) for name in positive})
        for name in ("top", "density_probes", "layer_probes"):
            require(getattr(self, name) >= 0, name, "must not be negative", getattr(self, name))
        require(self.by in (None, "layer", "block", "kind"), "by", 'must be "layer", "block", "kind" or none', self.by)


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOptions:
    """Everything that can be chosen about a figure of stored results.

    Args:
        metric: Metric to draw.
        split: Name along ``split``; none for the first (lines: all).
        direction: Name along ``direction``; none for the first (lines: mean and range).
        log: Logarithmic scale; none decides by the data.
        minimum: Low end of the scale; none takes the data's.
        maximum: High end of the scale; none takes the data's.
        levels: Least number of contour levels; none for 9.
        color_map: viridis, cividis, magma, inferno or plasma.
        filled: Fill between contour lines.
        points: Mark measured and interpolated points; none where both occur.
        basins: Mark the basins of a contour that errors could not have made, and their saddles.
        title: Title; with several results their names are the titles of the panels.
        caption: Small print; none writes it from the results, "" leaves it out.
        columns: Panels in a row.
        size: column, text, slide, a venue's such as icml-column or neurips-text, or width and height in inches.
    """

    metric: str = "loss"
    split: int | str | None = None
    direction: int | str | None = None
    log: bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    levels: int | None = None
    color_map: str = "viridis"
    filled: bool = True
    points: bool | None = None
    basins: bool = False
    title: str = ""
    caption: str | None = None
    columns: int = 3
    size: tuple[float, float] | str | None = None


PARTS_OF_CARD: Final = ("rounding", "noise", "worst", "forgetting", "merging", "inputs")
"""Parts of a robustness card, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessOptions:
    """What a robustness card measures.

    Args:
        parts: rounding, noise, worst, forgetting, merging, inputs; none takes those that have the data or the weights
            that they need.
        bits: Bits of rounded weights (bits).
        group: Entries of a row that share a scale where rounding goes by groups (weights); torchao's is 128, smaller
            here for the short rows of convolutions.
        radii: Lengths of noise and of the worst direction (fractions of the norm of the weights that are moved).
        directions: Random directions of each kind of noise, the same at all radii (directions); 200 for a profile.
        curvature_samples: Fixed random subset on which predictions and the worst direction are computed, and compared
            with what is measured on the same samples (samples); none takes all.
        worst_steps: Steps of auto-PGD towards the worst direction (steps); 20 is the paper's.
        finetune_steps: Steps on the other data, and as many back (steps).
        learning_rates: One fine-tune by AdamW each; forgetting is compared at equal loss on the other data.
        batch_size: Samples a step of a fine-tune (samples).
        shares: Places on the way to the other weights (fractions).
        deviations: Gaussian noise on inputs in [0, 1] (standard deviations).
        attack_samples: Fixed random subset of the test images that is attacked (samples); none attacks all, which takes
            500 passes over them.
        seed: Seed of subset, directions and order.

    Example:
        >>> RobustnessOptions(bits=[1])
        Traceback (most recent call last):
        lowland.core.errors.InputError: `bits` must hold numbers from 2 to 16 (got [1])
    """

    parts: list[str] | None = None
    bits: list[int] = field(default_factory=lambda: [8, 4])
    group: int = 32
    radii: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.1])
    directions: int = 5
    curvature_samples: int | None = 256
    worst_steps: int = 20
    finetune_steps: int = 40
    learning_rates: list[float] = field(default_factory=lambda: [1e-3])
    batch_size: int = 64
    shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    deviations: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2])
    attack_samples: int | None = 256
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("group", "curvature_samples", "worst_steps", "finetune_steps", "batch_size", "attack_samples")
        check_positive(**{name: getattr(self, name) for name in positive})
        require(self.directions >= 2, "directions", "must be at least 2, for a standard error", self.directions)
        whole = self.bits and all(isinstance(b, int) and 2 <= b <= 16 for b in self.bits)
        require(whole, "bits", "must hold numbers from 2 to 16", self.bits)
        for name in ("radii", "learning_rates", "shares", "deviations"):
            values = getattr(self, name)
            ascending = all(a < b for a, b in itertools.pairwise(values))
            require(values and values[0] > 0 and ascending, name, "must hold positive numbers, ascending", values)
        if self.parts is not None:
            known = set(self.parts) <= set(PARTS_OF_CARD) and len(set(self.parts)) == len(self.parts) > 0
            require(known, "parts", f"must name some of {', '.join(PARTS_OF_CARD)}, each once", self.parts)
