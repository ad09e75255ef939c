"""Closed forms for time left, and for which losses may be compared."""

from __future__ import annotations

import math

import pytest

from lowland.core.pace import Clock, Event, TimeLeft
from lowland.results.matched import LOSS_RATIO, common_loss, comparable, nearest, within


def test_pace_of_this_session_alone():
    now, told = [100.0], list[Event]()
    clock = Clock(50, 10, told.append, now=lambda: now[0])
    clock.tell("started", 10)
    now[0] += 4.0
    for done in (10, 18, 50, 60, 5):  # 18: 8 steps in 4 s, 32 to go
        clock.tell("progress", done)
    found = [(event.elapsed, event.remaining, event.rate) for event in told]
    # one moment gives no pace
    assert found == [(0.0, None, 0.0), *((4.0, None, rate) for rate in (0.0, 2.0, 10.0, 12.5, 0.0))]
    for kind, after, done, total, guess, left in (
        ("progress", 0.0, 10, None, 7.0, 7.0),  # a guess serves until there is a pace
        ("progress", 4.0, 26, 40, 7.0, 12.0),  # 8 steps in the last 4 s, 24 to go, whatever total is shown
        ("done", 0.0, 26, None, None, 0.0),
    ):
        now[0] += after
        clock.tell(kind, done, total=total, guess=guess)
        assert (told[-1].remaining, told[-1].total) == (left, total or 50)


def told_by(clock: Clock, now: list[float], steps: list[tuple[float, int]], told: list[Event]) -> list[float | None]:
    """Return the time left that was said after each step (when, how many)."""
    for when, done in steps:
        now[0] = when
        clock.tell("progress", done, total=100)
    return [event.remaining for event in told]


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([(0.1, 1), (0.2, 2), (0.9, 9)], [None] * 3),  # less than a second
        ([(5.0, 1), (5.1, 2), (5.5, 6)], [None] * 3),  # workers were started: the first step tells nothing
        ([(5.0, 1), (10.0, 51)], [None, 4.9]),  # and once as long was measured, the pace is that of the rest
        ([(0.01, 10), (20.0, 12)], [None, None]),  # the first ones were cached
        ([(20.0, 1), (20.001, 2), (40.0, 3), (40.001, 4)], [None, None, 970.0, pytest.approx(640.0, rel=1e-3)]),
    ],
)
def test_no_time_left_is_said_before_it_can_be_known(steps, left):
    now, told = [0.0], list[Event]()
    clock = Clock(100, 0, told.append, now=lambda: now[0])
    assert told_by(clock, now, steps, told) == left
    bound, said = Clock(math.inf, 0, told.append, now=lambda: now[0]), len(told)
    assert set(told_by(bound, now, steps, told)[said:]) == {None}  # of a bound nothing is ever said


def test_the_time_left_counts_down_and_falls_silent_once_it_is_over():
    now = [0.0]
    left = TimeLeft(now=lambda: now[0])
    assert str(left) == ""
    left.hear(Event("progress", 1, 10, remaining=4.0))
    assert [str(left) for now[0] in (0.0, 1.0, 3.4, 4.0, 30.0)] == ["0:04 left", "0:03 left", "0:01 left", "", ""]
    left.hear(Event("progress", 2, 10, remaining=4000.0))
    assert str(left) == "1:06:40 left"
    left.hear(Event("done", 10, 10, remaining=0.0))
    assert str(left) == ""


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
    [
        ([], True),
        ([1.0], True),
        ([1.0, 1.5], True),
        ([1.0, 1.51], False),
        ([0.0, 0.0], True),
        ([0.0, 0.1], False),
        ([1.0, None], False),
        ([1.0, math.nan], False),
        ([-1.0, -1.0], False),
    ],
)
def test_comparable(losses, answer):
    assert comparable(losses) is answer
