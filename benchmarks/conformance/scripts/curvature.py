"""Scripts of curvature tools: how each is called, and what should be true."""

from __future__ import annotations

from typing import Final

PRELUDES: Final[dict[str, str]] = {
    "curvlinops": """\
import torch
from torch import nn
from curvlinops import HessianLinearOperator

def product(model, loss, batches, v):
    return HessianLinearOperator(model, loss, list(model.parameters()), batches) @ v
""",
    "PyHessian": """\
import torch
from torch import nn
from pyhessian import hessian

def product(model, loss, batches, v):
    operator = hessian(model, loss, dataloader=batches, cuda=False)
    parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in operator.params]), operator.params)]
    return torch.cat([part.flatten() for part in operator.dataloader_hv_product(parts)[1]])

def largest(model, loss, batches): return hessian(model, loss, dataloader=batches, cuda=False).eigenvalues()[0][0]
def density(model, loss, batches): return hessian(model, loss, dataloader=batches, cuda=False).density(iter=4)
def trace(model, loss, batches):
    return torch.tensor(hessian(model, loss, dataloader=batches, cuda=False).trace()).mean()
""",
    "hessian-eigenthings": """\
import torch
from torch import nn
from hessian_eigenthings import HessianOperator, supervised_loss

def product(model, loss, batches, v): return HessianOperator(model, batches, supervised_loss(loss)).matvec(v)
""",
    "landscaper Hessian": """\
import torch
from torch import nn
from landscaper import PyHessian

def product(model, loss, batches, v):
    operator = PyHessian(model, loss, batches, "cpu")
    parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in operator.params]), operator.params)]
    return torch.cat([part.flatten() for part in operator.hv_product(parts)[1]])

def largest(model, loss, batches): return PyHessian(model.eval(), loss, batches, "cpu").eigenvalues()[0][0]
def density(model, loss, batches): return PyHessian(model.eval(), loss, batches, "cpu").density(iter=4)
def trace(model, loss, batches): return PyHessian(model.eval(), loss, batches, "cpu").trace()
""",
}

_SETUP = """\

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
x, y, v = torch.randn(8, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2, 2, 2]), torch.ones(43).double()
"""

_COMPARED = """\
whole = product(model, loss, [(x, y)], v)
parts = product(model, loss, [(x[:7], y[:7]), (x[7:], y[7:])], v)
assert torch.allclose(whole, parts, rtol=1e-4), f"one batch: {whole.norm():.4f}, batches of 7 and 1: {parts.norm():.4f}"
"""

_PLANTED = """\

class Planted(nn.Module):  # (w'Aw / 2 + 1 / 2)^2 has the Hessian A at w = 0
    def __init__(self, *values):
        super().__init__()
        self.w, self.a = nn.Parameter(torch.zeros(len(values))), torch.tensor(values)
    def forward(self, x): return (self.a * self.w**2).sum() / 2 + 0 * x

data = [(torch.ones(2, 1), torch.full((2, 1), -0.5))]
"""


BODIES: Final[dict[str, str]] = {
    "ragged_batches": _SETUP + "loss = nn.CrossEntropyLoss()\n" + _COMPARED,
    "sum_reduction": _SETUP + 'loss = nn.CrossEntropyLoss(reduction="sum")\n' + _COMPARED,
    "weights_of_samples": _SETUP
    + "loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double())\n"
    + _COMPARED,
    "plain_function_as_loss": _SETUP + "product(model, nn.functional.cross_entropy, [(x, y)], v)\n",
    "unused_parameter": _SETUP
    + """\
model.spare = nn.Parameter(torch.ones(2).double())
model.forward = lambda x: model[2](model[1](model[0](x)))
product(model, nn.CrossEntropyLoss(), [(x, y)], torch.ones(45).double())
""",
    "loss_without_curvature": _SETUP
    + """\
class Mean(nn.MSELoss):
    def forward(self, output, target): return output.mean()
product(nn.Linear(4, 3).double(), Mean(), [(x, y)], torch.ones(15).double())
""",
    "trace_is_near": _PLANTED
    + """\
values = [8.0, 5.0, 3.0, -2.0, *torch.linspace(-0.5, 0.9, 60).tolist()]
rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(11)))[0]
class Rotated(Planted):
    def forward(self, x): return (self.a * (rotation @ self.w) ** 2).sum() / 2 + 0 * x
found = []
for seed in range(20):
    torch.manual_seed(seed)
    found.append(float(trace(Rotated(*values), nn.MSELoss(), data)))
assert max(abs(f - 26) for f in found) < 6.5, f"the trace is 26; twenty seeds give {min(found):.1f} to {max(found):.1f}"
""",
    "fused_attention": """\

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(2, 12), nn.Linear(4, 3)
    def forward(self, x):
        q, k, v = self.embed(x)[:, None].chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))

x, y = torch.randn(5, 3, 2), torch.tensor([0, 1, 2, 0, 1])
product(Attention(), nn.CrossEntropyLoss(), [(x, y)], torch.ones(51))
""",
    "recurrent_layers": """\

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
    def forward(self, x): return self.lstm(x)[0][:, -1]

x, y = torch.randn(5, 4, 2), torch.tensor([0, 1, 2, 0, 1])
product(Recurrent(), nn.CrossEntropyLoss(), [(x, y)], torch.ones(84))
""",
    "product_is_repeatable": _SETUP
    + """\
model = nn.Sequential(model[0], nn.Dropout(0.5), model[1], model[2]).train()
first, second = (product(model, nn.CrossEntropyLoss(), [(x, y)], v) for _ in range(2))
assert torch.allclose(first, second), f"the same product twice: {first.norm():.4f}, {second.norm():.4f}"
""",
    "measured_model_is_as_before": _SETUP
    + """\
model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh()).double().train()
before = model[1].running_mean.clone()
try:
    product(model, nn.CrossEntropyLoss(), [(x, y)], torch.ones(21).double())
except RuntimeError:
    pass  # a refusal would be fine
assert model.training and torch.equal(before, model[1].running_mean), "training mode or statistics are changed"
""",
    "ends_of_mixed_signs": _PLANTED
    + """\
torch.manual_seed(0)
found = largest(Planted(5.0, 1.0, 0.5, -5.0), nn.MSELoss(), data)
assert abs(abs(found) - 5) < 0.1, f"of 5, 1, 0.5, -5 the eigenvalue of largest magnitude is found as {found:.3f}"
""",
    "ends_of_clusters": _PLANTED
    + """\
torch.manual_seed(0)
found = largest(Planted(5.0, 4.95, 4.9, 1.0), nn.MSELoss(), data)
assert abs(found - 5) < 0.005, f"of 5, 4.95, 4.9, 1 the largest eigenvalue is found as {found:.3f}"
""",
    "density_has_mass_one": _PLANTED
    + """\
nodes, weights = density(Planted(3.0, 2.0, 1.0, -1.0), nn.MSELoss(), data)
assert abs(sum(map(float, weights[0])) - 1) < 1e-4, f"weights are {weights[0]}"
""",
}
BODIES["density_has_no_ghosts"] = BODIES["density_of_nothing"] = BODIES["density_has_mass_one"]
