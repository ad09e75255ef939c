"""What refined pictures of networks could gain: points that they measure, and those of an oracle or of a head start.

python -m benchmarks.refinement_bounds        # losses of every sample are kept in runs/, 10 minutes the first time

*Oracle*: places are measured where the same splines are truly wrong, which nobody knows: what a perfect estimate of the
error would leave. *Head start*: a picture of a part of the data, refined first and carried to that of all (a control
variate); its points count as the share of the data that they take. Both know the whole grid, point by point.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from benchmarks.error_models import GRID, Array, oracle, outcome
from benchmarks.landscape import cases
from torch.nn import functional

from lowland import landscape
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.landscape.refine import refine
from lowland.landscape.surface_task import SurfaceTask
from lowland.landscape.tolerance import Tolerance

NETWORKS = {"digits resnet8": 1797, "resnet20 32x32": 128, "mlp": 1797}
"""Samples measured; how rough a picture is depends on the network, and little on how many these are."""
SHARES = (0.05, 0.1, 0.25)


def losses(name: str, samples: int, folder: Path) -> Array:
    """Return the loss of every sample at every point of the grid, shape [points, samples]."""
    path = folder / f"losses of {name}.npy"
    if not path.exists():
        torch.manual_seed(0)
        model, x, y = cases(2000, 3)[name]()
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:samples]
        data = list(zip(x[some].split(256), y[some].split(256), strict=True))
        survey = SurfaceTask(
            {"": EmpiricalRisk(model, functional.cross_entropy, data)}, (landscape.random_plane(model),), paired=False
        )
        found = np.empty((GRID.size, samples), np.float32)
        with survey.setup() as place, torch.no_grad():
            for index in range(GRID.size):
                place.movers[0](GRID.coordinates(index))
                parts = [functional.cross_entropy(model(x), y, reduction="none") for x, y in data]
                found[index] = torch.cat(parts).detach().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, found)
    return np.load(path).astype(np.float64)


def ways(every: Array, seed: int) -> dict[str, dict[str, float]]:
    """Refine one surface in every way."""
    truth, tolerance = every.mean(1)[:, None], Tolerance(seed=seed)
    found = {"now": outcome(refine(GRID, tolerance, lambda indices: truth[indices]), truth)}
    with oracle(truth):
        found["oracle"] = outcome(refine(GRID, tolerance, lambda indices: truth[indices]), truth)
    for share in SHARES:
        some = np.random.default_rng(seed).choice(every.shape[1], int(share * every.shape[1]), replace=False)
        part = every[:, some].mean(1)[:, None]
        first = refine(GRID, tolerance, lambda indices, part=part: part[indices])
        second = refine(GRID, tolerance, lambda indices: truth[indices], [first.carried()], [1.0])
        found[f"from {share:.0%}"] = outcome(second, truth)
        found[f"from {share:.0%}"]["points"] += share * len(first.measured)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="seeds of the checks, and of the part of the data")
    parser.add_argument("--losses", type=Path, default=Path("runs") / "benchmark-pictures", help="where they are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "refinement_bounds.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, samples in NETWORKS.items():
        every = losses(name, samples, options.losses)
        found = [ways(every, seed) for seed in range(options.seeds)]
        for way in found[0]:
            row = {key: mean(one[way][key] for one in found) for key in ("points", "outside")}
            rows.append({"network": name, "way": way, **row, "worst": max(one[way]["worst"] for one in found)})
            print(rows[-1], flush=True)
    settings = {"seeds": options.seeds, "samples": NETWORKS}
    options.output.write_text(json.dumps({"rows": rows, **settings, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
