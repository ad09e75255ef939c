"""Bad input of `lowland robustness`: one line that says what to do, exit code 2, and nothing written or begun."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tests.golden.parts import net, tiny_data
from torch import nn

from lowland import workflows
from lowland.cli.main import main
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.robustness import card

HERE = "tests.integration.test_robustness_refusals"
DATA = "tests.golden.parts:tiny_data"


def integers() -> nn.Module:
    """A network whose last layer holds integers."""
    model = net()
    model[-1].weight = nn.Parameter(torch.ones(3, 8, dtype=torch.int8), requires_grad=False)
    return model


def packed() -> nn.Module:
    """A network whose linear layers are quantized; its convolution is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, torch.qint8)


def only_packed() -> nn.Module:
    """A network that is quantized through and through."""
    return nn.Sequential(nn.Flatten(), *packed()[5:])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("refusals")
    for name, model in (("run", "net"), ("wide", "other_net")):
        names = {
            "data": workflows.DataSpec(name=DATA),
            "model": workflows.ModelSpec(name=f"tests.golden.parts:{model}"),
        }
        workflows.fit(workflows.FitSpec(folder=str(home / name), epochs=1, threads=1, batch_size=16, **names))
    return home


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", f"{HERE}:integers", "--data", DATA, "--folder", "{own}"], "before it is quantized"),
        (["--model", f"{HERE}:packed", "--data", DATA, "--folder", "{own}"], "must not have quantized layers"),
        (["--model", f"{HERE}:only_packed", "--data", DATA, "--folder", "{own}"], "quantized"),
        (["{run}", "--other", "{wide}"], "architecture"),
        (["{run}", "--other", "{wide}", "--parts", "merging"], "architecture"),
        (["{run}", "--parts", "forgetting"], "needs --finetune_data"),
        (["{run}", "--finetune_data", DATA], "`finetune_data` must be on other data"),
        (["{run}", "--other", "{run}"], "`other` must have other weights"),
        (["{run}", "--finetune_data", DATA, "--parts", "forgetting,rounding"], "other data"),
    ],
    ids=lambda case: " ".join(case[:3]) if isinstance(case, list) else "",
)
def test_the_command_answers_in_one_line_and_writes_nothing(words, said, runs, capsys):
    places = {name: str(runs / name) for name in ("run", "wide", "own")}
    before = sorted(runs.rglob("*"))
    assert main(["robustness", *(word.format(**places) for word in words), "--threads", "1", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.splitlines()) == 1 and not shown.out
    assert sorted(runs.rglob("*")) == before


def test_layers_that_are_quantized_already_are_refused_beside_others_that_are_not(tmp_path):
    batches = list(tiny_data().train.batches(16))
    with pytest.raises(InputError, match="must not have quantized layers"):
        card(EmpiricalRisk(packed(), nn.CrossEntropyLoss(), batches), store=tmp_path / "card.zarr")
    assert not list(tmp_path.iterdir())
