"""What makes a row stale: files that its module imports, followed through the package; and what the ledger may import."""

import ast
import importlib
import json
import random
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import studies.claims
from scipy import stats
from studies.claims import imports
from studies.claims.answers import outcome
from studies.claims.history import differences, last_edition, words_of
from studies.claims.ledger import Options, rows_of
from studies.claims.page import pages
from studies.claims.record import read_record
from studies.claims.rows.every import claims
from studies.claims.words import TAKE_HOME

from lowland.study import instrument

FOLDER = Path(studies.claims.__file__).parent
ROOT = FOLDER.parents[1]
FILES = {
    "house/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.lazy import late as late\n",
    "house/one.py": "from house import two\nfrom house import late\ndef f():\n    from house.inside import g\n    return g()\n",
    "house/two.py": "'''Says what it does.'''\nfrom .four import LIMIT  # a reason\nimport numpy\n",
    "house/three.py": "x = 1\n",
    "house/four.py": "LIMIT = 3\n__version__ = '1'\n",
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
        ("house/four.py", "'1'", "'2'", False),
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
    assert {
        "lowland.training.fit",
        "lowland.optim.sam",
        "lowland.data.mnist1d",
        "lowland.models.conv1d",
        "lowland.study.endpoints",
        "studies.claims.rows.tasks",
    } <= found
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
                module = importlib.import_module(node.module or "")
                exported = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
                assert {alias.name for alias in node.names} <= set(exported), (path, node.module)
                assert node.module == "lowland" or node.module.count(".") == 1 + node.module.startswith("lowland.core.")


def written():
    """The pages as they lie in the documentation, by the names that `pages` gives them."""
    first = Path(Options().page)
    others = {path.stem: path.read_text(encoding="utf-8") for path in first.with_suffix("").glob("*.md")}
    return {"": first.read_text(encoding="utf-8"), **others}


def every(texts):
    return "\n".join(texts.values())


def without_state(text):
    """What a page says about numbers: budget and states belong to the moment."""
    body = text.split("\n## Budget")[0]
    return re.sub(r"^- State: .*?(, \d+ of \d+ seeds)[^\n]*$", r"- State\1", body, flags=re.MULTILINE)


def test_the_pages_show_what_is_stored_and_all_are_in_the_navigation():
    options = Options()
    outcomes = [outcome(row, read_record(Path(options.store), row.name)) for row in rows_of(options)]
    found, made = written(), pages(outcomes)
    assert {name: without_state(text) for name, text in found.items()} == {
        name: without_state(text) for name, text in made.items()
    }
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name for name in found if f": claims/{name}.md\n" not in navigation] == [""]


def test_every_stored_record_belongs_to_a_row_and_says_where_it_was_measured():
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (FOLDER / "results").glob("*.json")}
    assert set(stored) <= {row.name for row in claims()} and len(stored) >= 52
    for name, record in stored.items():
        assert record["claim"] == name
        assert all(run["revision"] and run["machine"] and run["created"] for run in record["runs"]), name


KINDS = ("mean", "passes", "train_loss")
TABLE = re.compile(r"^\| (?P<cells>.+) \|$")


def cells_of(text):
    """Every number of the rows' own tables: (row, kind, what, cell)."""
    found, row, table = [], "", ""
    for line in text.splitlines():
        row = line.removeprefix("## ") if line.startswith("## ") else row
        match = TABLE.match(line)
        if match is None:
            table = table if line.startswith("|---") else ""
            continue
        cells = match["cells"].split(" | ")
        table = table or cells[0]
        if cells[0] == table:
            continue
        if table == "comparison":
            found.append((row, "difference", cells[0], cells[1]))
        elif table == "arm":
            found += [(row, kind, cells[0], cells[place]) for place, kind in enumerate(KINDS, start=1)]
    return [one for one in found if one[3] != "–"]


def from_stored(claim, runs, kind, what):
    """The cell again from the numbers per seed, by NumPy and SciPy alone."""
    values = {name: np.array([float(run["values"][name]) for run in runs]) for name in runs[0]["values"]}
    if kind in ("passes", "train_loss"):
        numbers = [float(run[kind][what]) for run in runs if what in run.get(kind, {})]
        return [np.mean(numbers)]
    if kind == "mean":
        shown = values[what]
    else:
        names = next(names for names in claim.comparisons if words_of(names) == what)
        arms = [values[name] for name in names]
        shown = arms[0] - arms[1] if len(arms) == 2 else arms[0] - arms[2] - 0.75 * (arms[1] - arms[2])
        shown = shown if claim.higher else -shown
    half = stats.t.ppf(0.975, len(shown) - 1) * shown.std(ddof=1) / np.sqrt(len(shown))
    return [shown.mean(), shown.mean() - half, shown.mean() + half]


