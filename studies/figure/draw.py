"""The pictures, from stored surfaces alone: contours and solids as the paper draws them, each set on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import xarray as xr

from lowland.viz import FigureOptions, export
from studies.figure.plan import PARTS, Survey
from studies.figure.record import Entry, Record

__all__ = ["CAP", "draw_all", "pictures"]

LOWEST, CAP = 0.01, 100.0
"""Ends of every color scale: what is higher is drawn as high as the cap, and said to be."""

_COLUMNS: Final = 2  # With shortcuts on the left, without on the right


def pictures(record: Record) -> dict[str, tuple[str, list[Survey]]]:
    """Return every picture that can be drawn: name -> title and surveys."""
    entries = [entry.survey for entry in record.entries if entry.surveyed]
    base, *others = record.size.widths
    sets: dict[str, tuple[str, list[Survey]]] = {}
    for seed in range(record.size.seeds):
        own = [s for s in entries if s.part == "pairs" and s.net.seed == seed]
        sets[f"pairs-{seed}"] = (f"width {base}, seed {seed}", own)
    for width in others:
        own = [s for s in entries if s.part == "width" and s.net.width == width and s.net.seed == 0]
        sets[f"width-{width}"] = (f"width {width}, seed 0", own)
    for part in ("directions", "batch norm", "length", "fine"):
        sets[part.replace(" ", "-")] = (PARTS[part].lower(), [s for s in entries if s.part == part])
    return {name: found for name, found in sets.items() if found[1]}


def draw_all(record: Record) -> list[Path]:
    """Draw every picture as contours, and the first set in three dimensions too."""
    record.places.images.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (_, surveys) in pictures(record).items():
        panels = {title_of(survey): _capped(record.surface(survey)) for survey in surveys}
        kinds = {"contour": name, **({"surface": f"{name}-solid"} if name == "pairs-0" else {})}
        written += [_draw(panels, record.places.images / f"{file}.svg", kind) for kind, file in kinds.items()]
    return written


def title_of(survey: Survey) -> str:
    """Return what stands above a panel."""
    net = survey.net
    return f"ResNet-{net.depth}, {'with' if net.skip else 'without'} shortcuts"


def _capped(surface: xr.Dataset) -> xr.Dataset:
    """Return a surface whose heights end where the scale does."""
    return surface.assign(loss=surface["loss"].clip(LOWEST, CAP))


def _draw(panels: Mapping[str, xr.Dataset], path: Path, kind: str) -> Path:
    rows = -(-len(panels) // _COLUMNS)
    options = FigureOptions(
        log=True, minimum=LOWEST, maximum=CAP, levels=20, columns=_COLUMNS, caption="", filled=False, points=False,
        size=(8.6, 3.8 * rows) if kind == "surface" else (6.6, 3.0 * rows),
    )  # fmt: skip
    return export(panels, path, kind, options=options)


def shown(entry: Entry) -> str:
    """Return a survey in words, for the page."""
    survey = entry.survey
    more = {"batch": ", batch statistics"}.get(survey.batch_norm, "")
    more += ", a third of the training" if survey.weights == "third" else ""
    more += f", directions {survey.direction}" if survey.direction else ""
    more += f", {survey.side} x {survey.side} points" if survey.part == "fine" else ""
    return f"{title_of(survey)}, width {survey.net.width}, seed {survey.net.seed}{more}"
