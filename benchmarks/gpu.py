"""What steps, surface points and curvature products cost on an accelerator, as ratios side by side in one run.

A step of each method over a plain step; a point of a survey over bare forward passes, and over the usual procedure that
reads loss and hits back after every batch; a product over a bare double backward. Times are medians of interleaved
rounds between two synchronizations.

    python benchmarks/gpu.py             # measures, and writes benchmarks/results/gpu.json with the device's name
    python benchmarks/gpu.py --device cpu --output FILE    # tries the script where no accelerator is
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvature import available, tool  # the peers' products, which stand beside this file
from lowland import landscape, models, optim
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk

METHODS: dict[str, Callable[..., Any]] = {
    "SAM": lambda base, model: optim.SAM(base, rho=0.05, model=model),
    "GSAM": lambda base, model: optim.GSAM(base, rho=0.1, model=model),
    "SALA": lambda base, model: optim.SALA(base, rho=0.05, model=model),
    "Lookahead": lambda base, model: optim.Lookahead(base, model=model),
    "EMA": lambda base, model: optim.EMA(base, decay=0.999, model=model),
}


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    waited(device)
    start = time.perf_counter()
    call()
    waited(device)
    return time.perf_counter() - start


def interleaved(device: torch.device, calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, the calls one after another in every round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            taken = seconds(device, call)
            if turn > 1:  # the first rounds choose kernels
                found[name].append(taken)
    return {name: statistics.median(taken) for name, taken in found.items()}


def stepping(make: Callable[..., Any] | None, device: torch.device, x: Tensor, y: Tensor) -> Callable[[], object]:
    """Return what takes one step, plain or with a method."""
    model = models.create("resnet20", classes=10, seed=0).to(device)
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer: Any = base if make is None else make(base, model)

    def backward() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    def step() -> None:
        backward()
        if make is not None and optimizer.needs_perturbation():
            with optimizer.perturb():
                backward()
        optimizer.step()

    return step


def steps(device: torch.device, rounds: int, batch: int) -> dict[str, Any]:
    x, y = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    calls = {"plain": stepping(None, device, x, y)}
    calls |= {name: stepping(make, device, x, y) for name, make in METHODS.items()}
    taken = interleaved(device, calls, rounds)
    return {"step_ms": 1e3 * taken["plain"], "over_plain": {name: taken[name] / taken["plain"] for name in METHODS}}


def surface(device: torch.device, rounds: int, samples: int) -> dict[str, Any]:
    """A point of a survey beside bare forward passes and the usual procedure."""
    model = models.create("resnet20", classes=10, seed=0).to(device).eval()
    x, y = torch.randn(samples, 3, 32, 32, device=device), torch.randint(10, (samples,), device=device)
    parts = list(zip(x.split(250), y.split(250), strict=True))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), parts)
    task = landscape.surface_task.SurfaceTask({"": risk}, (landscape.random_plane(model),), paired=False)
    points = [landscape.surface_task.Point((0.01 * k, 0.0)) for k in range(4)]

    def usual() -> list[float]:
        return [
            found
            for inputs, targets in parts
            for output in (model(inputs),)
            for found in (
                nn.functional.cross_entropy(output, targets).item(),
                float((output.argmax(1) == targets).sum().item()),
            )
        ]

    with task.setup() as place, torch.no_grad():
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda: task.measure(place, points),
            "bare": lambda: [model(inputs) for _ in points for inputs, _ in parts],
            "usual": lambda: [usual() for _ in points],
        }
        taken = interleaved(device, calls, rounds)
    return {
        "point_ms": 1e3 * taken["ours"] / len(points),
        "over_bare": taken["ours"] / taken["bare"], "faster": taken["usual"] / taken["ours"],
    }  # fmt: skip


def products(device: torch.device, rounds: int, samples: int) -> dict[str, Any]:
    """A Hessian-vector product, and one of a block of eight, over a bare double backward; ours and the peers'."""
    model = models.create("resnet20", classes=10, seed=0).to(device).eval()
    x, y = torch.randn(samples, 3, 32, 32, device=device), torch.randint(10, (samples,), device=device)
    size = sum(parameter.numel() for parameter in model.parameters())
    vectors = list(torch.randn(8, size, device=device))
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for name in available():
        try:
            multiply = tool(name, model, [(x, y)])
            multiply(vectors[:1])
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
            continue
        calls[name] = partial(multiply, vectors[:1])
        calls[f"{name}, block of 8"] = partial(multiply, vectors)
    taken = interleaved(device, calls, rounds)
    one = taken["bare double backward"]
    ratios = {name: found / one / (8 if "block" in name else 1) for name, found in taken.items()}
    return {"product_ms": 1e3 * taken["lowland"], "over_bare": ratios, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128, help="images of a step")
    parser.add_argument("--samples", type=int, default=2000, help="images of a point and of a product")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no accelerator is here; --device cpu --output FILE tries the script")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = {
        "device": name,
        "steps": steps(device, options.rounds, options.batch),
        "surface": surface(device, options.rounds, options.samples),
        "products": products(device, options.rounds, options.samples),
        **provenance(),
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
