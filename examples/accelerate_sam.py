"""SAM in a loop written with Accelerate: one line instead of ``accelerator.backward``; accumulation and clipping stay.

    python examples/accelerate_sam.py runs/accelerate

Needs pip install "lowland[hf,data]"; the images come with scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lowland as ll
from lowland.integrations import AcceleratePasses


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the state is kept")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    digits = ll.data.load("digits", train_size=400)
    data = ll.data.Indexed(TensorDataset(digits.train.input, digits.train.target))
    net = ll.models.create("resnet8", channels=1, width=8, seed=0)
    base = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    criterion = ll.losses.SAF(nn.CrossEntropyLoss(), start=2, look_back=1)
    criterion.prepare(epochs=options.epochs, samples=len(data))

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = DataLoader(data, batch_size=50, shuffle=True)
    model, optimizer, loader = accelerator.prepare(net, ll.optim.SAM(base, rho=0.1, ascent="micro-batch"), loader)
    accelerator.register_for_checkpointing(criterion)
    passes = AcceleratePasses(accelerator, model, optimizer)

    for epoch in range(options.epochs):
        criterion.epoch = epoch
        for image, target, index in loader:
            batch = ll.Batch(image, target, index)
            with accelerator.accumulate(model):
                passes.backward(lambda batch=batch: criterion(model(batch.input), batch))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    criterion.after_step()
        print(epoch, {name: round(value, 4) for name, value in criterion.epoch_log().items()})
        accelerator.save_state(str(options.folder))


if __name__ == "__main__":
    main()
