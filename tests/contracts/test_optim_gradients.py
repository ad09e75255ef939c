"""Gradients that are somebody else's: kept by the user, or sparse in a group that no ascent moves."""

import pytest
import torch
from tests.optim_cases import AROUND, METHODS, TWO_PASS
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError

loss_of = nn.CrossEntropyLoss()


def holder_of(gradient):
    other = nn.Parameter(torch.zeros_like(gradient))
    other.grad = gradient
    return other


KEEPING = {
    "itself": lambda gradient: gradient,
    "a view": lambda gradient: gradient.view(-1),
    "a row": lambda gradient: gradient[0],
    "detached": lambda gradient: gradient.detach(),
    "numpy": lambda gradient: gradient.numpy(),
    "by dlpack": torch.from_dlpack,
    "storage": lambda gradient: gradient.untyped_storage(),
    "another's gradient": holder_of,
    "in a container": lambda gradient: {"gradients": [gradient]},
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(count=6):
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(count)
    ]


def run(name, around=None, keep=None, dtype=torch.float32, **options):
    """Train, and compare what was kept of gradients with what it was; return the bits of the weights."""
    model = network(dtype)
    optimizer = METHODS[name](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model=model, **options)
    optimizer = optimizer if around is None else AROUND[around](optimizer)
    kept, copies = [], []
    for x, y in batches():
        optimizer.zero_grad()
        loss_of(model(x.to(dtype)), y).backward()
        for p in model.parameters() if keep else ():
            copies.append(p.grad.clone())
            kept.append(keep(p.grad))
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                loss_of(model(x.to(dtype)), y).backward()
                for p in model.parameters() if keep else ():
                    copies.append(p.grad.clone())
                    kept.append(keep(p.grad))
            check(kept, copies)
        optimizer.step()
        check(kept, copies)
        kept, copies = [], []
    return [p.detach() for p in model.parameters()]


def check(kept, copies):
    for what, copy in zip(kept, copies, strict=False):
        assert same_bits([seen(what, copy)], [copy])


def seen(what, copy):
    """Return the gradient that somebody sees through what was kept."""
    if isinstance(what, dict):
        what = what["gradients"][0]
    if isinstance(what, nn.Parameter):
        what = what.grad
    if isinstance(what, torch.UntypedStorage):
        return torch.empty(0, dtype=copy.dtype).set_(what, 0, copy.shape)
    what = torch.as_tensor(what)
    return torch.cat([what.reshape(-1), copy.reshape(-1)[what.numel() :]]).view_as(copy)


@pytest.mark.parametrize("name", TWO_PASS)
@pytest.mark.parametrize("how", list(KEEPING))
def test_gradients_of_either_pass_that_somebody_keeps_stay_and_change_no_bit_of_training(name, how):
    assert same_bits(run(name), run(name, keep=KEEPING[how]))


@pytest.mark.parametrize("name", TWO_PASS)
@pytest.mark.parametrize(
    "options", [{"dtype": torch.float64}, {"norm": "tensor"}, {"weight_decay": "included"}, {"around": "EMA"}]
)
def test_whatever_the_options(name, options):
    assert same_bits(run(name, **options), run(name, keep=KEEPING["a view"], **options))


@pytest.mark.parametrize("name", TWO_PASS)
def test_gradients_of_earlier_micro_batches_that_somebody_keeps_stay(name):
    ends = []
    for keep in (False, True):
        model, kept = network(), []
        optimizer = METHODS[name](torch.optim.SGD(model.parameters(), lr=0.1), ascent="micro-batch")
        for first, second in zip(batches()[::2], batches()[1::2], strict=True):
            optimizer.zero_grad()
            for x, y in (first, second):
                with optimizer.first_pass():
                    loss_of(model(x), y).backward()
                kept += [(p.grad, p.grad.clone()) for p in model.parameters()] if keep else []
                if optimizer.needs_perturbation():
                    with optimizer.perturb():
                        loss_of(model(x), y).backward()
                    assert all(same_bits([now], [then]) for now, then in kept)
                kept = []
            optimizer.step()
        ends.append(list(model.parameters()))
    assert same_bits(*ends)


@pytest.mark.parametrize("name", TWO_PASS)
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("closure", [True, False])
def test_nothing_is_copied_where_nobody_keeps_a_gradient(name, set_to_none, closure, monkeypatch):
    model, copies = network(), []
    optimizer = METHODS[name](torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda tensor, **_: copies.append(tensor) or torch.empty_like(tensor).copy_(tensor)
    )
    for x, y in batches():

        def backward(x=x, y=y):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(model(x), y).backward()

        if closure:
            optimizer.step(backward)
            continue
        backward()
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                backward()
        optimizer.step()
    assert not copies


class Words(nn.Module):
    """A table with sparse gradients, and dense layers after it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(10, 6, sparse=True), network()

    def forward(self, words):
        return self.head(self.table(words).mean(1))


def words(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 10, (8, 3), generator=generator), torch.randint(0, 3, (8,), generator=generator)


@pytest.mark.parametrize("around", [None, "EMA", "Lookahead"])
@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
@pytest.mark.parametrize("name", TWO_PASS)
def test_sparse_gradients_in_a_group_without_ascent(name, ascent, around):
    """The table's step is that of a dense table, whatever the method does with the others' gradients."""
    if around == "Lookahead" and name == "SALA":
        pytest.skip("slow weights already")
    ends = []
    for sparse in (True, False):
        model = Words()
        model.table.sparse = sparse
        groups = [{"params": model.table.parameters(), "rho": 0.0}, {"params": model.head.parameters()}]
        optimizer = METHODS[name](torch.optim.SGD(groups, lr=0.1), ascent=ascent)
        optimizer = optimizer if around is None else AROUND[around](optimizer)
        for step in range(6):
            optimizer.zero_grad()
            for micro in range(2):
                x, y = words(2 * step + micro)
                with optimizer.first_pass():
                    loss_of(model(x), y).backward()
                if ascent == "step" and micro == 0:
                    continue
                if optimizer.needs_perturbation():
                    with optimizer.perturb():
                        for again in (0, 1) if ascent == "step" else (micro,):
                            x, y = words(2 * step + again)
                            loss_of(model(x), y).backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    if name in ("SAM", "ASAM", "SALA", "LateSAM"):  # the others combine both gradients of dense tables
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*ends, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in ends[0])


def test_sparse_gradients_of_what_an_ascent_moves_are_refused():
    model = Words()
    optimizer = optim.GSAM(torch.optim.SGD(model.parameters(), lr=0.1))
    before = [p.clone() for p in model.parameters()]
    x, y = words(0)
    loss_of(model(x), y).backward()
    with pytest.raises(InputError, match="sparse=False"), optimizer.perturb():
        pass
    assert same_bits(before, list(model.parameters()))
