"""The script that breaks our source: what it breaks, and that it tells what tests catch from what they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.mutation.operators import mutants

ROOT = Path(__file__).resolve().parents[2]

MODULE = '''
def total(values):
    """Documentation is left alone: 1 + 1."""
    return sum(values) + 0.5


def largest(values):
    kept = list(values)
    kept.sort()
    return kept[-1]


def never(values):
    return values * 2
'''
TESTS = """
from planted.room import ground


def test_total():
    assert ground.total([1, 2]) == 3.5


def test_largest():
    assert ground.largest([2, 1]) == 2  # and nobody asks whether the list given is as it was
"""
PASS = """
import json, sys
from pathlib import Path
from benchmarks.mutation.__main__ import chosen, guards, record, verdict
from benchmarks.mutation.harness import Workshop, read_map

root, work = Path(sys.argv[1]), Path(sys.argv[2])
shop = Workshop(root, work, "planted", warm=())
record(shop, ["tests/test_planted.py"], work / "map.jsonl")
name = "src/planted/room/ground.py"
tests = read_map(work / "map.jsonl")
found = {m.before: verdict(m, guards(m, tests, 10.0, root), shop, 60.0) for m in chosen([(root / name, name)], 100, 0)}
print(json.dumps({"found": found, "as before": (shop.copy / name).read_bytes() == (root / name).read_bytes()}))
"""


def test_planted_faults_are_caught_but_one(tmp_path):
    room, tests, work = tmp_path / "root/src/planted/room", tmp_path / "root/tests", tmp_path / "work"
    for folder in (room, tests, work):
        folder.mkdir(parents=True)
    (room / "ground.py").write_text(MODULE)
    (tests / "test_planted.py").write_text(TESTS)
    command = [sys.executable, "-c", PASS, str(tmp_path / "root"), str(work)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    result = json.loads(told.splitlines()[-1])
    assert result["as before"]
    assert {before: row["verdict"] for before, row in result["found"].items()} == {
        "sum(values) + 0.5": "caught",
        "0.5": "caught",
        "list(values)": "survived",
        "1": "caught",
        "values * 2": "not run by a test",
        "2": "not run by a test",
    }
    assert result["found"]["0.5"]["by"] == "tests/test_planted.py::test_total"


CASES = {
    "a - b": ("sign", "(a + b)"),
    "f(a, b)": ("swapped", "b, a"),
    "x.clone()": ("missing copy", "(x)"),
    "x.amax()": ("reduction", "x.amin"),
    "x.add_(y)": ("in place", "pass"),
    "a < b": ("off by one", "(a <= b)"),
    "a is None": ("comparison", "(a is not None)"),
    "check_count(n)": ("missing check", "pass"),
    "cache.clear()": ("stale state", "pass"),
    "with restored(x):\n    pass": ("missing restore", "__import__('contextlib').nullcontext()"),
    "with torch.no_grad():\n    pass": ("no_grad", "__import__('contextlib').nullcontext()"),
    "try:\n    x\nfinally:\n    back()": ("missing restore", "pass"),
    "m(reduction='mean')": ("reduction", '"sum"'),
    "x = 0.5": ("constant", "1.0"),
    "x /= y": ("factor", "x = (x * y)"),
}


@pytest.mark.parametrize("text", CASES)
def test_kinds_of_faults(text, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(text)
    found = mutants(path, "src/planted/module.py")
    assert CASES[text] in [(mutant.kind, mutant.after) for mutant in found]
    for mutant in found:
        compile(mutant.apply(text.encode()), "broken", "exec")


def test_an_id_holds_while_its_function_does(tmp_path):
    path = tmp_path / "module.py"
    body = "def f(a, b):\n    return a - b - b\n"
    path.write_text(body)
    first = [mutant.id for mutant in mutants(path, "module.py")]
    path.write_text("import os\n\n\n" + body)
    assert [mutant.id for mutant in mutants(path, "module.py")] == first
    assert len(set(first)) == 2
    path.write_text(body.replace("b\n", "a\n"))
    assert not {mutant.id for mutant in mutants(path, "module.py")} & set(first)
