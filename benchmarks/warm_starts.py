"""Warm starts with a short and a long random part: what they take, and how often they miss a new end of the spectrum.

Products are counted, so that the load of the machine does not matter. On planted spectra the lowest eigenvector is one
that the given vectors lack, the worst that can happen between two points of a map. On trained networks a line is
walked with the spacing of a 31 x 31 map; errors are against runs of 60 products.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from curvature import Diagonal, network  # which stands beside this file
from lowland import landscape
from lowland.core.contexts import weights_restored
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Convexity, Hessian, convexity_summary, extreme_eigenvalues

NOISES: Final = (0.1, 1.0)
OUTLIERS, BULK, BELOW = 10, 1960, 30


def crossing(beyond: float, mixed: float, seed: int) -> tuple[Diagonal, Tensor]:
    """Return a spectrum as of a trained net with a new lowest value, and a start as a map hands it on without that."""
    low = -torch.logspace(-0.7, -2.5, BELOW)
    bulk = torch.randn(BULK, generator=torch.Generator().manual_seed(0)).abs() ** 3 * 0.02
    values = torch.cat([torch.logspace(1.3, 0.3, OUTLIERS), bulk, low[:1] * (1 + beyond), low]).double()
    new, draw = OUTLIERS + BULK, torch.Generator().manual_seed(seed)
    outer = [*range(OUTLIERS), *range(new + 1, len(values))]
    columns = []
    for index, length in ((0, 1.0), (new + 1, 1.0), (1, 0.25), (new + 2, 0.25)):
        column, other = torch.zeros(len(values)).double(), torch.zeros(len(values)).double()
        column[index] = 1.0
        other[outer] = torch.randn(len(outer), generator=draw).double()
        everywhere = torch.randn(len(values), generator=draw).double()
        everywhere[new] = 0.0
        column += mixed * other / other.norm() + 0.5 * mixed * everywhere / everywhere.norm()
        columns.append(length * column / column.norm())
    return Diagonal(values), torch.stack(columns, 1)


def planted(starts: int) -> list[dict[str, Any]]:
    rows = []
    for mixed in (0.2, 0.6):
        for beyond in (0.3, 0.6, 1.0):
            for noise in NOISES:
                products, missed = [], 0
                for seed in range(starts):
                    operator, start = crossing(beyond, mixed, seed)
                    ends = extreme_eigenvalues(operator, start=start, noise=noise, min_products=4, seed=seed)
                    products.append(ends.products)
                    missed += ends.lambda_min > 0.98 * float(operator.values.min())
                rows.append(
                    {"beyond": beyond, "mixed": mixed, "noise": noise, "starts": starts,
                     "products": statistics.mean(products), "missed": missed}
                )  # fmt: skip
    return rows


def whole_map(kind: str, points: int, checks: int, stores: Path | None) -> list[dict[str, Any]]:
    """Measure a map from half random starts, cold checks among its products, and compare points with long runs."""
    net, data = network(kind, 400, 12)
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x[:50], y[:50]) for x, y in data])
    place, grid = landscape.random_plane(net, seed=0), landscape.grid(points, points)
    store = None if stores is None else stores / f"{kind}.zarr"
    surface = landscape.evaluate(risk, place, grid, probes=[Convexity(noise=1.0)], store=store)
    chosen = torch.randperm(points * points, generator=torch.Generator().manual_seed(0))[:checks].tolist()
    exact = long_runs(net, risk, place, [(float(grid.x[k // points]), float(grid.y[k % points])) for k in chosen])
    found = surface["lambda_min"].values.reshape(-1)
    worst = max((abs(found[k] / value - 1) for k, value in zip(chosen, exact, strict=True)), default=0.0)
    return [{"network": kind, "noise": 1.0, "side": points, "checked": checks, "worst": float(worst),
             **convexity_summary(surface)}]  # fmt: skip


def long_runs(
    net: nn.Module, risk: EmpiricalRisk, place: landscape.Plane, points: list[tuple[float, ...]]
) -> list[float]:
    """Return the lower ends at points by runs of 60 products."""
    found = []
    with risk.prepared():
        space = place.space(net)
        with weights_restored(space) as base:
            axes = [axis.tensors(space, base) for axis in place.axes]
            for point in points:
                space.move(base, axes, list(point))
                with Hessian(risk, check=False) as hessian:
                    found.append(extreme_eigenvalues(hessian, min_products=60, max_products=60, seed=100).lambda_min)
    return found


def line(kind: str, points: int, checks: int) -> list[dict[str, Any]]:
    """Count the products of every point of a line through a trained network that starts warm; no cold checks."""
    net, data = network(kind, 400, 12)
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x[:50], y[:50]) for x, y in data])
    place, grid = landscape.random_line(net, seed=0), landscape.grid(points, extent=(points - 1) / 30)
    found = {
        noise: landscape.evaluate(risk, place, grid, probes=[Convexity(noise=noise, check_share=0.0)])
        for noise in NOISES
    }
    chosen = range(1, points, max(1, points // max(checks, 1)))
    exact = dict(zip(chosen, long_runs(net, risk, place, [(float(grid.x[k]),) for k in chosen]), strict=True))
    return [
        {"network": kind, "noise": noise, "products": float(surface["products"].mean()), "points": len(exact),
         "worst": max((abs(float(surface["lambda_min"][k]) / value - 1) for k, value in exact.items()), default=0.0)}
        for noise, surface in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--points", type=int, default=17)
    parser.add_argument("--checks", type=int, default=4)
    parser.add_argument("--side", type=int, default=31, help="points per axis of a map")
    parser.add_argument("--map-checks", type=int, default=12)
    parser.add_argument("--stores", type=Path, help="folder of the maps' stores, from which a stopped map goes on")
    parser.add_argument("--networks", nargs="*", default=["resnet8", "transformer"])
    parser.add_argument(
        "--parts", nargs="*", choices=("planted", "lines", "maps"), default=("planted", "lines", "maps")
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "warm_starts.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for part in options.parts:
        if part == "planted":
            rows = planted(options.starts)
        elif part == "lines":
            rows = [row for kind in options.networks for row in line(kind, options.points, options.checks)]
        else:
            kept = [row for row in result.get("maps", {}).get("rows", ()) if row["network"] not in options.networks]
            maps = (whole_map(kind, options.side, options.map_checks, options.stores) for kind in options.networks)
            rows = sorted([*kept, *(row for found in maps for row in found)], key=lambda row: row["network"])
        result[part] = {"rows": rows, "made": provenance()}
        print(part, json.dumps(rows, indent=1), flush=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
