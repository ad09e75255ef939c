"""What should be true of a landscape tool, in lines that stand alone: the rules' scripts.

A linear model without bias at unit vectors returns its own weights, so that a plane of one output is a plane of one
weight: it shows where a tool has been.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from lowland.testing.scripts import joined

_MODEL = """
model, x, y = torch.nn.Linear($inputs, $outputs).eval(), torch.randn($samples, $inputs), torch.randn($samples, $outputs)
loss, data = torch.nn.functional.mse_loss, [(x, y)]
"""
_WEIGHTS = """
model, x = torch.nn.Linear($inputs, $outputs, bias=False).eval(), torch.eye($inputs)  # its outputs are its weights
data = [(x, torch.zeros($inputs, $outputs))]
"""
_MOVES = """
def move(i, o):
    values = plane(model, lambda output, target: output[i, o].sum(), data)[0]
    return values[-1][0] - values[0][0]
"""


_on_model = partial(joined, _MODEL)
_on_weights = partial(joined, _WEIGHTS)


def _filters(model: str, norms: str) -> str:
    return joined(
        model,
        _MOVES,
        f"""
moves = torch.tensor([[move(i, o) for i in range($inputs)] for o in range($outputs)])
ratios = moves.norm(dim=1) / {norms}.flatten(1).norm(dim=1)
assert ratios.max() / ratios.min() < 1.01, f"norms of moves over norms of filters: {{ratios.tolist()}}"
""",
    )


_POINTS: Final = {
    "points_on_a_grid": _on_weights("""
values = torch.as_tensor(plane(model, lambda output, target: output[0, 0], data, shape=(4, 4))[0])
steps = (values[1:] - values[:-1]).flatten()
assert (steps.max() - steps.min()) < 0.1 * abs(steps[0]), f"steps of one weight from row to row: {steps.tolist()}"
"""),
    "first_axis_first": _on_weights("""
values, a, b = plane(model, lambda output, target: output[0, 0], data, shape=(5, 3))
assert values.shape == (5, 3) == (len(a), len(b)), f"5 x 3 points come as {values.shape} at {len(a)} and {len(b)}"
"""),
    "center_is_the_model": _on_model("""
value, wanted = float(plane(model, loss, data)[0][2, 2]), float(loss(model(x), y))
assert abs(value - wanted) < 1e-5 * wanted, f"the middle value is {value:.6g}, the model's loss {wanted:.6g}"
"""),
    "even_grid_is_centered": _on_weights("""
values, a, b = plane(model, lambda output, target: output[0, 0], data, shape=(4, 4))
gap, step = abs(values.mean() - float(model.weight[0, 0])), abs(values[1, 0] - values[0, 0])
assert gap < 0.01 * step, f"the middle of 4 x 4 points is {gap / step:.2f} steps away from the model"
assert abs(a.mean()) + abs(b.mean()) < 1e-6, "the stated coordinates are not centered"
"""),
    "farther_is_farther": _on_weights("""
near, far = (plane(model, lambda output, target: output[0, 0], data, extent=extent)[0] for extent in (0.5, 1.0))
ratio = float((far.max() - far.min()) / (near.max() - near.min()))
assert abs(ratio - 2) < 0.02, f"asked for twice the distance, a weight moves {ratio:.3g} times as far"
"""),
    "filters_of_linear": _filters(_WEIGHTS, "model.weight"),
    "filters_of_convolutions": _filters(
        """
ones = [1] * ($dimensions - 1)
model = torch.nn.Conv${dimensions}d(1, $outputs, [*ones, $inputs], bias=False).eval()
data = [(torch.eye($inputs).reshape($inputs, 1, *ones, $inputs), torch.zeros($inputs))]  # its outputs are its weights
""",
        "model.weight",
    ),
    "filters_of_transposed": _filters(
        """
model = torch.nn.ConvTranspose2d($inputs, $outputs, 1, bias=False).eval()
data = [(torch.eye($inputs)[:, :, None, None], torch.zeros($inputs))]  # its outputs are its weights
""",
        "model.weight.transpose(0, 1)",
    ),
    "filters_of_zeros": joined(
        _WEIGHTS.replace(", bias=False", ""),
        """
with torch.no_grad(): model.weight[0] = 0; model.bias.zero_()
values = plane(model, lambda output, target: output[0, 0], data)[0]
reach = float(abs(values).max())
assert reach < 1e-6, f"a filter of zeros moves by up to {reach:.2g}"
""",
    ),
    "biases_stay": joined("""
model, data = torch.nn.Linear($inputs, $outputs).eval(), [(torch.zeros(1, $inputs), torch.zeros(1, $outputs))]
values = plane(model, lambda output, target: output[0, 0], data)[0]  # the output is the bias
reach = float(values.max() - values.min())
assert reach < 1e-6, f"a bias moves over a range of {reach:.2g}"
"""),
    "directions_differ": joined("""
