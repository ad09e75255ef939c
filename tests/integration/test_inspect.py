"""`lowland inspect`: any checkpoint says what it is, and is measured by the other commands; nothing of it is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests import foreign_cases as cases

import lowland as ll
from lowland.cli.main import main
from lowland.core.errors import CheckpointError, InputError
from lowland.workflows.checkpoints import facts_of, series_of, step_of

MODEL = ["--model", "tests.foreign_cases:net"]
DATA = ["--data", "tests.foreign_cases:dataset"]


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return cases.net().state_dict()


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["epoch9.pt", "epoch10.pt", "epoch1.pt", "best.pt", "notes.txt"], ["epoch1.pt", "epoch9.pt", "epoch10.pt"]),
        (["model.pth", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"], ["model.pth"]),
        (["checkpoints/epoch=1-step=20.ckpt", "checkpoints/last.ckpt", "hparams.yaml"], ["epoch=1-step=20.ckpt"]),
        (
            ["checkpoint-1000/model.safetensors", "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt"],
            ["checkpoint-500", "checkpoint-1000"],
        ),
        (["model.safetensors", "config.json", "checkpoint-5/config.json"], ["checkpoint-5"]),
        (["model.safetensors", "config.json"], ["x"]),
    ],
)
def test_what_is_a_series_and_in_which_order(names, expected, tmp_path):
    assert [path.name for path in series_of(touched(tmp_path / "x", *names))] == expected


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["a.pt", "b.pt"], ["optimizer.pt"]])
def test_what_is_none(names, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="`path` must"):
        series_of(touched(tmp_path / "x", *names))


def test_files_say_what_they_are(tmp_path):
    whole = {**state(), "norm.running_mean": torch.zeros(7), "half": torch.zeros(2, 2, dtype=torch.float16)}
    torch.save({"model_state_dict": whole, "epoch": 3, "global_step": 40, "optimizer": {}}, tmp_path / "a.pt")
    safetensors.torch.save_file(whole, tmp_path / "b-12.safetensors")
    found = [facts_of(tmp_path / name) for name in ("a.pt", "b-12.safetensors")]
    for facts in found:
        assert (facts.tensors, facts.parameters) == (6, 4 * 5 + 5 + 5 * 3 + 3 + 4)
        assert facts.types == {"float32": 43, "float16": 4}
    assert [facts.kind for facts in found] == ["file of torch.save", "safetensors file"]
    assert [facts.step for facts in found] == [40, 12]
    assert found[0].about == {"epoch": "3", "global_step": "40", "also holds": "optimizer"}
    torch.save({"state_dict": state(), "pytorch-lightning_version": "2.5", "epoch": 1}, tmp_path / "c.ckpt")
    assert facts_of(tmp_path / "c.ckpt").kind == "Lightning checkpoint"


def test_folders_say_what_they_are(tmp_path):
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    safetensors.torch.save_file(state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 70}))
    facts = facts_of(folder)
    assert (facts.kind, facts.step, facts.parameters) == ("Hugging Face folder", 70, 43)
    assert facts.about == {"architecture": "BertForSequenceClassification"}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/model"}))
    safetensors.torch.save_file({"lora_A": torch.zeros(2, 3)}, adapter / "adapter_model.safetensors")
    assert (facts_of(adapter).kind, facts_of(adapter).about, step_of(adapter)) == (
        "PEFT adapter",
        {"of": "some/model"},
        None,
    )
    (folder / "trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        facts_of(folder)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["code.pt", "torn.safetensors", "torn.pt", "list.pt"])
def test_a_file_that_is_none_is_one_line_and_never_executed(name, tmp_path, capsys):
    torch.save({"state_dict": state(), "hyper_parameters": Payload(tmp_path / "mark")}, tmp_path / "code.pt")
    safetensors.torch.save_file(state(), tmp_path / "torn.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    for torn in ("torn.safetensors", "code.pt"):
        (tmp_path / torn.replace("code", "torn")).write_bytes((tmp_path / torn).read_bytes()[:60])
    assert main(["inspect", str(tmp_path / name)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "mark").exists()


def test_without_data_it_says_what_to_type_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (1, 2):
        torch.save(state(step), tmp_path / f"step{step}.pt")
    assert main(["inspect", "."]) == 0
    shown = capsys.readouterr().out
    assert "file of torch.save" in shown and "2 checkpoints, steps 1, 2" in shown and "43 float32" in shown
    assert "lowland inspect . --model module:callable --data module:callable" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step1.pt", "step2.pt"]


@pytest.mark.slow
def test_a_series_is_measured_from_its_path_to_its_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for step in range(4):
        torch.save(state(step), tmp_path / "mine" / f"step{step}.pt")
    words = ["inspect", "mine", *MODEL, *DATA, "--points", "5", "--threads", "1", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["results"]) == {"path", "surface", "curvature", "robustness"}
    run = ll.open("runs/mine")
    assert run.trajectory.sizes["snapshot"] == 4 and run.surfaces["plane"].sizes == {"x": 5, "y": 5}
    assert list(run.curvature) == ["hessian"]
    page = Path(found["report"]).read_text()
    assert page.startswith("<!") and "obustness" in page
    assert main(words) == 0 and json.loads(capsys.readouterr().out) == found  # nothing is measured again


@pytest.mark.slow
def test_a_hugging_face_series_needs_no_model(tmp_path, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=13, num_labels=3, max_position_embeddings=8, **shape)
    for step in (500, 1000, 1500):
        torch.manual_seed(step)
        transformers.BertForSequenceClassification(config).save_pretrained(f"outputs/checkpoint-{step}")
    words = ["--data", "tests.foreign_cases:tokens", "--measures", "path,curvature", "--points", "3", "--threads", "1"]
    assert main(["inspect", "outputs", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "Hugging Face folder" and [entry["step"] for entry in found["series"]] == [500, 1000, 1500]
    assert ll.open("runs/outputs").trajectory.sizes["snapshot"] == 3
