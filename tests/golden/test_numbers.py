"""Numbers that version 0.1.0 gave: every optimizer, loss, surface and curvature measure still gives them.

Refined surfaces are of the present version, whose promise is another. All in float64, so that they hold on any processor. Numbers that
change on purpose are written by ``python -m tests.golden.make GROUP/NAME ...``; what ``files`` holds is never written again.
"""

from __future__ import annotations

import json

import pytest
from tests.golden.flat import agree
from tests.golden.make import GROUPS, NUMBERS, measured
from tests.golden.names import respelled

OLD = json.loads(respelled(NUMBERS.read_text()))
CASES = [(group, name) for group, cases in GROUPS.items() for name in cases]

ADDED = {
    "rounding",
    "critical_sharpness",
    "step",
    "critical_sharpness_se",
    "fisher_rao_norm",
    "fisher_rao_norm_se",
    "hint",
    "picture_curvature",
    "picture_curvature_se",
    "kinks",
    "kinks_se",
    "curvature_spacing",
    "curvature_wider",
}
"""Numbers that results have had since."""

TOLERANCE = 1e-10
"""Held on AVX-512, AVX2 and plain SSE kernels alike."""


def test_every_case_is_known():
    assert {group: set(cases) for group, cases in OLD.items()} == {group: set(cases) for group, cases in GROUPS.items()}


@pytest.mark.parametrize(("group", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_numbers_are_those_of_before(group, name):
    old, new = (dict(numbers) for numbers in (OLD[group][name], measured(group, name)))
    for numbers in (old, new):
        numbers.pop("attrs/schema", None)  # its version grows
    assert set(old) - set(new) == set(), "lost"
    added = {path for path in set(new) - set(old) if path.split("/")[-1] not in ADDED}
    assert added == set(), "new"
    wrong = {path: (value, new[path]) for path, value in old.items() if not agree(value, new[path], TOLERANCE)}
    assert wrong == {}
