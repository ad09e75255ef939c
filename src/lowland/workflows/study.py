"""The specs of `lowland study` and `lowland recommend`: everything that is decided before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lowland.core.errors import InputError, require
from lowland.core.names import check_engine
from lowland.core.settings import RiskSpec
from lowland.workflows.checks import VERSION, check_version, is_file_name
from lowland.workflows.specs import DataSpec, FitSpec, ModelSpec

Changes = dict[str, Any]
"""Dotted key of a run's spec -> value, such as ``{"optimizer.method": "sam", "optimizer.options.rho": 0.1}``."""


@dataclass(kw_only=True)
class SearchSpec:
    """The search for settings: the same number of trials for every method, judged on validation data alone.

    Args:
        trials: Settings tried for every method (trials); 0 searches nothing.
        grid: Dotted key -> values, searched for every method, the plain optimizer included.
        grids: Method -> its further keys and values (SAM: {optimizer.options.rho: [0.05, 0.1]}).
        sampler: grid (a fixed subset of the grid) or optuna (its TPE sampler over the same values).
        seeds: Seeds per trial (runs).
        first_seed: First seed of the trials; far from the study's own, so that the winner is confirmed on fresh ones.
    """

    trials: int = 0
    grid: dict[str, list[Any]] = field(default_factory=dict)
    grids: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    sampler: Literal["grid", "optuna"] = "grid"
    seeds: int = 1
    first_seed: int = 10_000

    def __post_init__(self) -> None:
        if self.trials < 0 or self.seeds < 1:
            rule = "must be at least 0 and at least 1"
            raise InputError("search.trials, search.seeds", rule, (self.trials, self.seeds))
        empty = [key for grid in (self.grid, *self.grids.values()) for key, values in grid.items() if not values]
        require(not empty, "search.grid", "must list at least one value for each key", empty)


@dataclass(kw_only=True)
class SurveySpec:
    """What is surveyed after training, with the same directions and sizes for every method.

    Args:
        curvature: Seeds of each method whose curvature is measured (runs).
        surface: Survey the loss surface of the first seed of each method.
        points: Points along each axis of the surfaces.
        extent: Half width of the surfaces (units of the normalized directions).
        risk: Which weights, data and batch-norm mode; one for all runs.
    """

    curvature: int = 0
    surface: bool = False
    points: int = 25
    extent: float = 1.0
    risk: RiskSpec = field(default_factory=RiskSpec)

    def __post_init__(self) -> None:
        if self.curvature < 0 or self.points < 1 or not self.extent > 0:
            names, got = "survey.curvature, survey.points, survey.extent", (self.curvature, self.points, self.extent)
            raise InputError(names, "must be at least 0, at least 1 and positive", got)


def _base() -> FitSpec:
    return FitSpec(snapshots_every_epochs=None, threads=1)


@dataclass(kw_only=True)
class StudySpec:
    """Train methods x seeds alike, and answer one question that is fixed before anything runs.

    Args:
        folder: Where everything goes; an interrupted study goes on.
        question: The question in words, for the report.
        base: The run that all methods share; folder and seed are the study's.
        methods: Name -> what the method changes in the base run (optimizer, loss, schedule, clip).
        baseline: Method that the others are compared with; none takes the first.
        variants: Name -> what differs between the parts of the study (model, data, epochs); none is one part.
        seeds: Seeds of each method (runs).
        first_seed: First seed.
        endpoint: The number that decides (test_accuracy, test_loss, train_loss, steps_to_loss:0.5 ...).
        direction: Whether the claim is that the methods' endpoint is higher or lower than the baseline's.
        smallest_effect: Smallest difference of interest (endpoint's unit; accuracies are fractions).
        rule: better (than the baseline) or noninferior (worse by less than the smallest effect).
        budgets: Compare at equal epochs, at equal compute (counting every pass), or at both.
        search: The search for settings.
        survey: What is surveyed after training.
        engine: Who computes: serial, processes:N or ray.
        version: Version of this spec.
    """

    folder: str = "runs/study"
    question: str = ""
    base: FitSpec = field(default_factory=_base)
    methods: dict[str, Changes] = field(default_factory=dict)
    baseline: str | None = None
    variants: dict[str, Changes] = field(default_factory=dict)
    seeds: int = 8
    first_seed: int = 0
    endpoint: str = "test_accuracy"
    direction: Literal["higher", "lower"] = "higher"
    smallest_effect: float = 0.005
    rule: Literal["better", "noninferior"] = "better"
    budgets: list[Literal["epochs", "compute"]] = field(default_factory=lambda: ["epochs"])
    search: SearchSpec = field(default_factory=SearchSpec)
    survey: SurveySpec = field(default_factory=SurveySpec)
    engine: str = "serial"
    version: int = VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        check_engine(self.engine)
        require(self.seeds >= 2, "seeds", "must be at least 2, for an interval", self.seeds)
        if not self.smallest_effect > 0:
            raise InputError("smallest_effect", "must be positive, in the endpoint's unit", self.smallest_effect)
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise InputError("budgets", "must name epochs, compute or both, each once", self.budgets)
        for name in (*self.methods, *self.variants):
            require(is_file_name(name), "methods, variants", "must have names that can be file names", name)
        unknown = ({self.baseline} - {None} | set(self.search.grids)) - set(self.methods)
        if unknown:
            rule = f"must name methods of the study ({', '.join(self.methods)})"
            raise InputError("baseline, search.grids", rule, sorted(str(name) for name in unknown))
        if len(self.survey_seeds()) > self.seeds:
            raise InputError("survey.curvature", f"must not exceed the {self.seeds} seeds", self.survey.curvature)

    def reference(self) -> str:
        """Return the method that the others are compared with."""
        require(self.methods, "methods", "must name at least one method", self.methods)
        return self.baseline or next(iter(self.methods))

    def survey_seeds(self) -> range:
        """Return the seeds whose curvature is measured: the first ones."""
        return range(self.first_seed, self.first_seed + self.survey.curvature)


@dataclass(kw_only=True)
class RecommendSpec:
    """Find out on a model and data which methods help, and confirm the winner on fresh seeds.

    Args:
        folder: Where everything goes; an interrupted search goes on.
        model: The network.
        data: The data set.
        base: The run that all methods share; model, data, folder and seed are taken from here.
        methods: Name -> what it changes in the base run; none takes SGD and every method of Lowland that needs no
            more than this data has.
        seeds: Seeds of the first look (runs of each method).
        fresh: Fresh seeds of the confirmation (runs of the winner and of the baseline).
        trials: Settings tried for every method (trials).
        smallest_effect: Smallest difference in accuracy of interest (fraction).
        engine: Who computes: serial, processes:N or ray.
        version: Version of this spec.
    """

    folder: str = "runs/recommend"
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    base: FitSpec = field(default_factory=_base)
    methods: dict[str, Changes] = field(default_factory=dict)
    seeds: int = 5
    fresh: int = 8
    trials: int = 3
    smallest_effect: float = 0.005
    engine: str = "serial"
    version: int = VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        check_engine(self.engine)
        if self.seeds < 2 or self.fresh < 4:
            raise InputError("seeds, fresh", "must be at least 2 and 4, for intervals", (self.seeds, self.fresh))
        require(self.trials >= 1, "trials", "must be at least 1", self.trials)
        require(self.smallest_effect > 0, "smallest_effect", "must be positive", self.smallest_effect)
