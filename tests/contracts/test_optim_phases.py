"""The table of phases, the matrix of compositions, and what must not be silently different, for every method."""

import copy
import re
from contextlib import ExitStack

import pytest
import torch
from tests.optim_cases import AROUND, METHODS, TWO_PASS
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import CheckpointError, InputError, MissingPass
from lowland.optim import Phase

loss_of = nn.CrossEntropyLoss()
AVERAGES = ("EMA", "SWA", "Lookahead")  # what goes over any base
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "two": lambda p: (
        torch.optim.Muon([q for q in p if q.ndim > 1], lr=0.02),
        torch.optim.AdamW([q for q in p if q.ndim < 2], lr=0.01),
    ),
}


def network(dtype=torch.float32, out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, out)).to(dtype)


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def data(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(8, 6, generator=generator).to(dtype), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(count)
    ]


def backward(model, batch, factor=1.0):
    (loss_of(model(batch[0]), batch[1]) * factor).backward()


def train(model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        backward(model, batch)
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                backward(model, batch)
        optimizer.step()


def closure_of(model, optimizer, batch):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def bits(model):
    return [*model.parameters(), *model.buffers()]


# What may be called when: the table in the docstring, cell by cell.


def table():
    rows = re.findall(r"^    (\S+\(\)) +(.+)$", optim.Wrapper.__doc__, re.MULTILINE)
    return {call: dict(zip(Phase, cells.split(), strict=True)) for call, cells in rows}


def reach(phase, optimizer, model, stack):
    (batch,) = data(1)
    if phase is Phase.EVALUATING:
        optimizer.eval()
        return
    mark = ExitStack()
    if phase in (Phase.FIRST, Phase.MARKED):
        mark = stack.enter_context(ExitStack())
        mark.enter_context(optimizer.first_pass())
    backward(model, batch)
    if phase is Phase.MARKED:
        mark.close()
    if phase in (Phase.PERTURBED, Phase.READY):
        inside = stack.enter_context(ExitStack())
        inside.enter_context(optimizer.perturb())
        backward(model, batch)
        if phase is Phase.READY:
            inside.close()


def call(name, optimizer, model, ascent):
    if name == "first_pass()":
        with optimizer.first_pass():
            backward(model, data(1)[0])
    elif name == "perturb()":
        with optimizer.perturb():
            backward(model, data(1)[0])
    elif name == "load_state_dict()":
        optimizer.load_state_dict(optim.SAM(sgd(network())).state_dict())
    elif name == "add_param_group()":
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    else:
        getattr(optimizer, name[:-2])()


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("name", list(table()))
def test_the_table_of_phases(name, phase, ascent):
    cell = table()[name][phase]
    model = network()
    optimizer = optim.SAM(sgd(model), model=model, ascent=ascent)
    with ExitStack() as stack:
        reach(phase, optimizer, model, stack)
        assert optimizer.phase is phase
        before = [b.clone() for b in bits(model)]
        if cell == "yes" or (cell == "aside" and ascent == "micro-batch"):
            call(name, optimizer, model, ascent)
        else:
            with pytest.raises(MissingPass if cell == "missing" else InputError):
                call(name, optimizer, model, ascent)
            assert optimizer.phase is phase and same_bits(before, bits(model))


def test_the_table_names_every_phase_and_every_refused_call():
    from lowland.optim.phases import REFUSED

    assert all(len(cells) == len(Phase) for cells in table().values())
    for (name, phase), _ in REFUSED.items():
        assert table()[name][phase] in ("no", "aside")
    refused = {(name, p) for name, cells in table().items() for p, cell in cells.items() if cell in ("no", "aside")}
    assert refused == set(REFUSED)


# Compositions.


def composed(around, method, base, dtype=torch.float32):
    model = network(dtype)
    return model, AROUND[around](METHODS[method](BASES[base](list(model.parameters())), model=model))


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("method", TWO_PASS)
@pytest.mark.parametrize("around", AVERAGES)
def test_any_average_over_any_method_over_any_base(around, method, base):
    if (around, method) == ("Lookahead", "SALA"):
        with pytest.raises(InputError, match="slow weights already"):
            composed(around, method, base)
        return
    straight, first, second = (composed(around, method, base) for _ in range(3))
    assert straight[1].method == f"{around}({method})" and isinstance(straight[1], optim.Ascent)
    for x, y in data(9):
        straight[1].step(closure_of(*straight, (x, y)))
    train(*first, data(9)[:4])
    first[1].eval()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    train(*second, data(9)[4:])
    assert same_bits(bits(straight[0]), bits(second[0]))
    straight[1].eval(), second[1].eval()
    assert same_bits(bits(straight[0]), bits(second[0]))
    with pytest.raises(CheckpointError, match=re.escape(straight[1].method)):
        METHODS[method](BASES[base](list(network().parameters()))).load_state_dict(straight[1].state_dict())


@pytest.mark.parametrize("inner", ["SAM", "GSAM", "LookSAM", "SALA", "MSAM", "Lookahead"])
def test_an_average_is_that_of_what_is_evaluated_without_it(inner):
    (model, plain), (other, outer) = (((m := network(torch.float64)), METHODS[inner](sgd(m))) for _ in range(2))
    outer, average = optim.EMA(outer, decay=0.9), None
    for batch in data(7, torch.float64):
        train(model, plain, [batch])
        train(other, outer, [batch])
        with plain.averaged():
            now = [p.detach().clone() for p in model.parameters()]
        average = now if average is None else [0.9 * a + 0.1 * w for a, w in zip(average, now, strict=True)]
    assert same_bits(list(model.parameters()), list(other.parameters())), "looking on changes nothing"
    with outer.averaged():
        for expected, found in zip(average, other.parameters(), strict=True):
            assert (expected - found).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda base: optim.SAM(optim.GSAM(base)), "second pass"),
        (lambda base: optim.SAM(optim.EMA(base)), r"write EMA\(SAM"),
        (lambda base: optim.SAM(optim.Lookahead(base)), r"write Lookahead\(SAM"),
        (lambda base: optim.Lookahead(optim.MSAM(base)), "slow weights"),
        (lambda base: optim.Lookahead(optim.EMA(base)), r"write EMA\(Lookahead"),
        (lambda base: optim.EMA(optim.SWA(base, start=0, interval=1)), "average"),
        (lambda base: optim.EMA([optim.SAM(base)]), "wrap"),
    ],
)
def test_what_cannot_compose_is_refused_with_the_reason(make, reason):
    with pytest.raises(InputError, match=reason):
        make(sgd(network()))


