"""Refined pictures of synthetic risks over 1 to 8 decades: is the printed statement true, and at what price?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lowland.core.provenance import provenance
from lowland.landscape import Tolerance, grid
from lowland.landscape.refine import refine
from lowland.landscape.tolerance import too_far

__all__ = ["KINDS", "surface"]

KINDS = ("bowl", "ripples", "ridge", "shelf", "peaks")


def surface(seed: int, points: int = 51, kind: str | None = None) -> NDArray[np.float64]:
    """Return the losses of one random risk on the square grid over [-1, 1]; kinds take turns with the seed."""
    random = np.random.default_rng((20, seed))
    kind = KINDS[seed % len(KINDS)] if kind is None else kind
    axis = np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    turn, shift = random.uniform(0, np.pi), random.uniform(-0.3, 0.3, 2)
    u = np.cos(turn) * (x - shift[0]) + np.sin(turn) * (y - shift[1])
    v = np.cos(turn) * (y - shift[1]) - np.sin(turn) * (x - shift[0])
    stretch = random.uniform(0.2, 1.0)
    power = random.uniform(1.0, 3.0)
    height = (u**2 + stretch * v**2) ** (power / 2)
    height /= height.max()
    decades = random.uniform(1.0, 8.0)
    base = 10 ** random.uniform(-3, 0.5)
    loss = base * 10 ** (decades * height)
    if kind == "ripples":  # at every level, also where the loss is low
        waves = random.uniform(2, 10, 2)
        loss = loss * (1 + random.uniform(0.1, 0.6) * np.sin(waves[0] * u) * np.cos(waves[1] * v))
    elif kind == "ridge":
        place, width = random.uniform(-0.5, 0.5), 10 ** random.uniform(-1.3, -0.4)
        loss = loss * (1 + 10 ** random.uniform(-0.5, 1.5) * np.exp(-(((u - place) / width) ** 2)))
    elif kind == "shelf":  # losses are capped by what a network can be wrong, or step from one level to another
        place, width = random.uniform(-0.5, 0.5), 10 ** random.uniform(-1.5, -0.3)
        step = 1 + random.uniform(1, 20) / (1 + np.exp(-(v - place) / width))
        loss = base * (1 + height * 10 ** random.uniform(0, 2)) * step
    elif kind == "peaks":  # nothing but a hit finds them
        number = int(random.integers(1, points * points // 100))
        loss.flat[random.choice(loss.size, number, replace=False)] *= 1 + 10 ** random.uniform(0, 1)
    return loss


def measure(seed: int, points: int) -> dict[str, float]:
    """Refine one surface and compare every pixel with the truth."""
    truth, plane = surface(seed, points).reshape(-1, 1), grid(points, points)
    found = refine(plane, Tolerance(seed=seed), lambda indices: truth[indices])
    wanted, floor = truth[found.guessed], 0.1 * np.abs(truth[plane.center()])
    ratios = too_far(found.values - wanted, wanted, np.ptp(truth, 0), floor, Tolerance())
    outside = float((ratios > 1).mean()) if len(found.guessed) else 0.0
    bound = float(found.report.get("share_bound", 1.0))
    return {"measured": len(found.measured), "outside": outside, "bound": bound, "false": float(outside > bound)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--surfaces", type=int, default=500)
    parser.add_argument("--points", type=int, default=51, help="points along each axis")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/refinement.json"))
    options = parser.parse_args()
    found = [measure(seed, options.points) for seed in range(options.surfaces)]
    rows = []
    print(f"{'kind':<10}{'surfaces':>9}{'false':>7}{'points':>8}{'outside, mean':>15}{'worst':>8}")
    for number, kind in enumerate(KINDS):
        of = found[number :: len(KINDS)]
        outside = [one["outside"] for one in of]
        row = {
            "kind": kind,
            "surfaces": len(of),
            "false": int(sum(one["false"] for one in of)),
            "measured": median(one["measured"] for one in of),
            "outside": float(np.mean(outside)),
            "worst": max(outside),
        }
        rows.append(row)
        print(
            f"{kind:<10}{len(of):>9}{row['false']:>7}{row['measured']:>8.0f}{row['outside']:>15.4f}{row['worst']:>8.3f}"
        )
    settings = {"surfaces": options.surfaces, "points": options.points}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"rows": rows, "settings": settings, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
