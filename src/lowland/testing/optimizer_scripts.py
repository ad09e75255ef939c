"""What should be true of an optimizer, in lines that stand alone: the rules' scripts."""

from __future__ import annotations

from functools import partial
from typing import Final

from lowland.testing.scripts import joined

MODEL = """
model, x, y = torch.nn.Linear($inputs, $outputs), torch.randn($samples, $inputs), torch.randn($samples, $outputs)
"""
CLOSURE = """
def closure(): optimizer.zero_grad(); loss = (model(x) - y).square().mean(); loss.backward(); return loss
"""
_SEEN = """
seen, weights = [], lambda: torch.cat([p.detach().flatten() for p in model.parameters()])
def closure():
    optimizer.zero_grad(); seen.append(weights())
    loss = (model(x) - y).square().mean(); loss.backward(); return loss
"""


def bare(body: str, closure: str = "", model: str = MODEL, optimizer: str = "") -> str:
    """Return a script that makes its own optimizers; its closure notes places where they are read."""
    closure = closure or (_SEEN if "seen" in body else CLOSURE)
    return joined(model, optimizer and f"optimizer = make(model, model.parameters(), {optimizer})", closure, body)


still = partial(bare, optimizer="torch.optim.SGD, lr=0.0")
"""Return a script in which the base does nothing."""

moving = partial(bare, optimizer="$base")
"""Return a script in which the base trains."""


def _copied(how: str) -> str:
    return moving(f"""
ends, both = [], (model, optimizer)
for model, optimizer in (both, {how}):
    for _ in range($steps): step(optimizer, closure)
    ends.append(model.weight.detach().clone())
assert torch.equal(*ends), f"a copy ends {{(ends[0] - ends[1]).abs().max():.1e}} away"
""")


