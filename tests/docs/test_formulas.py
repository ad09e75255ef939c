"""Formulas of pages and docstrings become MathML, examples become code, and the strict build can fail."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("latex2mathml", reason="makes the formulas of the documentation; comes with the extra docs")
pytest.importorskip("griffe", reason="reads the source for the documentation; comes with the extra docs")

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_formula_of_a_docstring_becomes_a_block():
    text = "One line.\n\n.. math:: a = b,\n    \\quad c\n\nMore.\n"
    made = tool("docstrings").rewritten(text)
    assert re.sub(r"\n+", "\n", made) == "One line.\n$$\na = b, \\quad c\n$$\nMore."


def test_a_docstring_without_formulas_stays():
    assert tool("docstrings").rewritten("One line.\n\nMore.") == "One line.\n\nMore."


def test_an_example_of_a_docstring_becomes_code():
    import griffe

    text = "One line.\n\nExample:\n    Some words.\n\nExample:\n    >>> 1 + 1\n    2\n"
    parts = griffe.Docstring(tool("docstrings").rewritten(text)).parse("google")
    assert [part.kind.value for part in parts] == ["text", "admonition", "examples"]


def test_the_build_of_the_pages_counts_warnings():
    (build,) = re.findall(r"mkdocs build ([^#\n]*)", (ROOT / "Makefile").read_text())
    assert build.split() == ["--strict"]


def test_formulas_of_a_page_become_mathml_and_the_rest_stays():
    page = '<p>x <span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[c\\]</div>'
    found = tool("formulas").on_page_content(page)
    assert found.count("<math") == 2 and "arithmatex" not in found and found.startswith("<p>x <math")


@pytest.mark.parametrize("page", [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").rglob("*.md"))])
def test_every_formula_of_the_pages_is_understood(page: str):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for formula in re.findall(r"^\$\$\n(.*?)\n\$\$", text, re.DOTALL | re.MULTILINE):
        made = tool("formulas").on_page_content(f'<div class="arithmatex">\\[{formula}\\]</div>')
        assert "<math" in made and "\\" not in re.sub(r"<annotation.*?</annotation>", "", made), formula
