"""The figures of the tutorials are those that their own code saves."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorials", ROOT / "docs" / "tools" / "tutorials.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_blocks_of_a_page_share_their_names_and_leave_figures_alone(tmp_path: Path):
    page, before = tmp_path / "page.md", Path.cwd()
    page.write_text(
        "a\n\n```python\nfrom pathlib import Path\nname = 'b.svg'\n```\n\n```text\n1 / 0\n```\n\n"
        "```python\nPath(name).write_text('<svg/>')\nPath('other.txt').write_text('')\n```\n"
    )
    made = tool().figures(page, tmp_path / "images")
    assert made == [tmp_path / "images" / "b.svg"] and made[0].read_text() == "<svg/>"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.svg", "images", "page.md"]
    assert Path.cwd() == before


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_has_its_parts(page: Path):
    text = page.read_text()
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == [
        "The formula", "The formula in code", "The run", "What to distrust", "Next",
    ]  # fmt: skip
    assert "assert_close(" in text and "../claims.md#" in text and "../figure" in text
    saved = re.findall(r'savefig\(f?"([\w{}-]+\.svg)"', text)
    shown = re.findall(r"!\[[^]]*\]\(\.\./images/tutorials/([\w.-]+)\)", text)
    assert saved and shown and len(text.splitlines()) <= 135
    assert f"tutorials/{page.name}" in (ROOT / "mkdocs.yml").read_text()
