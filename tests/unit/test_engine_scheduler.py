"""What goes out next, and what happens to chunks whose worker died."""

import threading
from collections import deque

import pytest
import torch
from torch import nn

from lowland.core.errors import EngineError, InputError
from lowland.engine.base import Result
from lowland.engine.cores import accelerator, available_cores, check_workers, thread_variables, threads_per_worker
from lowland.engine.packing import pack, portable, unpack
from lowland.engine.pool import Pool
from lowland.engine.processes import _visible
from lowland.engine.scheduler import AHEAD, RETRIES, Scheduler


def test_items_go_out_in_order_and_in_chunks():
    scheduler = Scheduler(5, 2)
    assert [scheduler.take() for _ in range(4)] == [[0, 1], [2, 3], [4], []]
    assert scheduler.unfinished == 5


def test_the_last_chunks_are_small_so_that_all_workers_end_together():
    scheduler = Scheduler(100, 10)
    sizes = []
    while chunk := scheduler.take(workers=4):
        sizes.append(len(chunk))
    assert sizes[0] == 10 and sizes[-1] == 1 and sum(sizes) == 100 and sizes == sorted(sizes, reverse=True)


def test_few_items_are_shared_with_workers_that_still_start():
    """The first that was ready took both of two long items, and the second worker none."""
    scheduler = Scheduler(3, 1)
    assert scheduler.take(2, [], 2) == [0]
    assert scheduler.take(2, [[0]], 1) == [1]  # one is left for the other
    assert scheduler.take(2, [[0]], 1) == []
    assert scheduler.take(2, [], 1) == [2]


def test_a_lost_chunk_goes_out_again_item_by_item_and_before_later_items():
    scheduler = Scheduler(6, 3)
    assert scheduler.lost(scheduler.take(), "was killed") == []
    assert [scheduler.take() for _ in range(4)] == [[0], [1], [2], [3, 4, 5]]


def test_an_item_that_kills_is_given_up_and_the_others_of_its_chunk_are_not():
    scheduler = Scheduler(3, 3)
    scheduler.lost(scheduler.take(), "died")
    done, given_up = [], []
    while scheduler.unfinished:
        chunk = scheduler.take()
        if chunk == [1]:
            lost = scheduler.lost(chunk, "was killed by SIGSEGV", "frames")
            scheduler.finished(len(lost))
            given_up += lost
        else:
            scheduler.finished(len(chunk))
            done += chunk
    assert done == [0, 2] and [result.index for result in given_up] == [1]
    assert given_up[0].error == f"its worker was killed by SIGSEGV, {RETRIES + 1} times"
    assert given_up[0].traceback == "frames"


def test_a_chunk_that_nobody_began_costs_no_retry():
    scheduler = Scheduler(4, 2)
    for _ in range(RETRIES + 2):
        scheduler.returned(scheduler.take())
    assert scheduler.take() == [0, 1] and AHEAD == 2


def test_suspects_are_computed_with_nothing_before_or_behind_them():
    """An answer can be lost on its way when the next chunk kills the worker: the first is not to blame."""
    scheduler = Scheduler(4, 1)
    first, second = scheduler.take(), scheduler.take()
    scheduler.lost(first, "died")
    scheduler.returned(second, suspect=True)
    busy = [[9]]
    assert scheduler.take(held=busy) == []
    one = scheduler.take()
    assert one == [0] and scheduler.take(held=[one]) == []
    assert scheduler.take() == [1] and scheduler.take(held=busy) == [2]
    assert scheduler.take(held=[*busy, *busy]) == []


def test_scripts_functions_travel_by_value():
    offset = 3
    assert unpack(pack(lambda x: x + offset, "function"))(1) == 4


class Holder:
    def __init__(self, part):
        self.part = part


@pytest.mark.parametrize(
    ("task", "path"),
    [
        (Holder(Holder(threading.Lock())), "`task.part.part`"),
        (Holder({"a": [1, threading.Lock()]}), "`task.part['a'][1]`"),
        (Holder(nn.Sequential(nn.Linear(1, 1), nn.ReLU())), "`task.part.1.lock`"),
    ],
)
def test_what_cannot_be_packed_is_named(task, path):
    if isinstance(task.part, nn.Module):
        task.part[1].lock = threading.Lock()
    with pytest.raises(InputError, match="serial") as caught:
        pack(task, "task")
    assert path in str(caught.value) and "lock" in str(caught.value)


def test_a_variable_of_a_function_is_named():
    lock = threading.Lock()
    with pytest.raises(InputError, match="task.part's variable lock"):
        pack(Holder(lambda: lock), "task")


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__("odd")


