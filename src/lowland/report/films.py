"""Films in a report: the landscape along training with a slider, what its frames cost, and their promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowland.report.curvature import part_of
from lowland.report.marks import shows, weights_of
from lowland.report.sections import Block, Box, Details, Figure, Gallery, Paragraph, Section, Table
from lowland.report.statistics import show
from lowland.results.recipes import decoded
from lowland.results.run import Run
from lowland.viz.films import build_film, is_film

if TYPE_CHECKING:
    import xarray as xr

_TEXT = (
    "The same plane along training, a frame per snapshot: each goes through the weights of its step, so that the value "
    "at the head of the path is the true loss there. All frames share one color scale. The slider moves by the arrow "
    "keys too."
)


def films_section(runs: Sequence[Run]) -> Section | None:
    """Build the section with the films of all runs; frames that are not finished are left out."""
    films = [
        (run, name, film)
        for run in runs
        for name, film in run.surfaces.items()
        if is_film(film) and (film["status"] != 0).all(("x", "y")).any()
    ]
    if not films:
        return None
    figures, boxes, tables = [], [], []
    for run, name, film in films:
        title = run.name if sum(run is other for other, _, _ in films) == 1 else f"{run.name}: {name}"
        figures.append(Figure(build_film(film, title=title), run.name, height=440))
        boxes.append(_box(film, title, run.name))
        if (table := _table(film)) is not None:
            tables.append(Details(f"{title}: points and promise of each frame", (table,)))
    said = shows([(run, weights_of(film)) for run, _, film in films], sorted({part_of(film) for _, _, film in films}))
    blocks: list[Block] = [*said, Paragraph(_TEXT), Gallery(tuple(figures)), Gallery(tuple(boxes)), *tables]
    return Section("Films", tuple(blocks))


def _box(film: xr.Dataset, title: str, run: str) -> Box:
    points, measured = film.sizes["x"] * film.sizes["y"], int((film["status"] == 1).sum())
    checks = [
        ("frames", str(film.sizes["direction"]), f"of {film.sizes['x']} × {film.sizes['y']} points"),
        ("points measured", str(measured), f"as many as {measured / points:.1f} full surfaces"),
    ]
    checked = [report for report in decoded(film.attrs.get("refinement")) if "checked" in report]
    if checked:
        count = sum(report["checked"] for report in checked)
        beyond = sum(report["failures"] for report in checked)
        worst = max(report["worst_check"] for report in checked)
        bound = max(report["share_bound"] for report in checked)
        checks += [
            ("random checks", f"{beyond} of {count}", "beyond the tolerance, in all frames"),
            ("worst check", show(worst), "times the tolerance (1 % of the range and 6 % of the value)"),
            ("promise of the worst frame", f"{100 * bound:.1f} %", "of its pixels at most are beyond it (95 %)"),
        ]
    brief = f"{film.sizes['direction']} frames for the price of {measured / points:.1f} full surfaces"
    brief += f"; {beyond} of {count} random checks beyond the tolerance" if checked else ""
    checks.append(("batch norm", str(film.attrs.get("batch_norm", "–")), "at every point of each frame"))
    return Box(f"Can I trust this film? {title}", tuple(checks), run, brief)


def _table(film: xr.Dataset) -> Table | None:
    rows = [
        {
            "step": str(step),
            "points measured": str(report["measured"]),
            "random checks": str(report.get("checked", "–")),
            "beyond": str(report.get("failures", "–")),
            "worst check (tolerances)": show(report["worst_check"]) if "worst_check" in report else "–",
            "at most wrong": f"{100 * report['share_bound']:.1f} %" if "share_bound" in report else "none",
        }
        for step, report in zip(film["direction"].values, decoded(film.attrs.get("refinement")), strict=False)
    ]
    return Table.of(rows, "Points and promise of each frame") if rows else None
