"""The conformance suite: naive tools hold every rule, and every rule can be broken."""

import ast
import json
import os
import random
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.reference.naive_faults import FAULTS
from tests.reference.naive_tools import NaiveCurvature, NaiveLandscape, NaiveOptimizer

from lowland.core.errors import InputError
from lowland.testing import (
    Breach,
    LandscapeAdapter,
    NotOffered,
    ambient,
    check,
    demand,
    document,
    examine,
    own_adapters,
    reproduce,
    rules,
)
from lowland.testing.planted import Planted, dense_hessian, planted_data
from lowland.testing.reproduction import LIMIT, run, run_alone
from lowland.testing.results import tool as made_tool
from lowland.testing.rulebook import Rule

ROOT = Path(__file__).parents[2]
CASES = [(tool, rule) for tool in FAULTS for rule in rules(tool.family)]


@pytest.mark.parametrize("tool", FAULTS, ids=lambda tool: tool.family)
def test_naive_tools_without_faults_hold_every_rule(tool):
    assert [(o.rule.name, o.detail) for o in check(tool()) if o.status != "holds"] == []


@pytest.mark.parametrize(("tool", "rule"), CASES, ids=[rule.name for _, rule in CASES])
def test_every_rule_is_broken_by_a_fault(tool, rule):
    (outcome,) = check(tool(FAULTS[tool][rule.name]), rule)
    assert outcome.status == "broken", outcome
    assert outcome.detail


# Reproductions.


@cache
def shown(tool, rule):
    found = reproduce(tool(FAULTS[tool][rule.name]), rule)
    assert found.source, found.missing
    return found


