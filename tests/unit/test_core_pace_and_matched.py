"""Closed forms for time left, and for which losses may be compared."""

from __future__ import annotations

import math

import pytest

from lowland.core.pace import Clock, Pace
from lowland.results.matched import LOSS_RATIO, common_loss, comparable, nearest, within


def test_pace_of_this_session_alone():
    now = [100.0]
    clock = Clock(50, 10, now=lambda: now[0])
    assert clock.at(10) == Pace(0.0, None, 0.0)
    now[0] += 4.0
    assert clock.at(10) == Pace(4.0, None, 0.0)
    assert clock.at(18) == Pace(4.0, 16.0, 2.0)  # 8 steps in 4 s, 32 to go
    assert clock.at(50).remaining == 0.0
    assert clock.at(60).remaining == 0.0
    assert clock.at(5).rate == 0.0


def test_the_common_loss_is_the_largest_that_all_have_reached():
    assert common_loss([0.2, 0.5, 0.1]) == 0.5
    for unknown in (None, math.nan, math.inf, 0.0, -1.0):
        assert common_loss([0.2, unknown]) is None
    assert common_loss([]) is None


def test_the_nearest_place_is_so_in_ratio_and_the_last_of_equals():
    assert nearest({0: 4.0, 1: 1.1}, 2.0) == 1  # |log 1.1/2| = 0.598 < log 2 = 0.693, though 0.9 < 2
    assert nearest({0: 0.5, 1: 2.0, 2: 0.5}, 1.0) == 2
    assert nearest({0: math.nan, 1: 9.0, 2: math.inf}, 1.0) == 1
    assert within(1.0, LOSS_RATIO) and not within(1.0, LOSS_RATIO * 1.01) and not within(math.nan, 1.0)


@pytest.mark.parametrize(
    ("losses", "answer"),
    [([], True), ([1.0], True), ([1.0, 1.5], True), ([1.0, 1.51], False), ([0.0, 0.0], True), ([0.0, 0.1], False),
     ([1.0, None], False), ([1.0, math.nan], False), ([-1.0, -1.0], False)],
)  # fmt: skip
def test_comparable(losses, answer):
    assert comparable(losses) is answer
