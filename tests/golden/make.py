"""Write cases of ``numbers.json`` anew: ``python -m tests.golden.make GROUP/NAME ...`` from the root of the repository.

Only for numbers that change on purpose; the file was made by version 0.1.0. Without a case all are written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.golden import ground, methods
from tests.golden.flat import flat, summary

NUMBERS = Path(__file__).parent / "numbers.json"
SHOWN = ("schema", "batch_norm", "samples", "products", "units", "anchored")
"""Attributes of datasets that are compared; recipes and provenance may be written otherwise."""

GROUPS: dict[str, dict[str, Callable[[torch.dtype], Any]]] = {
    "reshapers": {"all": methods.reshapers},
    "optimizers": {
        f"{method}_{base}": lambda dtype, method=method, base=base: methods.optimizer_run(method, base, dtype)
        for method in methods.METHODS
        for base in methods.BASES_OF.get(method, tuple(methods.BASES))
    },
    "losses": {
        **{name: lambda dtype, name=name: methods.loss_run(name, dtype) for name in methods.LOSSES},
        **{
            f"{name}_with_sam": lambda dtype, name=name: methods.loss_run(name, dtype, method="sam")
            for name in ("llr_sech", "saf", "mesa")
        },
    },
    "surfaces": dict(ground.SURFACES),
    "curvature": dict(ground.CURVATURE),
}


def measured(group: str, name: str) -> dict[str, Any]:
    """Compute a case and return the summary of its every leaf by path."""
    leaves = flat(GROUPS[group][name](torch.float64))
    parts = {path: path.split("/") for path in leaves}
    kept = [path for path, part in parts.items() if "attrs" not in part or part[part.index("attrs") + 1] in SHOWN]
    kept = [path for path in kept if not path.endswith("orthogonality")]  # nothing but rounding
    return {path: summary(leaves[path]) for path in kept}


def main(*cases: str) -> None:
    torch.set_num_threads(1)
    numbers = json.loads(NUMBERS.read_text())
    for case in cases or [f"{group}/{name}" for group, names in GROUPS.items() for name in names]:
        group, name = case.split("/")
        numbers.setdefault(group, {})[name] = measured(group, name)
    NUMBERS.write_text(json.dumps(numbers, separators=(",", ":"), sort_keys=True).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