SCRIPTS: Final[dict[str, str]] = {
    "one_norm_over_groups": bare("""
optimizer = make(model, [{"params": [p]} for p in model.parameters()], torch.optim.SGD, lr=0.1)
step(optimizer, closure)
length = (seen[1] - seen[0]).norm()
assert abs(length - $rho) < 1e-4 * $rho, f"with a group for each tensor the move has length {length:.4f}, not $rho"
"""),
    "scale_of_loss_cancels": moving("""
step(optimizer, closure)
length = (seen[1] - seen[0]).norm()
assert abs(length - $rho) < 1e-2 * $rho, f"with the loss times 2^-20 the move has length {length:.2g}, not $rho"
""").replace("loss = (", "loss = 2**-20 * ("),
    "weight_decay_stays_outside": bare("""
for decay in (0.0, 0.5):
    optimizer = make(model, model.parameters(), torch.optim.SGD, lr=0.0, weight_decay=decay)
    step(optimizer, closure)
gap = (seen[1] - seen[-1]).norm()
assert gap < 1e-6, f"with decay 0.5 the second pass is {gap:.2g} away from where it is without"
"""),
    "step_is_the_formula": moving("""
before, w = model.weight.detach().clone(), model.weight
closure()
with torch.no_grad(): w.add_($rho * w.grad / w.grad.norm())
closure()
with torch.no_grad(): wanted = before - 0.1 * w.grad; w.copy_(before)
step(optimizer, closure)
gap = (w - wanted).abs().max()
assert gap < 1e-6, f"after one step the weights are {gap:.2g} away from algorithm 1 of Foret et al. 2021"
""")
    .replace("$base", "torch.optim.SGD, lr=0.1")
    .replace("$outputs)", "$outputs, bias=False)", 1),
    "weights_come_back": still("""
model, x, y = model.to($dtype), x.to($dtype), y.to($dtype)
optimizer = make(model, model.parameters(), torch.optim.SGD, lr=0.0)
before = model.weight.detach().clone()
for _ in range($steps): step(optimizer, closure)
assert torch.equal(model.weight, before), f"steps of rate 0 move by {(model.weight - before).abs().max():.1e}"
""").replace("optimizer = make(model, model.parameters(), torch.optim.SGD, lr=0.0)\n", "", 1),
    "weights_stay_in_place": moving("""
before = model.weight.data_ptr()
for _ in range($steps): step(optimizer, closure)
assert model.weight.data_ptr() == before, "the parameter has another storage"
"""),
    "unused_in_second_pass": still("""
before, calls = model.bias.detach().clone(), []
def second_without():
    loss = closure(); calls.append(1)
    if len(calls) > 1: model.bias.grad = None
    return loss
step(optimizer, second_without)
gap = (model.bias - before).norm()
assert gap < 1e-6, f"a parameter without a second gradient stays {gap:.2g} away"
"""),
    "unused_in_both_passes": still("""
step(optimizer, closure)
before = model.bias.detach().clone()
def without(): loss = closure(); model.bias.grad = None; return loss
for _ in range($steps): step(optimizer, without)
gap = (model.bias - before).norm()
assert gap == 0, f"a parameter without gradients moves by {gap:.2g}"
"""),
    "nothing_to_train": moving("""
before = model.weight.detach().clone()
def empty(): loss = closure(); model.zero_grad(); return loss
step(optimizer, empty)
assert torch.equal(model.weight, before), "weights changed without any gradient"
"""),
    "zero_gradient": moving("""
before = model.weight.detach().clone()
def zero(): loss = closure(); model.zero_grad(set_to_none=False); return loss
step(optimizer, zero)
assert all(place.isfinite().all() for place in seen), "the second pass is run at NaN"
assert torch.equal(model.weight, before), "zero gradients changed the weights"
"""),
    "infinity_in_first_pass": still("""
before, calls = model.weight.detach().clone(), []
def spoiled():
    loss = closure(); calls.append(1)
    for p in model.parameters(): p.grad.fill_(float("inf") if len(calls) == 1 else 0.5)
    return loss
step(optimizer, spoiled)
assert torch.equal(model.weight, before), f"an infinite first gradient leaves {model.weight[0, 0]:.3g} in the weights"
"""),
    "failure_in_second_pass": still("""
before, calls = model.weight.detach().clone(), []
def failing():
    calls.append(1)
    if len(calls) > 1: raise MemoryError
    return closure()
try: step(optimizer, failing)
except MemoryError: pass
assert torch.equal(model.weight, before), f"weights stay {(model.weight - before).norm():.2g} away"
"""),
    "missing_pass_is_an_error": moving("""
before, silent = model.weight.detach().clone(), True
closure()
try: optimizer.step()
except Exception: silent = False
assert not silent, "step() without a second pass goes on silently"
assert torch.equal(model.weight, before), "the error comes after the weights were changed"
"""),
    "closure_comes_first": moving("""
for _ in range($steps):
    before, _ = weights(), seen.clear()
    optimizer.step(closure)
    gap = (seen[0] - before).norm()
    assert gap == 0, f"the first call of the closure finds weights that are {gap:.2g} away"
"""),
    "loss_is_returned": moving("""
for _ in range($steps):
    wanted, found = float((model(x) - y).square().mean()), step(optimizer, closure)
    assert found is not None, "a step returns None"
    assert abs(float(found) - wanted) < 1e-6, f"returns {float(found):.6g}, the loss is {wanted:.6g}"
"""),
    "passes_as_defined": moving("""
for _ in range($steps): step(optimizer, closure)
assert len(seen) == $passes, f"{len(seen)} passes in $steps steps; the method needs $passes"
"""),
    "batch_norm_counts_once": moving(
        """
twin = copy.deepcopy(model)
twin(x), step(optimizer, closure)
gap = max((a.float() - b.float()).abs().max() for a, b in zip(model.buffers(), twin.buffers()))
assert gap == 0, f"after a step the statistics are {gap:.2g} away from those of one pass"
""",
        model=MODEL.replace("torch.nn.Linear($inputs, $outputs)", "torch.nn.BatchNorm1d($inputs)").replace(
            "$samples, $outputs", "$samples, 1"
        ),
    ),
    "accumulated_step_is_a_large_batch": moving("""
twin, losses = copy.deepcopy(model), [lambda k=k: (model(x) - y)[k::2].square().mean() / 2 for k in (0, 1)]
step(optimizer, closure)
whole, model = model.weight, twin
optimizer = make(model, model.parameters(), $base)
accumulated_step(optimizer, losses)
gap = (model.weight - whole).abs().max()
assert gap < 1e-5, f"after one step the weights are {gap:.2g} away from those of the whole batch"
""").replace("$samples", "2 * $samples"),
    "new_group_is_trained": moving(
        """
optimizer.add_param_group({"params": list(head.parameters())})
before = head.weight.detach().clone()
for _ in range($steps): step(optimizer, closure)
assert not torch.equal(head.weight, before), "the added parameters are not trained"
""",
        CLOSURE.replace("model(x)", "head(model(x))"),
        MODEL + "head = torch.nn.Linear($outputs, $outputs)\n",
    ),
    "is_an_optimizer": moving("""
assert isinstance(optimizer, torch.optim.Optimizer), "not a torch.optim.Optimizer"
calls = []
optimizer.register_step_pre_hook(lambda *_: calls.append(0))
optimizer.register_step_post_hook(lambda *_: calls.append(1))
step(optimizer, closure)
assert calls == [0, 1], f"hooks ran {calls} in one step"
"""),
    "scheduler_attaches": moving("""
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch else 1.0)
step(optimizer, closure), scheduler.step()
before = model.weight.detach().clone()
step(optimizer, closure)
gap = (model.weight - before).norm()
assert gap == 0, f"with the rate scheduled to 0 a step moves the weights by {gap:.2g}"
"""),
    "resumes_at_every_step": moving("""
for _ in range($steps): step(optimizer, closure)
saved, ends = copy.deepcopy((model.state_dict(), optimizer.state_dict())), []
for _ in range(9): step(optimizer, closure)
whole, model = model.weight.detach().clone(), torch.nn.Linear($inputs, $outputs)
optimizer = make(model, model.parameters(), $base)
model.load_state_dict(saved[0]), optimizer.load_state_dict(saved[1])
for _ in range(9): step(optimizer, closure)
assert torch.equal(model.weight, whole), f"resumed, it ends {(model.weight - whole).abs().max():.1e} away"
"""),
    "deep_copy_goes_on": _copied("copy.deepcopy(both)"),
    "pickle_goes_on": _copied("pickle.loads(pickle.dumps(both))"),
    "layer_used_later": moving(
        """
for _ in range($steps): step(optimizer, closure)
late, before = True, model[1].weight.detach().clone()
for _ in range($steps): step(optimizer, closure)
assert not torch.equal(model[1].weight, before), "the layer that is used later is not trained"
""",
        CLOSURE.replace("model(x)", "(model if late else model[0])(x)"),
        "late, model = False, torch.nn.Sequential(torch.nn.Linear($inputs, $outputs), torch.nn.Linear($outputs, 1))\n"
        "x, y = torch.randn($samples, $inputs), torch.randn($samples, 1)\n",
    ),
    "grad_scaler_changes_nothing": moving("""
start, scaler, loss = copy.deepcopy(model), torch.amp.GradScaler("cpu"), lambda: (model(x) - y).square().mean()
step(optimizer, closure)
plain, model = model.weight, start
optimizer = make(model, model.parameters(), $base)
scaled_step(optimizer, scaler, loss)
gap = (model.weight - plain).abs().max()
assert gap < 1e-5, f"after one step the weights with GradScaler are {gap:.2g} away from those without"
"""),
    "grad_scaler_skips_overflow": moving("""
before, scaler = model.weight.detach().clone(), torch.amp.GradScaler("cpu")
scaled_step(optimizer, scaler, lambda: float("inf") * (model(x) - y).square().mean())
assert torch.equal(model.weight, before), f"an overflowing step leaves {model.weight[0, 0]:.3g} in the weights"
""").replace(CLOSURE[1:], ""),
}
