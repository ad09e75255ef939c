"""Every composition of two takes the same steps, bit for bit, in every loop that starts at once; `test_optim_loops` and
`test_optim_distributed` have the others.
"""

from contextlib import nullcontext

import pytest
import torch
from tests.optim_cases import PAIRS, pair
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits

loss_of = nn.CrossEntropyLoss()
pairs = pytest.mark.parametrize(("around", "method"), PAIRS)
kinds = pytest.mark.parametrize(("ascent", "micro"), [("step", 1), ("step", 3), ("micro-batch", 3)])


def build(around, method, ascent):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return model, pair(around, method)(base, model=model, ascent=ascent)


def steps(micro, count=6):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, micro, 8, 6, generator=generator)
    targets = torch.randint(0, 3, (count, micro, 8), generator=generator)
    return [list(zip(*both, strict=True)) for both in zip(inputs, targets, strict=True)]


def backward_of(model, micro, *, scaler=None, cast=nullcontext, run=torch.Tensor.backward):
    def backward(batch):
        with cast():
            loss = loss_of(model(batch[0]), batch[1]) / micro
        run(loss if scaler is None else scaler.scale(loss))

    return backward


def by_hand(optimizer, backward, ascent, micro, step=None):
    """Both passes in blocks; the step is the optimizer's, or a scaler's."""
    for group in steps(micro):
        optimizer.zero_grad()
        for part in [[batch] for batch in group] if ascent == "micro-batch" else [group]:
            for batch in part:
                with optimizer.first_pass():
                    backward(batch)
            if optimizer.needs_perturbation():
                with optimizer.perturb():
                    for batch in part:
                        backward(batch)
        (step or optimizer.step)()


def ends(model, optimizer):
    trained = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    with optimizer.averaged():
        return trained + [p.detach().clone() for p in model.parameters()]


def plain(around, method, ascent, micro):
    model, optimizer = build(around, method, ascent)
    by_hand(optimizer, backward_of(model, micro), ascent, micro)
    return ends(model, optimizer)


@pairs
@pytest.mark.parametrize("micro", [1, 3])
def test_a_closure(around, method, micro):
    model, optimizer = build(around, method, "step")
    backward = backward_of(model, micro)
    for group in steps(micro):

        def closure(group=group):
            optimizer.zero_grad()
            for batch in group:
                backward(batch)

        optimizer.step(closure)
    assert same_bits(plain(around, method, "step", micro), ends(model, optimizer))


@pairs
@kinds
def test_a_scaler_whose_scale_grows(around, method, ascent, micro):
    model, optimizer = build(around, method, ascent)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    optimizer.use_scaler(scaler)

    def step():
        scaler.step(optimizer)
        scaler.update()

    by_hand(optimizer, backward_of(model, micro, scaler=scaler), ascent, micro, step)
    assert scaler.get_scale() > 64.0
    assert same_bits(plain(around, method, ascent, micro), ends(model, optimizer))


@pairs
@kinds
def test_fabric_in_float16(around, method, ascent, micro):
    fabrics = pytest.importorskip("lightning_fabric")
    from lightning_fabric.plugins import MixedPrecision

    found = []
    for whose in ("torch", "fabric"):
        model, optimizer = build(around, method, ascent)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        optimizer.use_scaler(scaler)
        if whose == "torch":

            def step(scaler=scaler, optimizer=optimizer):
                scaler.step(optimizer)
                scaler.update()

            cast = lambda: torch.autocast("cpu", dtype=torch.float16)
            by_hand(optimizer, backward_of(model, micro, scaler=scaler, cast=cast), ascent, micro, step)
        else:
            fabric = fabrics.Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
            outer, proxy = fabric.setup(model, optimizer)
            by_hand(proxy, backward_of(outer, micro, run=fabric.backward), ascent, micro)
        found.append(ends(model, optimizer))
    assert same_bits(*found)


@pairs
@kinds
def test_accelerate(around, method, ascent, micro):
    accelerate = pytest.importorskip("accelerate")
    from lowland.integrations import AcceleratePasses

    net, optimizer = build(around, method, ascent)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=micro)
    model, prepared = accelerator.prepare(net, optimizer)
    passes = AcceleratePasses(accelerator, model, prepared)
    for group in steps(micro):
        for x, y in group:
            with accelerator.accumulate(model):
                passes.backward(lambda x=x, y=y: loss_of(model(x), y))
                prepared.step()
                prepared.zero_grad()
    assert same_bits(plain(around, method, ascent, micro), ends(net, optimizer))
    assert isinstance(optimizer, optim.Wrapper) and optimizer.steps == 6
