"""What is particular to single methods: whose the learning rate is, what a scaler and clipping do to kept gradients."""

import copy
import pickle

import pytest
import torch
from tests.optim_cases import METHODS, TWO_PASS
from torch import nn

import lowland as ll
from lowland import optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.workflows.build import build_optimizer
from lowland.workflows.specs import OptimizerSpec

loss_of = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def data(count, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(count)
    ]


def train(model, optimizer, batches, *, scaler=None, clip=None, micro_batches=1):
    for x, y in batches:
        optimizer.zero_grad()
        parts = list(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True))

        def backward(part):
            loss = loss_of(model(part[0]), part[1]) / micro_batches
            (loss if scaler is None else scaler.scale(loss)).backward()

        for group in [[part] for part in parts] if optimizer.options.ascent == "micro-batch" else [parts]:
            with optimizer.first_pass():
                for part in group:
                    backward(part)
            if optimizer.needs_perturbation():
                with optimizer.perturb():
                    for part in group:
                        backward(part)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()


MAKE = {
    "FSAM": lambda base, **options: optim.FSAM(base, rho=0.1, **options),
    "WSAM": lambda base, **options: optim.WSAM(base, gamma=0.7, **options),
    "coupled": lambda base, **options: optim.WSAM(base, gamma=0.7, decoupled=False, **options),
    "EMA of FSAM": lambda base, **options: optim.EMA(optim.FSAM(base, rho=0.1, **options), decay=0.9),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("options", [{}, {"ascent": "micro-batch"}], ids=["step", "micro-batch"])
@pytest.mark.parametrize("method", list(MAKE))
def test_no_scale_and_no_change_of_it_moves_a_bit(method, options, clip, wrapped):
    """The scale grows every third step, and is halved by a step that overflows."""
    ends = []
    for scaled in (False, True):
        model = network()
        optimizer = MAKE[method](sgd(model), model=model, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3) if scaled else None
        optimizer.use_scaler(scaler)
        if wrapped:  # schedulers put themselves between the scaler and the step
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)
        for number, batch in enumerate(data(12)):
            if scaled and number == 5:  # an overflow, after which half the scale holds
                x, y = batch
                optimizer.zero_grad()
                with optimizer.first_pass():
                    scaler.scale(loss_of(model.eval()(x), y)).backward()
                model[0].weight.grad[0, 0] = float("inf")
                with optimizer.perturb():
                    scaler.scale(loss_of(model(x), y)).backward()
                model.train()
                scaler.step(optimizer)
                scaler.update()
                assert scaler.get_scale() == 64.0
            train(model, optimizer, [batch], scaler=scaler, clip=clip, micro_batches=2 if options else 1)
        ends.append([*model.parameters()])
    assert same_bits(*ends)


def test_an_average_of_gradients_goes_on_under_any_scale():
    def run(steps, state=None, scale=64.0):
        model = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2, enabled=scale > 1)
        optimizer = optim.FSAM(sgd(model), rho=0.1, model=model, scaler=scaler)
        for part, saved in zip((model, optimizer), state or (), strict=False):
            part.load_state_dict(copy.deepcopy(saved))  # or torch's bases share its tensors
        train(model, optimizer, steps, scaler=scaler)
        return model, optimizer

    batches = data(9)
    straight = run(batches)
    for cut in (3, 4):  # with and without a growth of the scale at the end
        state = [part.state_dict() for part in run(batches[:cut])]
        for scale in (64.0, 4.0, 1.0):
            assert same_bits(list(straight[0].parameters()), list(run(batches[cut:], state, scale)[0].parameters()))


