"""Processes that die, that are stopped, and that compute the same bits as one process alone."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from tests.engine_cases import Late, Network, Numbers, alive, bits, children, grid, in_waves, values

from lowland.core.errors import EngineError, InputError
from lowland.engine import Processes, Serial


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("chunk", [1, 4])
def test_the_same_bits_as_one_process_alone(workers, chunk):
    alone = in_waves(Serial(), Network(), grid(40))
    found = in_waves(Processes(workers, threads=1), Network(), grid(40), chunk=chunk)
    assert bits(found) == bits(alone) and len(bits(found)) == 40
    assert {result.value["threads"] for result in found.values()} == {1}


def test_large_results_and_items_pass_each_other_without_a_deadlock():
    task, size = Numbers(carry=1_000_000), 1_000_000  # 4 and 8 MB, more than a socket's buffer
    found = list(Processes(2, threads=1).map(task.setup, task, Late(grid(20), {}, size)))
    assert len(found) == 20 and not any(result.failed for result in found)


def test_workers_have_gone_at_the_end_and_the_driver_keeps_no_children(tmp_path):
    log = tmp_path / "pids"
    assert len(values(Processes(2, threads=1), Numbers(pids=str(log)), grid(6))) == 6
    assert not any(alive(int(pid)) for pid in log.read_text().split())
    assert not set(children(os.getpid())) & {int(pid) for pid in log.read_text().split()}


def test_an_item_that_kills_its_worker_is_given_up_alone():
    found = in_waves(Processes(2, threads=1), Numbers(kills=(7,)), grid(20), chunk=4)
    alone = in_waves(Serial(), Numbers(), grid(20))
    assert [i for i, result in found.items() if result.failed] == [7]
    assert found[7].error == "its worker was killed by SIGKILL (out of memory?), 4 times"
    untouched = [i for i in range(20) if i not in (7, 17)]  # 17 lost its warm start
    assert all(found[i].value["value"] == alone[i].value["value"] for i in untouched)
    assert found[17].value["value"] != alone[17].value["value"]


@pytest.mark.slow
def test_a_crash_leaves_its_traceback():
    events = []
    found = values(Processes(1), Numbers(crashes=(2,)), grid(4), on_event=events.append)
    assert "SIGSEGV" in found[2].error and "string_at" in found[2].traceback and "__call__" in found[2].traceback
    assert [event.traceback for event in events if event.kind == "failed"] == [found[2].traceback]


@pytest.mark.slow
def test_twenty_workers_killed_at_random_in_one_survey(tmp_path):
    log, todo, rng = tmp_path / "pids", grid(400), random.Random(0)
    killed, done, stop = [], {}, threading.Event()

    def kill():
        seen = -1
        while len(killed) < 20 and not stop.wait(rng.uniform(0.1, 0.6)):
            if len(done) == seen:  # on a busy machine the same item would be killed until it is given up
                continue
            seen = len(done)
            living = [int(pid) for pid in log.read_text().split() if alive(int(pid))] if log.exists() else []
            if living:
                killed.append(rng.choice(living))
                os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    task = Numbers(seconds=0.05, pids=str(log))
    try:
        for result in Processes(2, threads=1).map(task.setup, task, Late(todo, {}), chunk=3):
            assert result.index not in done
            done[result.index] = result
    finally:
        stop.set()
        thread.join()
    assert len(killed) == 20 and len(set(killed)) == 20
    assert bits(done) == bits(values(Serial(), Numbers(), todo))


_DRIVER = """
    import sys, time
    from contextlib import contextmanager
    from lowland.engine import Processes

    @contextmanager
    def setup():
        import os
        print(os.getpid(), file=open(sys.argv[1], "a"), flush=True) if len(sys.argv) > 1 else None
        yield

    class Item:
        def __init__(self, number):
            self.number = number

    def slow(context, items):
        time.sleep(SECONDS)
        return items

    for result in Processes(2, threads=1).map(setup, slow, [Item(float(i)) for i in range(COUNT)]):
        assert isinstance(result.value, Item)
        print(result.value.number, flush=True)
"""


def start_driver(tmp_path, seconds, count):
    script, log = tmp_path / "driver.py", tmp_path / "pids"
    text = textwrap.dedent(_DRIVER).replace("SECONDS", str(seconds)).replace("COUNT", str(count))
    script.write_text(text.replace("sys.argv[1]", repr(str(log))).replace("len(sys.argv) > 1", "True"))
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return driver, log


def test_a_script_needs_no_main_guard_and_its_own_classes_travel(tmp_path):
    driver, _ = start_driver(tmp_path, 0, 5)
    output, errors = driver.communicate(timeout=60)
    assert sorted(output.split()) == ["0.0", "1.0", "2.0", "3.0", "4.0"] and errors == ""


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_driver_that_is_stopped_leaves_no_process_behind(number, tmp_path):
    driver, log = start_driver(tmp_path, 0.2, 10_000)
    driver.stdout.readline()  # at least one worker computes
    own = {int(pid) for pid in log.read_text().split()} | set(children(driver.pid))
    assert own
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=5)  # the promise: Ctrl-C ends within 5 s
    assert driver.returncode == (-number if number == signal.SIGKILL else 130) or "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in own) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in own if alive(pid)]


@dataclass(frozen=True)
class Stubborn(Numbers):
    """Does not listen to a request to end."""

    @contextmanager
    def setup(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with super().setup() as context:
            yield context


def test_a_worker_that_does_not_listen_is_ended_all_the_same():
    before = set(children(os.getpid()))  # other tests' helpers, such as the resource tracker, live on
    task = Stubborn(seconds=0.3)
    run = Processes(1).map(task.setup, task, Late(grid(3), {}))
    next(run)
    started = set(children(os.getpid())) - before
    run.close()
    assert started and not any(alive(pid) for pid in started)


class Destroyed:
    """Asks its process to end while it is destroyed, where Python drops what a handler raises."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10_000):  # the handler runs between two of these
            pass


@dataclass(frozen=True)
class Told(Numbers):
    """Is told to end at its first item, at a moment when no exception passes."""

    folder: str = ""

    @contextmanager
    def setup(self):
        with super().setup() as context:
            yield context
        open(os.path.join(self.folder, f"left {os.getpid()}"), "w").close()

    def __call__(self, context, items):
        told = os.path.join(self.folder, "told")
        if not os.path.exists(told):
            open(told, "w").close()
            Destroyed()
        return super().__call__(context, items)


@dataclass(frozen=True)
class Dies(Numbers):
    """Cannot be set up: the process ends."""

    @contextmanager
    def setup(self):
        os._exit(9)
        yield


def test_a_request_to_end_that_python_drops_is_obeyed_at_the_next_chunk(tmp_path):
    found = values(Processes(1), Told(folder=str(tmp_path)), grid(4), chunk=1)
    assert sorted(found) == [0, 1, 2, 3]  # a new worker did the rest
    assert len(list(tmp_path.glob("left *"))) == 2  # both have left the setup


@pytest.mark.slow
def test_workers_that_never_start_are_an_error_and_not_an_endless_loop():
    with pytest.raises(EngineError, match="exit code 9"):
        values(Processes(1), Dies(), grid(3))


def test_bad_input():
    for number in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="workers"):
            Processes(number)
    with pytest.raises(InputError, match="threads"):
        Processes(1, threads=0)
    with pytest.raises(InputError, match="cores there are"):
        values(Processes(10_000), Numbers(), grid(3))
