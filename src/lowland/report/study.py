"""The pages of a study: the question and its rule, tables, paired differences, accuracy against cost, sharpness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lowland.report.sections import Block, Details, Figure, Listing, Paragraph, Section, Table
from lowland.report.statistics import Interval, show, show_interval, show_known
from lowland.results.run import COUNTED, PASSES
from lowland.viz.curves import front_line, pareto_front
from lowland.viz.spec import Axis, Curve, Line, Scatter, ScatterPoint


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One method in one comparison."""

    variant: str  # Part of the study; "" where there is one
    budget: str  # ``"epochs"`` or ``"compute"``
    method: str  # Name of the method
    values: Mapping[int, float]  # Endpoint by seed, of the runs that finished
    interval: Interval  # Mean over seeds
    failed: Mapping[int, str] = field(default_factory=dict)  # Error by seed, of those that did not
    differences: Mapping[int, float] = field(default_factory=dict)  # Method minus baseline by seed
    difference: Interval | None = None  # Their mean and interval; None for the baseline
    verdict: str = ""  # reproduced, refuted, undecided or not measurable here; "" for the baseline
    reason: str = ""  # The rule that gave it
    instrument: tuple[str, ...] = ()  # What the endpoint has shown that it can see, before the answer
    seeds_needed: int | None = None  # Seeds in all that would decide
    adjusted: float = math.nan  # p value after Holm's correction over the methods of the comparison
    passes: float = math.nan  # Mean cost in passes, all counted
    seconds: float = math.nan  # Mean time in training steps
    epochs: int = 0  # Length of its runs
    settings: str = ""  # What the search chose, as text


@dataclass(frozen=True, slots=True)
class SharpnessRow:
    """Whether one sharpness measure ranks runs as their gap does, inside strata."""

    measure: str  # Name of the measure
    strata: str  # What the runs of a stratum share and differ in
    tau: float  # Kendall's tau within strata
    low: float  # Lower end of its interval; NaN where there are too few clusters
    high: float  # Upper end
    partial: float  # With the train loss held
    pairs: int  # Pairs that it rests on
    worst: str = ""  # Largest sign error over the environments, and which; "" where there is none


