"""Bad input of every kind: what each command answers, and that it writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tools.golden.commands import TINY
from tools.golden.shell import files, say

SURVEY = ["--points", "[3, 3]"]

CASES: dict[str, list[str]] = {
    "no such command": ["nonsense"],
    "no argument of surface": ["surface"],
    "no argument of report": ["report"],
    "no argument of line": ["line"],
    "no argument of trajectory": ["trajectory"],
    "no argument of curvature": ["curvature"],
    "no argument of figure": ["figure"],
    "no argument of study": ["study"],
    "unknown flag of fit": ["fit", "new", "--epoch_count", "3"],
    "unknown flag of surface": ["surface", "runs/a", "--pionts", "[3, 3]"],
    "unknown flag of demo": ["demo", "--method", "sam"],
    "unknown flag of list": ["list", "--everything"],
    "unknown nested flag": ["fit", "new", "--optimizer.lr", "0.1"],
    "wrong type of epochs": ["fit", "new", *TINY, "--epochs", "three"],
    "fraction of epochs": ["fit", "new", *TINY, "--epochs", "2.5"],
    "negative epochs": ["fit", "new", *TINY, "--epochs", "-3"],
    "no epochs": ["fit", "new", *TINY, "--epochs", "null"],
    "unknown optimizer": ["fit", "new", *TINY, "--optimizer.name", "rmsprop"],
    "unknown method": ["fit", "new", *TINY, "--optimizer.method", "tam"],
    "unknown option of a method": ["fit", "new", *TINY, "--optimizer.method", "sam", "--optimizer.options.roh", "1"],
    "negative rho": ["fit", "new", *TINY, "--optimizer.method", "sam", "--optimizer.options.rho", "-1"],
    "options without a method": ["fit", "new", *TINY, "--optimizer.options.rho", "1"],
    "momentum of one": ["fit", "new", *TINY, "--optimizer.momentum", "1"],
    "unknown loss": ["fit", "new", *TINY, "--loss.name", "crossentropy"],
    "unknown loss method": ["fit", "new", *TINY, "--loss.method", "sa"],
    "LLR without an initial loss's sense": ["fit", "new", *TINY, "--loss.method", "llr",
                                            "--loss.options.initial_loss", "-1"],
    "label smoothing of two": ["fit", "new", *TINY, "--loss.label_smoothing", "2"],
    "unknown model": ["fit", "new", "--model.name", "resnet21"],
    "unknown option of a model": ["fit", "new", "--model.options.breadth", "4"],
    "negative width": ["fit", "new", "--model.options.width", "-4"],
    "absent module": ["fit", "new", *TINY, "--model.name", "nowhere:net"],
    "absent callable": ["fit", "new", *TINY, "--model.name", "tests.golden.parts:nets"],
    "unknown data": ["fit", "new", "--data.name", "digit"],
    "negative train size": ["fit", "new", "--data.options.train_size", "-1"],
    "model that does not fit": ["fit", "new", "--model.name", "resnet20", "--data.name", "mnist1d"],
    "too few classes": ["fit", "new", "--model.options.classes", "7"],
    "unknown augmentation": ["fit", "new", "--augment", '["corp"]'],
    "augmentation that is no list": ["fit", "new", "--augment", "7"],
    "unknown schedule": ["fit", "new", *TINY, "--schedule.kind", "linear"],
    "absent config": ["fit", "new", "--config", "absent.yaml"],
    "unknown recipe": ["fit", "--config", "li-resnet57"],
    "config that is no mapping": ["fit", "new", "--config", "list.yaml"],
    "config with an unknown key": ["fit", "new", "--config", "key.yaml"],
    "config of a newer version": ["fit", "new", "--config", "newer.yaml"],
    "config that is no YAML": ["fit", "new", "--config", "broken.yaml"],
    "scale without a recipe": ["fit", "new", "--scale", "small"],
    "folder of somebody else": ["fit", "foreign", *TINY],
    "folder with another spec": ["fit", "runs/a", *TINY, "--seed", "5"],
    "absent run": ["surface", "new", *SURVEY],
    "absent run of trajectory": ["trajectory", "new"],
    "absent run of report": ["report", "new", "--output", "new.html"],
    "folder that is no run": ["curvature", "foreign"],
    "no points": ["surface", "runs/a", "--points", "[0, 4]"],
    "three points": ["surface", "runs/a", "--points", "[3, 3, 3]"],
    "a word for points": ["surface", "runs/a", "--points", "many"],
    "extent of zero": ["surface", "runs/a", *SURVEY, "--extent", "0", "--name", "x"],
    "unknown probe": ["surface", "runs/a", *SURVEY, "--probe", "hessian", "--name", "x"],
    "unknown engine": ["surface", "runs/a", *SURVEY, "--engine", "warp", "--name", "x"],
    "too many samples": ["surface", "runs/a", *SURVEY, "--risk.samples", "1000", "--name", "x"],
    "unknown batch norm": ["surface", "runs/a", *SURVEY, "--risk.batch_norm", "frozen", "--name", "x"],
    "unknown weights": ["surface", "runs/a", *SURVEY, "--risk.weights", "first", "--name", "x"],
    "absent snapshot": ["surface", "runs/a", *SURVEY, "--risk.weights", "999", "--name", "x"],
    "unknown normalization": ["surface", "runs/a", *SURVEY, "--normalization", "channel", "--name", "x"],
    "name with a slash": ["surface", "runs/a", *SURVEY, "--name", "a/b"],
    "store of another plane": ["surface", "runs/a", *SURVEY, "--seed", "9"],
    "unknown split": ["line", "runs/a", "--splits", '["train", "exam"]', "--name", "x"],
    "start behind stop": ["line", "runs/a", "--start", "1", "--stop", "0", "--name", "x"],
    "absent other": ["line", "runs/a", "--other", "new", "--name", "x"],
    "other of another network": ["line", "runs/a", "--other", "runs/other", "--name", "x"],
    "match without other": ["line", "runs/a", "--match", "true", "--name", "x"],
    "directions between runs": ["line", "runs/a", "--other", "runs/b", "--directions", "2", "--name", "x"],
    "run without snapshots": ["trajectory", "runs/plain"],
    "few products": ["curvature", "runs/a", "--max_products", "0", "--name", "x"],
    "curvature of another spec": ["curvature", "runs/a", "--seed", "3"],
    "run and model": ["surface", "runs/a", "--model", "resnet8"],
    "model without data": ["surface", "--model", "resnet8"],
    "damaged spec": ["surface", "damaged/spec", *SURVEY],
    "damaged metrics": ["report", "damaged/metrics", "--output", "new.html"],
    "damaged result": ["report", "damaged/result", "--output", "new.html"],
    "damaged checkpoint": ["surface", "damaged/checkpoint", *SURVEY, "--name", "x"],
    "checkpoint cut off": ["fit", "damaged/cut", *TINY, "--epochs", "2"],
    "damaged store": ["surface", "damaged/store", *SURVEY],
    "damaged snapshots": ["trajectory", "damaged/snapshots", "--points", "[3, 3]"],
    "runs of different data": ["report", "runs/a", "runs/digits", "--output", "new.html"],
    "absent store": ["figure", "new.zarr"],
    "unknown figure": ["figure", "runs/a/surfaces/plane.zarr", "--kind", "pie", "--output", "new.svg"],
    "unknown ending": ["figure", "runs/a/surfaces/plane.zarr", "--output", "new.gif"],
    "unknown metric": ["figure", "runs/a/surfaces/plane.zarr", "--metric", "joy", "--output", "new.svg"],
    "unknown color map": ["figure", "runs/a/surfaces/plane.zarr", "--colour_map", "jet", "--output", "new.svg"],
    "study of one seed": ["study", "seed.yaml"],
    "study of an unknown key": ["study", "change.yaml"],
    "study without methods": ["study", "methods.yaml"],
    "demo of one seed": ["demo", "--folder", "new", "--seeds", "1"],
    "demo of an unknown method": ["demo", "--folder", "new", "--methods", '["sgd", "tam"]'],
    "claims of an unknown row": ["claims", "--rows", '["sam-nothing"]', "--folder", "new", "--store", "new2"],
    "list of an unknown kind": ["list", "method"],
}  # fmt: skip


def prepare() -> None:
    """Make the runs and files that the cases need."""
    Path("foreign").mkdir()
    Path("foreign/letter.txt").write_text("keep me")
    fits = {
        "a": ["--epochs", "2"], "b": ["--seed", "1"], "other": ["--model.name", "tests.golden.parts:other_net"],
        "plain": ["--snapshots_every_epochs", "null"],
    }  # fmt: skip
    made = [say("fit", f"runs/{name}", *TINY, "--epochs", "1", *options) for name, options in fits.items()]
    made.append(say("fit", "runs/digits", "--data.options.train_size", "60", "--model.options.width", "4",
                    "--epochs", "1", "--threads", "1"))  # fmt: skip
    made += [say("surface", "runs/a", *SURVEY), say("curvature", "runs/a", "--trace_products", "6")]
    if any(answer["exit"] != 0 for answer in made):
        raise RuntimeError(f"the runs cannot be made: {made}")
    study: dict[str, Any] = {"folder": "new", "methods": {"SGD": {}}, "seeds": 2}
    texts = {
        "list.yaml": "[1, 2]", "key.yaml": "epoch: 3\n", "newer.yaml": "version: 2\n", "broken.yaml": "a: [1,\n",
        "seed.yaml": yaml.safe_dump({**study, "seeds": 1}), "methods.yaml": yaml.safe_dump({**study, "methods": {}}),
        "change.yaml": yaml.safe_dump({**study, "methods": {"SGD": {"optimizer.lr": 1}}}),
    }  # fmt: skip
    for name, text in texts.items():
        Path(name).write_text(text)


def damage() -> None:
    """Copy a run and spoil a file of each copy."""
    spoil: dict[str, Callable[[Path], None]] = {
        "spec": lambda run: _write(run / "spec.yaml", b"epochs: [1,\n"),
        "metrics": lambda run: _write(run / "metrics.csv", b"epoch,step\n1,two\n"),
        "result": lambda run: _write(run / "result.json", b"{"),
        "checkpoint": lambda run: [_write(p, b"nothing") for p in run.glob("checkpoints/*.safetensors")] and None,
        "cut": lambda run: _cut(run),
        "store": lambda run: _write(run / "surfaces/plane.zarr/zarr.json", b"{}"),
        "snapshots": lambda run: [_write(p, b"nothing") for p in run.glob("snapshots/*.safetensors")] and None,
    }
    for name, change in spoil.items():
        copy = Path("damaged") / name
        shutil.copytree("runs/a", copy)
        change(copy)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _cut(run: Path) -> None:
    (run / "result.json").unlink()
    index = json.loads((run / "checkpoints/index.json").read_text())
    state = run / "checkpoints" / index["files"]["state"]["name"]
    state.write_bytes(state.read_bytes()[:1000])


def run() -> dict[str, Any]:
    """Return the answer to every case, with the files that it wrote."""
    for name in ("runs", "foreign", "damaged", "figures"):
        shutil.rmtree(name, ignore_errors=True)
    prepare()
    damage()
    found = {}
    for name, arguments in CASES.items():
        before = files(".")
        found[name] = {"arguments": " ".join(arguments), **say(*arguments)}
        found[name]["written"] = sorted(set(files(".")) - set(before))
    return found
