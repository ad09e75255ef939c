"""All Python on the README and on the pages of the documentation runs, in order, page by page.

A page is one program: its blocks share their names, in a folder of their own. What is not meant to run is a ``text``
block. A page that needs an optional package which is not installed is left out.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import matplotlib
import pytest

from lowland.core.errors import MissingExtra

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(?P<indent>[ \t]*)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$", re.M | re.S)
OPTIONAL = ("lightning", "transformers", "accelerate", "ray", "tensorboard", "curvlinops", "foolbox", "optuna", "h5py")
SLOW = {
    "README.md",
    "docs/first-landscape.md",
    "docs/extending-measuring.md",
    "docs/extending.md",
    "docs/integrations.md",
    "docs/reference/study.md",
    "docs/tutorials/landscapes.md",
}
"""Pages of more than ten seconds."""


def blocks(path: Path) -> list[str]:
    """Return the Python of a page, each block with the line breaks before it, so that errors name the page's line."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        found.append("\n" * line + textwrap.dedent(match["code"]))
    return found


def pages() -> list[object]:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [path.relative_to(ROOT).as_posix() for path in candidates if blocks(path)]
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


@pytest.mark.parametrize("page", pages())
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict[str, object] = {"__name__": "page"}
    found = blocks(ROOT / page)
    assert found
    for code in found:
        try:
            exec(compile(code, str(ROOT / page), "exec"), names)
        except (ModuleNotFoundError, MissingExtra) as error:
            if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in OPTIONAL:
                raise
            pytest.skip(str(error))
    shown = re.findall(r"images/tutorials/([\w.-]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert [name for name in shown if not (tmp_path / name).is_file()] == [], "the page's own code saves its figures"


def test_blocks_are_found_and_keep_their_lines(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n```python\nx = 1\n```\n\n!!! note\n\n    ```python\n    y = 1 / 0\n    ```\n\n```text\nno\n```\n"
    )
    first, second = blocks(page)
    assert (first, second) == ("\n\n\nx = 1\n", "\n" * 9 + "y = 1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile(second, str(page), "exec"), {})
    assert caught.traceback[-1].lineno + 1 == 10


def test_the_first_page_is_there():
    assert len(blocks(ROOT / "README.md")) == 1
