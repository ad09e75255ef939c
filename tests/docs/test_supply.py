"""What the package is built from and checked with: the CI's matrix, hooks, pins, licences and the bill of materials."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!]+)")
LINES = (ROOT / "constraints.txt").read_text().splitlines()
TOOLS = {"lowland", "pip", "wheel"}
"""What an environment holds without being asked for."""
ALONE = {canonicalize_name(name) for name in re.findall(r"[\w.-]+", (ROOT / "Makefile").read_text())}
"""What the Makefile installs by name, without what its metadata ask for, with its reasons; and its other words."""


def pins() -> dict[str, str]:
    found = [PIN.fullmatch(line) for line in LINES]
    return {canonicalize_name(m["name"]): m["version"] for m in found if m is not None}


def installed() -> dict[str, str]:
    return {canonicalize_name(found.name): found.version.partition("+")[0] for found in distributions()}


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "docs" / "tools" / "sbom.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_matrix_has_every_python_that_the_package_is_for():
    tested = JOBS["tests"]["strategy"]["matrix"]["python"]
    stated = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert tested == stated == sorted(stated, key=Version)
    assert tested[0] == oldest == JOBS["gate"]["steps"][1]["with"]["python-version"]
    assert [int(version.split(".")[1]) for version in tested] == list(
        range(int(oldest.split(".")[1]), int(oldest.split(".")[1]) + len(tested))
    )


def test_the_matrix_has_the_oldest_and_the_newest_torch():
    (torch,) = [wanted for wanted in map(Requirement, PROJECT["dependencies"]) if wanted.name == "torch"]
    oldest, newest = JOBS["tests"]["strategy"]["matrix"]["torch"]
    assert torch.specifier.contains(oldest) and torch.specifier.contains(newest)
    (bound,) = [one for one in torch.specifier if one.operator == ">="]
    assert Version(oldest) == Version(bound.version)
    assert pins()["torch"] in (oldest, newest)  # a job of the matrix writes the older one into its constraints


def test_the_ci_runs_the_gate_and_the_matrix_a_part_of_it():
    gate = re.findall(r"^make \w+", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert gate == ["make check", "make dist", "make test", "make slow"]
    assert commands("gate") == ["bash .ci/run"]
    assert [command for command in commands("tests") if command.startswith("make")] == ["make test"]
    (change,) = [command for command in commands("tests") if command.startswith("sed")]
    pattern = change.split("s/")[1].split("/")[0]
    assert [line for line in LINES if re.search(pattern, line)] == [f"torch=={pins()['torch']}"]


def test_hooks_are_what_make_check_runs():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert all(hook["language"] == "system" for hook in hooks), "a hook would fetch something"
    at_commit = [hook["entry"] for hook in hooks if hook.get("stages") != ["pre-push"]]
    assert at_commit == [command for command in recipe("check") if command.startswith(".venv")]
    assert [hook["entry"] for hook in hooks if hook.get("stages") == ["pre-push"]] == ["make check"]


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda f: f.stem)
def test_issue_forms_are_forms(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    assert all(part["type"] in {"textarea", "input", "dropdown", "checkboxes", "markdown"} for part in content["body"])
    ids = [part["id"] for part in content["body"]]
    assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in content["body"])


def test_pins_are_pins_and_no_two_of_one():
    assert [line for line in LINES if PIN.fullmatch(line) is None] == []
    assert len(pins()) == len(LINES)


def test_pins_are_what_is_installed():
    here, pinned = installed(), pins()
    assert {name: (v, here[name]) for name, v in pinned.items() if here.get(name, v) != v} == {}
    assert sorted(set(here) - set(pinned) - TOOLS) == [], "installed without a pin"


def test_no_pin_is_left_over():
    """Every pin is asked for by what is installed, by pyproject.toml or by the Makefile."""
    asked = set(ALONE)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    wanted = {canonicalize_name(Requirement(one).name) for group in groups for one in group}
    if not wanted <= set(installed()):
        pytest.skip(f"not every extra is installed here: {sorted(wanted - set(installed()))}")
    asked |= wanted
    asked |= {canonicalize_name(Requirement(one).name) for found in distributions() for one in found.requires or ()}
    assert sorted(set(pins()) - asked) == []


def test_what_is_installed_fits_together():
    wrong, here = set(), installed()
    for found in distributions():
        for wanted in map(Requirement, found.requires or ()):
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            name = canonicalize_name(wanted.name)
            if name not in here or not wanted.specifier.contains(here[name], prereleases=True):
                wrong.add((canonicalize_name(found.name), name))
    assert {pair for pair in wrong if pair[0] not in ALONE} == set()


def rows() -> list[tuple[str, str]]:
    """Return package and licence as the page states them, where a row names packages one by one."""
    found = []
    for line in (ROOT / "docs" / "licences.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or cells[0] in ("package", "extra", "`dev`") or cells[0].startswith("-"):
            continue
        names = [cells[0]] if "`" not in cells[0] else [re.split(r"[ ,]", one)[0] for one in cells[1].split(", ")]
        kinds = [cells[2]] if len(names) == 1 or "," not in cells[2] else cells[2].split(", ")
        found += list(zip(names, kinds * (len(names) // len(kinds)), strict=True))
    return found


@pytest.mark.parametrize(("name", "stated"), rows() or [("no row", "")])
def test_the_licence_on_the_page_is_that_of_the_package(name, stated):
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    said = [metadata.get("License-Expression"), metadata.get("License"), *(metadata.get_all("Classifier") or [])]
    text = " ".join(part for part in said if part)
    family = re.match(r"BSD|MIT|Apache|ISC|Python Software Foundation", stated)
    assert family is not None and family[0] in text, f"the page says {stated}"


def test_the_bill_of_materials_holds_every_requirement(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    made = tool().bill()
    parts = {part["name"]: part for part in made["components"]}
    direct = {canonicalize_name(Requirement(one).name) for one in PROJECT["dependencies"]}
    assert direct <= set(parts) and set(parts) <= set(pins())
    assert all(part["version"].partition("+")[0] == pins()[name] for name, part in parts.items())
    refs = [made["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in made["components"])]
    assert len(set(refs)) == len(refs) and sorted(link["ref"] for link in made["dependencies"]) == sorted(refs)
    links = {link["ref"]: set(link["dependsOn"]) for link in made["dependencies"]}
    assert links[refs[0]] == {parts[name]["bom-ref"] for name in direct}
    assert set().union(*links.values()) == set(refs[1:]), "something is listed that nothing asks for"
    assert all(part.get("licenses") for part in made["components"])
    assert made["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert json.dumps(made) == json.dumps(tool().bill())
    assert {part["name"] for part in tool().bill(extras=frozenset({"hdf5"}))["components"]} - set(parts) == {"h5py"}


ACTION = ROOT / ".github/actions/conformance/action.yml"


def test_the_action_for_other_packages_is_complete():
    action = yaml.safe_load(ACTION.read_text())
    inputs, (install, check) = action["inputs"], action["runs"]["steps"]
    assert action["runs"]["using"] == "composite" and {"name", "description"} <= action.keys()
    assert all(one["description"] and one.get("required", "default" in one) for one in inputs.values())
    assert check["env"] == {name.upper(): f"${{{{ inputs.{name} }}}}" for name in inputs}
    assert set(re.findall(r"\$(\w+)", check["run"])) == set(check["env"]), "every input is used"
    folder = re.search(r'"\$GITHUB_ACTION_PATH/([^"]*)"', install["run"])[1]
    assert (ACTION.parent / folder).resolve() == ROOT and (ROOT / "pyproject.toml").is_file()
    options = (ROOT / "src/lowland/testing/plugin.py").read_text()
    ours = [word for word in check["run"].split() if word.startswith("--conformance")]
    assert ours and all(f'"{word}"' in options for word in ours)


def test_the_workflow_on_the_page_uses_the_action_as_it_is():
    page = (ROOT / "docs" / "conformance.md").read_text()
    (shown,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (job,) = yaml.safe_load(shown)["jobs"].values()
    used = job["steps"][-1]
    assert used["uses"].partition("@")[0].partition("/lowland/")[2] == str(ACTION.parent.relative_to(ROOT))
    assert used["with"].keys() <= yaml.safe_load(ACTION.read_text())["inputs"].keys()
    assert "pip install" in job["steps"][-2]["run"]


@pytest.mark.slow
def test_the_action_for_other_packages_checks_an_adapter(tmp_path):
    steps = yaml.safe_load(ACTION.read_text())["runs"]["steps"]
    assert all(step["shell"] == "bash" and "${{" not in step["run"] for step in steps), "inputs are words, not scripts"
    page = (ROOT / "docs" / "conformance.md").read_text()
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    given = {
        "ADAPTERS": "mine.py",
        "RESULTS": "out.xml",
        "DOCUMENT": "out.json",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["bash", "-ec", steps[-1]["run"]], cwd=tmp_path, env={**os.environ, **given}, check=False)
    (suite,) = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert done.returncode == 1 and suite.get("failures") == "8", "the page says that eight rules fail"
    (tool,) = json.loads((tmp_path / "out.json").read_text())["tools"]
    broken = [entry["reproduction"] for entry in tool["outcomes"].values() if entry["status"] == "broken"]
    assert len(broken) == 8 and all(made["source"] and made["output"] for made in broken)
