"""Each composition of two against the composition of their slow twins: 40 steps in float64, weights and average."""

import pytest
import torch
from tests.reference import around
from tests.reference import sam as twins
from torch import nn

import lowland.optim as optim
from lowland.core.errors import InputError

STEPS = 40
METHODS = {
    "SAM": (optim.SAM, twins.sam),
    "ASAM": (optim.ASAM, twins.asam),
    "GSAM": (
        lambda base: optim.GSAM(base, rho=0.1, rho_min=None, alpha=0.4),
        lambda loop, step: twins.gsam(loop, step, rho=0.1, rho_min=0.1),
    ),
    "LookSAM": (lambda base: optim.LookSAM(base, period=4), twins.looksam),
    "SALA": (lambda base: optim.SALA(base, rho=0.04, period=3), lambda loop, step: twins.sala(loop, step, 0.04, 3)),
    "plain": (lambda base: base, lambda loop, step: loop.descend(loop.slope(step))),
}
SLOW = {
    "Lookahead": (lambda base: optim.Lookahead(base, period=3), around.lookahead),
    "MSAM": (lambda base: optim.MSAM(base, rho=0.3), around.msam),
}
AVERAGES = {
    "EMA": (lambda base: optim.EMA(base, decay=0.9), lambda step, count: 0.1),
    "SWA": (
        lambda base: optim.SWA(base, start=7, interval=2),
        lambda step, count: None if step < 7 else ((step - 7) % 2 == 0) / (count + 1),
    ),
}
RATES = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}, "adamw": {"lr": 0.01, "weight_decay": 1e-2}}


def bases_of(kind, parameters):
    if kind == "schedule-free":
        return [around.ScheduleFree(parameters)]
    if kind == "muon, adamw":
        matrices, vectors = ([p for p in parameters if (p.ndim > 1) is matrix] for matrix in (True, False))
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(vectors, lr=0.01)]
    return [(torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)(parameters, **RATES[kind])]


def network():
    torch.manual_seed(3)
    # no bias before batch norm: its gradient is rounding noise, which AdamW would blow up to full steps
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 9, 5, generator=generator, dtype=torch.float64)
    return list(zip(inputs, torch.randint(0, 3, (8, 9), generator=generator), strict=True))


def compositions():
    for base in ("sgd", "adamw", "muon, adamw", "schedule-free"):
        for method in METHODS:
            for slow in (None, *SLOW):
                for average in (None, *AVERAGES):
                    parts = [method != "plain", slow is not None, average is not None]
                    twice = slow is not None and method == "SALA"  # slow weights already
                    unfit = slow == "MSAM" and base != "sgd"  # MSAM wants a momentum buffer
                    aside = base == "schedule-free" and (slow or average or method == "SALA")
                    if (
                        sum(parts)
                        and sum(parts) <= 2 + (base == "sgd" and method == "SAM")
                        and not (twice or unfit or aside)
                    ):
                        yield base, method, slow, average


def twin_of(base, model):
    if base in RATES:
        rates = {"momentum": 0.0, **RATES[base]}
        return twins.Loop(model, batches(), nn.CrossEntropyLoss(), adam=base == "adamw", **rates)
    return around.Driven(model, batches(), nn.CrossEntropyLoss(), bases_of(base, list(model.parameters())))


@pytest.mark.parametrize(("base", "method", "slow", "average"), list(compositions()))
def test_a_composition_equals_that_of_the_twins(base, method, slow, average):
    model, other = network(), network()
    optimizer = METHODS[method][0](bases_of(base, list(model.parameters())))
    loop = twin_of(base, other)
    around.evaluated_of(loop, method)
    if slow is not None:
        optimizer = SLOW[slow][0](optimizer)
        SLOW[slow][1](loop)
    if average is not None:
        optimizer = AVERAGES[average][0](optimizer)
        around.average(loop, AVERAGES[average][1])
    loss_of, data, tolerance = nn.CrossEntropyLoss(), batches(), 1e-8 if "adamw" in base else 1e-12
    for step in range(STEPS):
        x, y = data[step % len(data)]

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        METHODS[method][1](loop, step)
        if average is not None:
            loop.look(step + 1)
        for fast, expected in zip(model.parameters(), loop.weights(), strict=True):
            assert (fast - expected).abs().max() < tolerance
    for fast, expected in zip(model.buffers(), other.buffers(), strict=True):
        assert (fast - expected).abs().max() < tolerance
    if base == "schedule-free":
        loop.bases[0].eval()
    with optimizer.averaged():
        for fast, expected in zip(model.parameters(), loop.evaluated(), strict=True):
            assert (fast - expected).abs().max() < tolerance


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_radius_follows_a_cycle_attached_before_or_after(when):
    base = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)

    def cycle(target):
        torch.optim.lr_scheduler.OneCycleLR(target, max_lr=0.5, total_steps=6)

    if when == "before":
        cycle(base)
    optimizer = optim.GSAM(base, rho=0.2, rho_min=0.1)
    if when == "after":
        cycle(optimizer)
    group = optimizer.param_groups[0]
    assert optimizer.ascent_method.radius(group, 0) == pytest.approx(0.1 + 0.1 * group["lr"] / 0.5)


def test_a_schedule_that_asks_the_base_for_its_rate():
    transformers = pytest.importorskip("transformers.optimization")
    base = transformers.Adafactor(network().parameters(), relative_step=True, warmup_init=True, lr=None)
    assert transformers.AdafactorSchedule(optim.SAM(base)).get_last_lr() == [0.0]


def test_a_momentum_of_sparse_gradients_is_refused():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = optim.MSAM(torch.optim.SGD(table.parameters(), lr=0.1, momentum=0.9))
    table(torch.arange(2)).sum().backward()
    with pytest.raises(InputError, match="dense"):
        optimizer.step()
