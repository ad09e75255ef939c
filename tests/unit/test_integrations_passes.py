"""Passes of micro-batches in a foreign loop: what is kept after an exception, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tests.trainer_cases import assert_same, batches, network, wrapped
from torch import nn

from lowland.core.errors import InputError
from lowland.integrations.passes import Passes, innermost
from lowland.integrations.whole_batch import WholeBatch, losses_of, without_index
from lowland.losses import LLR, SAF


def work_on(model, batch):
    def work():
        nn.functional.cross_entropy(model(batch.input), batch.target).backward()

    return work


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
def test_a_micro_batch_that_fails_in_its_first_pass_is_as_if_it_had_not_been(ascent):
    def failing():
        raise RuntimeError("now")

    trained = []
    for works in (slice(0, 2), slice(0, 3)):
        model = network()
        optimizer = wrapped(model, ascent=ascent)
        passes = Passes(optimizer)
        first, second = (work_on(model, batch) for batch in batches()[:2])
        for work in [first, second] if works.stop == 2 else [first, failing, second]:
            if work is failing:
                with pytest.raises(RuntimeError, match="now"):
                    passes.run(work, last=False)
            else:
                passes.run(work, last=work is second)
        optimizer.step()
        trained.append(model)
    assert_same(*trained)


def test_a_second_pass_that_fails_leaves_the_weights_and_no_gradients():
    model = network()
    optimizer = wrapped(model)
    passes, calls = Passes(optimizer), []
    before = [p.detach().clone() for p in model.parameters()]

    def failing():
        calls.append(1)
        work_on(model, batches()[0])()
        if len(calls) == 2:
            raise RuntimeError("now")

    with pytest.raises(RuntimeError, match="now"):
        passes.run(failing, last=True)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    passes.run(failing, last=True)
    optimizer.step()
    assert optimizer.steps == 1


def test_the_innermost_optimizer():
    model = network()
    optimizer = wrapped(model)

    class Around:
        def __init__(self, inside):
            self.optimizer = inside

    assert innermost(Around(Around(optimizer))) is optimizer
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    assert innermost(Around(plain)) is plain


def test_ids_are_taken_off_every_kind_of_batch():
    x, y, ids = torch.zeros(2, 3), torch.zeros(2), torch.arange(2)
    assert without_index([x, y, ids]) == [x, y]
    assert without_index({"x": x, "labels": y, "index": ids}).keys() == {"x", "labels"}
    assert without_index(batches()[0]).index is not None
    for bare in ((x, y), {"x": x, "labels": y}):
        with pytest.raises(InputError, match="sample ids"):
            without_index(bare)


def test_losses_are_found_once_and_in_submodules():
    outer, inner = nn.Module(), nn.Module()
    outer.child = inner
    inner.criterion = outer.same = LLR(SAF(nn.CrossEntropyLoss()), initial_loss=1.0)
    inner.other = WholeBatch(SAF(nn.CrossEntropyLoss()))
    found = losses_of(outer)
    assert [loss for _, _, loss in found] == [outer.same, inner.other.loss]
