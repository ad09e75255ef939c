"""A loss surface on a Ray cluster, as a job file that runs as it stands.

On one machine      python examples/ray_survey.py surface.zarr
On a cluster        ray job submit --address http://HEAD:8265 --working-dir . -- \
                        python examples/ray_survey.py s3://bucket/surface.zarr --points 101

Under ``ray job submit`` the engine "ray" finds the cluster of the job; without one it starts a cluster on this machine.
The same command on the same store goes on where an earlier one was cut off.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import lowland as ll
from lowland.engine import Event


def trained() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network for two spirals, trained for a moment; put your own model and data here."""
    torch.manual_seed(0)
    angle = torch.linspace(0.5, 9.0, 200)
    arm = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / 9
    x, y = torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(200)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, [(x, y)]


def tell(event: Event) -> None:
    """One line for each event that says something new."""
    if event.kind == "failed":
        print("failed:", event.message)
    elif event.kind != "progress" or event.done % 100 == 0:
        print(f"{event.kind}: {event.done}/{event.total}, {event.rate:.0f} points/s, {event.remaining or 0:.0f} s left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="folder, or URL of an object store that every run can reach")
    parser.add_argument("--engine", default="ray", help="ray, ray:N, ray://HOST:PORT, processes:N or serial")
    parser.add_argument("--points", type=int, default=31, help="points per side")
    options = parser.parse_args()
    model, batches = trained()
    risk = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    plane = ll.landscape.random_plane(model, seed=0)
    grid = ll.landscape.grid(options.points, options.points, extent=1.0)
    surface = ll.landscape.evaluate(
        risk, plane, grid, engine=options.engine, store=options.store, chunk=16, on_event=tell
    )
    print(f"loss at the center {float(surface.loss.sel(x=0.0, y=0.0)):.4f}, kept in {options.store}")


if __name__ == "__main__":
    main()
