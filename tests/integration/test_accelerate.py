"""Accelerate: one call in the place of backward, and the same bits as the plain loop, also after a resume."""

from __future__ import annotations

import pytest
import torch
from tests.trainer_cases import (
    BATCH,
    EVERY_METHOD,
    SAMPLES,
    Samples,
    assert_same,
    bfloat16,
    network,
    plain_loop,
    wrapped,
)
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, MissingPass
from lowland.core.types import as_batch
from lowland.data import Indexed
from lowland.losses import SAF

accelerate = pytest.importorskip("accelerate")
integration = pytest.importorskip("lowland.integrations.accelerate")


def accelerator_of(**options):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return accelerate.Accelerator(cpu=True, **options)


def prepared(net, optimizer, **options):
    accelerator = accelerator_of(**options)
    loader = torch.utils.data.DataLoader(Indexed(Samples()), batch_size=BATCH, generator=torch.Generator())
    return accelerator, *accelerator.prepare(net, optimizer, loader)


def loop(accelerator, model, optimizer, loader, criterion=None, *, epochs=range(1), clip=None):
    passes = integration.AcceleratePasses(accelerator, model, optimizer)
    plain = nn.CrossEntropyLoss()
    seen = []
    for epoch in epochs:
        if criterion is not None:
            criterion.epoch = epoch
        for raw in loader:
            batch = as_batch(raw)
            with accelerator.accumulate(model):

                def loss(batch=batch):
                    output = model(batch.input)
                    return plain(output, batch.target) if criterion is None else criterion(output, batch)

                seen.append(passes.backward(loss).item())
                if accelerator.sync_gradients and clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                if criterion is not None and accelerator.sync_gradients:
                    criterion.after_step()
    return seen


def pair(method="SAM", **options):
    first, second = network(), network()
    return (first, wrapped(first, method, **options)), (second, wrapped(second, method, **options))


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize(("ascent", "micro_batches"), [("step", 1), ("step", 2), ("micro-batch", 2)])
def test_same_bits_as_the_plain_loop(method, ascent, micro_batches):
    (net, optimizer), mine = pair(method, ascent=ascent)
    clean = plain_loop(net, optimizer, micro_batches=micro_batches)
    seen = loop(*prepared(*mine, gradient_accumulation_steps=micro_batches))
    assert_same(net, mine[0])
    assert seen == pytest.approx([value * micro_batches for value in clean], rel=1e-6)


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
def test_clipping_comes_after_the_second_pass(ascent):
    (net, optimizer), mine = pair(ascent=ascent)
    plain_loop(net, optimizer, micro_batches=2, clip=0.01)
    loop(*prepared(*mine, gradient_accumulation_steps=2), clip=0.01)
    assert_same(net, mine[0])


@pytest.mark.parametrize("method", ["SGD", "SAM", "SALA", "EMA"])
def test_bfloat16(method):
    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer, forward=bfloat16, micro_batches=2)
    loop(*prepared(*mine, gradient_accumulation_steps=2, mixed_precision="bf16"))
    assert_same(net, mine[0])


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
@pytest.mark.parametrize("scale", [256.0, 2.0**30])
@pytest.mark.parametrize("method", ["SAM", "FSAM"])
def test_float16_also_where_the_scaler_skips_steps(ascent, scale, method):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)

    def cast():
        return torch.autocast("cpu", dtype=torch.float16)

    (net, optimizer), mine = pair(method, ascent=ascent)
    plain_loop(net, optimizer, micro_batches=2, cast=cast, scaler=scaler(), epochs=3)
    accelerator = accelerator_of(gradient_accumulation_steps=2)
    model, wrapper = mine
    scale_by = scaler()
    passes = integration.Passes(wrapper, scale_by)  # Accelerate itself refuses float16 on the CPU
    loader = torch.utils.data.DataLoader(Samples(), batch_size=BATCH)
    del accelerator
    for _ in range(3):
        for index, (x, y) in enumerate(loader):

            def work(x=x, y=y):
                with cast():
                    value = nn.functional.cross_entropy(model(x), y) / 2
                scale_by.scale(value).backward()

            passes.run(work, last=index % 2 == 1)
            if index % 2 == 1:
                scale_by.step(wrapper)
                scale_by.update()
                for parameter in model.parameters():  # as a trainer that clears the model, not the optimizer
                    parameter.grad = None
    assert_same(net, model)


@pytest.mark.parametrize("method", ["SGD", "SAM", "SALA"])
def test_losses_and_resume(method, tmp_path):
    def criterion():
        loss = SAF(nn.CrossEntropyLoss(), start=1, look_back=1)
        loss.prepare(epochs=3, samples=SAMPLES)
        return loss

    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer, SAF(nn.CrossEntropyLoss(), start=1, look_back=1), epochs=3)
    loss = criterion()
    setting = prepared(*mine)
    setting[0].register_for_checkpointing(loss)
    loop(*setting, loss, epochs=range(2))
    setting[0].save_state(str(tmp_path))
    loop(*setting, loss, epochs=range(2, 3))
    assert_same(net, mine[0])

    other = network()
    loss = criterion()
    setting = prepared(other, wrapped(other, method))
    setting[0].register_for_checkpointing(loss)
    setting[0].load_state(str(tmp_path))
    loop(*setting, loss, epochs=range(2, 3))
    assert_same(net, other)


def test_wrong_use():
    (net, optimizer), _ = pair()
    accelerator, model, prepared_optimizer, _ = prepared(net, optimizer)
    with pytest.raises(InputError, match="`accelerator`"):
        integration.AcceleratePasses(object(), model, prepared_optimizer)
    with pytest.raises(InputError, match="prepare"):
        integration.AcceleratePasses(accelerator, model, optimizer)
    passes = integration.AcceleratePasses(accelerator, model, prepared_optimizer)
    with pytest.raises(InputError, match="must be a function"):
        passes.backward(torch.zeros(()))


def test_without_the_helper_nothing_is_trained_wrongly():
    (net, optimizer), _ = pair()
    before = [p.detach().clone() for p in net.parameters()]
    accelerator, model, prepared_optimizer, loader = prepared(net, optimizer)
    x, y, _ = next(iter(loader))
    accelerator.backward(nn.functional.cross_entropy(model(x), y))
    with pytest.raises(MissingPass):
        prepared_optimizer.step()
    assert same_bits(before, list(net.parameters()))


def test_a_function_that_has_lost_its_batch_is_refused():
    net = network()
    accelerator, model, optimizer, loader = prepared(net, wrapped(net), gradient_accumulation_steps=2)
    passes = integration.AcceleratePasses(accelerator, model, optimizer)
    with pytest.raises(InputError, match="must keep its own batch"):
        for raw in loader:
            batch = as_batch(raw)
            with accelerator.accumulate(model):
                passes.backward(lambda: model(batch.input).square().mean())  # ruff: ignore[function-uses-loop-variable]
                optimizer.step()
                optimizer.zero_grad()
