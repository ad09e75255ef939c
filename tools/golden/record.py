"""Write down what Lowland does now: numbers to the bit, and what every command says, as JSON.

    PYTHONPATH=SOURCES python tools/golden/record.py FOLDER [PART ...]

SOURCES is the ``src`` of any version since 0.1.0; FOLDER gets ``numbers.json`` and ``cli.json``. Parts are float64,
float32, commands and inputs; without any all are run (two minutes on one thread). See `compare.py`.
"""

from __future__ import annotations

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets shows in some messages
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["COLUMNS"] = "200"
os.environ.pop("FORCE_COLOR", None)
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.golden import ground, methods
from tests.golden.flat import flat
from tools.golden import commands, inputs

SHOWN = 12
"""So many entries of an array are readable in the file."""


def exact(leaf: Any) -> Any:
    """Return a leaf with all its bits, and readable."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
        shown = [float(v) for v in leaf.reshape(-1)[:SHOWN]]
        digest = hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        return {"dtype": str(leaf.dtype), "shape": list(leaf.shape), "sha256": digest, "values": shown}
    if isinstance(leaf, np.ndarray):
        return [str(v) for v in leaf.reshape(-1)]
    if isinstance(leaf, float):
        return {"hex": leaf.hex(), "value": leaf}
    return leaf


def exact_all(tree: Any) -> dict[str, Any]:
    """Return the leaves of a result by path, with all their bits."""
    return {path: exact(leaf) for path, leaf in flat(tree).items()}


def computed(dtype: torch.dtype) -> dict[str, Any]:
    """Return what methods and measures give, group by group; a case that fails is recorded as its error."""
    found: dict[str, Any] = {}
    groups: Mapping[str, Mapping[str, Any]] = {
        "reshapers": {"all": methods.reshapers}, "optimizers": {"all": methods.optimizers},
        "losses": {"all": methods.losses}, "surfaces": ground.SURFACES, "curvature": ground.CURVATURE,
    }  # fmt: skip
    for group, cases in groups.items():
        for name, make in cases.items():
            try:
                leaves = exact_all(make(dtype))
            except Exception as error:  # the comparison shows it
                leaves = {"error": f"{type(error).__name__}: {error}"}
            found |= {f"{group}/{name}/{path}": leaf for path, leaf in leaves.items()}
    return found


def main(folder: str, *parts: str) -> None:
    """Run the parts and write the files; parts that are not run keep what the files hold."""
    torch.set_num_threads(1)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / name for name in ("numbers.json", "cli.json")}
    kept = {name: json.loads(path.read_text()) if path.exists() and parts else {} for name, path in files.items()}
    with tempfile.TemporaryDirectory(prefix="golden") as place:
        os.chdir(place)
        for part in parts or ("float64", "float32", "commands", "inputs"):
            start = time.monotonic()
            if part.startswith("float"):
                kept["numbers.json"][part] = computed(getattr(torch, part))
            elif part == "commands":
                said, results = commands.run()
                kept["cli.json"][part] = said
                kept["numbers.json"][part] = exact_all(results)
            else:
                kept["cli.json"][part] = inputs.run()
            print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
        os.chdir("/")
    for name, path in files.items():
        path.write_text(json.dumps(kept[name], indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    folder = os.path.abspath(sys.argv[1])
    main(folder, *sys.argv[2:])
