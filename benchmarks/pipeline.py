"""What the input pipeline and the loop cost beside a training step.

Pipeline: processor time of making a batch (order, gathering, augmentation) over that of a ResNet-20 step on images of
32 x 32 pixels; the limit is 5 %. Loop: `fit` over the same steps in a bare loop, ResNet-8 on digits, where a step is
short; an epoch's end (evaluation, checkpoint, snapshot) is listed apart. Both sides of each ratio are timed in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
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


class Clock(training.Hook):
    """Processor time at the end of every step, and over the ends of epochs."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_end(self, run: training.FitState | None = None) -> None:
        self.steps.append(time.process_time())

    def medians(self, per_epoch: int) -> tuple[float, float]:
        gaps = [(i, b - a) for i, (a, b) in enumerate(itertools.pairwise(self.steps), 1)]
        within = statistics.median(gap for i, gap in gaps if i % per_epoch)
        return within, statistics.median(gap for i, gap in gaps if not i % per_epoch) - within


def loop(epochs: int, repeats: int) -> dict[str, float]:
    splits = data.load("digits")

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = models.create("resnet8", channels=1, seed=0)
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def bare(clock: Clock) -> None:
        model, optimizer = build()
        for epoch in range(epochs):
            for batch in splits.train.batches(64, shuffle=True).batches(epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch.input), batch.target).backward()
                optimizer.step()
                clock.on_step_end()

    ratios, ends = [], []
    per_epoch = len(splits.train.batches(64))
    for _ in range(repeats):
        plain, ours = Clock(), Clock()
        bare(plain)
        with tempfile.TemporaryDirectory() as folder:
            model, optimizer = build()
            hooks = [training.Snapshots(), ours]
            loss = nn.CrossEntropyLoss()
            training.fit(model, optimizer, loss, splits, epochs=epochs, batch_size=64, folder=folder, hooks=hooks)
        ratios.append(ours.medians(per_epoch)[0] / plain.medians(per_epoch)[0])
        ends.append(ours.medians(per_epoch)[1])
    return {
        "steps_over_bare_loop": statistics.median(ratios),
        "epoch_end_ms": 1e3 * statistics.median(ends),
        "epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="resident images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="interleaved batches and steps")
    parser.add_argument("--epochs", type=int, default=6, help="of the loop's runs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "pipeline.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = pipeline(
        options.samples, options.batch_size, min(options.repeats, options.samples // options.batch_size - 1)
    )
    print(f"{'augmentation':<22}{'batch, ms':>10}{'step, ms':>10}{'ratio':>8}{'limit':>8}")
    for row in rows:
        print(
            f"{row['augmentation']:<22}{row['batch_ms']:>10.2f}{row['step_ms']:>10.1f}{row['ratio']:>8.4f}{LIMIT:>8.2f}"
        )
    cost = loop(options.epochs, 3)
    print(f"fit over a bare loop: {cost['steps_over_bare_loop']:.3f} x; epoch ends {cost['epoch_end_ms']:.1f} ms")
    settings = {name: str(value) for name, value in vars(options).items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"rows": rows, "loop": cost, "settings": settings, **provenance()}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
