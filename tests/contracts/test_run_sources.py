"""What every source of weights owes the run that holds it: Lowland's own runs, and any model from any checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests import foreign_cases as cases
from tests.integration.test_foreign_models import lightning
from torch import nn

import lowland as ll
from lowland.core.errors import InputError, LowlandError
from lowland.core.settings import RiskSpec
from lowland.results import Run
from lowland.workflows.fitting import create_run
from lowland.workflows.fitting import fit as fit_run
from lowland.workflows.parse import from_text
from lowland.workflows.sources import ExternalModel
from lowland.workflows.specs import DataSpec, FitSpec, ModelSpec


def spec_of(folder: Path) -> FitSpec:
    return FitSpec(
        folder=str(folder),
        model=ModelSpec(options={"width": 4}),
        data=DataSpec(options={"train_size": 40}),
        epochs=2,
        threads=1,
    )


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "fitted"
    fit_run(spec_of(folder))
    return folder


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return cases.net().train()


def hugging_face(network: nn.Module, folder: Path) -> ExternalModel:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
        max_position_embeddings=8,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "saved")
    return ExternalModel(None, "tests.foreign_cases:tokens", checkpoint=folder / "saved")


def saved(write, name):
    def source(network: nn.Module, folder: Path) -> ExternalModel:
        write({key: tensor.clone() for key, tensor in network.state_dict().items()}, folder / name)
        return ExternalModel("tests.foreign_cases:net", cases.by_part(), checkpoint=folder / name)

    return source


EXTERNAL = {
    "objects": lambda network, folder: ExternalModel(network, cases.by_part(), loss=nn.CrossEntropyLoss()),
    "data set": lambda network, folder: ExternalModel(network, cases.dataset()),
    "state dict": saved(torch.save, "w.pth"),
    "safetensors": saved(safetensors.torch.save_file, "w.safetensors"),
    "Lightning": saved(lambda state, path: torch.save(lightning(state), path), "last.ckpt"),
    "Hugging Face": hugging_face,
}


@pytest.fixture(params=["trained", *EXTERNAL])
def run(request, network, fitted, tmp_path) -> Run:
    if request.param == "trained":
        found = ll.open(fitted)
        assert isinstance(found, Run)
        return found
    return Run(tmp_path / "results", source=EXTERNAL[request.param](network, tmp_path))


def test_a_model_is_new_whole_and_for_evaluation(run):
    first, second = run.model(), run.model()
    assert first is not second and not first.training and not second.training
    assert same(first.state_dict(), second.state_dict())
    with torch.no_grad():
        next(first.parameters()).add_(1.0)
    assert not same(first.state_dict(), run.model().state_dict())
    run.source.load(first, "best")
    assert same(first.state_dict(), second.state_dict())


def test_a_risk_is_that_of_the_model_on_the_data(run):
    risk = run.risk(batch_size=7)
    by_hand = ll.EmpiricalRisk(run.model(), run.source.criterion(), list(risk.batches()))
    assert risk.evaluate()["loss"].value == pytest.approx(by_hand.evaluate()["loss"].value, rel=1e-6)
    few = run.risk(samples=2, seed=1)
    assert few.evaluate()["loss"].samples == 2
    assert run.risk(model=risk.model).model is risk.model
    assert set(run.risks(["train"])) == {"train"}


def test_what_there_is_not_is_refused(run):
    for ask, words in (
        (lambda: run.model("nothing"), "weights"),
        (lambda: run.model(10**6), "weights"),
        (lambda: run.risk("nothing"), "must name parts of the data"),
        (lambda: run.risks([]), "must name parts of the data"),
        (lambda: run.risks(["train", "train"]), "each once"),
    ):
        with pytest.raises(InputError, match=words):
            ask()


def test_the_network_of_an_external_model_is_left_alone(network, tmp_path):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = Run(name="mine", source=ExternalModel(network, cases.dataset())).risk().model
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert network.training and same(network.state_dict(), before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_a_damaged_checkpoint_is_one_error(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    run = Run(
        name="mine", source=ExternalModel("tests.foreign_cases:net", cases.dataset(), checkpoint=tmp_path / "w.pth")
    )
    with pytest.raises(LowlandError):
        run.model()


def test_weights_of_a_trained_run_by_name_and_step(fitted):
    run = ll.open(fitted)
    assert run.snapshots.steps[0] == 0 and run.finished
    initial, last = run.model("initial").state_dict(), run.model("last").state_dict()
    assert same(run.model(0).state_dict(), initial) and not same(initial, last)
    path_end = run.model(str(run.snapshots.steps[-1])).state_dict()
    floats = {
        name for name, tensor in last.items() if tensor.is_floating_point()
    }  # counts of batches are in no snapshot
    assert all(torch.equal(path_end[name], last[name]) for name in floats)
    risks = run.risks(["train", "test"], RiskSpec(weights="last"))
    assert risks["train"].model is risks["test"].model
    assert run.risk("test").evaluate()["loss"].value == pytest.approx(run.result["test"]["loss"], rel=1e-5)
    assert run.source.spec == from_text(FitSpec, run.spec.text).spec


def test_matched_steps_are_where_the_losses_meet(fitted):
    run = ll.open(fitted)
    assert ll.results.matched_steps([run, run], lambda one: one.risk(weights="last")) == [run.snapshots.steps[-1]] * 2
    with pytest.raises(InputError, match="must hold snapshots"):
        ll.results.matched_steps([Run(name="a", source=ExternalModel(cases.net(), cases.dataset()))])


def test_a_folder_is_one_run(fitted, tmp_path):
    spec = spec_of(fitted)
    assert create_run(spec).finished
    moved = tmp_path / "moved"
    moved.symlink_to(fitted)
    assert create_run(spec_of(moved)).finished
    spec.epochs = 9
    with pytest.raises(InputError, match="another spec"):
        create_run(spec)


def test_a_run_without_its_spec_says_what_is_missing(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch\n1\n")
    with pytest.raises(InputError, match=r"spec\.yaml.*lowland fit"):
        ll.open(tmp_path).model()
    (tmp_path / "spec.yaml").write_text("epochs: x\n")
    with pytest.raises(InputError, match="epochs"):
        ll.open(tmp_path).model()