def test_ten_random_cells_of_the_page_follow_from_stored_runs():
    options = Options()
    rows = {row.name: row for row in rows_of(options)}
    cells = cells_of(every(written()))
    assert len(cells) > 300 and {kind for _, kind, _, _ in cells} == {"difference", *KINDS}
    for name, kind, what, cell in random.sample(cells, 10):
        stored = json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))["runs"]
        shown = [float(number.replace("−", "-")) for number in re.findall(r"[+−]?[\d.]+(?:e[+−]?\d+)?", cell)]
        expected = from_stored(rows[name], stored, kind, what)
        tolerance = {"rel": 6e-3} if kind in ("passes", "train_loss") else {"abs": 6e-5}
        assert shown == pytest.approx(expected, **tolerance), (name, kind, what)


def test_every_row_shows_its_instrument_before_its_answer_and_every_answer_has_one():
    options, text = Options(), every(written())
    for row in rows_of(options):
        found = outcome(row, read_record(Path(options.store), row.name))
        own = text[text.index(f"## {row.name}\n") :].split("\n## ")[0].split("\n# ")[0]
        if found.record is None:
            assert "- Instrument, declared: " in own and "| comparison |" not in own
            continue
        assert own.index("| instrument of |") < own.index("| comparison |")
        for checks, given in zip(found.checks, found.answers, strict=True):
            names = {check.name for check in checks}
            assert {"reach", "floor and ceiling", "planted effect"} <= names, row.name
            assert (given.verdict == "not measurable here") == any(check.works is False for check in checks)


def test_the_first_table_has_every_row_with_claim_answer_number_and_cost():
    options, text = Options(), written()[""]
    table = text[text.index("| row | claim |") : text.index("## What to take home")]
    assert text.index("| row | claim |") < text.index("\n## ")
    for row in rows_of(options):
        assert re.search(rf"\| \[{row.name}\]\(claims/[\w-]+\.md#{row.name}\) \| {re.escape(row.statement)} \| ", table)


def test_no_answer_hangs_on_the_draws_of_the_planted_effect(monkeypatch):
    options = Options()
    stored = [(row, read_record(Path(options.store), row.name)) for row in rows_of(options)]
    before = [[one.verdict for one in outcome(*pair).answers] for pair in stored]
    monkeypatch.setattr(instrument, "planted_power", partial(instrument.planted_power, seed=1, tries=2000))
    assert [[one.verdict for one in outcome(*pair).answers] for pair in stored] == before


def test_no_row_is_changed_after_its_result_without_the_page_saying_so():
    options = Options()
    edition, text = last_edition(), every(written())
    assert set(edition.rows) <= {row.name for row in rows_of(options)}
    for row in rows_of(options):
        record = read_record(Path(options.store), row.name)
        changed = differences(row, record, edition)
        assert not changed or (row.changed and "; ".join(changed) in text), row.name
        before = edition.rows.get(row.name, {})
        for one in before.get("answers", []):
            now = outcome(row, record).answers[[*map(words_of, row.comparisons)].index(one["comparison"])]
            assert now.verdict == one["answer"] or f"| {row.name} | {one['comparison']} | {one['answer']} | " in text


def test_a_changed_declaration_is_seen_and_printed():
    row = next(row for row in claims() if row.name == "sam-curvature")
    record = read_record(FOLDER / "results", "sam-curvature")
    assert differences(row, record, last_edition()) == []
    wider = replace(row, smallest=0.3, changed="Because.")
    assert differences(wider, record, last_edition()) == ["smallest 0.1, now 0.3"]
    text = every(pages([outcome(wider, record)]))
    assert text.count("smallest 0.1, now 0.3. Because.") == 2


def test_two_sentences_per_paper_rest_on_answers_that_still_stand():
    options = Options()
    found = {row.name: outcome(row, read_record(Path(options.store), row.name)) for row in rows_of(options)}
    told = {row.group for row in rows_of(options) if found[row.name].answers}
    assert told <= set(TAKE_HOME) and all(len(sentences) == 2 for sentences in TAKE_HOME.values())
    for sentences in TAKE_HOME.values():
        for sentence in sentences:
            for name, verdict in sentence.rests_on.items():
                assert found[name].answers[0].verdict == verdict, (name, sentence.text)
    answers = found["sam-curvature"].answers
    other = replace(found["sam-curvature"], answers=tuple(replace(one, verdict="undecided") for one in answers))
    assert "sam-curvature answered otherwise since this was written" in pages([other])[""]
