"""Refined pictures of 23 trained networks: what each estimate of the error leaves to measure, and what it leaves wrong.

python -m benchmarks.error_models             # the pictures are kept in runs/; 12 minutes the first time, then 10

Every second network is for choosing, the others are held out. *Both* is what the software does: the smaller of the
spline's own deviation and of the disagreement of two, each with its factor; *deviation* is that alone, *disagreement*
the other, with the first points and rounds that were chosen for it; an *oracle* knows the true error. Settings are
those with the fewest points (geometric mean), on the networks for choosing, among those that leave no pixel more than
twice the tolerance off.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from lowland import landscape
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.landscape.known import Known
from lowland.landscape.refine import Refined, _levels, refine
from lowland.landscape.tolerance import Tolerance, too_far
from lowland.models import resnet

Array = NDArray[np.float64]
GRID = landscape.grid(51, 51)
SEEDS = range(3)
KNOWN, REFINE = sys.modules[Known.__module__], sys.modules[refine.__module__]
TRIED = [
    *((first, own, apart, 0.08, 0.5) for first in (5, 9) for own in (0.3, 0.4, 0.55) for apart in (1.4, 2.0, 2.8, 4.0)),
    *((5, 0.4, 2.8, new, many) for new in (0.04, 0.08, 0.15) for many in (0.3, 0.5, 0.7)),
]
"""Points a side of the coarsest level, the factors on the deviation and on the disagreement, and how rounds grow."""
NEVER = 1e9
"""As a factor: the other one decides."""


def networks() -> dict[str, tuple[Callable[[], nn.Module], int, int, int]]:
    """Return for each network how it is made, its epochs, the samples in its picture, and pixels a side."""
    made: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {}
    for k in range(4):
        made[f"resnet8 {k}"] = (lambda: resnet(8, channels=1), 3 + 2 * k, 256, 8)
        made[f"resnet20 {k}"] = (lambda: resnet(20, channels=1), 3 + 2 * k, 128, 8)
        made[f"resnet20 without skips {k}"] = (lambda: resnet(20, channels=1, skip=False), 4 + 2 * k, 128, 8)
    for k in range(3):
        made[f"relu mlp {k}"] = (lambda k=k: mlp(nn.ReLU, 2 + k), 20, 512, 8)
        made[f"tanh mlp {k}"] = (lambda k=k: mlp(nn.Tanh, 2 + k), 20, 512, 8)
        made[f"resnet20 of larger images {k}"] = (lambda: resnet(20), 3 + k, 64, 16)
    for k in range(2):
        made[f"resnet56 without skips {k}"] = (lambda: resnet(56, channels=1, skip=False), 3 + 2 * k, 64, 8)
    return made


def mlp(activation: type[nn.Module], depth: int) -> nn.Module:
    widths = [64] * (depth + 1)
    layers = [part for k in range(depth) for part in (nn.Linear(widths[k], widths[k + 1]), activation())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))


def digits(pixels: int) -> tuple[Tensor, Tensor]:
    raw, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(raw / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
    if pixels == 8:
        return x, y
    return functional.interpolate(x[:600].repeat(1, 3, 1, 1), size=pixels, mode="bilinear"), y[:600]


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=order).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.eval()


def picture(name: str, seed: int, folder: Path) -> Array:
    """Return the loss at every point of the grid, shape [points, 1]."""
    path = folder / f"{name}.npy"
    if not path.exists():
        make, epochs, samples, pixels = networks()[name]
        x, y = digits(pixels)
        torch.manual_seed(seed)
        model = trained(make(), x, y, epochs, seed)
        plane = landscape.random_plane(model, seed=seed)
        data = [(x[:samples], y[:samples])]
        found = landscape.evaluate(EmpiricalRisk(model, functional.cross_entropy, data), plane, GRID)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(found["loss"], np.float64).reshape(-1, 1))
    return np.load(path)


def outcome(found: Refined, truth: Array) -> dict[str, float]:
    """Points measured, the worst pixel in units of the tolerance, and the share of pixels beyond it."""
    wanted, floor = truth[found.guessed], 0.1 * abs(float(truth[GRID.center(), 0]))
    ratios = too_far(found.values - wanted, wanted, float(np.ptp(truth)), floor, Tolerance())
    return {
        "points": len(found.measured),
        "worst": float(ratios.max(initial=0)),
        "outside": float((ratios > 1).sum() / len(truth)),
    }


@contextmanager
def procedure(first: int, own: float, apart: float, new: float = 0.08, many: float = 0.5) -> Generator[None]:
    with (
        mock.patch.object(_levels, "__defaults__", (first,)),
        mock.patch.multiple(REFINE, _NEXT={5: 65, 9: 20}[first], _ROUND=new, _MANY=many),
        mock.patch.multiple(KNOWN, _DEVIATION=own, _DISAGREEMENT=apart),
    ):
        yield


@contextmanager
def oracle(truth: Array) -> Generator[None]:
    def wrong(known: Known, indices: NDArray[np.int64], safety: float) -> Array:
        guess = known.predict(indices)
        ratios = known.too_far(guess - truth[indices], truth[indices]).max(1)
        return np.where(np.isnan(ratios), np.inf, ratios)

    with mock.patch.object(Known, "doubts", wrong):
        yield


def row(
    way: str, pictures: dict[str, Array], names: list[str], context: Callable[[Array], Any], safety: float
) -> dict[str, Any]:
    """Refine the pictures of some networks in one way, with several seeds of the checks."""
    found = []
    for name in names:
        truth = pictures[name]
        with context(truth):
            found += [
                outcome(refine(GRID, Tolerance(seed=s, safety=safety), lambda i, t=truth: t[i]), truth) for s in SEEDS
            ]
    points = [one["points"] for one in found]
    return {
        "way": way,
        "networks": len(names),
        "points": mean(points),
        "geometric": geometric_mean(points),
        "outside": mean(one["outside"] for one in found),
        "worst": max(one["worst"] for one in found),
        "inside": mean(one["worst"] <= 1 for one in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("runs") / "benchmark-networks", help="where they are")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "error_models.json")
    options = parser.parse_args()
    pictures = {name: picture(name, seed, options.pictures) for seed, name in enumerate(sorted(networks()))}
    halves = {"choosing": list(pictures)[::2], "held out": list(pictures)[1::2]}
    rows: list[dict[str, Any]] = []

    def note(half: str, way: str, context: Callable[[Array], Any], safety: float = 5.0) -> None:
        rows.append({"half": half, **row(way, pictures, halves[half], context, safety)})
        print(rows[-1], flush=True)

    for tried in TRIED:
        note("choosing", "both " + " ".join(str(part) for part in tried), lambda truth, t=tried: procedure(*t))
    for half in halves:
        note(half, "both", lambda truth: procedure(5, 0.4, 2.8))
        note(half, "both, safety 10", lambda truth: procedure(5, 0.4, 2.8), 10.0)
        note(half, "disagreement", lambda truth: procedure(9, NEVER, 1.0, 0.06, 0.3))
        note(half, "deviation", lambda truth: procedure(5, 0.4, NEVER))
        note(half, "oracle", oracle)
    made = {name: {"epochs": one[1], "samples": one[2], "pixels": one[3]} for name, one in networks().items()}
    settings = {"seeds": len(SEEDS), "networks": made}
    options.output.write_text(json.dumps({"rows": rows, **settings, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
