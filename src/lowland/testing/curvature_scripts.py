"""What should be true of a curvature tool, in lines that stand alone: the rules' scripts.

The Hessian of a linear model's mean squared error is known, and so is that of a model which is a quadratic form of its
weights.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from lowland.testing.scripts import joined

_LINEAR = """
model, x, y = torch.nn.Linear($inputs, 1, bias=False), torch.randn($samples, $inputs), torch.randn($samples, 1)
model, x, y = model.double().eval(), x.double(), y.double()
loss, v, wanted = torch.nn.MSELoss(), torch.ones($inputs).double(), lambda v: 2 * x.T @ (x @ v) / $samples
"""
_CLASSES = """
model = torch.nn.Sequential(torch.nn.Linear($inputs, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double().eval()
x, y = torch.randn($samples + 1, $inputs).double(), torch.arange($samples + 1) % 3
v = torch.ones(3 * $inputs + 15).double()
"""
_BATCHES = """
whole = product(model, loss, [(x, y)], v)
parts = product(model, loss, [(x[:$samples], y[:$samples]), (x[$samples:], y[$samples:])], v)
gap = float((whole - parts).norm() / whole.norm())
assert gap < 1e-4, f"batches of $samples and 1 give a product {gap:.1%} away from that of one batch"
"""
_GAP = """
gap = float((found - wanted(v)).norm() / wanted(v).norm())
"""
_FOUND = "found = product(model, loss, [(x, y)], v)"
_EXACT = 'assert gap < 1e-5, f"the product is {gap:.1%} away from the exact one"'


_on_linear = partial(joined, _LINEAR)
_on_classes = partial(joined, _CLASSES)


def _planted(eigenvalues: str, *body: str) -> str:
    """Return a script about a model whose Hessian has given eigenvalues."""
    return joined(
        f"""
a = torch.tensor({eigenvalues}).double()
q = torch.linalg.qr(torch.randn(len(a), len(a)).double())[0]
data = [(torch.ones(2, 1).double(), torch.full((2, 1), -0.5).double())]
class Planted(torch.nn.Module):  # the Hessian of its mean squared error at w = 0 has the eigenvalues a
    def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros_like(a))
    def forward(self, x): return ((q.to(self.w) @ self.w) ** 2 * a.to(self.w)).sum() / 2 + 0 * x
""",
        *body,
    )


def _ends(eigenvalues: str, tolerance: float = 0.02) -> str:
    return _planted(
        eigenvalues,
        f"""
low, high = ends(Planted().eval(), torch.nn.MSELoss(), data)
for end, found, exact in (("smallest", low, a.min()), ("largest", high, a.max())):
    gap = 0 if found is None else abs(found - exact)
    assert gap <= {tolerance} * a.abs().max(), f"the {{end}} eigenvalue comes out as {{found:.4g}}, it is {{exact:.4g}}"
""",
    )


_on_spectrum = partial(_planted, "[8.0, 5.0, 3.0, -2.0, *torch.linspace(-0.5, 0.9, 60).tolist()]")


def _density(eigenvalues: str, check: str) -> str:
    return _planted(
        eigenvalues,
        f"""
for nodes, weights in density(Planted().eval(), torch.nn.MSELoss(), data, seed=0):
    nodes, weights = torch.as_tensor(nodes), torch.as_tensor(weights)
    assert nodes.shape == weights.shape, f"{{tuple(nodes.shape)}} nodes have {{tuple(weights.shape)}} weights"
    {check}
""",
    )


_PRODUCTS: Final = {
    "product_is_exact": _on_linear(_FOUND, _GAP, _EXACT),
    "ragged_batches": joined(_CLASSES, "loss = torch.nn.CrossEntropyLoss()", _BATCHES),
    "sum_reduction": joined(_CLASSES, 'loss = torch.nn.CrossEntropyLoss(reduction="sum")', _BATCHES),
    "weights_of_samples": joined(
        _CLASSES, "loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]).double())", _BATCHES
    ),
    "plain_function_as_loss": _on_classes("""
losses = torch.nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy
wanted, found = (product(model, loss, [(x, y)], v) for loss in losses)
assert torch.allclose(wanted, found), "a function as the loss gives another product than the module"
"""),
    "unused_parameter": _on_linear("""
model.spare = torch.nn.Parameter(torch.ones(2).double())
found = product(model, loss, [(x, y)], torch.ones($inputs + 2).double())
assert found.shape == ($inputs + 2,) and (found[-2:] == 0).all(), f"the product is {found.tolist()}"
"""),
    "loss_without_curvature": _on_linear("""
class Mean(torch.nn.MSELoss):
    def forward(self, output, target): return output.mean(1) if self.reduction == "none" else output.mean()
found = product(model, Mean(), [(x, y)], v)
assert found.abs().max() < 1e-9, f"the product with a loss that is linear is {found.tolist()}, not 0"
"""),
    "tied_weights_count_once": joined(
        """
class Tied(torch.nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes, bias=False); self.twin = torch.nn.Linear(*sizes, bias=False)
        self.twin.weight = self.weight
    def forward(self, x): return super().forward(x) + self.twin(x)
""",
        _LINEAR.replace("torch.nn.Linear($inputs, 1, bias=False)", "Tied($inputs, 1)").replace("2 * x.T", "8 * x.T"),
        _FOUND,
        'assert found.shape == v.shape, f"$inputs shared weights give a product of {len(found)} entries"',
        _GAP,
        _EXACT,
    ),
    "fused_attention": joined("""
class Attention(torch.nn.Linear):
    def forward(self, x):
        z = super().forward(x)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(z, z, z).mean((1, 2))
model, x, y = Attention($inputs, 3).eval(), torch.randn($samples, 3, $inputs), torch.arange($samples) % 3
found = product(model, torch.nn.CrossEntropyLoss(), [(x, y)], torch.ones(3 * $inputs + 3))
assert found.norm() > 0, "the product with a network with attention is 0"
"""),
    "recurrent_layers": joined("""
class Last(torch.nn.LSTM):
    def forward(self, x): return super().forward(x)[0][:, -1]
model, x, y = Last($inputs, 3, batch_first=True).eval(), torch.randn($samples, 3, $inputs), torch.arange($samples) % 3
found = product(model, torch.nn.CrossEntropyLoss(), [(x, y)], torch.ones(sum(p.numel() for p in model.parameters())))
assert found.norm() > 0, "the product with an LSTM is 0"
"""),
    "product_is_repeatable": _on_classes("""
model = torch.nn.Sequential(model[0], torch.nn.Dropout(0.5), model[1], model[2]).train()
try: first, second = (product(model, torch.nn.CrossEntropyLoss(), [(x, y)], v) for _ in range(2))
except RuntimeError as error: first = second = v; assert "determin" in str(error).lower(), error  # a refusal is right
gap = float((first - second).norm() / first.norm())
assert gap < 1e-6, f"two products with one vector differ by {gap:.0%}"
"""),
    "measured_model_is_as_before": _on_classes("""
model = torch.nn.Sequential(torch.nn.Linear($inputs, 3), torch.nn.BatchNorm1d(3), torch.nn.Tanh()).double().train()
loss, v = torch.nn.CrossEntropyLoss(), v[: 3 * $inputs + 9]
loss(model(x), y).backward()
tensors = (*model.buffers(), *(t for p in model.parameters() for t in (p, p.grad)))
read = lambda: torch.cat([t.detach().flatten() for t in tensors])
before = read()
try: product(model, loss, [(x, y)], v)
except RuntimeError: pass  # a refusal is right
assert torch.equal(read(), before) and model[1].training, "weights, statistics, gradients or the mode are changed"
""").replace(_CLASSES.strip("\n").splitlines()[0] + "\n", ""),
}

_ESTIMATES: Final = {
    "ends_of_mixed_signs": _ends("[5.0, 1.0, 0.5, -5.0]"),
    "ends_of_clusters": _ends("[5.0, 4.95, 4.9, 1.0]", 0.001),
    "smallest_of_definite": _ends("[5.0, 4.0, 3.0, 2.0, 1.0]"),
    "largest_of_negative": _ends("[-5.0, -3.0, -1.0, -0.5]"),
    "ends_of_low_rank": _ends("[3.0] + [0.0] * 39"),
    "ends_of_nothing": _ends("[0.0] * 6"),
    "trace_is_near": _on_spectrum("""
found = [trace(Planted().eval(), torch.nn.MSELoss(), data, seed=seed)[0] for seed in range(20)]
worst = max(found, key=lambda value: abs(value - 26))
assert abs(worst - 26) < 6.5, f"the trace is 26; twenty seeds give up to {worst:.3g}"
"""),
    "trace_states_its_error": _on_spectrum("""
found = [trace(Planted().eval(), torch.nn.MSELoss(), data, seed=seed) for seed in range(20)]
beyond = sum(abs(value - 26) > 2 * error for value, error in found)
assert beyond <= 5, f"{beyond} of 20 traces are more than two standard errors away"
"""),
    "density_has_mass_one": _density(
        "[3.0, 2.0, 1.0, -1.0]",
        'assert abs(weights.sum() - 1) < 1e-4 and weights.min() > -1e-6, f"weights sum to {weights.sum():.4g}"',
    ),
    "density_has_no_ghosts": _density(
        "[4.0] * 10 + [1.0] * 20 + [-1.0] * 10",
        'assert (weights > 1e-5).sum() == 3, f"nodes that carry weight: {nodes[weights > 1e-5].tolist()[:8]}"',
    ),
    "density_of_nothing": _density(
        "[0.0] * 12", 'assert nodes.isfinite().all() and weights.isfinite().all(), f"nodes are {nodes.tolist()[:8]}"'
    ),
}

_INPUTS: Final = {
    "product_keeps_precision": _on_linear(
        _FOUND,
        _GAP,
        'assert found.dtype == v.dtype and gap < 1e-12, f"in float64 the product is {found.dtype} and {gap:.1e} off"',
    ),
    "wrong_length_is_refused": _on_linear("""
for length in ($inputs + 1, $inputs - 1):
    try: found = product(model, loss, [(x, y)], torch.ones(length).double())
    except Exception: found = None
    assert found is None, f"a vector of {length} entries is taken for $inputs weights: {found.tolist()}"
"""),
    "no_data_is_refused": _on_linear("""
try: found = product(model, loss, [], v)
except Exception: found = None
assert found is None, f"without data the product is {found}"
"""),
    "product_ignores_surroundings": _on_linear("""
plain = product(model, loss, [(x, y)], v)
with $around:
    try: found = product(model, loss, [(x, y)], v)
    except RuntimeError: found = plain if "inference" in "$around" else None  # a refusal is right there
gap = (found - plain).abs().max()
assert gap < 1e-12, f"under $around the product is {gap:.2g} away"
"""),
    "product_leaves_surroundings": _on_linear("""
read = lambda: (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
                torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(), random.getstate())
def failing(output, target): return 1 / 0
for criterion in (loss, failing):
    with torch.no_grad():
        before = read()
        try: product(model, criterion, [(x, y)], v)
        except ZeroDivisionError: pass
        assert read() == before, "a product changes grad mode, the default dtype, threads, a flag or a random state"
"""),
    "vector_and_data_are_left_alone": _on_linear("""
before = x.clone(), y.clone(), v.clone()
product(model, loss, [(x, y)], v)
same = [torch.equal(*pair) for pair in zip((x, y, v), before)]
assert all(same), f"a product changed its inputs; x, y and the vector are as before: {same}"
"""),
    "products_are_their_own": _on_linear("""
first = product(model, loss, [(x, y)], v)
kept = first.clone()
product(model, loss, [(x, y)], -v)
assert torch.equal(first, kept), "the next product changed the one before"
first.add_(1)
assert torch.equal(product(model, loss, [(x, y)], v), kept), "what is written to one product is in the next, or in v"
"""),
    "product_follows_its_inputs": _on_classes("""
loss = torch.nn.CrossEntropyLoss()
product(model, loss, [(x, y)], v)
if "$other" == "loss": loss = torch.nn.CrossEntropyLoss(label_smoothing=0.5)
if "$other" == "data": x.add_(1)
if "$other" == "weights": model[0].weight.data.add_(0.3)
found, wanted = (product(one, loss, [(x, y)], v) for one in (model, copy.deepcopy(model)))
gap = float((found - wanted).norm() / wanted.norm())
assert gap < 1e-9, f"with other $other the product is {gap:.1%} away from that of a copy of the model"
"""),
}

SCRIPTS: Final[dict[str, str]] = _PRODUCTS | _ESTIMATES | _INPUTS
