"""Pieces of the engines that a run meets only when something goes wrong, each by itself."""

import math
import os
import signal
import subprocess
import sys
from collections import deque
from contextlib import nullcontext
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from lowland.core.errors import EngineError
from lowland.engine import Processes, Ray, worker
from lowland.engine import ray as ray_module
from lowland.engine.pool import Pool
from lowland.engine.processes import _Processes, _Worker
from lowland.engine.ray import _Actors, _connect
from lowland.engine.scheduler import Scheduler


def test_an_actor_has_one_thread_unless_told():
    assert Ray().worker_threads == 1 and Ray(threads=3).worker_threads == 3


@pytest.mark.parametrize(("workers", "threads", "cores"), [(64, 2, 128), (64, None, 64), (None, None, 3)])
def test_a_cluster_of_our_own_has_a_core_for_every_thread(workers, threads, cores, monkeypatch):
    started = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    fake = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setattr(ray_module, "optional_import", lambda *args, **options: fake)
    monkeypatch.setattr(ray_module, "check_workers", lambda *args: None)
    monkeypatch.setattr(ray_module, "available_cores", lambda: 3)
    monkeypatch.setattr(ray_module, "_start", lambda ray, count: started.append(count))
    assert _connect(None, workers, threads, None) is fake and started == [cores]


def test_a_cluster_without_a_worker_is_given_up_after_a_while_and_not_before(monkeypatch):
    now = [10_000.0]
    monkeypatch.setattr(ray_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    actors = SimpleNamespace(
        members=[], _served=now[0], _looked=-math.inf, _wanted=1, _device=None,
        _ray=SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0}),
        _engine=SimpleNamespace(worker_threads=1, asked=None),
    )  # fmt: skip
    assert _Actors.room(actors) == 4
    now[0] += 599
    assert _Actors.room(actors) == 4
    now[0] += 11
    with pytest.raises(EngineError, match="no worker could be started for 600 s"):
        _Actors.room(actors)


def test_a_worker_that_is_told_to_leave_says_by_which_signal():
    requests = SimpleQueue()
    requests.put(b"work that nobody waits for")
    with pytest.raises(SystemExit) as left:
        worker._leave(requests, signal.SIGTERM, None)
    assert left.value.code == 128 + signal.SIGTERM and requests.get_nowait() == b"" and requests.empty()


def test_sending_to_a_worker_that_has_died_is_no_error():
    tried = []

    def broken(content):
        tried.append(content)
        raise BrokenPipeError

    _Worker.send(SimpleNamespace(connection=SimpleNamespace(send_bytes=broken)), b"work")
    assert tried == [b"work"]


PRINTS = """
from lowland.engine import Processes
from contextlib import nullcontext

def setup():
    print("said in a worker")
    return nullcontext(0)

assert [r.value for r in Processes(1, threads=1).map(setup, lambda place, item: item, [1])] == [1]
"""


def test_what_a_worker_prints_goes_to_the_driver_s_error_stream():
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert "said in a worker" in done.stderr and done.stdout == ""


def test_ctrl_c_while_workers_are_stopped_waits_until_all_have_gone():
    said = []
    fakes = [
        SimpleNamespace(
            ask_to_leave=lambda at_once, n=n: (said.append(("asked", n)), os.kill(os.getpid(), signal.SIGINT)),
            leave_by=lambda deadline, n=n: said.append(("gone", n)),
        )
        for n in range(2)
    ]
    pool = SimpleNamespace(members=fakes)
    with pytest.raises(KeyboardInterrupt):
        _Processes.stop(pool, at_once=True)
    assert said == [("asked", 0), ("asked", 1), ("gone", 0), ("gone", 1)] and pool.members == []


def test_workers_leave_by_themselves_when_asked():
    with Processes(1, threads=1).open(lambda: nullcontext(0)) as workers:
        (found,) = workers.results(lambda place, item: item, [1], 1)
        members = list(workers.members)
    assert found[0].value == 1 and [member._process.returncode for member in members] == [0]


class Broken(Pool):
    """A pool whose workers die before they are ready."""

    def begin(self):
        pass

    start = reports = stop = begin

    def post_mortem(self, member, content):
        return "died at once", ""


def test_what_reports_mean():
    pool, scheduler = Broken(), Scheduler(1, 1)
    member = SimpleNamespace(ready=False, chunks=deque())
    with pytest.raises(EngineError, match="^versions differ$"):
        pool._take(member, "refused", "versions differ", scheduler)
    with pytest.raises(EngineError, match="workers do not start: the last one died at once"):
        for _ in range(20):
            pool.members.append(member)
            assert pool._take(member, "died", None, scheduler) == []


class RayError(Exception):
    pass


def test_ray_gets_lists_and_actors_that_are_gone_are_ended_all_the_same():
    asked, killed, seat = [], [], SimpleNamespace(answers=["answer"], actor=SimpleNamespace())
    seat.actor.leave = SimpleNamespace(remote=lambda: "leaving")

    def wait(answers, **options):
        asked.append(answers)
        if answers == ["leaving"]:
            raise RayError
        return [], answers

    ray = SimpleNamespace(
        wait=wait, is_initialized=lambda: True, kill=lambda actor, no_restart: killed.append(actor),
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayError),
    )  # fmt: skip
    actors = SimpleNamespace(_raylet=None, _ray=ray, members=[seat])
    assert list(_Actors.reports(actors)) == []
    _Actors.stop(actors, at_once=False)
    assert asked == [["answer"], ["leaving"]] and killed == [seat.actor] and actors.members == []
