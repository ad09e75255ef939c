"""What every engine must do; a new engine joins by one line. Workers of engines that have any share their computer."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from lowland.core.errors import InputError
from lowland.engine import Point, Processes, Ray, Row, Serial, select

ENGINES = {
    "serial": lambda: Serial(),
    "processes:2": lambda: Processes(2, threads=1),
    "ray:2": lambda: Ray(workers=2, threads=1),
}
pytestmark = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("ray") else name for name in ENGINES]
)


@pytest.fixture(scope="module", autouse=True)
def _one_cluster():
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@dataclass(frozen=True)
class Square:
    """Squares the first coordinate plus the parent's value; fails where told."""

    failing: tuple[int, ...] = ()
    interrupt: int = -1
    log: str = ""

    @contextmanager
    def placed(self):
        self._note("in")
        try:
            yield {"offset": 1.0}
        finally:
            self._note("out")

    def _note(self, text):
        if self.log:
            with open(self.log, "a") as file:
                file.write(text + "\n")

    def __call__(self, context, points, parents):
        if self.interrupt in [point.index for point in points]:
            raise KeyboardInterrupt
        bad = [point.index for point in points if point.index in self.failing]
        if bad:
            raise ValueError(f"no value at {bad[0]}\nsecond line")
        rows = []
        for point, parent in zip(points, parents, strict=True):
            carried = 0.0 if parent is None else float(parent.carry["sum"][0])
            value = point.coordinates[0] ** 2 + context["offset"]
            rows.append(Row(point.index, {"value": value, "chain": carried}, {"sum": np.array([carried + value])}))
        return rows


@dataclass(frozen=True)
class Broken:
    """Cannot be set up."""

    @contextmanager
    def placed(self):
        yield {}[0] if 1 // 0 else None

    def __call__(self, context, points, parents):
        raise AssertionError("never reached")


def points(n):
    return [Point(i, (float(i), 0.0)) for i in range(n)]


def collect(name, task, todo, **options):
    return {row.index: row for rows in ENGINES[name]().run(task, todo, **options) for row in rows}


def balanced(log):
    """Every worker that entered the task's context has left it."""
    words = log.read_text().split()
    return words.count("in") == words.count("out") > 0


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_point_once_with_its_own_value(name, chunk):
    rows = collect(name, Square(), points(10), chunk=chunk)
    assert {i: row.values["value"] for i, row in rows.items()} == {i: i * i + 1.0 for i in range(10)}


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_failing_point_costs_only_itself(name, chunk):
    rows = collect(name, Square(failing=(2, 5)), points(8), chunk=chunk)
    assert sorted(i for i, row in rows.items() if row.failed) == [2, 5]
    assert rows[2].error == "ValueError: no value at 2" and dict(rows[2].values) == {}
    assert "second line" in rows[2].traceback and "__call__" in rows[2].traceback and rows[3].traceback == ""
    assert rows[3].values["value"] == 10.0


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_children_get_their_parents_rows_whatever_the_chunk(name, chunk):
    todo = [Point(i, (1.0,), parent=i - 1 if i else None) for i in range(6)]
    rows = collect(name, Square(), todo, chunk=chunk)
    assert [rows[i].values["chain"] for i in range(6)] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_known_rows_are_parents_and_a_failed_parent_is_none(name):
    known = {0: Row(0, {}, {"sum": np.array([7.0])}), 1: Row(1, {}, error="no")}
    todo = [Point(2, (1.0,), parent=0), Point(3, (1.0,), parent=1)]
    rows = collect(name, Square(), todo, known=known)
    assert rows[2].values["chain"] == 7.0 and rows[3].values["chain"] == 0.0


def test_interrupt_passes_through_and_the_task_puts_things_back(name, tmp_path):
    task = Square(interrupt=3, log=str(tmp_path / "log"))
    rows = []
    with pytest.raises(KeyboardInterrupt):
        for part in ENGINES[name]().run(task, points(6)):
            rows += part
    indices = [row.index for row in rows]
    assert 3 not in indices and len(set(indices)) == len(indices)
    assert name != "serial" or indices == [0, 1, 2]
    assert balanced(tmp_path / "log")


def test_a_reader_that_stops_makes_the_task_put_things_back(name, tmp_path):
    task = Square(log=str(tmp_path / "log"))
    run = ENGINES[name]().run(task, points(6))
    next(run)
    run.close()
    assert balanced(tmp_path / "log")


def test_what_goes_wrong_before_the_first_point_is_raised_as_it_is(name):
    with pytest.raises(ZeroDivisionError) as caught:
        collect(name, Broken(), points(3))
    text = "".join([str(note) for note in getattr(caught.value, "__notes__", [])]) or str(caught.traceback[-1])
    assert "placed" in text or "Broken" in text


def test_an_error_of_a_reader_passes_and_the_task_puts_things_back(name, tmp_path):
    with pytest.raises(OSError, match="full"):
        for _ in ENGINES[name]().run(Square(log=str(tmp_path / "log")), points(6)):
            raise OSError("disk full")
    assert balanced(tmp_path / "log")


def test_a_session_places_a_task_once_and_leaves_it_at_the_end(name, tmp_path):
    engine, log = ENGINES[name](), tmp_path / "log"
    task = Square(log=str(log))
    with engine.session():
        for _ in range(3):
            assert len([row for rows in engine.run(task, points(4)) for row in rows]) == 4
        assert log.read_text().split().count("in") <= engine.workers and "out" not in log.read_text()
        other = Square(log=str(tmp_path / "other"))
        assert len([row for rows in engine.run(other, points(4)) for row in rows]) == 4
        assert balanced(log)  # another task takes its place
    assert balanced(tmp_path / "other")
    list(engine.run(task, points(1)))
    assert balanced(log)  # after the session every run leaves again


def test_an_exception_in_a_session_leaves_the_task(name, tmp_path):
    engine = ENGINES[name]()
    with pytest.raises(OSError, match="full"), engine.session():
        for _ in engine.run(Square(log=str(tmp_path / "log")), points(6)):
            raise OSError("disk full")
    assert balanced(tmp_path / "log")


def test_events_count_and_estimate(name):
    events = []
    known = {100: Row(100, {"value": 0.0})}
    collect(name, Square(failing=(1,)), points(4), known=known, seconds_per_point=2.0, on_event=events.append)
    assert events[0].kind == "started" and events[0].remaining == 8.0 / ENGINES[name]().workers
    assert (events[0].done, events[0].total) == (1, 5)
    assert events[-1].kind == "done" and (events[-1].done, events[-1].remaining) == (5, 0.0)
    assert [event.message for event in events if event.kind == "failed"] == ["ValueError: no value at 1"]
    assert [event.done for event in events if event.kind == "rows"] == [2, 3, 4, 5]


def test_bad_input(name):
    with pytest.raises(InputError, match="chunk"):
        collect(name, Square(), points(2), chunk=0)
    with pytest.raises(InputError, match="parent"):
        collect(name, Square(), [Point(0, (0.0,), parent=1), Point(1, (0.0,))])
    with pytest.raises(InputError, match="once"):
        collect(name, Square(), [Point(0, (0.0,)), Point(0, (0.0,))])
    with pytest.raises(InputError, match="serial"):
        select(name + "s")
    with pytest.raises(InputError, match="serial"):
        select("threads")
    with pytest.raises(InputError, match="engine"):
        select(3)
