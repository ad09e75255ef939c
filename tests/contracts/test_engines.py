"""What every engine must do; a new engine joins by one line. Workers of engines that have any share their computer."""

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from lowland.core.errors import InputError
from lowland.engine import Processes, Ray, Serial, select

ENGINES = {
    "serial": lambda: Serial(),
    "processes:2": lambda: Processes(2, threads=1),
    "ray:2": lambda: Ray(workers=2, threads=1),
}
pytestmark = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("ray") else name for name in ENGINES]
)


@pytest.fixture(scope="module")
def opened():
    """Workers of each engine set up by `Square`, for the tests that need none of their own: they start once."""
    with ExitStack() as stack:
        found = {}

        def workers(name):
            if name not in found:
                found[name] = stack.enter_context(ENGINES[name]().open(Square().setup))
            return found[name]

        yield workers
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture
def workers(name, opened):
    if not name.startswith("ray"):
        yield opened(name)
        return
    with ENGINES[name]().open(Square().setup) as own:  # workers of a cluster hold its cores: others would wait for ever
        yield own


@dataclass(frozen=True)
class Square:
    """Squares its items and adds what the setup gave; fails where told."""

    failing: tuple[int, ...] = ()
    interrupt: int = -1
    log: str = ""

    @contextmanager
    def setup(self):
        self._note("in")
        try:
            yield {"offset": 1.0}
        finally:
            self._note("out")

    def _note(self, text):
        if self.log:
            with open(self.log, "a") as file:
                file.write(text + "\n")

    def __call__(self, context, items):
        if self.interrupt in items:
            raise KeyboardInterrupt
        bad = [item for item in items if item in self.failing]
        if bad:
            raise ValueError(f"no value at {bad[0]}\nsecond line")
        return [item**2 + context["offset"] for item in items]


@dataclass(frozen=True)
class Broken:
    """Cannot be set up."""

    @contextmanager
    def setup(self):
        yield {}[0] if 1 // 0 else None

    def __call__(self, context, items):
        raise AssertionError("never reached")


class Odd:
    """A class of this module as item and as value."""

    def __init__(self, number, part=None):
        self.number, self.part = number, part


def run(name, task, items, **options):
    return ENGINES[name]().map(task.setup, task, items, **options)


def collect(workers, function, items, **options):
    return {result.index: result for result in workers.map(function, items, **options)}


def balanced(log):
    """Every worker that entered the setup has left it."""
    words = log.read_text().split()
    return words.count("in") == words.count("out") > 0


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_item_once_with_its_own_value(workers, chunk):
    results = list(workers.map(Square(), range(10), chunk=chunk))
    assert len(results) == 10
    assert {r.index: r.value for r in results} == {i: i * i + 1.0 for i in range(10)}


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_failing_item_costs_only_itself(workers, chunk):
    results = collect(workers, Square(failing=(2, 5)), range(8), chunk=chunk)
    assert sorted(i for i, result in results.items() if result.failed) == [2, 5]
    assert results[2].error == "ValueError: no value at 2" and results[2].value is None
    assert "second line" in results[2].traceback and "__call__" in results[2].traceback and results[3].traceback == ""
    assert results[3].value == 10.0


def test_too_few_values_are_an_error_and_not_another_item_s_value(workers):
    def short(context, items):
        return [item for item in items if item != 2]

    results = collect(workers, short, range(4), chunk=4)
    assert [i for i, r in results.items() if r.failed] == [2] and "shorter" in results[2].error
    assert [results[i].value for i in (0, 1, 3)] == [0, 1, 3]


def test_items_and_values_may_be_anything_that_can_be_pickled(workers):
    def renamed(context, items):
        return [Odd(item.number + 1, {"a": np.arange(3)}) for item in items]

    items = [Odd(1), Odd(5, lambda: 3)]
    results = collect(workers, renamed, items)
    assert [results[i].value.number for i in (0, 1)] == [2, 6] and results[0].value.part["a"].sum() == 3


def test_a_value_that_cannot_travel_fails_alone(name, workers):
    def locked(context, items):
        import threading

        return [threading.Lock() if item == 1 else item for item in items]

    results = collect(workers, locked, range(3), chunk=3)
    assert [results[i].value for i in (0, 2)] == [0, 2]
    assert name == "serial" or "lock" in results[1].error


def test_interrupt_passes_through_and_the_task_puts_things_back(name, tmp_path):
    task = Square(interrupt=3, log=str(tmp_path / "log"))
    indices = []
    with pytest.raises(KeyboardInterrupt):
        for result in run(name, task, range(6)):
            indices.append(result.index)
    assert 3 not in indices and len(set(indices)) == len(indices)
    assert name != "serial" or indices == [0, 1, 2]
    assert balanced(tmp_path / "log")


