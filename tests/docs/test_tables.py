"""The tables of the pages are those of the stored results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.tables import BLOCK, filled

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_table_says_what_is_stored(page: Path):
    text = page.read_text()
    assert filled(text) == text, "run: python -m benchmarks.tables"


def test_a_number_that_was_not_measured_is_noticed():
    text = (ROOT / "docs" / "losses.md").read_text()
    assert "| SAM | 2.01 |" in text
    changed = text.replace("| SAM | 2.01 |", "| SAM | 1.01 |")
    assert filled(changed) == text


def test_what_another_tool_returned_is_what_the_conformance_run_has_stored():
    tools = json.loads((ROOT / "benchmarks" / "results" / "conformance.json").read_text())["tools"]
    said = (ROOT / "docs" / "migrating.md").read_text().replace("\u2212", "-")
    found = next(tool["outcomes"] for tool in tools if tool["name"] == "PyHessian")
    numbers = {
        "ends_of_mixed_signs": (
            "the largest eigenvalue comes out as {}, it is {}",
            "it returned {} where the largest is {}",
        ),
        "trace_is_near": ("the trace is {}; twenty seeds give up to {}", "of {}, twenty seeds gave up to {}"),
    }
    for rule, (stored, words) in numbers.items():
        values = re.findall(r"-?\d+(?:\.\d+)?", found[rule]["detail"])
        assert found[rule]["detail"].startswith(stored.format(*values)) and words.format(*values) in said


def test_the_peak_of_a_step_in_the_guide_is_what_was_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())["rows"]["optim"]
    sam, alone = (rows[name]["weights"] for name in ("SAM", "SGD, alone"))
    said = " ".join((ROOT / "docs" / "choosing.md").read_text().split())
    assert f"{sam:.0f} P with SAM where SGD alone takes {alone:.0f}." in said
