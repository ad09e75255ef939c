"""What makes a row stale: files that its module imports, followed through the package; and what the ledger may import."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import studies.claims
from studies.claims import imports
from studies.claims.answers import outcome
from studies.claims.ledger import Options, rows_of
from studies.claims.page import page
from studies.claims.record import read_record
from studies.claims.rows.every import claims

FOLDER = Path(studies.claims.__file__).parent
ROOT = FOLDER.parents[1]
FILES = {
    "house/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.lazy import late as late\n",
    "house/one.py": "from house import two\nfrom house import late\ndef f():\n    from house.inside import g\n    return g()\n",
    "house/two.py": "'''Says what it does.'''\nfrom .four import LIMIT  # a reason\nimport numpy\n",
    "house/three.py": "x = 1\n",
    "house/four.py": "LIMIT = 3\n",
    "house/inside.py": "def g():\n    '''Old.'''\n    return 1\n",
    "house/lazy.py": "late = 1\n",
    "house/viz/__init__.py": "x = 1\n",
    "house/four_uses.py": "import house.viz\n",
}


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(imports, "PACKAGES", ("house",))
    monkeypatch.setattr(imports, "OUTSIDE", ("house.viz",))
    caches = (imports.fingerprint, imports.plain_code, imports._spec, imports._imports, imports._split)

    def write(**changed):
        for name, text in {**FILES, **changed}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        for cached in caches:
            cached.cache_clear()

    write()
    yield write
    for cached in caches:
        cached.cache_clear()


def test_imports_are_followed_through_packages_functions_and_lazy_names(house):
    found = set(imports.imported_files("house.one"))
    assert found == {"house", "house.one", "house.two", "house.four", "house.inside", "house.lazy"}
    assert set(imports.imported_files("house.four_uses")) == {"house", "house.four_uses"}


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("house/four.py", "LIMIT = 3", "LIMIT = 4", True),
        ("house/inside.py", "return 1", "return 2", True),
        ("house/lazy.py", "late = 1", "late = 2", True),
        ("house/three.py", "x = 1", "x = 2", False),
        ("house/viz/__init__.py", "x = 1", "x = 2", False),
        ("house/two.py", "Says what it does.", "Says it better.", False),
        ("house/two.py", "  # a reason", "", False),
        ("house/inside.py", "'''Old.'''\n", "'''New.'''\n\n", False),
    ],
)
def test_a_changed_file_makes_those_stale_that_import_it(house, file, old, new, stale):
    before = imports.fingerprint("house.one")
    assert old in FILES[file]
    house(**{file: FILES[file].replace(old, new)})
    assert (imports.fingerprint("house.one") != before) is stale


def test_a_row_depends_on_what_trains_and_measures_and_on_no_other_rows():
    rows = {row.name: row for row in claims()}
    assert all(re.fullmatch(r"[0-9a-f]{24}", row.fingerprint) for row in rows.values())
    found = set(imports.imported_files(rows["sam-late"].module))
    assert {"lowland.training.fit", "lowland.optim.sam", "lowland.data.mnist1d", "lowland.models.conv1d",
            "lowland.study.endpoints", "studies.claims.rows.tasks"} <= found  # fmt: skip
    assert (
        not {"studies.claims.rows.llr", "studies.claims.page", "studies.claims.record", "lowland.report.html"} & found
    )
    assert "studies.claims.rows.llr_measures" in imports.imported_files(rows["llr-cost"].module)


def test_the_ledger_uses_only_names_that_a_room_exports():
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("lowland")], path
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowland"):
                if (node.module or "").startswith(
                    "lowland.core."
                ):  # core's modules are its rooms: docs/reference/core.md
                    assert f"::: {node.module}\n" in (ROOT / "docs/reference/core.md").read_text(encoding="utf-8"), path
                exported = importlib.import_module(node.module or "").__all__
                assert {alias.name for alias in node.names} <= set(exported), (path, node.module)
                assert node.module == "lowland" or node.module.count(".") == 1 + node.module.startswith("lowland.core.")


def without_state(text):
    """What a page says about numbers: budget, states and fingerprints belong to the moment."""
    body = text[text.index("\n## SAM") :]
    return re.sub(r"^- State: .*?(, \d+ of \d+ seeds)[^\n]*$", r"- State\1", body, flags=re.MULTILINE)


def test_the_page_shows_what_is_stored():
    options = Options()
    outcomes = [outcome(row, read_record(Path(options.store), row.name)) for row in rows_of(options)]
    assert without_state(Path(options.page).read_text(encoding="utf-8")) == without_state(page(outcomes))


def test_every_stored_record_belongs_to_a_row_and_says_where_it_was_measured():
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (FOLDER / "results").glob("*.json")}
    assert set(stored) == {row.name for row in claims()}
    for name, record in stored.items():
        assert record["claim"] == name
        assert all(run["revision"] and run["machine"] and run["created"] for run in record["runs"]), name
