"""Each method against its slow twin: 50 steps in float64 on a small network with batch norm."""

import pytest
import torch
from tests.reference import sam as twins
from torch import nn

import lowland.optim as optim

RATES = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}, "adamw": {"lr": 0.01, "weight_decay": 1e-2}}
STEPS = 50
PAIRS = {
    "sam": (lambda base: optim.SAM(base, rho=0.05), lambda loop, step: twins.sam(loop, step, rho=0.05)),
    "asam": (lambda base: optim.ASAM(base), twins.asam),
    "asam everywhere": (
        lambda base: optim.ASAM(base, scaled="all", eta=0.0),
        lambda loop, step: twins.asam(loop, step, eta=0.0, everywhere=True),
    ),
    "gsam": (lambda base: optim.GSAM(base, rho=0.1, rho_min=0.02, alpha=0.4, rate_max=0.2), twins.gsam),
    "looksam": (lambda base: optim.LookSAM(base, period=4), twins.looksam),
    "fsam": (lambda base: optim.FSAM(base, rho=0.05), lambda loop, step: twins.fsam(loop, step, rho=0.05)),
    "fsam half": (
        lambda base: optim.FSAM(base, rho=0.05, sigma=0.5, decay=0.9),
        lambda loop, step: twins.fsam(loop, step, rho=0.05, sigma=0.5, decay=0.9),
    ),
    "wsam": (lambda base: optim.WSAM(base), twins.wsam),
    "wsam coupled": (
        lambda base: optim.WSAM(base, gamma=0.7, decoupled=False),
        lambda loop, step: twins.wsam(loop, step, gamma=0.7, decoupled=False),
    ),
    "late sam": (lambda base: optim.LateSAM(base, total=STEPS), twins.late_sam),
    "late sam root": (
        lambda base: optim.LateSAM(base, total=STEPS, share=0.6, decay="1-sqrt", floor=0.1),
        lambda loop, step: twins.late_sam(loop, step, share=0.6, decay=lambda done: 1 - done**0.5, floor=0.1),
    ),
    "swa in cycles": (
        lambda base: optim.SWA(base, start=20, interval=6, rates=(1.0, 0.2)),
        lambda loop, step: twins.swa_in_cycles(loop, step, 20, 6, 1.0, 0.2),
    ),
    # a small rho: at 3 this network is chaotic, and the last bits grow a thousandfold in 50 steps
    "msam": (lambda base: optim.MSAM(base, rho=0.3), lambda loop, step: twins.msam(loop, step, rho=0.3)),
    "lookahead": (lambda base: optim.Lookahead(base), twins.lookahead),
    "lookahead lazy": (
        lambda base: optim.Lookahead(base, slow_weights="lazy"),
        lambda loop, step: twins.lookahead(loop, step, lazy=True),
    ),
    "sala": (lambda base: optim.SALA(base), twins.sala),
    "sala far": (
        lambda base: optim.SALA(base, rho=0.04, period=3, alpha=0.8),
        lambda loop, step: twins.sala(loop, step, rho=0.04, period=3, alpha=0.8),
    ),
    "sala lazy": (
        lambda base: optim.SALA(base, rho=0.1, period=4, slow_weights="lazy"),
        lambda loop, step: twins.sala(loop, step, rho=0.1, period=4, lazy=True),
    ),
    "sala each step": (
        lambda base: optim.SALA(base, period=1),
        lambda loop, step: twins.sala(loop, step, period=1),
    ),
}


def network():
    torch.manual_seed(3)
    # no bias before batch norm: its gradient is rounding noise, which AdamW would blow up to full steps
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(9, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (9,), generator=generator))
        for _ in range(8)
    ]


def base_of(kind, parameters):
    return (torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)(parameters, **RATES[kind])


def run(model, optimizer, passes):
    loss_of, data, path = nn.CrossEntropyLoss(), batches(), []
    for step in range(STEPS):
        x, y = data[step % len(data)]

        def closure(x=x, y=y):
            optimizer.zero_grad()
            passes.append(optimizer.steps)
            loss = loss_of(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        path.append([p.detach().clone() for p in model.parameters()])
    return path


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("method", list(PAIRS))
def test_method_agrees_with_its_twin(method, kind):
    if method == "msam" and kind == "adamw":
        pytest.skip("MSAM wants a momentum buffer")
    make, twin = PAIRS[method]
    model, other = network(), network()
    optimizer, passes = make(base_of(kind, model.parameters())), []
    path = run(model, optimizer, passes)
    rates = {"momentum": 0.0, **RATES[kind]}
    loop = twins.Loop(other, batches(), nn.CrossEntropyLoss(), adam=kind == "adamw", **rates)
    for step in range(STEPS):
        twin(loop, step)
        for fast, slow in zip(path[step], loop.weights(), strict=True):
            assert (fast - slow).abs().max() < 1e-12
    for fast, slow in zip(model.buffers(), other.buffers(), strict=True):
        assert (fast - slow).abs().max() < 1e-12
    assert len(passes) == loop.passes
    if optimizer.evaluation is not None and hasattr(loop, "slow"):
        with optimizer.averaged():
            for fast, slow in zip(model.parameters(), loop.slow, strict=True):
                assert (fast - slow).abs().max() < 1e-12
    if method.startswith("sala"):
        assert optimizer.stage_two_share == loop.ascents / loop.periods
        assert len(passes) == pytest.approx(STEPS * (1 + optimizer.stage_two_share / optimizer.period), abs=1)
        optimizer.eval()
        for fast, slow in zip(model.parameters(), loop.slow, strict=True):
            assert (fast - slow).abs().max() < 1e-12
    if method == "sala far" and kind == "sgd":
        assert 0 < optimizer.stage_two_share < 1, "both stages are run"
