"""The specs of what is measured and drawn on trained weights; see `lowland.workflows.specs` for what a spec is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lowland.core.errors import InputError
from lowland.workflows.checks import VERSION, check_name, check_positive, check_version

__all__ = [
    "CurvatureSpec",
    "FigureSpec",
    "LineSpec",
    "ReportSpec",
    "RiskSpec",
    "SubjectSpec",
    "SurfaceSpec",
    "TrajectorySpec",
]


@dataclass(kw_only=True)
class RiskSpec:
    """What is measured on the weights of a run, and on which data.

    Args:
        weights: Which weights of the run: best (chosen on validation), last, initial, or the step of a snapshot.
        split: Which part of the data: train, validation or test.
        samples: Size of a fixed random subset (samples); none takes all.
        seed: Seed of the subset.
        batch_size: Samples per forward pass (samples).
        batch_norm: Statistics that normalize: running, batch (of the fixed partition) or recalibrated.
    """

    weights: str = "best"
    split: Literal["train", "validation", "test"] = "train"
    samples: int | None = None
    seed: int = 0
    batch_size: int = 500
    batch_norm: Literal["running", "batch", "recalibrated"] = "running"

    def __post_init__(self) -> None:
        check_positive(samples=self.samples, batch_size=self.batch_size)
        if self.weights not in ("best", "last", "initial") and not self.weights.isdigit():
            raise InputError("risk.weights", "must be best, last, initial or the step of a snapshot", self.weights)


@dataclass(kw_only=True)
class SubjectSpec:
    """Whose weights are measured: those of a run, or of any model.

    Files are only read, never executed; module:callable is your own code, which is imported and called.

    Args:
        run: Folder of a run.
        model: Instead of a run: a known name, or module:callable that returns a torch.nn.Module. A Hugging Face folder
            as checkpoint needs none.
        model_options: Keyword arguments of that callable.
        checkpoint: Weights of the model: a state dict (.pt, .pth, .bin, .t7), safetensors, a Lightning checkpoint
            (.ckpt), a Hugging Face folder, or a run's folder; none takes the weights that the callable returns.
        prefix: Where the model stands in the checkpoint (such as net. in a LightningModule); none finds it out.
        data: Instead of a run's: a known name, or module:callable that returns a data set, a loader, DataSplits, or
            these by part.
        data_options: Keyword arguments of that callable.
        loss: Instead of a run's: cross_entropy, mse, or module:callable.
        folder: Where results go that belong to no run.
    """

    run: str | None = None
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    prefix: str | None = None
    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    folder: str = "runs/survey"

    def __post_init__(self) -> None:
        given = [name for name in ("model", "checkpoint", "data") if getattr(self, name) is not None]
        if self.run is not None and given:
            raise InputError("run", f"must not be given together with {', '.join(given)}", self.run)
        if self.run is None and self.model is None and self.checkpoint is None:
            advice = "or --model, --checkpoint and --data for a model of your own"
            raise InputError("run", "must be given", advice=advice)
        if self.run is None and self.data is None:
            raise InputError("data", "must be given", advice="a known name, or module:callable that returns a data set")

    @property
    def label(self) -> str:
        """What the subject is called."""
        return str(self.run or self.checkpoint or self.model)


@dataclass(kw_only=True)
class SurfaceSpec(SubjectSpec):
    """Survey the loss on a random filter-normalized plane around the weights of a run, or of any model.

    Args:
        name: Name of the surface; it is written to FOLDER/surfaces/NAME.zarr, and an interrupted survey goes on.
        risk: What is measured.
        points: Points along x and along y.
        extent: Half width of the plane (units of the normalized directions).
        seed: Seed of the directions.
        normalization: filter, layer, weight or none.
        splits: Parts of the data that are measured; none takes the risk's.
        probe: What is measured beyond loss and accuracy: none, gradient (its norm) or convexity (both Hessian ends).
        refine: Measure only as many points as the tolerance asks for, interpolate the rest and check it.
        precision: float32, bfloat16, or auto (bfloat16 where it is faster and exact enough).
        engine: Who computes: serial, processes:N, ray or ray://HOST:PORT.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    name: str = "plane"
    risk: RiskSpec = field(default_factory=RiskSpec)
    points: tuple[int, int] = (51, 51)
    extent: float = 1.0
    seed: int = 0
    normalization: Literal["filter", "layer", "weight", "none"] = "filter"
    splits: list[str] | None = None
    probe: Literal["none", "gradient", "convexity"] = "none"
    refine: bool = False
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    engine: str = "serial"
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_version(self.version)
        check_positive(points=min(self.points), extent=self.extent, threads=self.threads)
        check_name(self.name)


