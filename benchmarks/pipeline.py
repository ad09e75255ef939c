"""What the input pipeline and the loop cost beside a training step.

Pipeline: processor time of making a batch (order, gathering, augmentation) over that of a ResNet-20 step on images of
32 x 32 pixels; the limit is 5 %. Loop: `fit` over the same steps in a bare loop, on digits, where a step is short; an
epoch's end (evaluation, checkpoint, snapshot) is listed apart. Both sides of each ratio are timed in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowland import data, models, training
from lowland.core.provenance import provenance
from lowland.core.types import Batch

AUGMENTATIONS: dict[str, data.Augment | None] = {
    "none": None,
    "crop, flip": data.standard(),
    "crop, flip, cutout": data.standard(cutout=16),
    "crop, flip, mixup": data.Compose(data.standard(), data.Mixup(10)),
    "crop, flip, CutMix": data.Compose(data.standard(), data.CutMix(10)),
}
LIMIT = 0.05


def pipeline(samples: int, batch_size: int, repeats: int) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(0)
    part = data.TensorData(
        torch.randn(samples, 3, 32, 32, generator=random),
        torch.randint(10, (samples,), generator=random),
        torch.arange(samples),
    )
    model = models.create("resnet20", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.input), batch.target).backward()
        optimizer.step()

    rows = []
    for name, augment in AUGMENTATIONS.items():
        made = part.batches(batch_size, shuffle=True, augment=augment).batches(0)
        step(next(made))  # allocations and kernels are chosen in the first step
        making, stepping = [], []
        for _ in range(repeats):
            times = [time.process_time()]
            batch = next(made)
            times.append(time.process_time())
            step(batch)
            times.append(time.process_time())
            making.append(times[1] - times[0])
            stepping.append(times[2] - times[1])
        batch_ms, step_ms = 1e3 * statistics.median(making), 1e3 * statistics.median(stepping)
        rows.append({"augmentation": name, "batch_ms": batch_ms, "step_ms": step_ms, "ratio": batch_ms / step_ms})
    return rows


def mlp() -> nn.Module:
    torch.manual_seed(0)
    widths = [64, 64, 64, 10]
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-8": (lambda: models.create("resnet8", channels=1, seed=0), 64),
    "ResNet-8 of width 4": (lambda: models.create("resnet8", channels=1, width=4, seed=0), 32),
    "MLP 64-64-64-10": (mlp, 32),
}
"""On digits, with the samples of a step."""


class Turns(training.Hook):
    """Takes a step of a bare loop after every step of `fit`; processor times of both, and of the ends of epochs."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: data.TensorBatches) -> None:
        self.model, self.optimizer = model, optimizer
        self.batches = itertools.chain.from_iterable(map(batches.batches, itertools.count()))
        self.bare: list[float] = []
        self.fitted: list[float] = []
        self.ends: list[float] = []
        self.since: float | None = None
        self.ended = False

    def on_step_end(self, run: training.FitState) -> None:
        now = time.process_time()
        if self.since is not None:
            (self.ends if self.ended else self.fitted).append(now - self.since)
        self.ended = False
        start = time.process_time()
        batch = next(self.batches)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(batch.input), batch.target).backward()
        self.optimizer.step()
        self.since = time.process_time()
        self.bare.append(self.since - start)

    def on_epoch_end(self, run: training.FitState) -> None:
        self.ended = True


def loop(name: str, epochs: int) -> dict[str, Any]:
    """Put `fit` with a folder and snapshots beside a bare loop, step by step in turn."""
    splits = data.load("digits")
    build, size = NETWORKS[name]
    pairs = [(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)) for model in (build(), build())]
    turns = Turns(*pairs[0], splits.train.batches(size, shuffle=True))
    with tempfile.TemporaryDirectory() as folder:
        hooks = [training.Snapshots(), turns]
        options: dict[str, Any] = {"epochs": epochs, "batch_size": size, "folder": folder, "hooks": hooks}
        training.fit(*pairs[1], nn.CrossEntropyLoss(), splits, **options)
    # the quickest quarter: whatever else runs on the machine only adds
    bare, fitted = (statistics.quantiles(times, n=4)[0] for times in (turns.bare, turns.fitted))
    return {
        "network": name,
        "batch_size": size,
        "steps_over_bare_loop": fitted / bare,
        "bare_step_ms": 1e3 * bare,
        "added_us": 1e6 * (fitted - bare),
        "epoch_end_ms": 1e3 * (statistics.median(turns.ends) - fitted),
        "epochs": epochs,
        "steps": len(turns.fitted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="resident images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="interleaved batches and steps")
    parser.add_argument("--epochs", type=int, default=10, help="of the loop's runs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loop", action="store_true", help="the loop alone, and write nothing")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "pipeline.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    costs = [loop(name, options.epochs) for name in NETWORKS]
    for cost in costs:
        step = f"{cost['steps_over_bare_loop']:.4f} x a step of {cost['bare_step_ms']:.2f} ms"
        print(f"fit over a bare loop, {cost['network']}: {step}; epoch ends {cost['epoch_end_ms']:.1f} ms")
    if options.loop:
        return
    rows = pipeline(
        options.samples, options.batch_size, min(options.repeats, options.samples // options.batch_size - 1)
    )
    print(f"{'augmentation':<22}{'batch, ms':>10}{'step, ms':>10}{'ratio':>8}{'limit':>8}")
    for row in rows:
        print(
            f"{row['augmentation']:<22}{row['batch_ms']:>10.2f}{row['step_ms']:>10.1f}{row['ratio']:>8.4f}{LIMIT:>8.2f}"
        )
    settings = {name: str(value) for name, value in vars(options).items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps(
            {"rows": rows, "loop": {**costs[0], "networks": costs}, "settings": settings, **provenance()}, indent=2
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
