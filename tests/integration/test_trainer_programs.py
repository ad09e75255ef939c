"""The example programs of the trainers run as they stand, at a small size, and leave what they promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lowland import results
from lowland.core.contexts import same_bits

EXAMPLES = Path(__file__).parents[2] / "examples"


def program(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_lightning(tmp_path, capsys):
    pytest.importorskip("lightning")
    program("lightning_sala").main([str(tmp_path), "--epochs", "2", "--points", "3"])
    assert "validation_accuracy" in capsys.readouterr().out
    assert len(results.SnapshotReader(tmp_path / "snapshots")) == 3
    assert results.open(tmp_path / "surfaces" / "random.zarr").loss.shape == (3, 3)
    assert (tmp_path / "contour.svg").exists()
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "sharpness_train_loss" in metrics.read_text().splitlines()[0]


def test_trainer(tmp_path, capsys):
    pytest.importorskip("transformers")
    program("trainer_saf").main([str(tmp_path), "--epochs", "2"])
    assert "sharpness" in capsys.readouterr().out
    assert len(results.SnapshotReader(tmp_path / "snapshots")) == 3
    assert (tmp_path / "checkpoint-16" / "lowland-0.pt").exists()


def test_accelerate(tmp_path, capsys):
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    program("accelerate_sam").main([str(tmp_path), "--epochs", "4"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert "'saf_hit_rate': 1.0" in last and (tmp_path / "custom_checkpoint_0.pkl").exists()


def test_adapters(tmp_path, capsys):
    pytest.importorskip("peft", reason='needs pip install "lowland[peft]"')
    program("bert_lora_sam").main([str(tmp_path), "--epochs", "2"])
    assert capsys.readouterr().out.count("{'sharpness': 0") == 2 and list((tmp_path / "board").iterdir())


def test_a_loop_of_one_s_own_that_is_stopped_ends_with_the_same_bits(tmp_path, capsys):
    run = program("plain_loop").main
    run([str(tmp_path / "whole"), "--epochs", "3"])
    run([str(tmp_path / "parts"), "--epochs", "3", "--stop", "0"])
    run([str(tmp_path / "parts"), "--epochs", "3"])
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert same_bits(list(whole["model"].values()), list(parts["model"].values()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:]
