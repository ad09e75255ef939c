"""What stands beside the code agrees with it: citation, licences, the reference's packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import lowland

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_names_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == lowland.__version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert all(reference["authors"] and reference["title"] for reference in citation["references"])


def test_every_dependency_has_its_licence_on_the_page():
    page = (ROOT / "docs" / "licences.md").read_text()
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
    wanted = [*PROJECT["dependencies"], *(name for names in extras.values() for name in names)]
    names = [re.split(r"[\[<>=~!; ]", name)[0] for name in wanted]
    assert [name for name in names if name not in page] == []
    assert [name for name in PROJECT["optional-dependencies"] if f"| `{name}` |" not in page] == []


def test_every_public_package_is_in_the_reference():
    packages = {path.parent.name for path in (ROOT / "src" / "lowland").glob("*/__init__.py")} - {"cli"}
    pages = {path.stem for path in (ROOT / "docs" / "reference").glob("*.md")} - {"index"}
    assert packages == pages
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f"reference/{page}.md" in navigation for page in pages)
