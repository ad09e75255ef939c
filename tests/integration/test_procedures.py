"""Whole runs beside the papers' own procedures: the same where we set them so, and as far apart as the page says."""

from __future__ import annotations

import pytest
from tests.reference.deviations import BEGIN, END, EXACT, PAGE, ROWS, shown

AS_PUBLISHED = {
    "SAM": 1,
    "SALA": 1,
    "SAF": 1,
    "MESA": 2,
    "LLR": 1,
    "surface of Li et al.": 1,
    "eigenvalues of Li et al.": 2,
}
"""How many rows, the first ones, set ours as the authors have it."""


def stated() -> dict[str, dict[str, str]]:
    """Return the page's sizes by procedure and what is ours."""
    found: dict[str, dict[str, str]] = {name: {} for name in ROWS}
    for line in PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]:
        procedure, rest = line.strip("| ").split(" | ", 1)
        ours, size = rest.rsplit(" | ", 1)
        found[procedure][ours] = size
    return found


@pytest.mark.parametrize("procedure", ROWS)
def test_runs_are_as_far_apart_as_the_page_says(procedure):
    measured, page = dict(ROWS[procedure]()), stated()[procedure]
    assert list(measured) == list(page)
    for ours, size in measured.items():
        assert (page[ours] == "same") == (size < EXACT), f"{ours}: {size}"
        assert page[ours] == "same" or float(page[ours]) == pytest.approx(size, rel=0.1), ours
    assert all(size < EXACT for size in list(measured.values())[: AS_PUBLISHED[procedure]])


def test_sizes_are_shown_with_two_figures():
    assert [shown(v) for v in (1e-12, 3.14e-8, 0.01234, 0.0015, 2.0)] == ["same", "3.1e-08", "0.012", "0.0015", "2"]
