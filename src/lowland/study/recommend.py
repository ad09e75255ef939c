"""Which method helps on this model and data: a first look at all, then fresh seeds for the one that did best.

The best of several noisy numbers is too good; so the first look only picks, on validation data with the test part
withheld, and what is said about the winner comes from runs with other seeds on the test part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lowland import losses, optim
from lowland.report.statistics import show_interval
from lowland.report.study import StudyRow
from lowland.study.compare import compare_methods, write_report
from lowland.study.run import Progress, Study, run_study
from lowland.study.search import withhold_test
from lowland.study.work import OnRun
from lowland.workflows.study import Changes, RecommendSpec, SearchSpec, StudySpec

BASELINE: Final = "SGD"

FRESH: Final = 1000
"""First seed of the confirmation; the first look begins at 0 and the trials at 10,000."""

_METHODS: Final[dict[str, tuple[str, str, Changes, dict[str, list[Any]]]]] = {
    "SAM": ("optimizer", "sam", {}, {"optimizer.options.rho": [0.05, 0.1, 0.2]}),
    "ASAM": ("optimizer", "asam", {}, {"optimizer.options.rho": [0.5, 1.0, 2.0]}),
    "SALA": ("optimizer", "sala", {}, {"optimizer.options.rho": [0.1, 0.2]}),
    "Lookahead": ("optimizer", "lookahead", {}, {}),
    "LLR": ("loss", "llr", {}, {}),
    "SAF": ("loss", "saf", {"loss.options.start": 0.3}, {"loss.options.weight": [0.1, 0.3]}),
    "MESA": ("loss", "mesa", {"loss.options.start": 0.3}, {"loss.options.weight": [0.3, 0.8]}),
}
"""Method -> where it is wrapped, its name there, what it needs, what is searched (the grids of the papers)."""


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` ends with.

    Args:
        lines: The honest lines, the first one the shortest.
        winner: Best method of the first look; the baseline's name where none was above it.
        screen: Rows of the first look, on validation data.
        confirm: Rows of the confirmation, on the test part with fresh seeds; empty where there was nothing to confirm.
        reports: Pages of both.
    """

    lines: tuple[str, ...]
    winner: str
    screen: tuple[StudyRow, ...]
    confirm: tuple[StudyRow, ...]
    reports: tuple[Path, ...]


