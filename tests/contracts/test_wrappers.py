"""What the rules of `lowland.testing` leave to wrappers of ours; a new one joins by one line of `optim_cases`."""

import copy
import io

import pytest
import torch
from tests.optim_cases import MEMBERS
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lowland.core.contexts import current_pass, same_bits
from lowland.core.errors import InputError, MissingPass
from lowland.optim.checkpoint import own_tensors

BASES = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=1e-2),
}
members = pytest.mark.parametrize("member", list(MEMBERS))
bases = pytest.mark.parametrize("base", list(BASES))


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers).to(dtype)


def data(steps, dtype=torch.float32, size=8):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(steps, size, 6, generator=generator, dtype=torch.float64).to(dtype)
    return list(zip(inputs, torch.randint(0, 3, (steps, size), generator=generator), strict=True))


loss_of = nn.CrossEntropyLoss()


def build(member, base, dtype=torch.float32, **options):
    if member == "MSAM" and base == "adamw":
        pytest.skip("MSAM wants a momentum buffer")
    model = network(dtype)
    options.setdefault("model", model)  # looking for it takes a moment; other tests do
    return model, MEMBERS[member](BASES[base](model.parameters()), **options)


def two_pass(model, optimizer, batches, scale=1.0):
    """The plain loop that everything else is compared with."""
    for x, y in batches:
        optimizer.zero_grad()
        (scale * loss_of(model(x), y)).backward()
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                (scale * loss_of(model(x), y)).backward()
        optimizer.step()


def by_closure(model, optimizer, batches):
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def bits(model):
    return [*model.parameters(), *model.buffers()]


def assert_same(first, second):
    assert same_bits(bits(first), bits(second))


# One trajectory, however it is driven.


@members
@bases
def test_closure_equals_two_pass_loop(member, base):
    plain, driven = build(member, base), build(member, base)
    two_pass(*plain, data(12))
    by_closure(*driven, data(12))
    assert_same(plain[0], driven[0])


@members
def test_a_model_moved_after_construction_takes_the_methods_tensors_along(member):
    model, optimizer = build(member, "sgd")
    model.double()
    two_pass(model, optimizer, data(12, torch.float64))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for tensors in optimizer._held.tensors.values():
        for parameter, tensor in tensors.items():
            assert tensor.dtype == parameter.dtype == torch.float64


