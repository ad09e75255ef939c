"""The tables of the pages are those of the stored results."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.tables import BLOCK, filled

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_table_says_what_is_stored(page: Path):
    text = page.read_text()
    assert filled(text) == text, "run: python benchmarks/tables.py"


def test_a_number_that_was_not_measured_is_noticed():
    text = (ROOT / "docs" / "losses.md").read_text()
    assert "| SAM | 2.01 |" in text
    changed = text.replace("| SAM | 2.01 |", "| SAM | 1.01 |")
    assert filled(changed) == text