def recommend(
    spec: RecommendSpec,
    *,
    progress: Progress | bool | None = None,
    on_run: OnRun | None = None,
    on_study: Callable[[StudySpec], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Recommendation:
    """Find the best method by a short study and confirm it on fresh seeds; what is done is not done again.

    Args:
        spec: Model, data and sizes.
        progress: True shows bars, in a terminal or a notebook; or what gives a receiver of events for each label.
        on_run: Called after each run.
        on_study: Called with the first look and with the confirmation, each before it runs.
        on_note: Called with what each can see, line by line, before it runs.

    Returns:
        The lines and the numbers behind them.
    """
    first = screening(spec)
    begin = on_study or (lambda study: None)
    begin(first)
    looked = run_study(first, progress=progress, on_run=on_run, on_note=on_note)
    screen = tuple(compare_methods(looked))
    reports = [write_report(looked)]
    winner = _winner(first, screen)
    if winner == first.reference():
        return Recommendation(_nothing(screen, first), winner, screen, (), tuple(reports))
    second = _confirmation(spec, first, looked, winner)
    begin(second)
    confirmed = run_study(second, progress=progress, on_run=on_run, on_note=on_note)
    confirm = tuple(compare_methods(confirmed))
    reports.append(write_report(confirmed))
    return Recommendation(_lines(screen, confirm, first, second, winner), winner, screen, confirm, tuple(reports))


def default_methods(spec: RecommendSpec) -> tuple[dict[str, Changes], dict[str, dict[str, list[Any]]]]:
    """Return the methods that are tried where the spec names none, and what is searched for each."""
    rooms: dict[str, Mapping[str, Any]] = {"optimizer": optim.METHODS, "loss": losses.METHODS}
    found: dict[str, Changes] = {BASELINE: {}}
    grids: dict[str, dict[str, list[Any]]] = {}
    for name, (room, method, needs, grid) in _METHODS.items():
        if method in rooms[room]:
            found[name] = {f"{room}.method": method, **needs}
            grids[name] = grid
    return found, grids


def screening(spec: RecommendSpec) -> StudySpec:
    """Return the first look: every method, few seeds, validation data, the test part withheld."""
    methods, grids = (dict(spec.methods), {}) if spec.methods else default_methods(spec)
    rate, decay = spec.base.optimizer.learning_rate, spec.base.optimizer.weight_decay
    grid = {"optimizer.learning_rate": [rate / 3, rate, 3 * rate], "optimizer.weight_decay": [decay, 4 * decay]}
    classifies = spec.base.loss.name == "cross_entropy"
    return StudySpec(
        folder=str(Path(spec.folder) / "screen"),
        question="A first look at every method, on validation data.",
        base=withhold_test(replace(spec.base, model=spec.model, data=spec.data)),
        methods=methods,
        seeds=spec.seeds,
        endpoint="validation_accuracy" if classifies else "validation_loss",
        direction="higher" if classifies else "lower",
        smallest_effect=spec.smallest_effect,
        search=SearchSpec(trials=spec.trials, grid=grid, grids=grids),
        engine=spec.engine,
    )


def _confirmation(spec: RecommendSpec, first: StudySpec, looked: Study, winner: str) -> StudySpec:
    base = first.reference()
    return replace(
        first,
        folder=str(Path(spec.folder) / "confirm"),
        question=f"Does {winner} beat {base} on fresh seeds?",
        base=replace(spec.base, model=spec.model, data=spec.data),
        methods={name: {**first.methods[name], **looked.settings.get(("", name), {})} for name in (base, winner)},
        seeds=spec.fresh,
        first_seed=FRESH,
        endpoint=first.endpoint.replace("validation", "test"),
        budgets=["epochs", "compute"],
        search=SearchSpec(),
    )


def _winner(first: StudySpec, rows: Sequence[StudyRow]) -> str:
    sign = 1.0 if first.direction == "higher" else -1.0
    alive = [row for row in rows if not row.failed or row.method == first.reference()]
    return max(alive, key=lambda row: sign * row.interval.mean if row.values else float("-inf")).method


def _costs(rows: Sequence[StudyRow], base: str) -> str:
    reference = next(row for row in rows if row.method == base and row.budget == "epochs")
    shown = (f"{row.method} {row.passes / reference.passes:.2f} ×" for row in rows if row.budget == "epochs")
    return f"Cost in passes over {base}'s, all counted: " + ", ".join(shown) + "."


def _apart(rows: Sequence[StudyRow], base: str, seeds: int) -> str:
    open_ = [row.method for row in rows if row.verdict in ("undecided", "not measurable here")]
    return f"In the first look ({seeds} seeds) these could not be told apart from {base}: {', '.join(open_) or 'none'}."


def _failed(rows: Sequence[StudyRow]) -> tuple[str, ...]:
    shown = "{} ({} of {} runs)".format
    bad = [shown(row.method, len(row.failed), len(row.failed) + len(row.values)) for row in rows if row.failed]
    return (f"Failed: {', '.join(bad)}.",) if bad else ()


def _nothing(screen: Sequence[StudyRow], first: StudySpec) -> tuple[str, ...]:
    base = first.reference()
    sure = all(row.verdict in ("", "refuted") for row in screen)
    head = f"no method was above {base} in the first look, so that nothing was left to confirm"
    head = f"No difference: {head}." if sure else f"Nothing to confirm: {head}; {first.seeds} seeds cannot say more."
    return (head, _apart(screen, base, first.seeds), _costs(screen, base), *_failed(screen))


def _lines(
    screen: Sequence[StudyRow], confirm: Sequence[StudyRow], first: StudySpec, second: StudySpec, winner: str
) -> tuple[str, ...]:
    percent = second.endpoint.endswith("accuracy")
    told = {}
    for row in confirm:
        if row.method == winner:
            shown = show_interval(
                row.difference, factor=100.0 if percent else 1.0, sign=True, decimals=2 if percent else 4
            )
            told[row.budget] = (row, f"{shown}{' points' if percent else ''} of {second.endpoint.replace('_', ' ')}")
    base, (row, text) = first.reference(), told["epochs"]
    if row.verdict == "reproduced":
        head = f"{winner} helped: {text} over {base} on {len(row.differences)} fresh seeds, at equal epochs."
    else:
        seen = f"{winner} did best in the first look, and on fresh seeds gave {text} ({row.verdict})"
        weak = row.verdict == "not measurable here"
        head = f"{'Not measurable here' if weak else 'No difference confirmed'}: {seen}."
    equal, words = told["compute"]
    lines = [head, f"At equal compute ({equal.epochs} epochs of {winner}): {words} ({equal.verdict})."]
    return (*lines, _apart(screen, base, first.seeds), _costs(screen, base), *_failed([*screen, *confirm]))
