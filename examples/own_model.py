"""The landscape of a model that somebody else has trained: any network, any checkpoint, any data."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import lowland as ll

# Yours: a network, a checkpoint on disk (a state dict, safetensors, Lightning's .ckpt ...), and a loader or batches.
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
checkpoint = Path(tempfile.mkdtemp()) / "last.ckpt"
torch.save({"state_dict": {f"net.{name}": weights for name, weights in model.state_dict().items()}}, checkpoint)
batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(4)]

# The five lines. Nothing in the file is executed; the place of the model in it ("net.") is found out.
ll.models.load_weights(model, checkpoint)
risk = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
plane = ll.landscape.random_plane(model, seed=0)
surface = ll.landscape.evaluate(risk, plane, ll.landscape.grid(21, 21, extent=1.0), store="own_model.zarr")
ll.viz.contour(surface).savefig("own_model.pdf")

print(f"loss at the weights {float(surface['loss'].sel(x=0, y=0)):.3f}: see own_model.pdf")
