"""Makes the figures of the tutorials by their own code: ``python docs/tools/tutorials.py docs/images/tutorials``.

Every page of ``docs/tutorials`` is one program, which saves its figures in the folder where it runs. What it saved is
what the built page shows, so that text, code and figure cannot tell three stories.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

import matplotlib

PAGES = Path(__file__).resolve().parents[1] / "tutorials"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def figures(page: Path, folder: Path) -> list[Path]:
    """Run the Python of a page in a folder of its own, and keep the figures that it saves there.

    Args:
        page: A page in Markdown.
        folder: Where the figures go; made if it is missing.

    Returns:
        Their paths, by name.
    """
    matplotlib.use("agg")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    code = "\n".join(_BLOCK.findall(page.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as room, chdir(room):
        exec(compile(code, str(page), "exec"), {"__name__": "page"})
        return [Path(shutil.copy(found, folder)) for found in sorted(Path(room).glob("*.svg"))]


if __name__ == "__main__":
    for each in sorted(PAGES.glob("*.md")):
        figures(each, Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/tutorials"))
