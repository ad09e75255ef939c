"""Files and names that pages mention exist."""

from __future__ import annotations

import glob
import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(path.parent.name for path in (ROOT / "src" / "lowland").glob("*/__init__.py"))
NAME = re.compile(rf"`(?:lowland\.|ll\.)?((?:{'|'.join(ROOMS)})(?:\.(?!yaml\b)[A-Za-z]\w*)+)[`(]")
FILE = re.compile(r"`(?:python )?([\w./*]+/(?:[\w*]+\.(?:py|md|json|toml))?)(?: [^`]*)?`")
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "CHANGELOG.md"})  # which has old names
ELSEWHERE = {"CIFAR/configs.json", "cifar10/main.py", "cifar10/dataloader.py", "figures/", "site/"}
"""Files of the papers' own code, and folders that a run or a build makes."""


def missing_files(text: str) -> list[str]:
    places = [ROOT, ROOT / "src", ROOT / "src" / "lowland"]
    return [name for name in FILE.findall(text) if not any(glob.glob(str(place / name)) for place in places)]


def missing_names(text: str) -> list[str]:
    return [name for name in NAME.findall(text) if not known(name.split("."))]


def known(parts: list[str]) -> bool:
    for length in range(len(parts), 0, -1):
        try:
            reduce(getattr, parts[length:], importlib.import_module(".".join(["lowland", *parts[:length]])))
        except (ImportError, AttributeError):
            continue
        return True
    return False


def test_what_is_missing_is_found():
    assert missing_files("`core/nothing.py` `core/risk.py` `tests/` `python docs/nothing.py --x` `tests/*.py`") == [
        "core/nothing.py",
        "docs/nothing.py",
    ]
    assert missing_names("`optim.SAM` `lowland.optim.Nothing` `results.Run.nothing(x)` `core.risk`") == [
        "optim.Nothing",
        "results.Run.nothing",
    ]


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in PAGES])
def test_files_that_a_page_mentions_exist(page):
    assert set(missing_files((ROOT / page).read_text())) <= ELSEWHERE


def test_names_that_pages_mention_exist():
    missing = {str(page.relative_to(ROOT)): missing_names(page.read_text()) for page in PAGES}
    assert {page: names for page, names in missing.items() if names} == {}