class TwoSets(torch.optim.SGD):
    """A base with weights to train and weights to evaluate, as Schedule-Free has them."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        self.param_groups[0]["train_mode"] = False

    def _turn(self, training):
        if self.param_groups[0]["train_mode"] != training:
            self.param_groups[0]["train_mode"] = training
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(3.0 if training else 1 / 3.0)  # a way back that is not exact

    def train(self):
        self._turn(True)

    def eval(self):
        self._turn(False)

    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"], "not in train mode"
        return super().step(closure)


def test_modes_reach_a_base_that_has_them_and_come_back_exactly():
    model = network()
    optimizer = optim.SAM(TwoSets(model.parameters(), lr=0.1))
    optimizer.train()
    train(model, optimizer, data(3))
    before, state = [p.clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict())
    optimizer.eval()
    assert torch.allclose(model[0].weight, before[0] / 3)
    assert optimizer.state_dict()["param_groups"][0]["train_mode"] is state["param_groups"][0]["train_mode"] is True
    optimizer.train()
    assert same_bits(before, list(model.parameters()))
    for make in AROUND.values():
        with pytest.raises(InputError, match="one set of weights"):
            make(TwoSets(network().parameters(), lr=0.1))


# Nothing silently different.


def test_perturb_needs_a_first_gradient_and_a_second_pass():
    model = network()
    optimizer = optim.SAM(sgd(model), model=model)
    before = [b.clone() for b in bits(model)]
    with pytest.raises(MissingPass, match="first pass"), optimizer.perturb():
        pass
    backward(model, data(1)[0])
    optimizer.zero_grad(set_to_none=False)
    with pytest.raises(MissingPass, match="first pass"), optimizer.perturb():
        pass
    backward(model, data(1)[0])
    with pytest.raises(MissingPass, match="no backward"), optimizer.perturb():
        pass
    with pytest.raises(MissingPass):
        optimizer.step()
    assert same_bits(before[:6], list(model.parameters()))
    train(model, optimizer, data(1))


def test_an_empty_block_of_a_later_micro_batch_is_missed_too():
    model = network()
    optimizer = optim.SAM(sgd(model), ascent="micro-batch")
    for empty in (False, True):
        with optimizer.first_pass():
            backward(model, data(1)[0])
        with pytest.raises(MissingPass) if empty else ExitStack(), optimizer.perturb():
            if not empty:
                backward(model, data(1)[0])


@pytest.mark.parametrize("place", ["first", "entering", "second", "leaving", "base", "commit"])
@pytest.mark.parametrize("around", [None, "EMA", "Lookahead", "MSAM"])
@pytest.mark.parametrize("method", TWO_PASS)
def test_an_exception_anywhere_leaves_the_next_step_working(method, around, place, monkeypatch):
    if around in ("Lookahead", "MSAM") and method == "SALA":
        pytest.skip("slow weights already")
    model = network()
    optimizer = METHODS[method](sgd(model), model=model)
    optimizer = optimizer if around is None else AROUND[around](optimizer)
    while not optimizer.needs_perturbation():
        train(model, optimizer, data(1))
    held, (batch,), calls, armed = optimizer._held, data(1), [], [True]

    def fail(*_, **__):
        if armed.pop() if armed else False:
            raise MemoryError(place)

    def closure():
        optimizer.zero_grad()
        calls.append(place)
        if place == "first" or (place == "second" and len(calls) == 2):
            fail()
        loss = loss_of(model(batch[0]), batch[1])
        loss.backward()
        return loss

    if place == "entering":
        monkeypatch.setattr(held.method, "direction", fail)
    if place == "leaving":
        monkeypatch.setattr("lowland.optim.ascent._carry_overflow", fail)
    if place == "base":
        optimizer.base.register_step_pre_hook(fail)
    if place == "commit":
        monkeypatch.setattr(held.parts[-1], "commit", fail)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert optimizer.phase is Phase.GATHERING
    if place not in ("base", "commit"):
        assert same_bits(before, list(model.parameters()))
    monkeypatch.undo()
    steps = optimizer.steps
    for _ in range(4):
        optimizer.step(closure)
    assert optimizer.steps == steps + 4


def test_an_exception_between_first_and_second_step():
    model = network()
    optimizer = optim.SAM(sgd(model), model=model)
    before = [p.clone() for p in model.parameters()]
    backward(model, data(1)[0])
    optimizer.first_step()
    with pytest.raises(InputError, match="second_step"):
        optimizer.first_step()
    assert same_bits(before, list(model.parameters())) and optimizer.phase is Phase.GATHERING
    train(model, optimizer, data(2))


def test_maximize_ascends_downhill():
    ends = []
    for maximize in (False, True):
        model, sign = network(), -1.0 if maximize else 1.0
        optimizer = optim.SAM(sgd(model, maximize=maximize), rho=0.1)
        for batch in data(4):
            backward(model, batch, sign)
            with optimizer.perturb():
                backward(model, batch, sign)
            optimizer.step()
            optimizer.zero_grad()
        ends.append(list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("rate", [torch.tensor(0.1), 0.1])
def test_a_rate_may_be_a_tensor_or_missing(rate):
    model = network()
    for make in METHODS.values():
        train(model, make(sgd(model, lr=rate)), data(2))
    base = sgd(model)
    base.param_groups[0]["lr"] = None
    optimizer = optim.EMA(base)
    base.step = lambda closure=None: None  # a base that sets its own rate
    backward(model, data(1)[0])
    optimizer.step()
    with pytest.raises(InputError, match="rho_min=None"):
        optim.GSAM(base)


@pytest.mark.parametrize("kind", ["expanded", "sparse", "inference"])
@pytest.mark.parametrize("given", [False, True])
def test_buffers_that_cannot_be_written_are_left_alone(kind, given):
    with torch.inference_mode():
        frozen = torch.ones(3)
    values = {"expanded": torch.ones(1, 4).expand(5, 4), "sparse": torch.eye(4).to_sparse(), "inference": frozen}
    model = network()
    model.register_buffer("odd", values[kind], persistent=False)
    optimizer = optim.SAM(sgd(model), model=model if given else None)
    train(model, optimizer, data(2))
    assert model.odd is values[kind] and int(model[1].num_batches_tracked) == 2


def test_a_model_is_met_only_where_its_parameters_are(monkeypatch):
    model, other = network(), network()
    optimizer = optim.SAM(sgd(model))
    with pytest.raises(InputError, match="model"):
        optimizer.recalibrate(data(2))
    other(data(1)[0][0])
    train(model, optimizer, data(3))
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert optimizer.recalibrate(data(2)) == 2 and int(other[1].num_batches_tracked) == 1


@pytest.mark.parametrize("old", [5, 1])
def test_a_checkpoint_of_another_head_changes_nothing(old):
    for make in METHODS.values():
        theirs, model = network(out=old), network()
        saved = make(sgd(theirs))
        theirs(data(1)[0][0]).sum().backward()
        if saved.needs_perturbation():
            with saved.perturb():
                theirs(data(1)[0][0]).sum().backward()
        saved.step()
        mine = make(sgd(model))
        train(model, mine, data(1))
        before = [b.clone() for b in bits(model)]
        with pytest.raises(CheckpointError, match="another model"):
            mine.load_state_dict(saved.state_dict())
        assert same_bits(before, bits(model)) and mine.steps == 1


def test_a_second_base_that_does_not_fit_leaves_the_first_alone():
    def pair(width):
        layers = nn.Linear(4, 3), nn.Linear(4, width)
        return layers, optim.SAM([torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in layers])

    (layers, mine), (others, theirs) = pair(3), pair(2)
    for own, optimizer in ((layers, mine), (others, theirs)):
        optimizer.step(lambda own=own: sum(layer(torch.ones(2, 4)).square().sum() for layer in own).backward())
    before = copy.deepcopy(mine.state_dict()["state"][0]["momentum_buffer"])
    with pytest.raises(CheckpointError):
        mine.load_state_dict(theirs.state_dict())
    assert torch.equal(before, mine.state_dict()["state"][0]["momentum_buffer"])


@pytest.mark.parametrize("make", [optim.Lookahead, optim.SALA, lambda base: optim.MSAM(base, rho=1e-6), optim.EMA])
def test_slow_weights_begin_at_the_first_step(make):
    model = network()
    optimizer = make(sgd(model, lr=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(10.0)
    for batch in data(6):
        optimizer.step(closure_of(model, optimizer, batch))
    optimizer.eval()
    assert all(bool((p - 10.0).abs().max() < 1e-5) for p in model.parameters())


def test_moved_weights_are_seen_inside_one_autocast_block():
    ends = []
    for whole in (False, True):
        model = network()
        optimizer = optim.SAM(sgd(model), rho=0.5)
        with ExitStack() as stack:
            if whole:
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            for batch in data(3):

                def closure(batch=batch, model=model, optimizer=optimizer):
                    optimizer.zero_grad()
                    with torch.autocast("cpu", dtype=torch.bfloat16):
                        loss = loss_of(model(batch[0]), batch[1])
                    loss.backward()
                    return loss

                optimizer.step(closure)
        ends.append(list(model.parameters()))
    assert same_bits(*ends)


@pytest.mark.parametrize("method", TWO_PASS)
def test_an_overflow_in_the_first_pass_alone_is_a_skipped_step(method):
    model = network()
    optimizer = METHODS[method](sgd(model), model=model)
    while not optimizer.needs_perturbation():
        train(model, optimizer, data(1))
    scaler, steps = torch.amp.GradScaler("cpu", init_scale=4.0), optimizer.steps
    optimizer.use_scaler(scaler)
    before = [p.clone() for p in model.parameters()]
    scaler.scale(loss_of(model(data(1)[0][0]), data(1)[0][1])).backward()
    model[0].weight.grad[0, 0] = float("inf")
    with optimizer.perturb():
        scaler.scale(loss_of(model(data(1)[0][0]), data(1)[0][1])).backward()
    scaler.step(optimizer)
    assert optimizer.steps == steps and same_bits(before, list(model.parameters()))


def test_gradients_cleared_in_place_after_a_scalers_skip():
    model = nn.Linear(6, 3)
    optimizer, scaler = optim.SAM(sgd(model)), torch.amp.GradScaler("cpu", init_scale=16.0)
    for factor, steps in ((1.0, 1), (1e38, 1), (1.0, 2)):
        model.zero_grad(set_to_none=False)
        scaler.scale(model(torch.ones(2, 6)).square().sum() * factor).backward()
        with optimizer.perturb():
            scaler.scale(model(torch.ones(2, 6)).square().sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.steps == steps


def test_an_empty_closure_after_passes_by_hand():
    model = network()
    optimizer = optim.SAM(sgd(model), model=model)
    backward(model, data(1)[0])
    with optimizer.perturb():
        backward(model, data(1)[0])
    optimizer.step(lambda: None)  # Lightning's manual optimization
    assert optimizer.steps == 1


def test_frozen_integer_parameters_are_left_alone():
    for make in METHODS.values():
        model = network()
        model.codes = nn.Parameter(torch.arange(4), requires_grad=False)
        optimizer = make(sgd(model))
        train(model, optimizer, data(7))
        optimizer.eval()
        assert torch.equal(model.codes, torch.arange(4))


def test_what_migrators_type_first_is_answered_by_the_line_to_write():
    parameters = list(network().parameters())
    with pytest.raises(InputError, match=r"write SAM\(SGD\(model\.parameters\(\), lr=\.\.\.\), rho=\.\.\.\)"):
        optim.SAM(parameters, torch.optim.SGD, rho=0.05, lr=0.1)
    with pytest.raises(InputError, match=r"ASAM\(base, rho=\.\.\., eta=0"):
        optim.SAM(torch.optim.SGD(parameters, lr=0.1), rho=0.05, adaptive=True)


def test_only_some_parameters_are_moved():
    model = network()
    norms = optim.norm_parameters(model)
    assert [p.shape for p in norms] == [(8,), (8,)]
    for method in TWO_PASS:
        optimizer = METHODS[method](sgd(model), only=norms)
        while not optimizer.needs_perturbation():
            train(model, optimizer, data(1))
        before = {p: p.detach().clone() for p in model.parameters()}
        backward(model, data(1)[0])
        with optimizer.perturb():
            moved = [p for p in model.parameters() if not torch.equal(p, before[p])]
            assert len(moved) == 2 and all(p is q for p, q in zip(moved, norms, strict=True))
            backward(model, data(1)[0])
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("option", "advice"), [("lr", "Known: rho"), ("interva", "did you mean 'interval'"), ("roh", "mean 'rho'")]
)
def test_an_unknown_keyword_is_named_with_the_near_one(option, advice):
    base = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(InputError, match=f"`{option}` is no argument of SAM.*{advice}"):
        optim.SAM(base, **{option: 0.1})


@pytest.mark.parametrize("kind", [optim.EMA, optim.SWA, optim.Lookahead, optim.MSAM])
def test_a_method_without_an_ascent_refuses_unknown_keywords_by_name(kind):
    base = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match=f"`modell` is no argument of {kind.__name__}.*did you mean 'model'"):
        kind(base, modell=None)


def test_what_is_printed_names_all_parts():
    base = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    assert repr(optim.EMA(optim.SAM(base=base))).startswith("EMA(SAM(SGD)): ")
    assert "SGD lr=0.1, 1 tensors" in repr(optim.SAM(base))


def test_the_average_of_gradients_takes_each_step_s_own_and_not_a_share_of_it():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = optim.FSAM(torch.optim.SGD([weight], lr=0.0, momentum=0.9), rho=0.1, decay=0.5)
    for gradient in (torch.tensor([4.0, 0.0]), torch.tensor([0.0, 8.0]), torch.tensor([0.0, 8.0])):
        optimizer.zero_grad()
        weight.grad = gradient.clone()
        with optimizer.perturb():
            weight.grad = gradient.clone()
        optimizer.step()
    assert optimizer.state[weight]["lowland.gradient"].tolist() == [1.0, 6.0]
