"""Scripts of landscape tools: how each is called, and what should be true."""

from __future__ import annotations

from typing import Final

PRELUDES: Final[dict[str, str]] = {
    "landscaper planes": """\
import numpy as np, torch
from torch import nn
from landscaper.compute import compute_loss_landscape
from landscaper.utils import generate_random_orthogonal_directions

def plane(model, loss, steps=5):  # loss(model) is the user's function
    directions = generate_random_orthogonal_directions(model, n=2)
    return compute_loss_landscape(
        model, None, directions, lambda net, data: loss(net), steps=steps, distance=1.0, dim=2, device="cpu")
""",
    "loss-landscapes": """\
import torch, loss_landscapes
from torch import nn
from loss_landscapes.metrics import Loss, Metric

class Measure(Metric):
    def __init__(self, function): self.function = function
    def __call__(self, wrapper): return self.function(wrapper.modules[0])

def plane(model, function, distance=1, steps=5):
    return loss_landscapes.random_plane(model, Measure(function), distance, steps, deepcopy_model=True)
""",
}


BODIES: Final[dict[str, str]] = {
    "same_seed_same_values": """\

model, runs = nn.Linear(3, 1), []
for _ in range(2):
    torch.manual_seed(0)
    runs.append(plane(model, lambda net: float(net.weight.sum()))[0])
assert (runs[0] == runs[1]).all(), f"with one seed, twice: values differ by {abs(runs[0] - runs[1]).max():.1e}"
""",
    "points_on_a_grid": """\

places = []
def visit(model):  # the loss is the number of the visit
    places.append(model.weight.detach().clone().flatten())
    return float(len(places))
order = plane(nn.Linear(3, 1, bias=False), visit, steps=4)
at = lambda i, j: places[int(order[i][j]) - 1]
shift = (at(1, 0) - at(0, 0)) - (at(2, 0) - at(1, 0))
assert shift.norm() < 1e-5, f"steps from row to row differ by {shift.norm():.3f}"
""",
    "center_is_the_model": """\

model = nn.Linear(3, 1, bias=False)
center = model.weight.detach().clone()
distances = plane(model, lambda net: float((net.weight - center).norm()), steps=5)
assert distances[2][2] < 1e-5, f"the middle of 5 x 5 points is {distances[2][2]:.3f} away from the model"
""",
    "farther_is_farther": """\

model = nn.Linear(3, 1, bias=False)
center = model.weight.detach().clone()
reach = [plane(model, lambda net: float((net.weight - center).norm()), d).max() for d in (0.5, 1.0)]
assert reach[1] > reach[0], f"distance 0.5 goes as far as {reach[0]:.3f}, distance 1 as far as {reach[1]:.3f}"
""",
    "filters_of_transposed": """\

torch.manual_seed(0)
model, places = nn.ConvTranspose2d(3, 4, 2, bias=False), []
plane(model, lambda net: places.append(net.weight.detach().clone()) or 0.0)
move = (places[1] - places[0]).transpose(0, 1).flatten(1).norm(dim=1)
ratio = move / model.weight.transpose(0, 1).flatten(1).norm(dim=1)
assert ratio.max() / ratio.min() < 1.01, f"moves over norms of the four output filters: {ratio.tolist()}"
""",
    "filters_of_zeros": """\

model = nn.Linear(3, 2)
nn.init.zeros_(model.bias)
plane(model, lambda net: 0.0)
""",
    "biases_stay": """\

model, biases = nn.Linear(3, 2), []
plane(model, lambda net: biases.append(net.bias.detach().clone()) or 0.0)
reach = torch.stack(biases).max(0).values - torch.stack(biases).min(0).values
assert (reach == 0).all(), f"the two biases move over ranges of {reach.tolist()}"
""",
    "scalar_parameters": """\

class Warm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.temperature = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.5))

plane(Warm(), lambda net: 0.0)
""",
    "line_has_both_ends": """\

first, second = nn.Linear(1, 1), nn.Linear(1, 1)
nn.init.zeros_(first.weight), nn.init.ones_(second.weight)
line = loss_landscapes.linear_interpolation(first, second, Measure(lambda net: float(net.weight)), 5, True)
assert line[0] == 0 and line[-1] == 1, f"from 0 to 1 in five points: {line.round(3).tolist()}"
""",
    "dropout_is_off": """\

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 1)).train()
metric = Loss(nn.MSELoss(), torch.randn(8, 3), torch.randn(8, 1))
values = [loss_landscapes.point(model, metric) for _ in range(2)]
assert values[0] == values[1], f"the loss of one model, twice: {values}"
""",
    "even_grid_is_centered": """\

model = nn.Linear(3, 1, bias=False)
center, places = model.weight.detach().clone(), []
plane(model, lambda net: places.append(net.weight.detach().clone()) or float(len(places)), steps=4)
gap = (sum(places) / len(places) - center).norm()  # the mean of a centered grid is the model
assert gap < 1e-5, f"the middle of 4 x 4 points is {gap:.3f} away from the model"
""",
    "directions_differ": """\

torch.manual_seed(0)
u, v = (torch.cat([part.flatten() for part in d]) for d in generate_random_orthogonal_directions(nn.Linear(9, 9), n=2))
cosine = u @ v / (u.norm() * v.norm())
assert abs(cosine) < 0.1, f"two orthogonal directions have the cosine {cosine:.4f}"
""",
    "nan_and_infinity_stay": """\

model, calls = nn.Linear(3, 1), []
values, _ = plane(model, lambda net: calls.append(1) or (float("nan") if len(calls) > 12 else len(calls)))
assert np.isnan(values).any(), f"13 of 25 losses were NaN; back came {values.round(2).tolist()}"
""",
    "flat_stays_flat": """\

values, _ = plane(nn.Linear(3, 1), lambda net: 0.25)
assert (values == 0.25).all(), f"a loss of 0.25 everywhere comes back as {values.round(3).tolist()}"
""",
}
BODIES["tied_weights_stay_tied"] = BODIES["points_on_a_grid"]
