"""What every composition of two holds: it goes on to the same bits from any step, and an overflow is a skipped step."""

import copy
import io
import pickle
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from tests.optim_cases import AROUND, METHODS, PAIRS
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError

loss_of = nn.CrossEntropyLoss()
pairs = pytest.mark.parametrize(("around", "method"), PAIRS)


def build(around, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, AROUND[around](METHODS[method](base, model=model))


def data(count):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(count, 8, 6, generator=generator)
    return list(zip(inputs, torch.randint(0, 3, (count, 8), generator=generator), strict=True))


def train(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                loss_of(model(x), y).backward()
        optimizer.step()


def everything(model, optimizer):
    """Bits of the weights that are trained, of those that are evaluated, and of the buffers."""
    trained = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    with optimizer.averaged():
        return trained + [p.detach().clone() for p in model.parameters()]


def resumed(around, method, model, optimizer):
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state, twin = torch.load(file, weights_only=True), build(around, method)
    twin[0].load_state_dict(state["model"])
    twin[1].load_state_dict(state["optimizer"])
    return twin


def resumed_in_evaluation(around, method, model, optimizer):
    with optimizer.averaged():
        return resumed(around, method, model, optimizer)


GOING_ON = {
    "resume": resumed,
    "resume in evaluation": resumed_in_evaluation,
    "deepcopy": lambda around, method, *both: copy.deepcopy(both),
    "pickle": lambda around, method, *both: pickle.loads(pickle.dumps(both)),
}


@pairs
@pytest.mark.parametrize("how", list(GOING_ON))
def test_it_goes_on_alike_from_every_step(around, method, how):
    model, optimizer = build(around, method)
    twins = []
    for batch in data(7):
        twins.append(GOING_ON[how](around, method, model, optimizer))
        train(model, optimizer, [batch])
    expected = everything(model, optimizer)
    for step, twin in enumerate(twins):
        train(*twin, data(7)[step:])
        assert twin[1].steps == 7 and same_bits(expected, everything(*twin)), step


@pairs
@pytest.mark.parametrize("which", ["first", "second"])
def test_an_overflow_in_one_pass_alone_is_a_skipped_step(around, method, which):
    plain, (model, optimizer) = build(around, method), build(around, method)
    batches, scaler = data(9), torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer.use_scaler(scaler)
    train(*plain, batches)
    for step, (x, y) in enumerate(batches):
        for spoiled in (True, False):
            twice = optimizer.needs_perturbation()
            buffers = [b.clone() for b in model.buffers()]
            optimizer.zero_grad()
            for now in ("first", "second") if twice else ("first",):
                with optimizer.perturb() if now == "second" else torch.enable_grad():
                    scaler.scale(loss_of(model(x), y)).backward()
                    if spoiled and now == (which if twice else "first"):
                        model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update(256.0)
            assert optimizer.steps == step + (not spoiled)
            if spoiled:  # plain training too has seen the batch's statistics
                for buffer, old in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(old)
    assert same_bits(everything(*plain), everything(model, optimizer))


# The table of the documentation.


class TwoSets(torch.optim.SGD):
    """A base with weights to train and weights to evaluate, as Schedule-Free has them."""

    def train(self):
        pass

    def eval(self):
        pass


def weights(count=2):
    return [nn.Parameter(torch.ones(2, 2)) for _ in range(count)]


PLAIN = {
    "SGD": lambda: torch.optim.SGD(weights(), lr=0.1, momentum=0.9),
    "several bases": lambda: [torch.optim.SGD(weights(), lr=0.1, momentum=0.9) for _ in range(2)],
    "AdamW": lambda: torch.optim.AdamW(weights()),
    "Schedule-Free": lambda: TwoSets(weights(), lr=0.1, momentum=0.9),
}
PARTS = METHODS | {"WSAM": optim.WSAM, "MSAM": optim.MSAM}
REASONS = {
    "a": "second pass",
    "b": r"write [A-Za-z]+\([A-Za-z]+\(base\)\)",
    "c": "(slow weights|average) already",
    "d": "one set of weights",
    "e": "SGD with momentum",
}


def cells():
    text = (Path(__file__).parents[2] / "docs/optimizers.md").read_text()
    head, _, *rows = [
        line.strip("| ").split(" | ")
        for line in re.search(r"<!-- compositions -->\n(.*?)\n<", text, re.S)[1].split("\n")
    ]
    for row in rows:
        for column, cell in zip(head[1:], row[1:], strict=True):
            for around, inside in product(row[0].split(", "), column.split(", ")):
                yield around, inside, cell


@pytest.mark.parametrize(("around", "inside", "cell"), list(cells()))
def test_the_table_of_the_documentation_says_what_composes(around, inside, cell):
    base = PLAIN[inside]() if inside in PLAIN else PARTS[inside](PLAIN["SGD"]())
    if cell == "yes":
        assert PARTS[around](base).method.startswith(around)
    else:
        with pytest.raises(InputError, match=REASONS[cell]):
            PARTS[around](base)


def test_the_table_of_the_documentation_has_every_part():
    assert {around for around, _, _ in cells()} == set(METHODS)
    assert {inside for _, inside, _ in cells()} == {*PLAIN, *METHODS}
