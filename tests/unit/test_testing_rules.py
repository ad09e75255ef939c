"""The conformance suite: naive tools hold every rule, and every rule can be broken."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.reference.naive_faults import FAULTS
from tests.reference.naive_tools import NaiveCurvature, NaiveLandscape, NaiveOptimizer

from lowland.core.errors import InputError
from lowland.testing import Breach, LandscapeAdapter, NotOffered, check, demand, own_adapters, rules
from lowland.testing.planted import Planted, dense_hessian, planted_data
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
    done = run_pytest(tmp_path, "--conformance", "mine.py", "-q", "-rA", "-k", CHOSEN)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PASSED mine.py::Good::one_norm_over_groups" in done.stdout
    assert "PASSED mine.py::test_of_its_own" in done.stdout
    assert "no way to use GradScaler is documented" in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert [line.split(" - ")[0] for line in failed] == ["FAILED mine.py::Bad::loss_is_returned"]
    assert "A step returns the loss of the first pass" in done.stdout


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


def test_page_and_stored_results_agree():
    from benchmarks.conformance import page
    from benchmarks.conformance.run import Found, Tool
    from benchmarks.conformance.scripts import script

    stored = json.loads((ROOT / "benchmarks/results/conformance.json").read_text())
    found = Found([Tool(**tool) for tool in stored["tools"]], stored["absent"])
    text = page.PAGE.read_text(encoding="utf-8")
    assert (
        text.split(page.BEGIN)[1].split(page.END)[0].strip()
        == page.results(found, stored["provenance"]["created"][:10]).strip()
    )
    assert [tool.name for tool in found.tools if tool.package == "lowland"] == [tool.name for tool in own_adapters()]
    for tool in found.tools:
        assert set(tool.outcomes) == {rule.name for rule in rules(tool.family)}
        broken = {name for name, (status, _) in tool.outcomes.items() if status == "broken"}
        assert set(tool.scripts) == broken
        if tool.package == "lowland":
            assert not broken
        for rule in broken:
            assert tool.scripts[rule] == script(tool.name, rule)
            assert tool.errors[rule]


def test_adapter_on_the_page_breaks_what_the_page_says(tmp_path):
    from benchmarks.conformance import page

    from lowland.testing import plugin

    blocks = re.findall(r"```python\n(.*?)```", page.PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "mine.py").write_text(blocks[0])
    (adapter,) = plugin._adapters(plugin._loaded(tmp_path / "mine.py"))
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
def test_peers_break_what_the_page_says():
    from benchmarks.conformance.run import run

    stored = json.loads((ROOT / "benchmarks/results/conformance.json").read_text())
    wanted = {tool["name"]: tool for tool in stored["tools"]}
    compared = 0
    for tool in run().tools:  # it raises where a failure has no script, or the script shows none
        if tool.version == wanted[tool.name]["version"] and tool.package != "lowland":
            compared += 1
            assert {name: o[0] for name, o in tool.outcomes.items()} == {
                name: o[0] for name, o in wanted[tool.name]["outcomes"].items()
            }
    if compared == 0:
        pytest.skip("no peer is installed")


def test_planted_eigenvalues_are_those_of_the_hessian():
    hessian = dense_hessian(Planted([3.0, -1.0]), torch.nn.MSELoss(), *planted_data())
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian), torch.tensor([-1.0, 3.0], dtype=torch.float64))
