"""How many minima are found of those that were planted, beside landscaper, and how long that takes.

    python benchmarks/topology.py              # measure, write benchmarks/results/topology.json

The surfaces: landscaper's own examples (the Rosenbrock function of its tests; the network of its quick start on its two
samples, along its own directions), and pits of known depth under noise of a known standard error. Landscaper counts the
minima of its Morse-Smale complex; times are processor time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from landscaper import LossLandscape, PyHessian
from landscaper.compute import compute_loss_landscape
from numpy.typing import NDArray

from lowland.core.provenance import provenance
from lowland.core.schema import new_surface
from lowland.landscape import merge_tree

RESULT = Path(__file__).parent / "results" / "topology.json"
SAMPLES = 1000
Values = NDArray[np.float64]


def rosenbrock(points: int) -> tuple[Values, int]:
    x, y = np.meshgrid(np.linspace(-2, 2, points), np.linspace(-1, 3, points), indexing="ij")
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2, 1


def pits(points: int, count: int, seed: int) -> tuple[Values, int]:
    stream, axis = np.random.default_rng(seed), np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    places: list[NDArray[np.float64]] = []
    while len(places) < count:
        place = stream.uniform(-0.75, 0.75, 2)
        if all(np.abs(place - other).max() > 0.35 for other in places):
            places.append(place)
    ground = np.ones_like(x)
    for a, b in places:
        ground -= 0.6 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.006)
    return ground, count


def network(points: int) -> tuple[Values, None]:
    """The quick start's network on its two samples, along its directions of largest curvature."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    loss = torch.nn.CrossEntropyLoss()
    batch = torch.stack([torch.full((10,), 0.1), torch.full((10,), 0.2)]), torch.tensor([0, 1])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        directions = PyHessian(model, loss, [batch], "cpu").eigenvalues(top_n=2)[1]
        values, _ = compute_loss_landscape(
            model, batch, directions, lambda net, data: float(loss(net(data[0]), data[1])),
            steps=points, distance=1.0, dim=2, device="cpu",
        )  # fmt: skip
    return np.asarray(values, dtype=np.float64), None


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def by_landscaper(values: Values) -> dict[str, Any]:
    axes = [np.linspace(-1, 1, size) for size in values.shape]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # its coordinates run along the second axis first
        landscape = LossLandscape(np.ascontiguousarray(values.T), axes)
        complex_of, seconds = timed(landscape.get_ms_complex)
        minima = sum(complex_of.get_classification(k) == "minimum" for k in range(values.size))
        try:
            smad: float | None = float(landscape.smad())
        except KeyError:  # its contour tree cannot be built where values are equal
            smad = None
    return {"minima": minima, "smad": smad, "seconds": seconds}


def by_lowland(values: Values, error: float) -> dict[str, Any]:
    axes = [np.linspace(-1, 1, size) for size in values.shape]
    surface = new_surface(*axes, errors=["loss"], attrs={"samples": SAMPLES})
    surface["loss"].values[:], surface["loss_se"].values[:], surface["status"].values[:] = values, error, 1
    tree, seconds = timed(lambda: merge_tree(surface))
    depths = [basin.depth for basin in tree.basins[1:]]
    resolved = sum(basin.resolved > 0 for basin in tree.basins)
    counted = {"parts": len(tree.diagram), "basins": len(tree.basins), "resolved": resolved}
    return counted | {"depths": depths, "seconds": seconds}


def measured(name: str, values: Values, planted: int | None, error: float) -> dict[str, Any]:
    noisy = values + error * np.random.default_rng(1).normal(size=values.shape)
    row = {"surface": name, "planted": planted, "error": error, "points": values.size}
    return row | {"lowland": by_lowland(noisy, error), "landscaper": by_landscaper(noisy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=31)
    parser.add_argument("--pits", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wells = pits(options.points, options.pits, 0)
    surfaces = [("Rosenbrock function (its tests)", *rosenbrock(options.points), 0.0),
                ("network of its quick start", *network(options.points), 0.0)]  # fmt: skip
    surfaces += [(f"{options.pits} pits of depth 0.6", *wells, error) for error in (0.0, 0.005, 0.02, 0.04)]
    rows = []
    for surface in surfaces:
        rows.append(measured(*surface))
        print(rows[-1], flush=True)
    result = {"rows": rows, "load": os.getloadavg()[0], "settings": vars(options), **provenance()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