@pytest.mark.parametrize(("tool", "rule"), CASES, ids=[rule.name for _, rule in CASES])
def test_every_broken_rule_is_reproduced_in_15_lines(tool, rule):
    found = shown(tool, rule)
    assert found.source.count("\n") <= LIMIT
    imports = [node for node in ast.walk(ast.parse(found.source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or alias.name for node in imports for alias in node.names}
    assert names <= {*sys.stdlib_module_names, "numpy", "torch", "tests.reference.naive_tools"}, "it stands alone"
    assert run(found.source) == found.output, "it shows the same each time"
    sound = found.source.replace(repr(FAULTS[tool][rule.name]), "''")
    assert sound != found.source and run(sound) == "", "the tool without the fault shows none"


ALONE = {
    "optimizer": "average_is_resumed",
    "landscape": "old_store_is_not_returned",
    "curvature": "wrong_length_is_refused",
}


def test_what_an_adapter_states_may_use_the_modules_that_scripts_import():
    class Tool(NaiveOptimizer):
        @property
        def source(self):
            text = "@contextlib.contextmanager\ndef averaged(model, optimizer):\n    with optimizer.averaged(): yield"
            return NaiveOptimizer(self.fault).source | {"averaged": text}

    (broken,) = (rule for rule in rules("optimizer") if rule.name == "average_of_constant_weights")
    found = reproduce(Tool("the average starts at zero"), broken)
    assert not found.missing and found.source.startswith("import contextlib, torch")


def test_scripts_run_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    scripts, outputs = [], []
    for tool, rule in ((tool, rule) for tool, rule in CASES if rule.name == ALONE[tool.family]):
        found = shown(tool, rule)
        scripts += [found.source, found.source.replace(repr(FAULTS[tool][rule.name]), "''")]
        outputs += [found.output, ""]
    assert run_alone(*scripts) == outputs and len(scripts) == 6


@pytest.mark.slow
def test_every_script_shows_its_fault_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    found = [shown(tool, rule) for tool, rule in CASES]
    for one, output in zip(found, run_alone(*(one.source for one in found)), strict=True):
        assert output.split(":")[0] == one.output.split(":")[0], one.source


def test_scripts_are_shrunk():
    (rule,) = (rule for rule in rules("optimizer") if rule.name == "weights_stay_in_place")
    source = shown(NaiveOptimizer, rule).source
    assert "torch.nn.Linear(1, 1), torch.randn(1, 1)" in source and "range(1)" in source
    (rule,) = (rule for rule in rules("optimizer") if rule.name == "closure_comes_first")
    assert "range(2)" in shown(NaiveOptimizer, rule).source, "the fault shows in the second step"


def test_what_cannot_be_reproduced_says_why():
    class Silent(NaiveOptimizer):
        source: ClassVar = {}

    class Partial(NaiveOptimizer):
        @property
        def source(self):
            return {name: text for name, text in super().source.items() if name != "averaged"}

    class Long(NaiveOptimizer):
        @property
        def source(self):
            return super().source | {"make": super().source["make"] + "\n#" * 15}

    Long.__name__ = NaiveOptimizer.__name__  # its source imports the class by that name

    class Elsewhere(NaiveOptimizer):
        source: ClassVar = {"import": "import nowhere", "make": "make = nowhere.make", "averaged": "averaged = 1"}

    known = {rule.name: rule for rule in rules("optimizer")}
    fault, rule = FAULTS[NaiveOptimizer]["average_is_resumed"], known["average_is_resumed"]
    assert reproduce(Silent(fault), rule).missing == "the adapter of naive SAM states no source"
    assert reproduce(Partial(fault), rule).missing == "the adapter's source defines no `averaged`"
    assert reproduce(Elsewhere(fault), rule).missing == (
        "the adapter's source itself ends with ModuleNotFoundError: No module named 'nowhere'"
    )
    assert reproduce(Long(fault), rule).missing.startswith("the script would have 2")
    assert reproduce(NaiveOptimizer(), rule).missing == "the script shows no fault"
    unknown = Rule("unknown", "optimizer", "S.", "r", lambda adapter: None)
    assert reproduce(NaiveOptimizer(fault), unknown).missing == "the rule states no source"


def test_running_a_script_leaves_the_process_as_it_was():
    before = ambient.read()
    lines = "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.set_default_device('meta')"
    assert run(f"import torch; {lines}; torch.use_deterministic_algorithms(True); torch.rand(3); 1 / 0").startswith(
        "Zero"
    )
    assert ambient.changed(before) == ""


# The document.


def test_document_has_scripts_of_what_is_broken_and_is_json():
    fault = FAULTS[NaiveLandscape]["filters_of_linear"]
    made = json.loads(json.dumps(document([examine(NaiveLandscape(fault))])))
    assert (made["format"], made["version"]) == ("lowland conformance", 2)
    assert [rule["name"] for rule in made["rules"]] == [rule.name for rule in rules()]
    (tool,) = made["tools"]
    assert (tool["name"], tool["family"], tool["package"]) == ("naive landscape", "landscape", "")
    broken = {name for name, entry in tool["outcomes"].items() if entry["status"] == "broken"}
    assert broken == {"filters_of_linear", "filters_of_convolutions", "filters_of_transposed", "filters_of_zeros"}
    for name, entry in tool["outcomes"].items():
        assert ("reproduction" in entry) == (name in broken)
        assert name not in broken or entry["reproduction"]["source"], name


def test_every_rule_has_a_statement_and_a_reason():
    for rule in rules():
        assert rule.statement.endswith(".") and "\n" not in rule.statement, rule.name
        assert rule.reason, rule.name
        assert "|" not in rule.statement, "it stands in a table"


def test_a_family_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="family"):
        rules("visualization")


def test_a_documented_convention_counts_as_one():
    class Documented(NaiveOptimizer):
        conventions: ClassVar = {"weights_come_back": "says so on page 3", "loss_is_returned": "never needed"}

    found = {o.rule.name: o for o in check(Documented("subtracts what is infinite"))}
    assert (found["weights_come_back"].status, found["weights_come_back"].detail) == (
        "other convention",
        "says so on page 3",
    )
    assert found["loss_is_returned"].status == "holds"
    assert found["infinity_in_first_pass"].status == "broken"


def test_what_is_not_offered_is_not_broken():
    class Lines(LandscapeAdapter):
        name = "nothing"

        def plane(self, *arguments, **options):
            raise NotOffered("lines only")

    assert {(o.status, o.detail) for o in check(Lines()) if "line" not in o.rule.name} >= {
        ("not offered", "lines only")
    }
    assert all(o.status == "not offered" for o in check(Lines()))


def test_checking_leaves_random_states_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    check(NaiveLandscape("adds noise"), rules("landscape")[0])
    assert before[0] == random.getstate() and before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(before[2], torch.get_rng_state())


def test_interrupts_are_not_outcomes():
    def stop(adapter):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(NaiveCurvature(), Rule("stop", "curvature", "S.", "r", stop))


def test_demand():
    demand(True, "fine")
    with pytest.raises(Breach, match="not fine"):
        demand(0, "not fine")


# The plugin.

ADAPTERS = """
from lowland.testing import OptimizerAdapter
from lowland.optim import SAM

class Good(OptimizerAdapter):
    name = "good"
    def make(self, model, groups, base, options):
        return SAM(base(groups, **options), rho=self.rho)

class Bad(Good):
    name = "bad"
    def step(self, model, optimizer, closure):
        return -optimizer.step(closure)

def test_of_its_own():
    pass
"""


CHOSEN = "loss_is_returned or one_norm or changes_nothing or test_of"


def run_pytest(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "lowland.testing.plugin", "-p", "no:cacheprovider"]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others import for seconds
    return subprocess.run(
        [*command, "--rootdir", str(folder), *arguments],
        cwd=folder,
        env=alone,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_plugin_checks_the_adapters_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(ADAPTERS)
    done = run_pytest(
        tmp_path, "--conformance", "mine.py", "-q", "-rA", "-k", CHOSEN, "--conformance-results", "found.json"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PASSED mine.py::Good::one_norm_over_groups" in done.stdout
    assert "PASSED mine.py::test_of_its_own" in done.stdout
    assert "no way to use GradScaler is documented" in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split(" - ")[0] for line in failed] == ["FAILED mine.py::Bad::loss_is_returned"]
    assert "A step returns the loss of the first pass" in done.stdout
    assert "No script: the adapter of bad states no source" in done.stdout
    stored = {tool["name"]: tool["outcomes"] for tool in json.loads((tmp_path / "found.json").read_text())["tools"]}
    assert {name: entry["status"] for name, entry in stored["bad"].items()} == {
        "one_norm_over_groups": "holds",
        "loss_is_returned": "broken",
        "grad_scaler_changes_nothing": "not offered",
    }


def test_plugin_does_nothing_unless_asked(tmp_path):
    (tmp_path / "conformance_mine.py").write_text(ADAPTERS)
    (tmp_path / "test_other.py").write_text("def test_one():\n    pass\n")
    assert "1 passed" in run_pytest(tmp_path, "-q").stdout
    found = run_pytest(tmp_path, "--conformance", "-q", "--collect-only").stdout
    assert "conformance_mine.py::Good::zero_gradient" in found and "test_other.py::test_one" in found


def test_plugin_is_registered_and_imports_no_torch():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"lowland": "lowland.testing.plugin"}
    code = "import sys, lowland.testing.plugin; print([m for m in ('torch', 'numpy', 'xarray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# The page.


STORED = ROOT / "benchmarks/results/conformance.json"


def test_page_and_stored_results_agree():
    from benchmarks.conformance import page

    found = json.loads(STORED.read_text())
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.split(page.BEGIN)[1].split(page.END)[0].strip() == page.results(found).strip()
    for family in ("optimizer", "landscape", "curvature"):
        assert page.family_page(family).read_text(encoding="utf-8") == page.details(found, family)
    assert found["rules"] == document([])["rules"]
    ours = [tool["name"] for tool in found["tools"] if tool["package"] == "lowland"]
    assert ours == [tool.name for tool in own_adapters()]
    for tool in found["tools"]:
        assert set(tool["outcomes"]) == {rule.name for rule in rules(tool["family"])}
        for entry in tool["outcomes"].values():
            if entry["status"] == "broken":
                made = entry["reproduction"]
                assert tool["package"] != "lowland" and bool(made["source"]) != bool(made["missing"])
                assert made["source"].count("\n") <= LIMIT and bool(made["output"]) == bool(made["source"])


def test_adapter_on_the_page_breaks_what_the_page_says(tmp_path, monkeypatch):
    from benchmarks.conformance import page

    from lowland.testing import plugin

    blocks = re.findall(r"```python\n(.*?)```", page.PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "mine.py").write_text(blocks[0])
    (adapter,) = plugin._adapters(plugin._loaded(tmp_path / "mine.py"))
    monkeypatch.syspath_prepend(tmp_path)
    (shown,) = (rule for rule in rules("optimizer") if rule.name == "failure_in_second_pass")
    script = re.findall(r"```py\n(.*?)```", page.PAGE.read_text(encoding="utf-8"), re.S)[0]
    assert reproduce(adapter, shown).source == script
    assert [o.rule.name for o in check(adapter) if o.status == "broken"] == [
        "nothing_to_train",
        "zero_gradient",
        "failure_in_second_pass",
        "batch_norm_counts_once",
        "new_group_is_trained",
        "resumes_at_every_step",
        "deep_copy_goes_on",
        "pickle_goes_on",
    ]


@pytest.mark.slow
def test_peers_break_what_the_page_says(monkeypatch):
    from benchmarks.conformance import run as module

    def stated(adapter, distribution):
        """One peer with its scripts, run in processes of their own; the others without: no script is compared."""
        if adapter.name == "torch2-look-ahead":
            return examine(adapter, distribution, alone=True)
        return made_tool(adapter, {o.rule.name: {"status": o.status} for o in check(adapter)}, distribution)

    monkeypatch.setattr(module, "own_adapters", list)  # ours are checked by tests/contracts
    monkeypatch.setattr(module, "confirmed", stated)
    wanted = {tool["name"]: tool for tool in json.loads(STORED.read_text())["tools"]}
    compared = 0
    for tool in module.run()["tools"]:
        if tool["version"] == wanted[tool["name"]]["version"]:
            compared += 1
            assert {name: entry["status"] for name, entry in tool["outcomes"].items()} == {
                name: entry["status"] for name, entry in wanted[tool["name"]]["outcomes"].items()
            }
    if compared == 0:
        pytest.skip("no peer is installed")


def test_planted_eigenvalues_are_those_of_the_hessian():
    hessian = dense_hessian(Planted([3.0, -1.0]), torch.nn.MSELoss(), *planted_data())
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian), torch.tensor([-1.0, 3.0], dtype=torch.float64))
