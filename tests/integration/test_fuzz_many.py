"""Every reader against thousands of damaged and hostile files: read, or refused in our words, and nothing else is done.

LOWLAND_FUZZ=20000 takes as many for every reader; see `tests.fuzz`, which repeats a single one.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import READERS, Watch, payloads

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_files_are_read_or_refused(name, tmp_path):
    count = int(os.environ.get("LOWLAND_FUZZ", READERS[name].count))
    command = [sys.executable, "-m", "tests.fuzz", name, str(count), str(tmp_path / "fuzz")]
    places = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": places})
    at = tmp_path / "fuzz" / "at"
    assert done.returncode == 0, f"at input {at.read_text() if at.exists() else 'none'}: {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["read"] + found["refused"] == count
    assert found["refused"] > count / 50, "hardly anything was damaged"


@pytest.mark.parametrize("number", range(4))
def test_payloads_act_where_they_are_let_and_the_watch_sees_it(number, tmp_path):
    watch, mark = Watch(), tmp_path / "mark"
    data = pickle.dumps(payloads(mark)[number])
    with watch.during():
        pickle.loads(data)
    assert mark.exists() and watch.seen