model, data = torch.nn.Linear(6, 6, bias=False).eval(), [(torch.eye(6), torch.zeros(6, 6))]  # it returns its weights
planes = [plane(model, lambda output, target: output[k // 6, k % 6], data)[0] for k in range(36)]
u, v = (torch.tensor([float(p[end] - p[0, 0]) for p in planes]) for end in ((-1, 0), (0, -1)))
cosine = float(u @ v / (u.norm() * v.norm()))
assert abs(cosine) < 0.6, f"the two directions have the cosine {cosine:.4f}"
"""),
    "tied_weights_stay_tied": joined("""
class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__(); self.a, self.b = (torch.nn.Linear($inputs, $inputs, bias=False) for _ in range(2))
        self.b.weight = self.a.weight
    def forward(self, x): return torch.cat([self.a(x), self.b(x)], 1)
model, data = Tied().eval(), [(torch.eye($inputs), torch.zeros($inputs, 2 * $inputs))]
values = torch.as_tensor(plane(model, lambda output, target: output[0, 0], data, shape=(4, 4))[0])
steps = (values[1:] - values[:-1]).flatten()
assert (steps.max() - steps.min()) < 0.1 * abs(steps[0]), f"steps of the weight from row to row: {steps.tolist()}"
assert model.b.weight is model.a.weight, "the weights are not shared any more"
"""),
    "scalar_parameters": joined("""
class Warm(torch.nn.Linear):
    def __init__(self): super().__init__($inputs, $outputs); self.heat = torch.nn.Parameter(torch.tensor(1.5))
    def forward(self, x): return super().forward(x) / self.heat
data = [(torch.randn($samples, $inputs), torch.randn($samples, $outputs))]
values = plane(Warm().eval(), torch.nn.functional.mse_loss, data)[0]
assert (values == values).all(), "values are not finite"
"""),
    "line_has_both_ends": _on_model("""
other = torch.nn.Linear($inputs, $outputs).eval()
values, wanted = line(model, other, loss, data, points=5), [float(loss(one(x), y)) for one in (model, other)]
found = [float(values[0]), float(values[-1])]
gap = max(abs(a - b) for a, b in zip(found, wanted))
assert gap < 1e-4, f"a line with the ends {found}, between losses of {wanted}"
"""),
}

_EFFECTS: Final = {
    "nan_and_infinity_stay": _on_weights("""
here = float(model.weight[0, 0])
loss = lambda output, target: output[0, 0] * 0 + (1 if output[0, 0] <= here else $odd)
values = plane(model, loss, data)[0]
plain = int((abs(values - 1) < 1e-6).sum())
assert 5 < plain < 20, f"half of the losses are no numbers; {plain} of 25 values are what they should be, 1"
assert not (abs(values) < 1e9).sum() > plain, "what is no number comes back as one"
"""),
    "flat_stays_flat": _on_model("""
for height in (0.25, 0.0, -1.0):
    values = plane(model, lambda output, target: output.mean() * 0 + height, data)[0]
    gap = float(abs(values - height).max())
    assert gap == 0, f"a loss of {height} everywhere comes back with errors up to {gap:.2g}"
"""),
    "same_seed_same_values": _on_model("""
first, second = (plane(model, loss, data, seed=4)[0] for _ in range(2))
assert (first == second).all(), f"two runs with one seed differ by up to {abs(first - second).max():.2g}"
"""),
    "batches_do_not_matter": _on_model("""
x, y = torch.cat([x, x[:1] + 1]), torch.cat([y, y[:1]])
whole, parts = (plane(model, loss, list(zip(x.split(n), y.split(n))))[0] for n in (len(x), $samples))
gap = float(abs(parts / whole - 1).max())
assert gap < 1e-4, f"in batches of $samples and 1 values differ by {gap:.1%}"
"""),
    "dropout_is_off": _on_model("""
wanted, model = float(loss(model(x), y)), torch.nn.Sequential(model, torch.nn.Dropout(0.5)).train()
value = float(plane(model, loss, data)[0][2, 2])
assert abs(value - wanted) < 1e-4 * wanted, f"the middle value is {value:.4g}; without dropout it is {wanted:.4g}"
"""),
    "model_is_as_before": _on_model("""
model = torch.nn.Sequential(model, torch.nn.BatchNorm1d($outputs)).train()
loss(model(x), y).backward()
tensors = (*model.buffers(), *(t for p in model.parameters() for t in (p, p.grad)))
read = lambda: torch.cat([t.detach().flatten() for t in tensors])
before = read()
plane(model, loss, data)
assert torch.equal(read(), before), "weights, statistics or gradients are changed after a survey"
assert model.training and model[1].training, "training mode is changed after a survey"
"""),
    "model_is_as_before_after_failure": _on_model("""
model, calls = torch.nn.Sequential(model, torch.nn.BatchNorm1d($outputs)).train(), []
def failing(output, target): calls.append(1); return loss(output, target) if len(calls) != 9 else 1 / 0
before = copy.deepcopy(model.state_dict())
try: plane(model, failing, data)
except ZeroDivisionError: pass
same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
assert same and model.training, "after an exception weights, statistics or the mode stay changed"
"""),
    "line_leaves_both_models": _on_model("""
models = model, torch.nn.Linear($inputs, $outputs).eval()
before = copy.deepcopy([one.weight for one in models])
line(*models, loss, data, points=5)
assert all(torch.equal(one.weight, old) for one, old in zip(models, before)), "a line changed the models at its ends"
"""),
    "random_state_stays": _on_model("""
plane(model, loss, data)
read = lambda: [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
before = read()
plane(model, loss, data, seed=1)
changed = [name for name, a, b in zip(("Python", "NumPy", "torch"), before, read()) if a != b]
assert not changed, f"the random state of {' and '.join(changed)} is changed"
"""),
    "resumed_survey_is_the_same": _on_model("""
calls, whole = [], plane(model, lambda output, target: loss(output, target), data)[0]
def interrupted(output, target):
    calls.append(1)
    if len(calls) > 12 and None not in calls: raise KeyboardInterrupt
    return loss(output, target)
gap = abs(resumed(model, interrupted, data, stop=lambda: calls.append(None))[0] - whole).max()
assert gap == 0, f"resumed, values differ by up to {gap:.2g}"
"""),
}

_INPUTS: Final = {
    "precision_is_kept": _on_model("""
model, x, y = model.double(), x.double(), y.double()
value, wanted = float(plane(model, loss, [(x, y)])[0][2, 2]), float(loss(model(x), y))
assert abs(value - wanted) < 1e-12 * wanted, f"in float64 the middle value is {abs(value - wanted):.2g} off"
"""),
    "empty_data_is_refused": _on_model("""
try: values = plane(model, loss, [])[0]
except Exception: values = None
assert values is None, f"without data the middle of the surface is {values[2, 2]}"
"""),
    "survey_ignores_surroundings": _on_model("""
plain = plane(model, loss, data)[0]
with $around: found = plane(model, loss, data)[0]
gap = float(abs(found - plain).max())
assert gap < 1e-6 * abs(plain).max(), f"under $around values differ by up to {gap:.2g}"
"""),
    "survey_leaves_surroundings": _on_model("""
read = lambda: (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled())
before, calls = read(), []
def failing(output, target): calls.append(1); return loss(output, target) if len(calls) != 9 else 1 / 0
plane(model, loss, data)
assert read() == before, "a survey changes grad mode, the default dtype, threads or a flag"
try: plane(model, failing, data)
except ZeroDivisionError: pass
assert read() == before, "a failing survey changes grad mode, the default dtype, threads or a flag"
"""),
    "data_are_left_alone": _on_model("""
before = x.clone(), y.clone()
plane(model, loss, data)
assert torch.equal(x, before[0]) and torch.equal(y, before[1]), "a survey changed the data"
"""),
    "surfaces_are_their_own": _on_model("""
first = plane(model, loss, data)[0]
kept = first.copy()
plane(model, loss, [(x + 1, y)])
assert (first == kept).all(), "the next survey changed the values of the one before"
first[:] = -1
assert (plane(model, loss, data)[0] == kept).all(), "what is written to the values of one survey is in the next"
"""),
    "surface_follows_its_inputs": _on_model("""
plane(model, loss, data)
if "$other" == "loss": loss = lambda output, target: 3 * torch.nn.functional.mse_loss(output, target)
if "$other" == "data": x.add_(1)
if "$other" == "weights": model.weight.data.mul_(2)
value, wanted = float(plane(model, loss, data)[0][2, 2]), float(loss(model(x), y))
assert abs(value - wanted) < 1e-4 * wanted, f"with other $other the middle value is {value:.4g}, not {wanted:.4g}"
"""),
    "old_store_is_not_returned": _on_model("""
scale, loss = 1.0, lambda output, target: scale * torch.nn.functional.mse_loss(output, target)
folder = tempfile.mkdtemp()
stored(model, loss, data, folder)
scale, shift = (3.0, 0.0) if "$other" == "loss" else (1.0, 1.0)
if "$other" != "loss": (x if "$other" == "data" else model.weight.data).add_(shift)
try: value = float(stored(model, loss, data, folder)[0][2, 2])
except Exception: value = None  # a refusal is right
wanted = float(loss(model(x), y))
assert value is None or abs(value - wanted) < 1e-4 * wanted, f"other $other: stored is {value:.4g}, not {wanted:.4g}"
"""),
}

SCRIPTS: Final[dict[str, str]] = _POINTS | _EFFECTS | _INPUTS