def test_errors_travel_with_their_traceback():
    try:
        raise ValueError("here")
    except ValueError as error:
        found = portable(error)
    assert type(found) is ValueError and "test_errors_travel" in found.__notes__[0]
    assert type(portable(Odd(1, 2))) is EngineError and "odd" in str(portable(Odd(1, 2)))


def test_cores_and_threads(monkeypatch):
    cores = available_cores()
    assert cores >= 1 and threads_per_worker(1) == 1  # this process itself uses one
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert threads_per_worker(1) == cores and threads_per_worker(10 * cores) == 1
    assert thread_variables(3)["OMP_NUM_THREADS"] == "3" and thread_variables(3)["OMP_WAIT_POLICY"] == "passive"


def test_a_container_s_quota_counts(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr("lowland.engine.cores._QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    assert available_cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cores() == 64


def test_more_workers_than_there_are_devices(monkeypatch):
    with pytest.raises(InputError, match=r"cores there are .got 10000.; use fewer"):
        check_workers(10_000, None, None)
    check_workers(10_000, 1, None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="2 accelerators"):
        check_workers(3, 1, 0)
    check_workers(2, None, 1)


def test_each_worker_sees_its_own_accelerator_under_the_number_that_the_task_names(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible(None, 1) == {}
    assert [_visible(0, seat)["CUDA_VISIBLE_DEVICES"].split(",")[0] for seat in range(3)] == ["0", "1", "2"]
    assert sorted(_visible(2, seat)["CUDA_VISIBLE_DEVICES"].split(",")[2] for seat in range(3)) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    assert _visible(0, 1)["CUDA_VISIBLE_DEVICES"] == "7,5,9"


def test_the_accelerator_of_a_device():
    assert [accelerator(name) for name in ("cpu", "cuda", torch.device("cuda:3"))] == [None, 0, 3]


def test_a_method_s_object_is_searched_for_what_cannot_be_packed():
    with pytest.raises(InputError, match=r"`setup\.part`"):
        pack(Held(threading.Lock()).enter, "setup")


class Held(Holder):
    def enter(self):
        return self


class Counting:
    """A worker that answers at once, and counts how often what it holds is looked at."""

    looks = 0

    def __init__(self, pool):
        self.pool, self.ready, self.held = pool, False, deque()
        pool.mail.append((self, "ready", None))

    @property
    def chunks(self):
        Counting.looks += 1
        return self.held

    def give(self, function, items):
        results = [Result(index, value=value) for index, value in unpack(items)]
        self.pool.mail.append((self, "results", pack(results, "results")))


class Mailbox(Pool):
    """Workers of which one reports at a time, as those that take unequally long do."""

    def __init__(self, size):
        super().__init__()
        self.size, self.mail = size, deque()

    def begin(self):
        pass

    def start(self):
        self.members.append(Counting(self))

    def reports(self):
        yield self.mail.popleft()

    def post_mortem(self, member, content):
        return "died", ""

    def stop(self, *, at_once):
        pass


def test_the_driver_looks_at_each_worker_a_few_times_a_report_however_many_there_are():
    size, count, Counting.looks = 60, 300, 0
    with Mailbox(size) as pool:
        found = [result.index for part in pool.results(abs, list(range(count)), 1) for result in part]
    assert sorted(found) == list(range(count))
    assert Counting.looks <= 10 * size * (count + size)  # a square of the workers would be 20 times as much


@pytest.mark.parametrize(("lossy", "sizes"), [(False, [1, 1, 1, 3]), (True, [1, 1, 1, 1, 1, 1])])
def test_a_chunk_that_waited_at_a_dead_worker_goes_out_whole_where_its_answer_cannot_have_been_lost(lossy, sizes):
    class Dying(Counting):
        def give(self, function, items):
            if self.pool.starts > 1:
                self.pool.sizes.append(len(unpack(items)))
                super().give(function, items)
            elif len(self.chunks) == AHEAD:  # one that it computes, and one that waits
                self.pool.mail.append((self, "died", None))

    class OneDies(Mailbox):
        def start(self):
            self.starts += 1
            self.members.append(Dying(self))

    pool = OneDies(1)
    pool.starts, pool.sizes = 0, []
    if lossy:
        pool.answers_get_lost = True
    with pool:
        found = [result.value for part in pool.results(abs, list(range(6)), 3) for result in part]
    assert sorted(found) == list(range(6)) and pool.sizes == sizes