@dataclass(kw_only=True)
class LineSpec(SubjectSpec):
    """Survey the loss on a line: in random directions from the weights of a run or any model, or to other weights.

    Args:
        other: Folder of the run at 1, or the other checkpoint of the model; none takes random filter-normalized
            directions instead.
        match: Reorder the hidden units of the other one first, so that they resemble the first one's.
        name: Name of the result; it is written to FOLDER/surfaces/NAME.zarr, and an interrupted survey goes on.
        risk: What is measured.
        splits: Parts of the data that are measured; none takes the risk's.
        points: Points on the line.
        start: First coordinate (fraction of the way, or units of the normalized direction).
        stop: Last coordinate.
        directions: Random directions, for a band over them; 1 with another run.
        seed: Seed of the first direction; the others follow.
        normalization: filter, layer, weight or none.
        engine: Who computes: serial, processes:N, ray or ray://HOST:PORT.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    other: str | None = None
    match: bool = False
    name: str = "line"
    risk: RiskSpec = field(default_factory=RiskSpec)
    splits: list[str] | None = None
    points: int = 51
    start: float = -0.5
    stop: float = 1.5
    directions: int = 1
    seed: int = 0
    normalization: Literal["filter", "layer", "weight", "none"] = "filter"
    engine: str = "serial"
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_version(self.version)
        check_positive(points=self.points, directions=self.directions, threads=self.threads)
        check_name(self.name)
        if not self.start < self.stop:
            raise InputError("start, stop", "must be in ascending order", (self.start, self.stop))
        if self.match and self.other is None:
            raise InputError("match", "needs another run", self.match, "give --other")
        if self.other is not None and self.directions != 1:
            raise InputError("directions", "must be 1 between two runs", self.directions)


@dataclass(kw_only=True)
class TrajectorySpec:
    """Project the training path of a run on its principal directions, beside a random walk's, into RUN/trajectory.zarr.

    Args:
        run: Folder of the run; it must hold snapshots.
        risk: What is measured at every snapshot and at its projection.
        anchor: Where the directions start: end (as in the paper) or mean.
        losses: Measure the true loss of every snapshot and the loss of its projection beside it.
        plane: Also survey the loss on the plane of the path.
        points: Points along x and along y of that plane.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    run: str
    # the path ends at the last weights; snapshots keep no batch-norm statistics, so they are made anew at every point
    risk: RiskSpec = field(default_factory=lambda: RiskSpec(weights="last", batch_norm="recalibrated"))
    anchor: Literal["end", "mean"] = "end"
    losses: bool = True
    plane: bool = True
    points: tuple[int, int] = (25, 25)
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        check_positive(points=min(self.points), threads=self.threads)


@dataclass(kw_only=True)
class CurvatureSpec(SubjectSpec):
    """Measure both ends of the Hessian's spectrum, traces and sharpness at the weights of a run, or of any model.

    Args:
        name: Name of the result; it is written to FOLDER/curvature/NAME.zarr.
        risk: What is measured.
        max_products: Most Hessian-vector products of the Krylov run (products).
        trace_products: Products of the trace (products).
        directions: Random filter-normalized directions of the filter-weighted trace (directions).
        rho: Radius of the SAM sharpness (weight units).
        top: Also this many of the largest eigenvalues (eigenvalues).
        density_probes: Also the spectral density, from this many start vectors of 40 products (vectors).
        layer_probes: Also the trace of every tensor, from this many probes (vectors).
        sharpness: Also average-case and worst-case sharpness, plain and adaptive, by the standard protocol.
        seed: Seed of start vector and probes.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    name: str = "hessian"
    risk: RiskSpec = field(default_factory=RiskSpec)
    max_products: int = 80
    trace_products: int = 30
    directions: int = 32
    rho: float = 0.05
    top: int = 0
    density_probes: int = 0
    layer_probes: int = 0
    sharpness: bool = False
    seed: int = 0
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_version(self.version)
        check_positive(max_products=self.max_products, trace_products=self.trace_products, directions=self.directions)
        check_positive(rho=self.rho, threads=self.threads)
        for name in ("top", "density_probes", "layer_probes"):
            if getattr(self, name) < 0:
                raise InputError(name, "must not be negative", getattr(self, name))
        check_name(self.name)


@dataclass(kw_only=True)
class ReportSpec:
    """Write one self-contained page about finished runs.

    Args:
        runs: Folders of the runs.
        output: File to write.
        title: Heading of the page.
        allow_mixed: Accept runs of different data or loss, and mark the page.
    """

    runs: list[str]
    output: str = "report.html"
    title: str = "Lowland report"
    allow_mixed: bool = False


@dataclass(kw_only=True)
class FigureSpec:
    """Draw stored results in any style, without computing anything again.

    Args:
        results: Stores of surfaces, lines or curvature; several are drawn on one scale.
        output: File to write; its ending chooses the format: .pdf, .svg, .png, .html, .vts or .vtp.
        kind: contour, surface, heat-map, convexity, line, density, path or animation.
        trajectories: Stores of training paths, for path and animation.
        metric: Metric to draw.
        split: Part of the data; none takes the first.
        log: Logarithmic scale; none decides by the data.
        minimum: Low end of the scale (metric's unit); none takes the data's.
        maximum: High end of the scale (metric's unit); none takes the data's.
        levels: Least number of contour levels; none takes 9.
        color_map: viridis, cividis, magma, inferno or plasma.
        filled: Fill between contour lines.
        points: Mark measured and interpolated points; none where both occur.
        title: Title.
        caption: Small print; none writes it from the results.
        columns: Panels in a row.
        size: column, text or slide; none takes the kind's own.
    """

    results: list[str]
    output: str = "figure.pdf"
    kind: str = "contour"
    trajectories: list[str] = field(default_factory=list)
    metric: str = "loss"
    split: str | None = None
    log: bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    levels: int | None = None
    color_map: str = "viridis"
    filled: bool = True
    points: bool | None = None
    title: str = ""
    caption: str | None = None
    columns: int = 3
    size: str | None = None
