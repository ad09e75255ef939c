"""What bounds the products of a cold start: how soon any rule could know that at most 5% of the lower end are missing.

After m products a run knows the first moments of the spectrum in its start vector. The largest part that a value x may
hold of the start, given those, is the reciprocal of the sum of the squares of all orthonormal polynomials at x, up to
degree m (Christoffel): no rule on the same run can say more. `reach` takes the last polynomial alone. Counted here: the
products of today's rule, of the same rule with the whole sum, and those at which the sum suffices at the true end,
as if a rule knew it. Products are counted, so that the load of the machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from curvature import Diagonal, network  # which stands beside this file
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, Lanczos
from lowland.curvature.bounds import reach
from lowland.curvature.operator import AbstractOperator

MISSED, RISK, LOWER, UPPER, SMALL, ABSOLUTE = 0.05, 0.01, 0.05, 1e-3, 0.01, 1e-4
"""The defaults of `extreme_eigenvalues` and of `reach`."""
STEPS: Final = 60


def spectra() -> dict[str, torch.Tensor]:
    """Return those of `starts` in the benchmark of curvature that have a negative end."""
    few = -torch.logspace(-0.7, -2.5, 30)
    lows = {
        "even": few,
        "neighbor 5.5% above": torch.cat([torch.tensor([-0.2, -0.189, -0.17]), few[3:]]),
        "neighbor 4.8% above": torch.cat([torch.tensor([-0.2, -0.1905, -0.12]), few[3:]]),
    }
    bulk = torch.randn(4960, generator=torch.Generator().manual_seed(0)).abs() ** 3 * 0.02
    return {name: torch.cat([torch.logspace(1.3, 0.3, 10), bulk, low]).double() for name, low in lows.items()}


def growth(run: Lanczos, place: float) -> float:
    """Return the logarithm of the root of the sum of all squared orthonormal polynomials at a place, at its length."""
    diagonal, beside = run.state()["diagonal"], np.maximum(run.couplings, 1e-300)
    total, before, last, coupling = 1.0, 0.0, 1.0, 0.0
    for entry, length in zip(diagonal, beside, strict=True):
        before, last = last, ((place - entry) * last - coupling * before) / length
        coupling = length
        total += last * last
    return 0.5 * math.log(total)


def counted(operator: AbstractOperator, true: float, seed: int) -> dict[str, int]:
    """Return the products at which each rule stops; `STEPS` where it does not."""
    run = Lanczos(operator, seed=seed)
    part = math.log(RISK * math.sqrt(math.pi / (2 * operator.size)))
    found: dict[str, int] = {}
    with operator:
        run.extend(5)
        while len(found) < 3 and run.steps < STEPS:
            run.extend()
            ritz = run.ritz()
            low, scale = float(ritz.values[0]), ritz.scale
            limit = max(LOWER * abs(low), ABSOLUTE * scale)
            small = ritz.residuals[-1] <= UPPER * scale and ritz.residuals[0] <= limit
            gap = MISSED * max(abs(low), SMALL * scale)
            if small and reach(run, ritz) <= gap:
                found.setdefault("last", run.steps)
            if small and growth(run, low - gap) + part >= 0:
                found.setdefault("sum", run.steps)
            if growth(run, true - MISSED * max(abs(true), SMALL * scale)) + part >= 0:
                found.setdefault("known", run.steps)
    return {name: found.get(name, STEPS) for name in ("last", "sum", "known")}


def row(name: str, runs: list[dict[str, int]]) -> dict[str, Any]:
    return {"name": name, "starts": len(runs), **{rule: mean(run[rule] for run in runs) for rule in runs[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=60, help="on each planted spectrum")
    parser.add_argument("--seeds", type=int, default=3, help="on the trained network")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cold_floor.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row(name, [counted(Diagonal(values), float(values.min()), seed) for seed in range(options.starts)])
        for name, values in spectra().items()
    ]
    net, data = network("resnet8", 400, 12)
    with Hessian(EmpiricalRisk(net, nn.CrossEntropyLoss(), data), check=False) as hessian:
        long = Lanczos(hessian, seed=100)
        long.extend(STEPS)
        true = float(long.ritz().values[0])
        rows.append(row("trained ResNet-8", [counted(hessian, true, seed) for seed in range(options.seeds)]))
    result = {"rows": rows, "made": provenance()}
    print(json.dumps(rows, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
