"""The comparison of methods: means over seeds, paired differences, cost, and what must not be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowland.report import curvature
from lowland.report.marks import chosen_of, shows
from lowland.report.sections import Block, Figure, Section, Table
from lowland.report.statistics import LEAST_SEEDS, Interval, paired_interval, show, show_interval, t_interval
from lowland.results.matched import LOSS_RATIO, comparable
from lowland.results.run import COUNTED, PASSES, Run
from lowland.viz.curves import build_cost
from lowland.viz.spec import ScatterPoint

_INTERVALS = (
    "Brackets: 95 % t interval of the mean over seeds; the difference is paired by seed. Below four seeds the single "
    "values are listed instead."
)
_EPOCH_MEAN = (
    "Train loss: mean over the batches of the epoch while they were trained on. That of the weights themselves stands "
    "with the curvature."
)


def methods_of(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by method, in the order in which the methods first appear; of one seed the first finished run."""
    groups: dict[str, dict[object, Run]] = {}
    for run in runs:
        members = groups.setdefault(run.group, {})
        seed = run.name if run.seed is None else run.seed
        if seed not in members or (run.finished and not members[seed].finished):
            members[seed] = run
    return {name: [*members.values()] for name, members in groups.items()}


def comparison_table(runs: Sequence[Run], *, baseline: str | None = None) -> Table:
    """Build the table of methods: one row each, numbers with their uncertainty and their cost."""
    groups = methods_of(runs)
    base = baseline if baseline in groups else next(iter(groups))
    columns: list[tuple[str, dict[str, str]]] = [
        ("seeds", _each(groups, _seeds)),
        ("test accuracy (%)", _each(groups, lambda m: show_interval(_over(m, "test_accuracy"), factor=100))),
        (f"difference to {base} (points)", _differences(groups, base)),
        *_cost_columns(groups, base),
        ("train loss (epoch's mean)", _each(groups, lambda m: _mean(m, _train_loss))),
    ]
    columns += _curvature_columns(groups, base)
    present = [(title, cells) for title, cells in columns if set(cells.values()) != {"–"}]
    rows = [{"method": name} | {title: cells[name] for title, cells in present} for name in groups]
    return Table.of(rows, "Methods, at the weights that count", _notes(groups, base, runs))


def comparison_section(runs: Sequence[Run], *, baseline: str | None = None) -> Section | None:
    """Build the section that compares the methods."""
    if not any(run.finished or run.metrics for run in runs):
        return None
    blocks: list[Block] = [*shows(chosen_of(runs), ("train", "validation", "test"))]
    estimates = [e for name, members in methods_of(runs).items() if (e := _estimate(name, members)) is not None]
    if len(estimates) > 1:
        caption = "Large: mean over seeds with its 95 % t interval (from four seeds on); small: single seeds."
        blocks.append(Figure(build_cost(estimates, title="Accuracy against cost", caption=caption), height=380))
    blocks.append(comparison_table(runs, baseline=baseline))
    return Section("Comparison", tuple(blocks))


def _estimate(name: str, members: Sequence[Run]) -> ScatterPoint | None:
    pairs = [(run.number("passes"), run.number("test_accuracy")) for run in members]
    seeds = [(passes, 100 * accuracy) for passes, accuracy in pairs if passes is not None and accuracy is not None]
    if not seeds:
        return None
    interval = t_interval([accuracy for _, accuracy in seeds])
    bounds = (interval.low, interval.high) if len(seeds) >= LEAST_SEEDS else None
    return ScatterPoint(name, sum(passes for passes, _ in seeds) / len(seeds), interval.mean, bounds, tuple(seeds))


def _each(groups: Mapping[str, list[Run]], cell: Callable[[list[Run]], str]) -> dict[str, str]:
    return {name: cell(members) for name, members in groups.items()}


def _over(members: Sequence[Run], name: str) -> Interval | None:
    values = _known(members, lambda run: run.number(name))
    return t_interval(values) if values else None


def _known(members: Sequence[Run], value: Callable[[Run], float | None]) -> list[float]:
    return [number for run in members if (number := value(run)) is not None]


def _train_loss(run: Run) -> float | None:
    chosen = run.number("train_loss")
    return run.last("train_loss") if chosen is None else chosen


def _mean(members: Sequence[Run], value: Callable[[Run], float | None]) -> str:
    known = _known(members, value)
    return show(t_interval(known).mean) if known else "–"


