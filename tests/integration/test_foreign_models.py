"""Landscapes of models that Lowland has not trained, from every kind of checkpoint; nothing in a file is executed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests import foreign_cases as cases
from torch import nn

import lowland as ll
from lowland.cli.main import main
from lowland.core.errors import CheckpointError

MODEL = ["--model", "tests.foreign_cases:net"]
DATA = ["--data", "tests.foreign_cases:dataset"]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    return cases.net()


def expected_loss(model: nn.Module) -> float:
    inputs, targets = cases.pairs()
    return float(nn.functional.cross_entropy(model(inputs), targets).detach())


def lightning(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """What a checkpoint of Lightning 2 holds, by its documentation."""
    inside = {f"net._orig_mod.{name}": tensor for name, tensor in state.items()}
    return {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.0",
        "loops": {"fit_loop": {"state_dict": {}}},
        "state_dict": {**inside, "criterion.weight": torch.ones(3)},
        "optimizer_states": [],
        "lr_schedulers": [],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "a.ckpt", "best_k_models": {}}},
        "hyper_parameters": {"width": 5},
    }


WRITERS = {
    "plain.pth": lambda state, path: torch.save(state, path),
    "ddp.pt": lambda state, path: torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, path),
    "plain.safetensors": lambda state, path: safetensors.torch.save_file(state, path),
    "last.ckpt": lambda state, path: torch.save(lightning(state), path),
    "model_300.t7": lambda state, path: torch.save(
        {"acc": 1.0, "epoch": 300, "state_dict": state}, path, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_checkpoint_gives_the_surface_of_its_weights(name, trained, tmp_path, capsys):
    WRITERS[name]({key: tensor.clone() for key, tensor in trained.state_dict().items()}, tmp_path / name)
    words = [*MODEL, *DATA, "--checkpoint", str(tmp_path / name), "--folder", str(tmp_path / "out")]
    assert main(["surface", *words, "--points", "[3, 3]", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["center"] == pytest.approx(expected_loss(trained), abs=1e-6)
    assert ll.results.open(result["path"]).sizes == {"x": 3, "y": 3}


def test_lines_and_curvature_and_a_report_of_a_model_of_ones_own(trained, tmp_path, capsys):
    torch.save(trained.state_dict(), tmp_path / "one.pth")
    torch.manual_seed(4)
    torch.save(cases.net().state_dict(), tmp_path / "two.pth")
    words = [*MODEL, *DATA, "--checkpoint", str(tmp_path / "one.pth"), "--folder", str(tmp_path / "out")]
    line = ["line", *words, "--other", str(tmp_path / "two.pth"), "--points", "3", "--start", "0", "--stop", "1"]
    assert main([*line, "--json"]) == 0
    found = ll.results.open(json.loads(capsys.readouterr().out)["path"])
    assert float(found["loss"][0]) == pytest.approx(expected_loss(trained), abs=1e-6)
    assert float(found["loss"][-1]) != float(found["loss"][0])
    assert main([*line, "--match", "true", "--name", "matched", "--json"]) == 0
    matched = ll.results.open(json.loads(capsys.readouterr().out)["path"])  # the same function, its units reordered
    assert float(matched["loss"][-1]) == pytest.approx(float(found["loss"][-1]), abs=1e-6)
    assert float(matched["loss"][1]) != float(found["loss"][1])
    measure = ["curvature", *words, "--trace_products", "6", "--directions", "3"]
    assert main([*measure, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["lambda_max"] > 0 and first["data_loss"] == pytest.approx(expected_loss(trained), abs=1e-6)
    assert main([*measure, "--json"]) == 0  # a second call reads what is there
    assert json.loads(capsys.readouterr().out) == first
    assert ll.results.open(first["path"]).attrs["split"] == "data" and "train_loss" not in first
    assert main([*line]) == 0
    shown = capsys.readouterr().out
    assert "data" in shown and "train" not in shown  # nobody has said that these are training data
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "report.html"), "--quiet"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "data loss" in page and "train accuracy" not in page


@pytest.mark.parametrize("data", ["dataset", "shuffled", "batches", "splits", "by_part"])
def test_every_form_of_data_gives_the_same_loss(data, trained, tmp_path, capsys):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    words = [*MODEL, "--data", f"tests.foreign_cases:{data}", "--checkpoint", str(tmp_path / "w.pth")]
    assert main(["surface", *words, "--folder", str(tmp_path / "out"), "--points", "[1, 1]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["center"] == pytest.approx(expected_loss(trained), abs=1e-6)


def test_parts_loss_options_and_known_names(trained, tmp_path, capsys):
    words = [*MODEL, "--data", "tests.foreign_cases:by_part", "--folder", str(tmp_path / "a")]
    both = ["--splits", '["train", "test"]', "--loss", "tests.foreign_cases:smooth", "--model_options.width", "6"]
    assert main(["surface", *words, *both, "--points", "[1, 1]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["center"] != found["test"]["center"]
    known = [
        "--model",
        "resnet8",
        "--model_options",
        '{"width": 4, "channels": 1}',
        "--data",
        "digits",
        "--data_options.train_size",
        "40",
        "--folder",
        str(tmp_path / "b"),
    ]
    assert main(["line", *known, "--points", "2", "--quiet"]) == 0


def test_a_run_of_lowland_serves_as_a_checkpoint(tmp_path, capsys):
    small = ["--data.options.train_size", "40", "--model.options.width", "4", "--epochs", "1", "--threads", "1"]
    assert main(["fit", str(tmp_path / "run"), *small, "--quiet"]) == 0
    assert main(["surface", str(tmp_path / "run"), "--points", "[1, 1]", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["center"]
    options = ["--model_options", '{"width": 4, "channels": 1}', "--data_options.train_size", "40"]
    words = ["--model", "resnet8", "--data", "digits", *options, "--checkpoint", str(tmp_path / "run")]
    assert main(["surface", *words, "--folder", str(tmp_path / "o"), "--points", "[1, 1]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["center"] == own


def test_a_hugging_face_folder_needs_no_model(tmp_path, capsys):
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
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "saved")
    words = ["--checkpoint", str(tmp_path / "saved"), "--data", "tests.foreign_cases:tokens"]
    assert main(["surface", *words, "--folder", str(tmp_path / "o"), "--points", "[1, 1]", "--json"]) == 0
    batches = cases.tokens()
    expected = sum(float(model(**batch).loss.detach()) for batch in batches) / len(batches)
    assert json.loads(capsys.readouterr().out)["center"] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "saved" / "config.json").write_text("[1]")
    assert main(["surface", *words, "--folder", str(tmp_path / "p")]) == 2
    assert "`checkpoint` must hold a whole config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_that_lightning_wrote_itself(tmp_path, capsys):
    lightning = pytest.importorskip("lightning.pytorch")

    class Classifier(lightning.LightningModule):
        def __init__(self, width: int = 5) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = cases.net(width=width)
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))

        def training_step(self, batch):
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True)],
    )
    trainer.fit(module, cases.shuffled())
    words = [*MODEL, *DATA, "--checkpoint", str(tmp_path / "kept" / "last.ckpt"), "--folder", str(tmp_path / "out")]
    assert main(["surface", *words, "--points", "[1, 1]", "--json"]) == 0
    center = json.loads(capsys.readouterr().out)["center"]
    assert center == pytest.approx(expected_loss(module.net), abs=1e-6)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


BAD = [
    (["--checkpoint", "{code}", *MODEL, *DATA], "need code to load"),
    (["--checkpoint", "{torn}", *MODEL, *DATA], "truncated"),
    (["--checkpoint", "{none}", *MODEL, *DATA], "`checkpoint` must exist"),
    (["--checkpoint", "{empty}", *MODEL, *DATA], "nor model.safetensors"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--model_options.width", "7"], "of another shape"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--prefix", "net."], "no names under the prefix 'net.'"),
    (["--checkpoint", "{good}", *DATA], "`model` must be given"),
    (["--checkpoint", "{good}", *MODEL], "`data` must be given"),
    (["--checkpoint", "{good}", "--model", "tests.foreign_cases:nothing", *DATA], "`module:callable`"),
    (["--checkpoint", "{good}", "--model", "resnet21", *DATA], "resnet20"),
    (["--checkpoint", "{good}", "--model", "tests.foreign_cases:number", *DATA], "`model` must build"),
    (["--checkpoint", "{good}", *MODEL, "--data", "tests.foreign_cases:number"], "`data` must return"),
    (["--checkpoint", "{good}", *MODEL, "--data", "digit"], "digits"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--data_options.size", "3"], "size"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--risk.split", "test"], "must name parts of the data"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--risk.weights", "last"], "`risk.weights` is for runs"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--loss", "hinge"], "cross_entropy"),
    (["--run", "{empty}", *MODEL, *DATA], "`run` must not be given together with model, data"),
    (["--checkpoint", "{good}", *MODEL, *DATA, "--folder", "{thesis}"], "`folder` must be empty or a run"),
]


@pytest.fixture
def places(trained, tmp_path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("good", "code", "torn", "none", "empty", "thesis", "mark")}
    torch.save(trained.state_dict(), found["good"])
    torch.save({"state_dict": trained.state_dict(), "hyper_parameters": Payload(found["mark"])}, found["code"])
    found["torn"].write_bytes(found["good"].read_bytes()[:200])
    found["empty"].mkdir()
    found["thesis"].mkdir()
    (found["thesis"] / "thesis.tex").write_text("x")
    return found


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, places, tmp_path, capsys):
    given = [word.format(**places) for word in words]
    folder = [] if "--folder" in given else ["--folder", str(tmp_path / "out")]
    assert main(["surface", *given, *folder, "--points", "[1, 1]"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not places["mark"].exists() and not (tmp_path / "out").exists()
    assert [path.name for path in places["thesis"].iterdir()] == ["thesis.tex"]


def test_two_places_that_fit_are_not_chosen_between(trained, tmp_path):
    state = trained.state_dict()
    both = {
        f"{place}.{name}": tensor + (place == "teacher")
        for name, tensor in state.items()
        for place in ("student", "teacher")
    }
    torch.save({"state_dict": both}, tmp_path / "both.ckpt")
    model = cases.net()
    with pytest.raises(CheckpointError, match=r"student\. and teacher\."):
        ll.models.load_weights(model, tmp_path / "both.ckpt")
    ll.models.load_weights(model, tmp_path / "both.ckpt", prefix="teacher.")
    assert torch.equal(model[0].weight, trained[0].weight + 1)


def test_sharded_folders_are_read_and_no_index_leads_out_of_them(trained, tmp_path):
    state = trained.state_dict()
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = {name: f"model-0000{1 + place // 2}-of-00002.safetensors" for place, name in enumerate(state)}
    for file in set(names.values()):
        safetensors.torch.save_file({name: state[name] for name in names if names[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    model = cases.net()
    ll.models.load_weights(model, folder)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for content in ({"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": 3}}, {"weight_map": {}}, [], {}):
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="index"):
            ll.models.load_weights(model, folder)


def test_a_module_in_the_folder_where_the_command_is_called_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    return nn.Linear(2, 2)\n\n\n"
        "def data():\n    return [(torch.eye(2), torch.tensor([0, 1]))]\n"
    )
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; from lowland.cli.main import main; sys.exit(main())"
    words = ["surface", "--model", "mine:net", "--data", "mine:data", "--points", "[2, 2]", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--engine", "processes:1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/survey/surfaces/plane.zarr").is_dir()


def test_the_example_of_five_lines_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_model.py"), run_name="__main__")
    assert (tmp_path / "own_model.pdf").stat().st_size > 1000


def saved(folder, count):
    """Write checkpoints that differ, with numbers in their names that sort otherwise as words."""
    folder.mkdir()
    states = []
    for step in range(count):
        torch.manual_seed(step)
        states.append(cases.net().state_dict())
        torch.save(states[-1], folder / f"epoch{5 * step}.pt")
    return states


def test_a_path_of_checkpoints_of_ones_own_loop(tmp_path, capsys):
    states = saved(tmp_path / "ckpt", 4)  # 0, 5, 10, 15
    words = [*MODEL, *DATA, "--checkpoints", str(tmp_path / "ckpt" / "*.pt"), "--folder", str(tmp_path / "out")]
    assert main(["trajectory", *words, "--points", "3", "--json"]) == 0
    found = ll.results.open(json.loads(capsys.readouterr().out)["path"])
    model = cases.net()
    for place, state in enumerate(states):
        model.load_state_dict(state)
        assert float(found["loss"][place]) == pytest.approx(expected_loss(model), abs=1e-6)
    assert float(found["distance_to_origin"][-1]) == 0.0  # the last is the end
    assert main(["trajectory", *words, "--points", "3", "--json"]) == 0  # read back
    surface = ll.results.open(tmp_path / "out" / "surfaces" / "trajectory.zarr")
    assert surface.sizes == {"x": 3, "y": 3}
    capsys.readouterr()
    assert main(["film", *words, "--points", "3", "--engine", "processes:1", "--json"]) == 0
    film = json.loads(capsys.readouterr().out)
    assert ll.results.open(film["path"]).sizes == {"direction": 4, "x": 3, "y": 3}
    assert (tmp_path / "out" / "figures" / "film.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*MODEL, *DATA], "`checkpoints` must be given"),
        ([*MODEL, *DATA, "--checkpoints", "none/*.pt"], "`checkpoints` must find at least two files"),
        (["runs/none", "--checkpoints", "a*.pt"], "`checkpoints` is for a model of your own"),
    ],
)
def test_paths_that_cannot_be_are_refused(words, message, capsys):
    assert main(["trajectory", *words]) == 2
    assert message in capsys.readouterr().err


def test_other_weights_get_a_store_of_their_own(tmp_path, capsys):
    saved(tmp_path / "ckpt", 2)
    saved(tmp_path / "again", 3)

    def path(command, file, *more):
        words = [*MODEL, *DATA, "--checkpoint", str(tmp_path / file), "--folder", str(tmp_path / "out"), "--json"]
        assert main([command, *words, *more]) == 0
        return Path(json.loads(capsys.readouterr().out)["path"]).name

    few = ["--points", "3"]
    small = ["--max_products", "4", "--trace_products", "6", "--directions", "2"]
    for command, base, more in (("surface", "plane", few), ("line", "line", few), ("curvature", "hessian", small)):
        first = path(command, "ckpt/epoch0.pt", *more)
        second = path(command, "ckpt/epoch5.pt", *more)
        third = path(command, "again/epoch10.pt", *more)
        assert (first, second, third) == (f"{base}.zarr", f"{base}-epoch5.zarr", f"{base}-epoch10.zarr")
        assert path(command, "ckpt/epoch5.pt", *more) == second  # goes on, is read back
        assert path(command, "ckpt/epoch0.pt", *more) == first
        assert path(command, "ckpt/epoch5.pt", "--name", f"my-{base}", *more) == f"my-{base}.zarr"


def test_lines_to_other_weights_get_stores_of_their_own(tmp_path, capsys):
    saved(tmp_path / "ckpt", 3)
    words = [*MODEL, *DATA, "--checkpoint", str(tmp_path / "ckpt/epoch0.pt"), "--folder", str(tmp_path / "out")]

    def path(*more):
        assert main(["line", *words, "--points", "3", "--json", *more]) == 0
        return Path(json.loads(capsys.readouterr().out)["path"]).name

    ends = [["--other", str(tmp_path / "ckpt" / f"epoch{step}.pt")] for step in (5, 10)]
    for _ in range(2):
        assert [path(*end) for end in (*ends, [])] == ["line.zarr", "line-epoch10.zarr", "line-epoch0.zarr"]


def test_verification_can_be_left_out(trained, tmp_path, capsys):
    torch.save(trained.state_dict(), tmp_path / "one.pth")
    words = [
        *MODEL,
        *DATA,
        "--checkpoint",
        str(tmp_path / "one.pth"),
        "--folder",
        str(tmp_path / "out"),
        "--points",
        "3",
    ]
    for command in ("surface", "line"):
        for more in ([], ["--verify", "false"]):
            assert main([command, *words, *more, "--json"]) == 0
            found = ll.results.open(json.loads(capsys.readouterr().out)["path"])
            assert ("verified" in found.attrs) == bool(more)


def test_a_model_that_does_not_fit_the_data_is_one_line(tmp_path, capsys):
    words = ["--model", "resnet8", *DATA, "--folder", str(tmp_path / "out")]
    assert main(["curvature", *words]) == 2
    said = capsys.readouterr().err
    assert "`model` must fit the data: called on a batch of shape (24, 4)" in said and "Traceback" not in said
