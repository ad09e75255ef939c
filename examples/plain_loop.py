"""A loop of your own with everything: SAM under an average, bf16, accumulation, OneCycleLR, clipping, and a resume.

    python examples/plain_loop.py runs/plain

Needs pip install "lowland[data]"; the images come with scikit-learn. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lowland as ll

MICRO_BATCHES = 2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the run is kept")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--stop", type=int, default=None, help="stop after this epoch, as a killed run does")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    digits = ll.data.load("digits", train_size=400)
    train = digits.train.batches(50, seed=0, shuffle=True)
    steps = len(train) // MICRO_BATCHES
    model = ll.models.create("resnet8", channels=1, width=8, seed=0)
    criterion = ll.losses.LLR(nn.CrossEntropyLoss(), ll.losses.Sech(base=0.5), initial_loss=2.3)
    criterion.prepare(model=model, epochs=options.epochs, steps_per_epoch=steps, samples=len(digits.train))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    optimizer = ll.optim.EMA(ll.optim.SAM(base, rho=0.05, ascent="micro-batch"), decay=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=options.epochs * steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "criterion": criterion}

    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, first = options.folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["epoch"] + 1

    def backward(batch: ll.Batch) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(model(batch.input), batch) / MICRO_BATCHES
        loss.backward()

    for epoch in range(first, options.epochs):
        criterion.epoch = epoch
        model.train()
        for number, batch in enumerate(train.batches(epoch)):
            with optimizer.first_pass():
                backward(batch)
            with optimizer.perturb():
                backward(batch)
            if (number + 1) % MICRO_BATCHES == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                criterion.after_step()
                optimizer.zero_grad()
        print(epoch, measured(model, optimizer, digits), criterion.epoch_log())
        states: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**states, "epoch": epoch}, checkpoint)
        if options.stop == epoch:
            return


@torch.no_grad()
def measured(model: nn.Module, optimizer: ll.optim.EMA, digits: Any) -> float:
    """Return the accuracy of the averaged weights, with batch-norm statistics of their own."""
    with optimizer.averaged():
        optimizer.recalibrate(digits.train.batches(100), model)
        model.eval()
        hits = model(digits.validation.input).argmax(1) == digits.validation.target
    return round(float(hits.float().mean()), 3)


if __name__ == "__main__":
    main()
