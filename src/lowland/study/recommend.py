"""Which method helps on this model and data: a first look at all, then fresh seeds for the one that did best.

The best of several noisy numbers is too good; so the first look only picks, on validation data with the test part
withheld, and what is said about the winner comes from runs with other seeds on the test part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lowland import losses, optim
from lowland.report.statistics import show_interval
from lowland.report.study import StudyRow
from lowland.study.compare import compare_methods, write_report
from lowland.study.run import Progress, Study, check_study, run_study
from lowland.study.search import withhold_test
from lowland.study.work import OnRun
from lowland.workflows import FitSpec
from lowland.workflows.study import Changes, RecommendSpec, SearchSpec, StudySpec

__all__ = ["Recommendation", "default_methods", "recommend", "screening"]

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


def recommend(spec: RecommendSpec, *, progress: Progress | None = None, on_run: OnRun | None = None) -> Recommendation:
    """Find the best method by a short study and confirm it on fresh seeds; what is done is not done again.

    Args:
        spec: Model, data and sizes.
        progress: Gives a receiver of events for each label.
        on_run: Called after each run.

    Returns:
        The lines and the numbers behind them.
    """
    first = screening(spec)
    check_study(first)
    looked = run_study(first, progress=progress, on_run=on_run)
    screen = tuple(compare_methods(looked))
    reports = [write_report(looked)]
    winner = _winner(first, screen)
    if winner == first.reference():
        return Recommendation(_nothing(screen, first), winner, screen, (), tuple(reports))
    second = _confirmation(spec, first, looked, winner)
    confirmed = run_study(second, progress=progress, on_run=on_run)
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
    classifies = _classifies(spec.base)
    return StudySpec(
        folder=str(Path(spec.folder) / "screen"), question="A first look at every method, on validation data.",
        base=withhold_test(replace(spec.base, model=spec.model, data=spec.data)), methods=methods, seeds=spec.seeds,
        endpoint="validation_accuracy" if classifies else "validation_loss",
        direction="higher" if classifies else "lower", smallest_effect=spec.smallest_effect,
        search=SearchSpec(trials=spec.trials, grid=grid, grids=grids), engine=spec.engine,
    )  # fmt: skip


def _classifies(base: FitSpec) -> bool:
    return base.loss.name == "cross_entropy"


def _confirmation(spec: RecommendSpec, first: StudySpec, looked: Study, winner: str) -> StudySpec:
    base = first.reference()
    methods = {name: {**first.methods[name], **looked.settings.get(("", name), {})} for name in (base, winner)}
    classifies = _classifies(spec.base)
    return StudySpec(
        folder=str(Path(spec.folder) / "confirm"), question=f"Does {winner} beat {base} on fresh seeds?",
        base=replace(spec.base, model=spec.model, data=spec.data), methods=methods, seeds=spec.fresh, first_seed=FRESH,
        endpoint="test_accuracy" if classifies else "test_loss", direction="higher" if classifies else "lower",
        smallest_effect=spec.smallest_effect, budgets=["epochs", "compute"], engine=spec.engine,
    )  # fmt: skip


def _winner(first: StudySpec, rows: Sequence[StudyRow]) -> str:
    sign = 1.0 if first.direction == "higher" else -1.0
    alive = [row for row in rows if not row.failed or row.method == first.reference()]
    return max(alive, key=lambda row: sign * row.interval.mean if row.values else float("-inf")).method


def _costs(rows: Sequence[StudyRow], base: str) -> str:
    reference = next(row for row in rows if row.method == base and row.budget == "epochs")
    shown = (f"{row.method} {row.passes / reference.passes:.2f} ×" for row in rows if row.budget == "epochs")
    return f"Cost in passes over {base}'s, every pass counted: " + ", ".join(shown) + "."


def _apart(rows: Sequence[StudyRow], base: str, seeds: int) -> str:
    open_ = [row.method for row in rows if row.verdict == "undecided"]
    return f"In the first look ({seeds} seeds) these could not be told apart from {base}: {', '.join(open_) or 'none'}."


def _failed(rows: Sequence[StudyRow]) -> tuple[str, ...]:
    bad = [
        f"{row.method} ({len(row.failed)} of {len(row.failed) + len(row.values)} runs)" for row in rows if row.failed
    ]
    return (f"Failed: {', '.join(bad)}.",) if bad else ()


def _nothing(screen: Sequence[StudyRow], first: StudySpec) -> tuple[str, ...]:
    base = first.reference()
    head = f"No difference: no method was above {base} in the first look, so that nothing was left to confirm."
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
        head = f"No difference confirmed: {seen}."
    equal, words = told["compute"]
    lines = [head, f"At equal compute ({equal.epochs} epochs of {winner}): {words} ({equal.verdict})."]
    return (*lines, _apart(screen, base, first.seeds), _costs(screen, base), *_failed([*screen, *confirm]))
