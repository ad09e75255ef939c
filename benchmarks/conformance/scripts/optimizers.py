"""Scripts of sharpness-aware optimizers: how each is called, and what should be true."""

from __future__ import annotations

from typing import Final

PRELUDES: Final[dict[str, str]] = {
    "pytorch_optimizer SAM": """\
import copy, pickle, torch
from torch import nn
from pytorch_optimizer import SAM

def make(model): return SAM(model.parameters(), torch.optim.SGD, lr=0.0)
def step(optimizer, closure): closure(); optimizer.step(closure)  # as documented
""",
    "pytorch_optimizer LookSAM": """\
import copy, pickle, torch
from torch import nn
from pytorch_optimizer import LookSAM

def make(model): return LookSAM(model.parameters(), torch.optim.SGD, k=5, lr=0.0)
def step(optimizer, closure): closure(); optimizer.step(closure)  # as documented
""",
    "pytorch_optimizer FriendlySAM": """\
import copy, pickle, torch
from torch import nn
from pytorch_optimizer import FriendlySAM

def make(model): return FriendlySAM(model.parameters(), torch.optim.SGD, lr=0.0)
def step(optimizer, closure): closure(); optimizer.step(closure)  # as documented
""",
    "pytorch_optimizer WSAM": """\
import copy, pickle, torch
from torch import nn
from pytorch_optimizer import WSAM

def make(model): return WSAM(model, model.parameters(), torch.optim.SGD, lr=0.0)
def step(optimizer, closure): optimizer.step(closure)
""",
}

_STEP = """\

torch.manual_seed(0)
model = nn.Linear(4, 3)
x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
optimizer, passes = make(model), []

def closure():
    optimizer.zero_grad()
    passes.append(nn.functional.cross_entropy(model(x), y))
    passes[-1].backward()
    return passes[-1]

"""


BODIES: Final[dict[str, str]] = {
    "weights_come_back": _STEP
    + """\
before = model.weight.detach().clone()
for _ in range(10):
    step(optimizer, closure)  # the learning rate is 0
assert torch.equal(model.weight, before), f"weights moved by {(model.weight - before).abs().max():.1e}"
""",
    "infinity_in_first_pass": _STEP
    + """\
before, calls = model.weight.detach().clone(), []
def spoiled():
    closure()
    calls.append(1)
    model.weight.grad.fill_(float("inf") if len(calls) == 1 else 0.5)
    return torch.tensor(1.0)
step(optimizer, spoiled)  # the learning rate is 0
assert torch.isfinite(model.weight).all(), "weights are NaN"
""",
    "failure_in_second_pass": _STEP
    + """\
before = model.weight.detach().clone()
def failing():
    if passes:
        raise MemoryError
    return closure()
try:
    step(optimizer, failing)
except MemoryError:
    pass
assert torch.equal(model.weight, before), f"weights stay {(model.weight - before).norm():.3f} away"
""",
    "batch_norm_counts_once": """\

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
optimizer = make(model)
def closure():
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss
step(optimizer, closure)
assert model[1].num_batches_tracked == 1, f"one step counted {model[1].num_batches_tracked} batches"
""",
    "new_group_is_trained": _STEP
    + """\
head = nn.Linear(3, 3)
optimizer.add_param_group({"params": head.parameters()})
step(optimizer, closure)
""",
    "deep_copy_goes_on": _STEP + "model, optimizer = copy.deepcopy((model, optimizer))\nstep(optimizer, closure)\n",
    "pickle_goes_on": _STEP
    + "model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))\nstep(optimizer, closure)\n",
    "passes_as_defined": _STEP
    + """\
for _ in range(20):
    step(optimizer, closure)
assert len(passes) == 20 + 4, f"{len(passes)} passes in 20 steps; with k=5 it should be 24"
""",
}
