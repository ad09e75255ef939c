"""The slow twin of a film: every pixel of every frame, each by a network of its own."""

from __future__ import annotations

import copy

import numpy as np
import torch


def project(model, snapshots, first, second):
    """Return the least-squares coordinates of snapshots on two directions through the model's weights."""
    names = [name for name, _ in model.named_parameters()]
    axes = np.stack([np.concatenate([d[n].double().numpy().ravel() for n in names]) for d in (first, second)], 1)
    origin = np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()])
    rows = [np.concatenate([arrays[n].double().numpy().ravel() for n in names]) - origin for _, arrays in snapshots]
    return np.stack([np.linalg.lstsq(axes, row, rcond=None)[0] for row in rows])


def naive_film(model, criterion, batches, snapshots, first, second, x, y):
    """Return the mean loss over all samples, shape [frames, x, y], where the snapshots hold weights and buffers."""
    found = np.empty((len(snapshots), len(x), len(y)))
    places = project(model, snapshots, first, second)
    for k, (_, arrays) in enumerate(snapshots):
        for i, a in enumerate(x):
            for j, b in enumerate(y):
                network = copy.deepcopy(model).eval()
                state = {n: arrays.get(n, value).clone() for n, value in network.state_dict().items()}
                for name in first:
                    state[name] += float(a - places[k, 0]) * first[name] + float(b - places[k, 1]) * second[name]
                network.load_state_dict(state)
                with torch.no_grad():
                    losses = [(criterion(network(inputs), targets).item(), len(inputs)) for inputs, targets in batches]
                found[k, i, j] = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    return found
