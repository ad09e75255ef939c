"""What `torch.compile` does with a two-pass step: graph breaks, time to compile, step over the eager one, distance.

A step of SAM (forward, backward, ascent, forward, backward, restore, base step) with nothing, the model, the loss of
the model, or the whole step compiled by `inductor`; steps are taken in turn with those of the eager loop.

    python benchmarks/compiled.py              # measure, write benchmarks/results/compiled.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_inductor_cache

from lowland import data, models, optim
from lowland.core.provenance import provenance

OUTPUT = Path(__file__).parent / "results" / "compiled.json"
CHECKED = 5
"""Steps after which weights are compared with those of the eager loop."""


class Perceptron(nn.Module):
    """A small network with a forward of its own, as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-64-64-10": Perceptron,
    "ResNet-8": lambda: models.create("resnet8", channels=1, seed=0),
}


class Loop:
    """One loop over a batch of digits, with a part of its step compiled."""

    def __init__(self, network: str, compiled: str, backend: str, kind: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        batch = next(iter(data.load("digits").train.batches(64)))
        model, x = NETWORKS[network]().to(kind), batch.input.to(kind)
        optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), model=model)

        def chosen(name: str, function: Any) -> Any:
            return torch.compile(function, backend=backend) if name == compiled else function

        called = chosen("model", model)
        loss = chosen("model and loss", lambda: nn.functional.cross_entropy(called(x), batch.target))

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            with optimizer.perturb():
                loss().backward()
            optimizer.step()

        self.step, self.model = chosen("whole step", step), model

    def seconds(self) -> float:
        start = time.process_time()
        self.step()
        return time.process_time() - start


def difference(network: str, compiled: str, backend: str) -> float:
    """Relative difference of the weights after some steps, in float64: in float32 a unit at its kink may tip."""
    loops = [Loop(network, name, backend, torch.float64) for name in ("nothing", compiled)]
    for _ in range(CHECKED):
        for loop in loops:
            loop.step()
    pairs = zip(*(loop.model.parameters() for loop in loops), strict=True)
    return max(float(((one - two).abs().max() / one.abs().max()).detach()) for one, two in pairs)


def measure(network: str, compiled: str, backend: str, rounds: int) -> dict[str, Any]:
    torch._dynamo.reset()
    counters.clear()
    eager = Loop(network, "nothing", backend)
    with fresh_inductor_cache():
        other, start = Loop(network, compiled, backend), time.perf_counter()
        for _ in range(2):
            other.step()
        first = time.perf_counter() - start
        found = {"breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"]["unique_graphs"]}
        apart = difference(network, compiled, backend)
        eager.step()
        turns = [(other.seconds(), eager.seconds()) for _ in range(rounds)]
    quick = [statistics.quantiles(times, n=10)[0] for times in zip(*turns, strict=True)]
    return {
        "network": network,
        "compiled": compiled,
        **found,
        "first_steps_s": first,
        "step_ms": 1e3 * quick[0],
        "eager_ms": 1e3 * quick[1],
        "ratio": quick[0] / quick[1],
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if options.backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        print("no C++ compiler: nothing is measured", file=sys.stderr)
        return
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        for compiled in ("model", "model and loss", "whole step"):
            rows.append(measure(network, compiled, options.backend, options.rounds))
            print(rows[-1])
    settings = {"rounds": options.rounds, "backend": options.backend, "checked_steps": CHECKED}
    options.output.write_text(json.dumps({"rows": rows, "settings": settings, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
