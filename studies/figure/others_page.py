"""``docs/figure-others.md``, written from the stored curves: each paper's picture with the numbers that it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import numpy as np

from lowland.report import show
from studies.claims.files import write_whole
from studies.figure.others import Curves, stored_others
from studies.figure.work import Places

__all__ = ["others_page", "write_others"]

_HEAD = """# The other papers' pictures

Curves that the other papers draw, measured small: 300 of scikit-learn's digits with 30 % wrong labels, ResNet-8 of
width 8, 40 epochs; 320 for the large batch of all images, which takes few steps an epoch. LLR begins after 5 plain
epochs, and its picture shows those after. The sharpness of networks whose train losses differ cannot be compared: read
it beside the picture of the loss. Whether a claim holds is the [ledger](claims.md)'s business.
Bands are ranges over three seeds, or over five directions. `python -m studies.figure others` measures what is missing,
`--only draw` draws from `studies/figure/results/others/`.
"""

_GROUPS: Final = {
    "saf-": "SAF: the trajectory (Du et al. 2022)",
    "sala-": "SALA: two stages (Tan et al. 2024)",
    "llr-": "LLR: the slope over the losses (Chen et al. 2025)",
    "batch-": "Small and large batches, with and without weight decay (Li et al. 2018)",
}


def write_others(places: Places) -> None:
    """Write the page beside the other one."""
    write_whole(places.page.with_name(f"{places.page.stem}-others.md"), others_page(places))


def others_page(places: Places) -> str:
    """Return the page."""
    found = stored_others(places)
    parts = [_HEAD]
    for start, title in _GROUPS.items():
        own = {name: curves for name, curves in found.items() if name.startswith(start)}
        parts += [f"## {title}\n", *(_one(name, curves) for name, curves in own.items())] if own else []
    return "\n".join([*parts, _when(places)]) + "\n"


def _one(name: str, curves: Curves) -> str:
    lines = [f"### {curves.title}\n", f"![](images/figure/{name}.svg)\n", _ends(curves), ""]
    lines += [f"- {what}: {show(value)}" for what, value in curves.marks.items()]
    return "\n".join([*lines, ""] if curves.marks else lines)


def _ends(curves: Curves) -> str:
    """Write what every curve begins and ends with, and where it is lowest and highest."""
    lines = [f"| {curves.y_label} | first | last | lowest | highest |", "|---|---|---|---|---|"]
    for name, rows in curves.rows.items():
        mean = np.mean(rows, axis=0)
        lines.append(f"| {name} | {show(mean[0])} | {show(mean[-1])} | {show(mean.min())} | {show(mean.max())} |")
    return "\n".join(lines)


def _when(places: Places) -> str:
    made = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((places.store / "others").glob("*.json"))]
    if not made:
        return "Nothing has been measured yet."
    days, machines = ({_of(one, name) for one in made} for name in ("created", "machine"))
    torch = {str(one["versions"]["torch"]) for one in made}
    return f"Measured {', '.join(sorted(days))}, {'; '.join(sorted(machines))}, torch {', '.join(sorted(torch))}."


def _of(content: Mapping[str, object], name: str) -> str:
    text = str(content[name])
    return text[:10] if name == "created" else text