def _differences(groups: Mapping[str, list[Run]], base: str) -> dict[str, str]:
    def by_seed(members: Sequence[Run]) -> dict[int, float]:
        found = {run.seed: run.number("test_accuracy") for run in members if run.seed is not None}
        return {seed: value for seed, value in found.items() if value is not None}

    if len(groups) == 1:
        return {base: "–"}
    reference = by_seed(groups[base])
    paired = {name: paired_interval(by_seed(members), reference) for name, members in groups.items()}
    return {n: "baseline" if n == base else show_interval(i, factor=100, sign=True) for n, i in paired.items()}


def _surveyed(members: Sequence[Run]) -> Run | None:
    return next((run for run in members if run.final_curvature is not None), None)


def _curvature_columns(groups: Mapping[str, list[Run]], base: str) -> list[tuple[str, dict[str, str]]]:
    def column(cell: Callable[[Any], str]) -> dict[str, str]:
        cells = {}
        for name, members in groups.items():
            run = _surveyed(members)
            mark = "" if name == base or _comparable_to(groups, base, name) else " †"
            text = "–" if run is None else cell(run.final_curvature)
            number, bracket, rest = text.partition(" (")
            cells[name] = text if text == "–" else number + mark + bracket + rest
        return cells

    return [
        ("λ max", column(curvature.highest_eigenvalue)),
        ("λ min", column(curvature.lowest_eigenvalue)),
        ("filter-weighted trace", column(lambda result: curvature.with_error(result, "filter_trace"))),
        ("curvature of pictures", column(curvature.pictured)),
        ("beyond the Hessian", column(curvature.beyond)),
        ("SAM sharpness", column(curvature.ascended)),
    ]


def _comparable_to(groups: Mapping[str, list[Run]], base: str, name: str) -> bool:
    pair = [_surveyed(groups[method]) for method in (base, name)]
    if any(run is None for run in pair):
        return True
    ends = [end for run in pair if run is not None and (end := run.final_curvature) is not None]
    same = len({curvature.part_of(end) for end in ends}) == 1
    return same and comparable([curvature.scalar(end, "train_loss") for end in ends])


def _cost_columns(groups: Mapping[str, list[Run]], base: str) -> list[tuple[str, dict[str, str]]]:
    def ratio(value: Callable[[Run], float | None]) -> dict[str, str]:
        means = {name: sum(k) / len(k) for name, members in groups.items() if (k := _known(members, value))}
        reference = means.get(base, 0.0)
        cells = dict.fromkeys(groups, "–") | {name: show(mean) for name, mean in means.items()}
        for name in means.keys() - {base} if reference else ():
            cells[name] += f" ({means[name] / reference:.2f} ×)"
        return cells

    def step_time(run: Run) -> float | None:
        seconds, steps = run.number("seconds"), run.last("step") or run.number("steps")
        return 1000 * seconds / steps if seconds is not None and steps else None

    beside = f" (× {base})" if len(groups) > 1 else ""
    return [(COUNTED + beside, ratio(lambda run: run.number("passes"))), ("ms per step" + beside, ratio(step_time))]


def _seeds(members: Sequence[Run]) -> str:
    finished = sum(run.finished for run in members)
    return (
        f"{len(members)}" if finished in (0, len(members)) else f"{finished} (of {len(members)}, the rest unfinished)"
    )


def _notes(groups: Mapping[str, list[Run]], base: str, runs: Sequence[Run]) -> tuple[str, ...]:
    notes = [_INTERVALS] if len(groups) > 1 or any(len(members) > 1 for members in groups.values()) else []
    notes.append(PASSES)
    counted = {run.name for members in groups.values() for run in members}
    again = [run.name for run in runs if run.name not in counted]
    if again:
        notes.append(f"Left out, as another run of the same method has the same seed: {', '.join(again)}.")
    surveyed = {name: run.name for name, members in groups.items() if (run := _surveyed(members)) is not None}
    if surveyed:
        notes += [_EPOCH_MEAN, "Curvature of one run each: " + ", ".join(surveyed.values()) + "."]
    apart = [name for name in surveyed if base in surveyed and not _comparable_to(groups, base, name)]
    if apart:
        notes.append(
            f"† not comparable at the end: the train loss of {', '.join(apart)} differs from {base}'s by more than a "
            f"factor {LOSS_RATIO} or is not stored; the section on curvature compares at matched loss where it can."
        )
    return tuple(notes)
