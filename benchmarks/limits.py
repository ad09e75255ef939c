"""What bounds a point of a small network: arithmetic, and what other ways of doing it would give.

python -m benchmarks.limits      # one thread; everything in turns, medians

*Rate* is the arithmetic of the forward pass (multiplications and additions) over its time; *product* is that of a large
matrix product on the same thread: a yardstick and no bound, which convolutions have exceeded. *Many points in one pass*
moves 16 copies of the weights and multiplies in batches (`torch.func`); *compiled* is `torch.compile` with inductor.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.landscape import cases
from torch import Tensor, nn
from torch._inductor.utils import fresh_inductor_cache
from torch.utils.flop_counter import FlopCounterMode

from lowland.core.provenance import provenance
from lowland.landscape.folding import folded

POINTS = 16
BATCH = {"mlp": 1797, "digits resnet8": 256}
"""Samples of a forward pass: what the trial of a survey finds here."""


def medians(ways: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Time all ways in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in times.items()}


def batched(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The forward pass of many points at once."""
    weights = {name: torch.stack([value.detach()] * POINTS) for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def one(some: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, (some, buffers), (x,))

    every = torch.func.vmap(one, in_dims=(0, None))
    return lambda x: every(weights, x)


@torch.no_grad()
def measure(name: str, model: nn.Module, x: Tensor, turns: int) -> dict[str, Any]:
    """Measure one network."""
    parts = x.split(BATCH[name])
    with FlopCounterMode(display=False) as counter:
        model(x)
    square = torch.randn(1024, 1024)
    many, quick, joint = batched(model), torch.compile(model), copy.deepcopy(model)
    with fresh_inductor_cache():
        start = time.perf_counter()
        quick(parts[0]), quick(parts[-1])
        compile_seconds = time.perf_counter() - start
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: [model(part) for part in parts],
        "many": lambda: [many(part) for part in parts],
        "compiled": lambda: [quick(part) for part in parts],
        "folded": lambda: [joint(part) for part in parts],
        "product": lambda: square @ square,
    }
    with folded(joint):
        found = medians(ways, turns)
    return {
        "case": name, "samples": len(x), "operations": counter.get_total_flops(), "compile_s": compile_seconds,
        "plain_s": found["plain"], "many_s": found["many"] / POINTS, "compiled_s": found["compiled"],
        "folded_s": found["folded"], "product_rate": 2 * 1024**3 / found["product"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "limits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = {name: cases(2000, 1)[name]() for name in BATCH}
    rows = [measure(name, model, x, options.turns) for name, (model, x, _) in trained.items()]
    for row in rows:
        print(row)
    options.output.write_text(json.dumps({"rows": rows, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