@dataclass(frozen=True, slots=True)
class StudyPage:
    """Everything that the pages show."""

    question: str  # The question in words
    rule: str  # The rule, as declared before the study ran
    endpoint: str  # The endpoint's name
    percent: bool  # Whether the endpoint is a fraction that is shown in per cent
    higher: bool  # Whether more is better
    baseline: str  # Method that the others are compared with
    rows: tuple[StudyRow, ...]  # One per part, budget and method
    # Method (and part) -> expected validation score of the best of k trials.
    best_of: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sharpness: tuple[SharpnessRow, ...] = ()  # Agreement of sharpness and gap
    # Method -> (sharpness, gap) of single runs, of the first measure.
    points: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    point_measure: str = ""  # That measure
    notes: tuple[str, ...] = ()  # What else the reader must know
    spec: str = ""  # The study's spec as text

    @property
    def factor(self) -> float:
        """What values are multiplied by when they are shown."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """Unit of the values shown."""
        return "%" if self.percent else ""


_BUDGETS = {"epochs": "equal epochs", "compute": "equal compute"}


def study_sections(page: StudyPage) -> list[Section]:
    """Build the sections of a study."""
    sections = [Section("Question", tuple(_question(page)))]
    for variant, budget in dict.fromkeys((row.variant, row.budget) for row in page.rows):
        rows = [row for row in page.rows if (row.variant, row.budget) == (variant, budget)]
        title = _BUDGETS[budget].capitalize() + (f", {variant}" if variant else "")
        blocks: list[Block] = [study_table(page, rows)]
        blocks += [Figure(_paired(page, rows))] if len(rows) > 1 else []
        blocks += [Figure(_cost(page, rows))]
        sections.append(Section(title, tuple(blocks)))
    found = [_failures(page), _search(page), _sharpness(page)]
    return sections + [section for section in found if section is not None]


def study_table(page: StudyPage, rows: Sequence[StudyRow]) -> Table:
    """Build the table of one comparison."""
    base = next((row for row in rows if row.method == page.baseline), rows[0])
    front = pareto_front([(row.passes, row.interval.mean if page.higher else -row.interval.mean) for row in rows])
    cells = [
        _cells(page, row, base) | {"Pareto front": "yes" if best else "no"}
        for row, best in zip(rows, front, strict=True)
    ]
    notes = (
        "Brackets: 95 % t intervals over seeds; differences are paired by seed. Below four seeds the single values are "
        "listed, and nothing is decided.",
        PASSES,
        "Pareto front: no other method is both cheaper and better by its mean.",
    )
    return Table.of(cells, f"{_BUDGETS[rows[0].budget].capitalize()}; one checkpoint rule for all", notes)


def _cells(page: StudyPage, row: StudyRow, base: StudyRow) -> dict[str, str]:
    shown = partial(show_interval, factor=page.factor, decimals=2 if page.percent else 4)
    value = page.endpoint.replace("_", " ") + (f" ({page.unit})" if page.unit else "")
    difference = f"difference to {page.baseline}" + (" (points)" if page.percent else "")
    times = "–" if math.isnan(row.passes) else f"{show(row.passes)} ({row.passes / base.passes:.2f} ×)"
    return {
        "method": row.method,
        "seeds": str(len(row.values)),
        "failed": str(len(row.failed)),
        value: shown(row.interval),
        difference: "baseline" if row.method == page.baseline else shown(row.difference, sign=True),
        "instrument": "; ".join(row.instrument) or "–",
        "answer": _answer(row),
        "p (Holm)": show_known(row.adjusted, 2),
        f"{COUNTED} (× {page.baseline})": times,
        "epochs": str(row.epochs),
        "seconds": show_known(row.seconds),
    }


def _answer(row: StudyRow) -> str:
    if not row.verdict:
        return "–"
    more = f" ({row.seeds_needed} seeds would decide)" if row.verdict == "undecided" and row.seeds_needed else ""
    return f"{row.verdict}{more}: {row.reason}"


def _question(page: StudyPage) -> list[Block]:
    blocks: list[Block] = [Paragraph(page.question)] if page.question else []
    blocks.append(Paragraph("Declared before anything ran: " + page.rule))
    blocks += [Paragraph(note) for note in page.notes]
    if page.spec:
        blocks.append(Details("The study's spec", (Listing(page.spec),)))
    return blocks


def _paired(page: StudyPage, rows: Sequence[StudyRow]) -> Scatter:
    estimates = []
    for place, row in enumerate((row for row in rows if row.difference is not None), start=1):
        assert row.difference is not None
        shown = [page.factor * value for value in row.differences.values()]
        spread = [(place + 0.02 * (k - (len(shown) - 1) / 2), value) for k, value in enumerate(shown)]
        estimates.append(_estimate(page, row.method, float(place), row.difference, spread))
    label = f"difference to {page.baseline}"
    unit = "points" if page.percent else ""
    names = tuple(estimate.name for estimate in estimates)
    axes = Axis("method", limits=(0.5, len(estimates) + 0.5), categories=names), Axis(label, unit)
    caption = "Bars: 95 % t interval of the mean difference."
    return Scatter(tuple(estimates), *axes, "Paired differences, one point per seed", caption)


def _cost(page: StudyPage, rows: Sequence[StudyRow]) -> Scatter:
    known = [row for row in rows if not math.isnan(row.passes)]
    estimates = []
    for row in known:
        points = [(row.passes, page.factor * value) for value in row.values.values()]
        estimates.append(_estimate(page, row.method, row.passes, row.interval, points))
    front = pareto_front([(one.x, one.y if page.higher else -one.y) for one in estimates])
    best = ", ".join(one.name for one, on_front in zip(estimates, front, strict=True) if on_front)
    name = page.endpoint.replace("_", " ")
    axes = Axis(COUNTED), Axis(name, page.unit)
    caption, line = f"On the Pareto front by their means: {best}.", front_line(estimates, front)
    return Scatter(tuple(estimates), *axes, f"{name.capitalize()} against cost", caption, line)


def _estimate(
    page: StudyPage, name: str, x: float, interval: Interval, points: Sequence[tuple[float, float]]
) -> ScatterPoint:
    few = len(interval.values) < 4
    ends = None if few else (page.factor * interval.low, page.factor * interval.high)
    return ScatterPoint(name, x, page.factor * interval.mean, ends, tuple(points))


def _failures(page: StudyPage) -> Section | None:
    rows = tuple(
        (" ".join(part for part in (row.method, row.variant, _BUDGETS[row.budget]) if part), str(seed), error)
        for row in page.rows
        for seed, error in row.failed.items()
    )
    if not rows:
        return None
    note = "A comparison with a failed run decides nothing; the other runs are shown as they are."
    return Section("Failed runs", (Table(("run", "seed", "error"), rows, "Runs without a result", (note,)),))


def _search(page: StudyPage) -> Section | None:
    if not page.best_of:
        return None
    curves = tuple(
        Curve(name, np.arange(1.0, len(scores) + 1), page.factor * np.asarray(scores, dtype=np.float64), markers=True)
        for name, scores in page.best_of.items()
    )
    axis = Axis("expected validation score of the best", "%" if page.percent else "")
    line = Line(curves, Axis("trials"), axis, "What more trials would have brought")
    chosen = dict.fromkeys((f"{row.method} {row.variant}".strip(), row.settings) for row in page.rows)
    table = Table(("method", "chosen on validation"), tuple(chosen), "Settings found with the same number of trials")
    return Section("Search", (table, Figure(line)))


def _sharpness(page: StudyPage) -> Section | None:
    if not page.sharpness:
        return None
    cells = [
        {
            "measure": row.measure.replace("_", " "),
            "strata": row.strata,
            "Kendall's tau": _tau(row),
            "with train loss held": show_known(row.partial, 2),
            "pairs": str(row.pairs),
            "worst sign error": row.worst or "–",
        }
        for row in page.sharpness
    ]
    notes = (
        "tau: 1 where the sharper of two runs always has the larger gap, 0 for a coin, -1 always the smaller; only "
        "runs that differ in one factor are compared. Brackets: 95 % cluster bootstrap over seeds, from eight on.",
        "An agreement is no cause.",
    )
    blocks: list[Block] = [Table.of(cells, "Does sharper mean worse?", notes)]
    if page.points:
        estimates = tuple(
            ScatterPoint(name, float(x), float(y), None, tuple(points))
            for name, points in page.points.items()
            for x, y in [np.mean(points, axis=0)]
        )
        measure = page.point_measure.replace("_", " ")
        gap, small = Axis("gap", "test loss minus train loss"), "One point per run; large marks are means."
        blocks.append(Figure(Scatter(estimates, Axis(measure), gap, "Sharpness against the gap", small)))
    return Section("Sharpness against generalization", tuple(blocks))


def _tau(row: SharpnessRow) -> str:
    return show_known(row.tau, 2) + ("" if math.isnan(row.low) else f" [{show(row.low, 2)}, {show(row.high, 2)}]")