def test_a_reader_that_stops_makes_the_task_put_things_back(name, tmp_path):
    running = run(name, Square(log=str(tmp_path / "log")), range(6))
    next(running)
    running.close()
    assert balanced(tmp_path / "log")


def test_what_goes_wrong_before_the_first_item_is_raised_as_it_is(name):
    with pytest.raises(ZeroDivisionError) as caught:
        list(run(name, Broken(), range(3)))
    text = "".join([str(note) for note in getattr(caught.value, "__notes__", [])]) or str(caught.traceback[-1])
    assert "setup" in text or "Broken" in text


def test_an_error_of_a_reader_passes_and_the_task_puts_things_back(name, tmp_path):
    with pytest.raises(OSError, match="full"):
        for _ in run(name, Square(log=str(tmp_path / "log")), range(6)):
            raise OSError("disk full")
    assert balanced(tmp_path / "log")


def test_open_workers_enter_the_setup_once_and_serve_several_functions(name, tmp_path):
    engine, log = ENGINES[name](), tmp_path / "log"
    task = Square(log=str(log))
    with engine.open(task.setup) as workers:
        assert list(workers.map(task, [])) == [] and not log.exists()  # nothing to do starts nothing
        for _ in range(3):
            assert sorted(r.value for r in workers.map(task, range(4))) == [1.0, 2.0, 5.0, 10.0]
        assert [r.value for r in workers.map(lambda context, items: [-context["offset"]], [0])] == [-1.0]
        assert log.read_text().split().count("in") <= engine.workers and "out" not in log.read_text()
    assert balanced(log)
    count = log.read_text().split().count("in")
    assert len(list(engine.map(task.setup, task, range(1)))) == 1  # nothing of it is left in the engine
    assert balanced(log) and log.read_text().split().count("in") == count + 1


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_what_a_wave_gave_is_handed_to_the_next_whatever_the_chunk(workers, chunk):
    values = [0.0, 1.0, 2.0]
    for _ in range(3):
        found = collect(workers, Square(), values, chunk=chunk)
        values = [found[i].value for i in range(3)]
    assert values == [5.0, 26.0, 677.0]


def test_an_exception_among_open_workers_leaves_the_setup(name, tmp_path):
    task = Square(log=str(tmp_path / "log"))
    with pytest.raises(OSError, match="full"), ENGINES[name]().open(task.setup) as workers:
        for _ in workers.map(task, range(6)):
            raise OSError("disk full")
    assert balanced(tmp_path / "log")


def test_open_workers_serve_again_after_a_reader_that_stopped(name, tmp_path):
    task = Square(log=str(tmp_path / "log"))
    with ENGINES[name]().open(task.setup) as workers:
        running = workers.map(task, range(6))
        next(running)
        running.close()
        assert sorted(r.value for r in workers.map(task, range(4))) == [1.0, 2.0, 5.0, 10.0]
    assert balanced(tmp_path / "log")


def test_events_count_and_estimate(name, workers):
    events = []
    collect(workers, Square(failing=(1,)), range(4), seconds_per_item=2.0, on_event=events.append)
    assert events[0].kind == "started" and events[0].remaining == 8.0 / ENGINES[name]().workers
    assert (events[0].done, events[0].total) == (0, 4)
    assert events[-1].kind == "done" and (events[-1].done, events[-1].remaining) == (4, 0.0)
    assert [event.message for event in events if event.kind == "failed"] == ["ValueError: no value at 1"]
    assert [event.done for event in events if event.kind == "progress"] == [1, 2, 3, 4]


def test_a_result_is_announced_after_the_reader_has_it(workers):
    told, seen = [], []

    def tell(event):
        told.append((event.kind, len(seen), event.done))

    for result in workers.map(Square(), range(5), chunk=5, on_event=tell):
        seen.append(result.index)
    assert [(had, done) for kind, had, done in told if kind == "progress"] == [(n, n) for n in range(1, 6)]


def test_bad_input(name, workers):
    with pytest.raises(InputError, match="chunk"):
        collect(workers, Square(), range(2), chunk=0)
    with pytest.raises(InputError, match="chunk"):
        list(run(name, Square(), range(2), chunk=0))
    with pytest.raises(InputError, match="serial"):
        select(name + "s")
    with pytest.raises(InputError, match="serial"):
        select("threads")
    with pytest.raises(InputError, match="engine"):
        select(3)