SCALED = {
    "plain": lambda optimizer: optimizer,
    "of an average": lambda optimizer: optim.EMA(optimizer, decay=0.9),
    "a copy": copy.deepcopy,
    "pickled": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


@pytest.mark.parametrize("kind", list(SCALED))
def test_a_scaler_that_was_not_given_is_refused_before_anything_changes_with_the_line_to_write(kind):
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=64.0)
    copied = kind in ("a copy", "pickled")
    optimizer = SCALED[kind](optim.FSAM(sgd(model), rho=0.1, scaler=scaler if copied else None))
    parameters = optimizer.param_groups[0]["params"]
    before = [p.clone() for p in parameters]

    def backward():
        scaler.scale(sum(p.square().sum() for p in parameters)).backward()

    backward()
    with optimizer.perturb():
        backward()
    with pytest.raises(InputError, match=r"scaler=scaler\), or optimizer\.use_scaler\(scaler\)"):
        scaler.step(optimizer)
    assert same_bits(before, parameters) and optimizer.steps == 0
    optimizer.use_scaler(scaler)
    scaler.step(optimizer)  # the very step that was refused
    assert optimizer.steps == 1 and not same_bits(before, parameters)


def test_a_scaler_goes_with_methods_that_need_not_know_it():
    model, scaler = network(), torch.amp.GradScaler("cpu")
    optimizer = optim.SAM(sgd(model))
    train(model, optimizer, data(2), scaler=scaler)
    assert optimizer.steps == 2


def test_fit_names_the_scaler_of_a_run_in_float16(monkeypatch):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    from lowland.training import setup

    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # of its own Fabric makes one on an accelerator alone
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    monkeypatch.setattr(setup, "make_fabric", lambda *_: fabric)
    model = ll.models.create("resnet8", width=4, channels=1, seed=0)
    optimizer = optim.EMA(optim.FSAM(sgd(model), rho=0.05))
    digits = ll.data.load("digits", train_size=64)
    found = ll.training.fit(model, optimizer, loss_of, digits, epochs=2, batch_size=32, precision="16-mixed")
    assert (found.steps, found.passes) == (4, 8)


def test_coupled_wsam_at_a_half_is_sam():
    ends = []
    for make in (lambda b: optim.WSAM(b, 0.05, gamma=0.5, decoupled=False), lambda b: optim.SAM(b, 0.05)):
        model = network().double()
        train(model, make(sgd(model)), [(x.double(), y) for x, y in data(6)])
        ends.append(list(model.parameters()))
    assert all((a - b).abs().max() < 1e-14 for a, b in zip(*ends, strict=True))


def test_both_forms_of_wsam_agree_for_plain_descent():
    ends = []
    for decoupled in (True, False):
        model = network().double()
        optimizer = optim.WSAM(sgd(model, momentum=0.0), decoupled=decoupled)
        train(model, optimizer, [(x.double(), y) for x, y in data(6)])
        ends.append(list(model.parameters()))
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(*ends, strict=True))


# The learning rate.


def rates(optimizer, model, steps):
    seen = []
    for batch in data(steps):
        train(model, optimizer, [batch])
        seen.append(round(optimizer.param_groups[0]["lr"], 12))
    return seen


def test_the_tail_anneals_what_schedulers_left():
    model = network()
    optimizer = optim.LateSAM(sgd(model), total=10, share=0.5)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3)
    seen, wanted = [], []
    for batch in data(12):
        wanted.append(optimizer.needs_perturbation())
        train(model, optimizer, [batch])
        seen.append(optimizer.param_groups[0]["lr"])
        if len(seen) <= 3:
            warm_up.step()
    assert wanted == [False] * 5 + [True] * 7
    assert seen[3:] == pytest.approx([0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.0, 0.0])


def test_a_cycle_ends_low_and_is_averaged_there():
    model = network()
    optimizer = optim.SWA(sgd(model), start=2, interval=4, rates=(1.0, 0.2))
    seen = []
    for x, y in data(11):
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
        seen.append((round(optimizer.param_groups[0]["lr"], 12), optimizer.averaged_steps))
    assert seen == [
        (0.1, 0),
        (0.1, 1),
        (0.08, 1),
        (0.06, 1),
        (0.04, 1),
        (0.02, 2),
        (0.08, 2),
        (0.06, 2),
        (0.04, 2),
        (0.02, 3),
        (0.08, 3),
    ]


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_another_writer_of_the_rate_is_refused_in_the_tail_alone(rate):
    model = network()
    optimizer = optim.LateSAM(sgd(model, lr=rate), total=6, share=0.5)
    train(model, optimizer, data(4))
    optimizer.param_groups[0]["lr"] = 0.05
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match="belongs to the method"):
        train(model, optimizer, data(1))
    assert same_bits(before, list(model.parameters()))