@members
@bases
def test_stock_grad_scaler_changes_no_bit(member, base):
    plain, driven = build(member, base), build(member, base)
    two_pass(*plain, data(12))
    model, optimizer = driven
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    optimizer.use_scaler(scaler)
    for x, y in data(12):
        optimizer.zero_grad()
        scaler.scale(loss_of(model(x), y)).backward()
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                scaler.scale(loss_of(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() > 1024.0
    assert_same(plain[0], model)


@members
@bases
@pytest.mark.parametrize("closure", [False, True])
def test_fabric_proxy_changes_no_bit(member, base, closure):
    fabric_package = pytest.importorskip("lightning_fabric")
    plain, driven = build(member, base), build(member, base)
    (by_closure if closure else two_pass)(*plain, data(12))
    fabric = fabric_package.Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*driven)
    assert optimizer is not driven[1]
    if closure:
        by_closure(model, optimizer, data(12))
    else:
        for x, y in data(12):
            optimizer.zero_grad()
            fabric.backward(loss_of(model(x), y))
            if optimizer.needs_perturbation():
                with optimizer.perturb():
                    fabric.backward(loss_of(model(x), y))
            optimizer.step()
    assert_same(plain[0], driven[0])
    assert driven[1].steps == optimizer.steps == 12
    optimizer.eval()
    assert driven[1]._held.evaluating


@members
@bases
def test_fabric_checkpoint_round_trip(member, base, tmp_path):
    fabric_package = pytest.importorskip("lightning_fabric")
    fabric = fabric_package.Fabric(accelerator="cpu", devices=1)
    straight = build(member, base)
    two_pass(*straight, data(10))
    first = fabric.setup(*build(member, base))
    two_pass(*first, data(10)[:5])
    fabric.save(tmp_path / "state.ckpt", {"model": first[0], "optimizer": first[1]})
    second = fabric.setup(*build(member, base))
    fabric.load(tmp_path / "state.ckpt", {"model": second[0], "optimizer": second[1]})
    two_pass(*second, data(10)[5:])
    assert_same(straight[0], second[0].module)


# Checkpoints.


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@members
@bases
@pytest.mark.parametrize("phase", [3, 4])
def test_resume_from_evaluation_mode_is_bit_exact(member, base, phase):
    straight, first, second = build(member, base), build(member, base), build(member, base)
    two_pass(*straight, data(14))
    two_pass(*first, data(14)[:phase])
    first[1].eval()
    state = saved({"model": first[0].state_dict(), "optimizer": first[1].state_dict()})
    second[0].load_state_dict(state["model"])
    second[1].load_state_dict(state["optimizer"])
    two_pass(*second, data(14)[phase:])
    assert_same(straight[0], second[0])


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in flat(entry, f"{prefix}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, entry in enumerate(value) for k, v in flat(entry, f"{prefix}.{i}").items()}
    return {prefix: value}


def assert_equal_states(first, second):
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert same_bits([value], [second[key]]), key
        else:
            assert value == second[key], key


@members
@bases
def test_state_dict_is_the_same_in_either_mode(member, base):
    model, optimizer = build(member, base)
    two_pass(model, optimizer, data(5))
    training = copy.deepcopy(optimizer.state_dict())
    before = [b.clone() for b in bits(model)]
    optimizer.eval()
    optimizer.eval()
    assert_equal_states(training, optimizer.state_dict())
    with pytest.raises(InputError, match="evaluation mode"):
        optimizer.step()
    optimizer.train()
    optimizer.train()
    assert same_bits(before, bits(model))
    assert_equal_states(training, optimizer.state_dict())


@members
@bases
def test_checkpoint_holds_no_scratch(member, base):
    model, optimizer = build(member, base)
    two_pass(model, optimizer, data(5))
    bare = len([v for v in flat(optimizer.base.state_dict()).values() if isinstance(v, torch.Tensor)])
    own = sum(len(values) for values in own_tensors(optimizer._held).values())
    ours = [v for v in flat(optimizer.state_dict()).values() if isinstance(v, torch.Tensor)]
    assert len({v.data_ptr() for v in ours}) <= bare + own
    assert set(optimizer.state_dict()) == {"state", "param_groups", "lowland"}


@members
@bases
def test_bare_checkpoint_loads_and_ours_loads_into_the_bare_base(member, base):
    model, optimizer = build(member, base)
    two_pass(model, optimizer, data(5))
    bare = BASES[base](network().parameters())
    bare.load_state_dict(saved(optimizer.state_dict()))
    for (_, mine), (_, theirs) in zip(optimizer.base.state.items(), bare.state.items(), strict=True):
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    other_model, other = build(member, base)
    other.load_state_dict(saved(optimizer.base.state_dict()))
    assert other.steps == 0 and all(
        "rho" in group for group in other.param_groups if "rho" in optimizer.param_groups[0]
    )
    assert_equal_states(other.base.state_dict()["state"], optimizer.base.state_dict()["state"])
    two_pass(other_model, other, data(2))
    MEMBERS[member](bare).zero_grad()  # and wrapping the loaded base again works
    assert not any(str(key).startswith("lowland") for entry in bare.state.values() for key in entry)


@members
@bases
def test_a_checkpoint_from_before_the_first_step_loads_into_the_bare_base(member, base):
    _, optimizer = build(member, base)
    model = network()
    bare = BASES[base](model.parameters())
    bare.load_state_dict(saved(optimizer.state_dict()))
    plain = network()
    untouched = BASES[base](plain.parameters())
    for net, optimizer in ((model, bare), (plain, untouched)):
        loss_of(net(data(1)[0][0]), data(1)[0][1]).backward()
        optimizer.step()  # AdamW would take an entry of ours for its own state
    assert_same(model, plain)


@members
@bases
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint_helpers_keep_everything(member, base, flat):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    straight, first, second = build(member, base), build(member, base), build(member, base)
    two_pass(*straight, data(12))
    two_pass(*first, data(12)[:5])
    first[1].zero_grad()
    model_state, optimizer_state = get_state_dict(*first, options=options)
    assert "lowland" not in optimizer_state
    set_state_dict(
        *second,
        model_state_dict=copy.deepcopy(model_state),
        optim_state_dict=copy.deepcopy(optimizer_state),
        options=options,
    )
    two_pass(*second, data(12)[5:])
    assert_same(straight[0], second[0])


@members
@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints_of_a_base_without_state(member, flat):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    if member == "MSAM":
        pytest.skip("MSAM wants a momentum buffer")
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def fresh():
        model = network()
        return model, MEMBERS[member](torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    straight, first, second = fresh(), fresh(), fresh()
    two_pass(*straight, data(9))
    two_pass(*first, data(9)[:4])
    first[1].zero_grad()
    weights, state = copy.deepcopy(get_state_dict(*first, options=options))
    set_state_dict(*second, model_state_dict=weights, optim_state_dict=state, options=options)
    assert first[1].steps == second[1].steps == 4, "torch's initializing steps are none of ours"
    two_pass(*second, data(9)[4:])
    assert_same(straight[0], second[0])


@members
def test_checkpoint_of_another_method_or_shape_is_refused(member):
    from lowland.core.errors import CheckpointError

    model, optimizer = build(member, "sgd")
    two_pass(model, optimizer, data(2))
    before = copy.deepcopy(optimizer.state_dict())
    foreign = copy.deepcopy(before)
    foreign["lowland"]["method"] = "Other"
    with pytest.raises(CheckpointError, match="Other"):
        optimizer.load_state_dict(foreign)
    short = copy.deepcopy(before)
    short["param_groups"] *= 2
    with pytest.raises(CheckpointError, match="groups"):
        optimizer.load_state_dict(short)
    assert_equal_states(before, optimizer.state_dict())


# Restoring.


def reach_a_perturbed_step(model, optimizer):
    for x, y in data(30):
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        if optimizer.needs_perturbation():
            return x, y
        optimizer.step()
    pytest.skip("the method has no second pass")


@members
def test_an_exception_in_the_second_pass_restores(member):
    model, optimizer = build(member, "sgd")
    x, _ = reach_a_perturbed_step(model, optimizer)
    before = [b.clone() for b in bits(model)]
    with pytest.raises(RuntimeError, match="out of memory"), optimizer.perturb():
        assert current_pass() == "perturbed" and not same_bits(before, bits(model))
        model(x)
        raise RuntimeError("out of memory")
    assert same_bits(before, bits(model)) and current_pass() == "clean"
    with pytest.raises(MissingPass):
        optimizer.step()
    assert same_bits(before, bits(model))


@members
@bases
def test_an_overflow_in_either_pass_is_a_skipped_step(member, base):
    plain, (model, optimizer) = build(member, base), build(member, base)
    batches = data(13)
    two_pass(*plain, batches[:-1])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.use_scaler(scaler)
    inf, nan = float("inf"), float("nan")
    spoils = [("first", inf), ("second", inf), ("first", nan), ("second", nan)]
    spoiled = [(batches[-1], *spoil) for spoil in spoils]
    good = [(batch, "", 0.0) for batch in batches[:-1]]
    for (x, y), which, value in [*good[:3], *spoiled[:2], *good[3:6], *spoiled[2:], *good[6:]]:
        buffers = [b.clone() for b in model.buffers()]
        optimizer.zero_grad()
        scaler.scale(loss_of(model(x), y)).backward()
        twice = optimizer.needs_perturbation()
        if which == "first" or (which and not twice):
            next(model.parameters()).grad[0, 0] = value
        weights = [p.clone() for p in model.parameters()]
        if twice:
            with optimizer.perturb():
                if which == "first":
                    assert same_bits(weights, list(model.parameters())), "no ascent along a gradient that is not finite"
                scaler.scale(loss_of(model(x), y)).backward()
                if which:  # an overflow shows in the second pass too
                    next(model.parameters()).grad[0, 0] = value
        scaler.step(optimizer)
        if which:
            assert same_bits(weights, list(model.parameters()))
            for buffer, old in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(old)  # plain training too has seen the batch's statistics
        scaler.update(1024.0)
    assert_same(plain[0], model)


@members
def test_a_group_added_keeps_its_rate_and_complex_ones_are_refused(member):
    _, optimizer = build(member, "sgd")
    optimizer.add_param_group({"params": nn.Linear(3, 3).parameters(), "lr": 0.05})
    assert optimizer.base.param_groups[1]["lr"] == 0.05
    with pytest.raises(InputError):
        optimizer.add_param_group({"params": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})


# Passes and hooks.


@members
def test_a_missing_pass_keeps_the_state_and_may_be_allowed(member):
    model, optimizer = build(member, "sgd")
    reach_a_perturbed_step(model, optimizer)
    state, before = copy.deepcopy(optimizer.state_dict()), [b.clone() for b in bits(model)]
    with pytest.raises(MissingPass, match="second pass"):
        optimizer.step()
    assert same_bits(before, bits(model))
    assert_equal_states(state, optimizer.state_dict())
    plain = MEMBERS[member](BASES["sgd"](network().parameters()), allow_plain=True)
    plain.param_groups[0]["params"][0].grad = torch.ones(8, 6)
    plain.step()


@members
def test_no_pass_is_wasted(member):
    model, optimizer = build(member, "sgd")
    x, y = data(1)[0]
    loss_of(model(x), y).backward()
    if optimizer.needs_perturbation():
        with optimizer.perturb():
            with pytest.raises(InputError, match="inside perturb"):
                optimizer.step()
            with pytest.raises(InputError, match="perturb"), optimizer.perturb():
                pass
            loss_of(model(x), y).backward()
        with pytest.raises(InputError, match="twice"), optimizer.perturb():
            pass
    else:
        with pytest.raises(InputError, match="wants? no|wanted"), optimizer.perturb():
            pass


@members
def test_hooks_fire_once_per_step(member):
    model, optimizer = build(member, "sgd")
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("global before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global after")),
    ]
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.base.register_step_pre_hook(lambda *_: seen.append("base before"))
    optimizer.base.register_step_post_hook(lambda *_: seen.append("base after"))
    try:
        two_pass(model, optimizer, data(3))
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(seen) == sorted(["global before", "global after", "before", "after", "base before", "base after"] * 3)


@members
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("attached", ["wrapper", "base"])
@pytest.mark.filterwarnings("error")
def test_schedulers_attach_around_a_load_without_a_warning(member, order, attached):
    model, optimizer = build(member, "sgd")
    state = copy.deepcopy(optimizer.state_dict())
    if order == "before":
        optimizer.load_state_dict(state)
    target = optimizer if attached == "wrapper" else optimizer.base
    scheduler = torch.optim.lr_scheduler.StepLR(target, 1, gamma=0.5)
    if order == "after":
        optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    rate = optimizer.param_groups[0]["lr"]
    two_pass(model, optimizer, data(1))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.base.param_groups[0]["lr"] == rate / 2


@members
def test_statistics_of_every_norm_are_those_of_the_first_passes(member):
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, momentum=None), nn.ReLU(), norm, nn.Flatten(), nn.Linear(16, 3)
    )
    optimizer = MEMBERS[member](BASES["sgd"](model.parameters()))
    for step in range(6):
        x, y = torch.randn(8, 2, 6), torch.randint(0, 3, (8,))
        twin = copy.deepcopy(model)
        loss_of(twin(x), y)
        if optimizer.needs_perturbation() and step % 2:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_of(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
        else:
            two_pass(model, optimizer, [(x, y)])
        assert same_bits(list(twin.buffers()), list(model.buffers()))
    assert int(model[1].num_batches_tracked) == 6


# Bad input.


@members
def test_bad_bases_are_refused(member):
    make = MEMBERS[member]
    parameters = [nn.Parameter(torch.zeros(3))]

    def sgd(values):
        return torch.optim.SGD(values, lr=0.1, momentum=0.9)

    good = sgd(parameters)
    cases = {
        "instance": torch.optim.SGD,
        "wrap": make(sgd([nn.Parameter(torch.zeros(3))])),
        "torch.optim.Optimizer": object(),
        "twice": [good, sgd(parameters)],
        "closure": torch.optim.LBFGS([nn.Parameter(torch.zeros(3))]),
        "real": sgd([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]),
        "at least one": [],
    }
    for rule, base in cases.items():
        with pytest.raises(InputError, match=rule):
            make(base)
    assert "rho" not in good.param_groups[0]


@members
def test_gradients_are_cleared_as_torch_does(member):
    model, optimizer = build(member, "sgd")
    x, y = data(1)[0]
    loss_of(model(x), y).backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
