"""Every command on good input, one after another as a user works, and the results that they leave."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from tests.golden.names import COMMANDS, SnapshotReader, open_result
from tools.golden.shell import files, page_text, say

TINY = [
    "--model.name", "tests.golden.parts:net", "--data.name", "tests.golden.parts:tiny_data", "--epochs", "4",
    "--batch_size", "16", "--threads", "1",
]  # fmt: skip
SAM = ["--optimizer.method", "sam", "--optimizer.options.rho", "0.1"]

FITS: dict[str, list[str]] = {
    "a": [*TINY, *SAM],
    "b": [*TINY, "--seed", "1", "--snapshot_dtype", "float16", "--clip", "1.0"],
    "other": [*TINY, "--model.name", "tests.golden.parts:other_net"],
    "sala": [*TINY, "--optimizer.method", "sala", "--loss.method", "llr", "--loss.options.initial_loss", "1.2"],
    "ema": [*TINY, "--optimizer.method", "ema", "--optimizer.options.decay", "0.8", "--optimizer.name", "adamw",
            "--optimizer.learning_rate", "0.01", "--loss.method", "saf", "--loss.options.start", "2",
            "--loss.options.look_back", "1"],
    "mesa": [*TINY, "--loss.method", "mesa", "--loss.options.start", "1", "--micro_batches", "2", "--select", "last",
             "--schedule.kind", "step", "--schedule.milestones", "[2]", "--checkpoint_every_steps", "2"],
    "digits": ["--data.options.train_size", "80", "--data.options.label_noise", "0.2", "--model.options.width", "4",
               "--epochs", "2", "--augment", '["crop", "cutout"]', "--snapshots_every_epochs", "null", *SAM,
               "--threads", "1"],
    "curve": [*TINY, "--epochs", "120", "--curvature_share", "0.9"],
}  # fmt: skip

CURVATURE = ["--trace_products", "12", "--directions", "6", "--top", "2", "--density_probes", "2",
             "--layer_probes", "2", "--sharpness", "true"]  # fmt: skip

STEPS: dict[str, list[str]] = {
    "surface": ["surface", "runs/a", "--points", "[5, 4]"],
    "surface again": ["surface", "runs/a", "--points", "[5, 4]", "--json"],
    "surface gradient": ["surface", "runs/a", "--points", "[4, 4]", "--probe", "gradient", "--name", "gradient",
                         "--splits", '["train", "test"]', "--json"],
    "surface convexity": ["surface", "runs/a", "--points", "[4, 3]", "--probe", "convexity", "--name", "convexity",
                          "--risk.batch_norm", "batch", "--quiet"],
    "surface refined": ["surface", "runs/a", "--points", "[17, 17]", "--refine", "true", "--name", "refined",
                        "--json"],
    "surface recalibrated": ["surface", "runs/b", "--points", "[3, 3]", "--risk.batch_norm", "recalibrated",
                             "--risk.weights", "last", "--normalization", "layer", "--json"],
    "surface of a model": ["surface", "--model", "tests.golden.parts:net", "--checkpoint", "runs/a", "--data",
                           "tests.golden.parts:tiny_data", "--folder", "surveys/a", "--points", "[3, 3]", "--json"],
    "line": ["line", "runs/a", "--directions", "3", "--points", "5"],
    "line other": ["line", "runs/a", "--other", "runs/b", "--points", "7", "--name", "between", "--json"],
    "line matched": ["line", "runs/a", "--other", "runs/b", "--points", "7", "--match", "true", "--name", "matched",
                     "--risk.batch_norm", "recalibrated", "--json"],
    "trajectory": ["trajectory", "runs/a", "--points", "[4, 4]"],
    "trajectory again": ["trajectory", "runs/a", "--points", "[4, 4]", "--json"],
    "trajectory b": ["trajectory", "runs/b", "--points", "[3, 3]", "--anchor", "mean", "--json"],
    "curvature": ["curvature", "runs/a", *CURVATURE],
    "curvature again": ["curvature", "runs/a", *CURVATURE, "--json"],
    "curvature initial": ["curvature", "runs/a", "--name", "initial", "--risk.weights", "initial", "--json"],
    "curvature step": ["curvature", "runs/a", "--name", "step", "--risk.weights", "6", "--json",
                       "--risk.batch_norm", "recalibrated", "--risk.samples", "30"],
    "curvature b": ["curvature", "runs/b", "--json"],
    "report": ["report", "runs/a", "runs/b", "--output", "report.html", "--title", "Two", "--allow_mixed", "true"],
    "report json": ["report", "runs/a", "--output", "one.html", "--json"],
    "study": ["study", "study.yaml"],
    "study again": ["study", "study.yaml", "--json"],
    "demo": ["demo", "--folder", "runs/demo", "--methods", '["sgd", "sam"]', "--seeds", "2", "--epochs", "2",
             "--train_size", "60", "--points", "3", "--engine", "serial"],
    "recommend": ["recommend", "--config", "recommend.yaml", "--json"],
    "list": ["list", "--json"],
    "list methods": ["list", "methods"],
    "help": ["--help"],
    "version": ["--version"],
}  # fmt: skip
STEPS |= {
    f"figure {kind}.{ending}": ["figure", *stores, "--kind", kind, "--output", f"figures/{kind}.{ending}", "--quiet"]
    for kind, ending, *stores in (
        ("contour", "svg", "runs/a/surfaces/plane.zarr", "runs/b/surfaces/plane.zarr"),
        ("surface", "html", "runs/a/surfaces/plane.zarr"),
        ("heat-map", "png", "runs/a/surfaces/refined.zarr"),
        ("convexity", "svg", "runs/a/surfaces/convexity.zarr"),
        ("line", "pdf", "runs/a/surfaces/line.zarr"),
        ("density", "svg", "runs/a/curvature/hessian.zarr"),
    )
}

MADE_UP = {"seconds", "created", "machine", "revision", "versions"}


def write_specs() -> None:
    """Write the YAML files of the study and of the search for a method."""
    base = {
        "model": {"name": "tests.golden.parts:net"}, "data": {"name": "tests.golden.parts:tiny_data"}, "epochs": 3,
        "batch_size": 16, "snapshots_every_epochs": None, "threads": 1,
    }  # fmt: skip
    methods = {"SGD": {}, "SAM": {"optimizer.method": "sam", "optimizer.options.rho": 0.1}}
    study = {
        "folder": "runs/study", "question": "Does SAM help?", "base": base, "methods": methods, "seeds": 3,
        "budgets": ["epochs", "compute"], "survey": {"curvature": 2, "surface": True, "points": 3},
    }  # fmt: skip
    search = {"folder": "runs/recommend", "model": base["model"], "data": base["data"], "base": base, "seeds": 2,
              "methods": methods, "fresh": 4, "trials": 1}  # fmt: skip
    Path("study.yaml").write_text(yaml.safe_dump(study))
    Path("recommend.yaml").write_text(yaml.safe_dump(search))


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all, and return what was said and what is on disk."""
    said = {f"fit {name}": say("fit", f"runs/{name}", *arguments) for name, arguments in FITS.items()}
    said["fit again"] = say("fit", "runs/a", *FITS["a"], "--json")
    write_specs()
    Path("figures").mkdir()
    for name, arguments in STEPS.items():
        said[name] = say(*arguments)
    for command in COMMANDS:
        said[f"{command} --help"] = say(command, "--help")
    said["doctor"] = {"exit": say("doctor")["exit"]}
    said["files"] = files("runs")
    for page in sorted(Path(".").rglob("*.html")):
        if "figures" not in page.parts:
            said[f"text of {page}"] = page_text(page)
    return said, results()


def results() -> dict[str, Any]:
    """Return every result on disk by its path."""
    found: dict[str, Any] = {}
    for path in sorted(Path(".").rglob("*")):
        name = path.as_posix()
        if ".zarr/" in name or any(part.endswith(".zarr") for part in path.parts[:-1]):
            continue
        if name.endswith(".zarr"):
            found[name] = open_result(path)
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
            found[name] = {"columns": ",".join(rows[0]), "rows": rows}
        elif path.name == "spec.yaml":
            found[name] = path.read_text().splitlines()
        elif path.name == "result.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in MADE_UP}
        elif path.suffix == ".safetensors" or path.suffix in (".svg", ".png"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    reader = SnapshotReader("runs/a/snapshots")
    found["snapshots of a"] = {str(step): dict(reader.read(step)) for step in reader.steps}
    return found
