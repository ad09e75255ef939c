"""The pages of the methods say what the source says, and every method has one."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))


@cache
def tool() -> ModuleType:
    pytest.importorskip("griffe", reason="reads the source for the documentation; comes with the extra docs")
    spec = importlib.util.spec_from_file_location("agree", ROOT / "docs" / "tools" / "agree.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_agrees_with_the_source(page: Path):
    text = page.read_text()
    assert tool().filled(text) == text, "run: python docs/tools/agree.py"


def test_every_method_has_its_arguments_on_a_page():
    from lowland import losses, optim

    shown = "\n".join(page.read_text() for page in PAGES)
    kinds = [*optim.METHODS.values(), *losses.METHODS.values()]
    missing = [kind.__name__ for kind in kinds if not re.search(rf"<!-- defaults \S+\.{kind.__name__} -->", shown)]
    assert not missing


def test_every_list_of_deviations_is_on_a_page():
    shown = "\n".join(page.read_text() for page in PAGES)
    measuring = {"losses", "optim", "landscape", "curvature"}
    missing = []
    for file in sorted((ROOT / "src" / "lowland").rglob("*.py")):
        room, name = file.parent.name, file.stem
        head = file.read_text().split('"""')[1] if file.read_text().startswith('"""') else ""
        if room in measuring and re.search(r"^(Deviation|.*\. Deviations)[^\n]*:", head, re.MULTILINE):
            missing += [] if f"<!-- deviations lowland.{room}.{name} -->" in shown else [f"{room}/{name}"]
    assert not missing


def test_the_tool_notices_a_default_that_changed():
    page = next(page for page in PAGES if page.stem == "asam").read_text()
    assert "| `0.5` |" in page
    assert tool().filled(page.replace("| `0.5` |", "| `0.05` |")) == page