def test_two_owners_of_the_rate_are_refused():
    with pytest.raises(InputError, match="one of its parts"):
        optim.SWA(optim.LateSAM(sgd(network()), total=9), start=1, interval=2, rates=(1.0, 0.5))
    optim.SWA(optim.LateSAM(sgd(network()), total=9), start=1, interval=2)


@pytest.mark.parametrize("cut", [3, 7])
def test_a_tail_goes_on_where_it_was(cut):
    def built():
        model = network()
        return model, optim.LateSAM(sgd(model), total=12, share=0.5, decay="1-sqrt")

    straight, first, second = built(), built(), built()
    train(*straight, data(12))
    train(*first, data(12)[:cut])
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    train(*second, data(12)[cut:])
    assert same_bits(list(straight[0].parameters()), list(second[0].parameters()))


def test_a_late_phase_of_unknown_length_is_refused_at_its_first_step():
    model = network()
    with pytest.raises(InputError, match="total"):
        train(model, optim.LateSAM(sgd(model)), data(1))


def test_fit_says_how_long_the_run_is_and_refuses_a_second_schedule():
    digits = ll.data.load("digits", train_size=64)

    def run(schedule):
        model = ll.models.create("resnet8", width=4, channels=1, seed=0)
        optimizer = optim.EMA(optim.LateSAM(sgd(model), share=0.5))
        return ll.training.fit(
            model, optimizer, loss_of, digits, epochs=4, batch_size=32, schedule=schedule, select="last"
        )

    found = run("constant")
    assert (found.steps, found.passes) == (8, 12)
    assert [round(row["learning_rate"], 6) for row in found.rows] == [0.1, 0.1, 0.075, 0.025]
    with pytest.raises(InputError, match="schedule"):
        run("cosine")


def test_norm_layers_alone_from_a_file():
    model = network()
    optimizer = build_optimizer(OptimizerSpec(method="sam", options={"rho": 0.5, "only": "norms"}), model)
    assert optimizer.options.only == frozenset(model[1].parameters())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("period", lambda base: ll.optim.SALA(base, period=2.5)),
        ("period", lambda base: ll.optim.LookSAM(base, period="2")),
        ("interval", lambda base: ll.optim.SAM(base, interval=1.5)),
        ("start", lambda base: ll.optim.SWA(base, interval=2, start=float("nan"))),
        ("rho", lambda base: ll.optim.SAM(base, rho="0.1")),
        ("rho", lambda base: ll.optim.SAM(base, rho=None)),
        ("alpha", lambda base: ll.optim.GSAM(base, alpha="x")),
        ("decay", lambda base: ll.optim.EMA(base, decay="x")),
    ],
)
def test_options_of_a_wrong_kind_are_refused_by_name(name, make):
    with pytest.raises(InputError, match=f"`{name}`"):
        make(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))


@pytest.mark.parametrize("name", TWO_PASS)
def test_a_parameter_without_a_second_gradient_has_its_bits_back(name):
    model, (x, y) = network(), data(1)[0]
    optimizer, last, moved = METHODS[name](sgd(model, lr=0.0, momentum=0.0)), list(model.parameters())[-1], 0
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(6):
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                moved += not torch.equal(last, before[-1])
                loss_of(model(x), y).backward()
                last.grad = None
        optimizer.step()
        assert same_bits(before, list(model.parameters()))
    assert moved


@pytest.mark.parametrize("name", ["EMA", "SALA", "MSAM"])
def test_a_checkpoint_loaded_in_inference_mode_trains_on(name):
    ends = []
    for inference in (False, True):
        model = network()
        optimizer = getattr(optim, name)(sgd(model))
        train(model, optimizer, data(3)) if optimizer.ascent_method is None else None
        state = copy.deepcopy(optimizer.state_dict())
        with torch.inference_mode(inference):
            optimizer.load_state_dict(state)
            optimizer.eval()
            optimizer.train()
        for x, y in data(3):
            optimizer.step(closure_of(model, optimizer, x, y))
        ends.append(model.state_dict())
    assert same_bits(list(ends[0].values()), list(ends[1].values()))


def closure_of(model, optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        return loss

    return closure
