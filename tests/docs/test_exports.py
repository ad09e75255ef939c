"""Every exported name is said and shown: a docstring, an example that runs, and its place in the one file of the API."""

from __future__ import annotations

import importlib.util
import inspect
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@cache
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "tools" / "api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def examples() -> str:
    """Return all lines of Python that the tests run: of docstrings, of the README and of the pages."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src" / "lowland").rglob("*.py")]
    lines = [line for text in sources for line in re.findall(r"^\s*(?:>>>|\.\.\.) (.*)$", text, re.MULTILINE)]
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        lines += re.findall(r"^[ \t]*```python[^\n]*\n(.*?)^[ \t]*```", path.read_text(encoding="utf-8"), re.M | re.S)
    return "\n".join(lines)


@pytest.mark.parametrize("room", tool().rooms())
def test_every_export_has_an_example_that_runs(room):
    exported = tool().exports(tool().rooms()[room])
    assert [name for name in exported if not re.search(rf"\b{name}\b", examples())] == []


@pytest.mark.parametrize("room", tool().rooms())
def test_every_exported_class_and_function_says_what_it_is(room):
    exported = tool().exports(tool().rooms()[room])
    silent = [name for name, thing in exported.items() if inspect.isroutine(thing) and not inspect.getdoc(thing)]
    silent += [name for name, thing in exported.items() if inspect.isclass(thing) and not vars(thing).get("__doc__")]
    assert silent == []


def test_the_one_file_holds_every_export_and_no_address():
    text = tool().text()
    for room, module in tool().rooms().items():
        part = text.split(f"\n## {room}\n")[1].split("\n## lowland")[0]
        assert re.findall(r"^### (\w+)", part, re.MULTILINE) == list(tool().exports(module))
    assert "### SAM(base: Base, rho: float = 0.05" in text and ">>> optimizer = SAM(" in text
    assert not re.search(r"0x[0-9a-f]{6}", text) and str(ROOT) not in text and str(Path.home()) not in text
    assert text == tool().text()
