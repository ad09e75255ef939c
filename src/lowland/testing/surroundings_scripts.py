"""What should be true of an optimizer beside its steps: scripts of ambient state, storage and averages."""

from __future__ import annotations

from functools import partial
from typing import Final

from lowland.testing.optimizer_scripts import MODEL, bare, moving, still
from lowland.testing.scripts import joined

_on_model = partial(joined, MODEL)

_SURROUNDINGS: Final = {
    "groups_take_generators": bare("""
optimizer = make(model, [{"params": (p for p in model.parameters())}], $base)
before = model.weight.detach().clone()
for _ in range($steps): step(optimizer, closure)
assert not torch.equal(model.weight, before), "parameters that come from a generator are not trained"
"""),
    "step_ignores_surroundings": _on_model("""
def closure():
    optimizer.zero_grad()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        loss = (model(x) - y).square().mean(); loss.backward(); return loss
both, start = [], copy.deepcopy(model)
for around in (torch.enable_grad(), $around):
    model = copy.deepcopy(start); optimizer = make(model, model.parameters(), torch.optim.SGD, lr=0.1)
    with around: step(optimizer, closure)
    both.append(model.weight.detach())
assert torch.equal(*both), f"under $around a step ends {(both[0] - both[1]).abs().max():.1e} away"
"""),
    "step_leaves_surroundings": moving("""
read = lambda: (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled())
before, calls = read(), []
def failing(): calls.append(1); return closure() if len(calls) < 4 else 1 / 0  # in the second step's second pass
for _ in range(2):
    try: step(optimizer, failing)
    except ZeroDivisionError: pass
    assert read() == before, "a step changes grad mode, the default dtype, threads or a flag"
"""),
    "gradients_may_keep_their_storage": _on_model("""
def closure():
    optimizer.zero_grad(set_to_none=clear); loss = (model(x) - y).square().mean(); loss.backward(); return loss
ends, start = [], copy.deepcopy(model)
for clear in (True, False):
    model = copy.deepcopy(start); optimizer = make(model, model.parameters(), torch.optim.SGD, lr=0.1)
    for _ in range($steps): step(optimizer, closure)
    ends.append(model.weight.detach())
assert torch.allclose(*ends), f"with gradients cleared in place it ends {(ends[0] - ends[1]).abs().max():.1e} away"
"""),
    "optimizers_are_independent": bare("""
models = [copy.deepcopy(model) for _ in range(3)]
each = [(one, make(one, one.parameters(), $base)) for one in models]
for model, optimizer in each[:1] * $steps + each[1:] * $steps: step(optimizer, closure)
alone, beside = models[0].weight, models[1].weight
assert torch.equal(alone, beside), f"beside another one it ends {(alone - beside).abs().max():.1e} away"
"""),
}
_AVERAGES: Final = {
    "average_of_constant_weights": still("""
for _ in range($steps):
    step(optimizer, closure)
    with averaged(model, optimizer): gap = (model.weight - before).abs().max()
    assert gap < 1e-6, f"the average of weights that never changed is {gap:.2g} away from them"
""").replace("for _ in", "before = model.weight.detach().clone()\nfor _ in", 1),
    "evaluation_leaves_training": bare("""
ends, start = [], copy.deepcopy(model)
for evaluating in (False, True):
    model = copy.deepcopy(start); optimizer = make(model, model.parameters(), $base)
    for _ in range($steps):
        step(optimizer, closure)
        with averaged(model, optimizer) if evaluating else torch.enable_grad(): pass
    ends.append(model.weight.detach())
assert torch.equal(*ends), f"evaluated between steps, it ends {(ends[0] - ends[1]).abs().max():.1e} away"
"""),
    "evaluation_ends_after_failure": moving("""
for _ in range($steps): step(optimizer, closure)
before = model.weight.detach().clone()
try:
    with averaged(model, optimizer): 1 / 0
except ZeroDivisionError: pass
gap = (model.weight - before).abs().max()
assert gap == 0, f"after an exception during evaluation the weights stay {gap:.2g} away"
"""),
    "loaded_average_is_a_copy": moving("""
for _ in range($steps): step(optimizer, closure)
with averaged(model, optimizer): first, before = (model, optimizer), model.weight.detach().clone()
model = torch.nn.Linear($inputs, $outputs); optimizer = make(model, model.parameters(), $base)
model.load_state_dict(first[0].state_dict()), optimizer.load_state_dict(first[1].state_dict())
for _ in range($steps): step(optimizer, closure)
with averaged(*first): gap = (first[0].weight - before).abs().max()
assert gap == 0, f"a second model that goes on from the state moves the first one's average by {gap:.2g}"
"""),
    "saved_while_evaluating": moving("""
for _ in range($steps): step(optimizer, closure)
before = model.weight.detach().clone()
with averaged(model, optimizer): saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
model = torch.nn.Linear($inputs, $outputs); optimizer = make(model, model.parameters(), $base)
model.load_state_dict(saved[0]), optimizer.load_state_dict(saved[1])
with averaged(model, optimizer): pass
gap = (model.weight - before).abs().max()
assert gap < 1e-5, f"saved during evaluation and loaded, what is trained is {gap:.2g} away from what was"
"""),
    "average_is_resumed": moving("""
for _ in range($steps): step(optimizer, closure)
saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
with averaged(model, optimizer): wanted = model.weight.detach().clone()
model = torch.nn.Linear($inputs, $outputs); optimizer = make(model, model.parameters(), $base)
model.load_state_dict(saved[0]), optimizer.load_state_dict(saved[1])
with averaged(model, optimizer): gap = (model.weight - wanted).abs().max()
assert gap == 0, f"the average of a loaded checkpoint is {gap:.2g} away from the one that was saved"
"""),
}

SCRIPTS: Final[dict[str, str]] = _SURROUNDINGS | _AVERAGES
