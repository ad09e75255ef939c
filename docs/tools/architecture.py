"""Draws the rooms of the package and what imports what, from the source: ``python architecture.py OUTPUT.svg``.

Layers come from import-linter's contract in pyproject.toml, arrows from the import statements (those under
``TYPE_CHECKING`` too), so that the picture cannot tell another story than the code.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "lowland"


def layers() -> list[list[str]]:
    """Return the rooms of each layer, the top first."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    rows = next(rule["layers"] for rule in tools["importlinter"]["contracts"] if rule["type"] == "layers")
    return [[room.strip() for room in row.split("|")] for row in rows]


def imports() -> Counter[tuple[str, str]]:
    """Return how many modules of one room import from another."""
    found: Counter[tuple[str, str]] = Counter()
    for path in PACKAGE.glob("*/**/*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        others = {other for other in _imported(ast.parse(path.read_text(encoding="utf-8"))) if other != room}
        found.update((room, other) for other in others)
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "lowland":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowland."):
            yield str(node.module).split(".")[1]


def draw(output: Path) -> None:
    """Write the picture."""
    rows = layers()
    places = {
        room: ((number + 0.5) / len(row) * 10, float(len(rows) - level))
        for level, row in enumerate(rows)
        for number, room in enumerate(row)
    }
    sizes = {
        room: sum(path.read_text(encoding="utf-8").count("\n") for path in (PACKAGE / room).rglob("*.py"))
        for room in places
    }
    figure, axes = plt.subplots(figsize=(10, 6.4))
    for (room, other), count in imports().items():
        if room in places and other in places:
            arrow = {"arrowstyle": "-|>", "lw": 0.5 + count / 8, "color": "0.6", "shrinkA": 16, "shrinkB": 16}
            axes.annotate("", places[other], places[room], arrowprops=arrow, zorder=1)
    for room, (x, y) in places.items():
        text = f"{room}\n{sizes[room]:,} lines"
        box = {"boxstyle": "round,pad=0.45", "facecolor": "#eef3ea", "edgecolor": "#41644a"}
        axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box, zorder=2)
    axes.set(xlim=(0, 10), ylim=(0.5, len(rows) + 0.5))
    axes.axis("off")
    figure.savefig(output, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
