"""Every work is disturbed at moments all over it: nothing is lost, the end is the same to the bit, words are clear."""

from __future__ import annotations

import multiprocessing
import random
import re
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.chaos.faults import Fault, flip
from tests.chaos.works import WORKS, holds, prepare, work

KILLS = 30
REFUSALS = {"full": "No space left on device", "read-only": "Read-only file system", "rename": "Stale file handle"}
UNREAD = re.compile(r"/snapshots/|^study/.*/checkpoints/|zarr.json$")
"""What a work that goes on only writes: readers check the sums of snapshots and weights. Metadata hold words, too."""
EACH_WORK = pytest.mark.parametrize("name", WORKS)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.chaos.works", "matplotlib.pyplot", "lowland.robustness.card", "lowland.viz"])


def done(name: str, folder: Path, fault: Fault | None = None) -> tuple[int | None, int, str]:
    """Do a work; return its exit code (None: killed), how often it changed files, and what it said."""
    with tempfile.NamedTemporaryFile() as said:
        here, there = SERVER.Pipe(duplex=False)
        child = SERVER.Process(target=work, args=(name, str(folder), fault or Fault("none"), said.name, there))
        child.start()
        there.close()
        try:
            code, count = here.recv()
        except EOFError:
            code, count = None, 0
        child.join()
        assert code is not None or child.exitcode == -signal.SIGKILL
        return code, count, Path(said.name).read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What each work leaves where nothing disturbs it, and how often it changes files."""
    known = {}

    def look(name):
        if name not in known:
            folder = prepare(tmp_path_factory.mktemp(name))
            code, count, said = done(name, folder)
            assert code == 0, said
            known[name] = holds(folder), count
        return known[name]

    return look


@pytest.mark.slow
@EACH_WORK
def test_killed_thirty_times_a_work_ends_the_same(name, whole, tmp_path):
    expected, count = whole(name)
    moments, kills, round_ = random.Random(name), 0, 0
    while kills < KILLS:
        folder, round_ = prepare(tmp_path / str(round_)), round_ + 1
        for _ in range(6):  # one after the other, so that what went on is killed again
            code, _, said = done(name, folder, Fault("kill", moments.randint(1, count)))
            kills += code is None
            assert code in (None, 0), said
            if code == 0:
                break
        code, _, said = done(name, folder)
        assert code == 0, said
        assert holds(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSALS)
@EACH_WORK
def test_a_disk_that_refuses_is_one_clear_line_and_the_work_goes_on_later(name, kind, whole, tmp_path):
    expected, count = whole(name)
    moments = random.Random(name + kind)
    for at in (1, moments.randint(2, count), moments.randint(2, count)):
        folder = prepare(tmp_path / f"{at}-{moments.random()}")
        code, _, said = done(name, folder, Fault(kind, at))
        assert "Traceback" not in said
        if code != 0:  # what is only shown or tidied up may fail without a word
            last = said.strip().splitlines()[-1]
            assert code == (1 if name == "ledger" else 2) and REFUSALS[kind] in last, said
        code, _, said = done(name, folder)
        assert code == 0 and holds(folder) == expected, said


@pytest.mark.slow
@EACH_WORK
def test_a_clock_that_jumps_changes_nothing(name, whole, tmp_path):
    expected, count = whole(name)
    folder = prepare(tmp_path / "jumps")
    code, _, said = done(name, folder, Fault("clock", random.Random(name).randint(1, count)))
    assert code == 0 and holds(folder) == expected, said


@pytest.mark.slow
@EACH_WORK
def test_a_flipped_bit_is_named_or_does_not_matter(name, whole, tmp_path):
    expected, count = whole(name)
    moments = random.Random(name)
    folder = prepare(tmp_path / "flipped")
    begun = holds(folder)
    done(name, folder, Fault("kill", count // 2))
    made = [folder / path for path in holds(folder) if path not in begun and not UNREAD.search(path)]
    for path in moments.sample(made, min(len(made), 8)):
        before = path.read_bytes()
        flip(path, moments.randrange(1 << 20))
        code, _, said = done(name, folder)
        assert "Traceback" not in said, path
        failed = (folder / "study" / "failures.json").exists()  # a study keeps runs that failed, and says so at its end
        if code == 0 and not failed:
            assert holds(folder) == expected, path
            return  # it was measured again, and the work is at its end
        last = "".join(said.strip().splitlines()[-1:])
        assert failed or (code in (1, 2) and any(part in last for part in path.relative_to(folder).parts[-5:])), said
        path.write_bytes(before)
    code, _, said = done(name, folder)
    assert code == 0 and holds(folder) == expected, said


@pytest.mark.slow
@EACH_WORK
def test_two_writers_at_once_leave_what_one_leaves(name, whole, tmp_path):
    expected, _ = whole(name)
    folder = prepare(tmp_path / "two")
    with ThreadPoolExecutor(2) as both:
        found = [*both.map(lambda _: done(name, folder), range(2))]
    codes = sorted(code for code, _, _ in found)
    assert codes in ([0, 0], [0, 2]), found
    assert holds(folder) == expected
