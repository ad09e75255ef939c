"""The two-pass step in detail: micro-batches, which step has a pass, random numbers, norms, counts of operations."""

import copy
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, LowlandWarning, MissingPass

loss_of = nn.CrossEntropyLoss()


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def data(count, size=4):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def backward(model, batch, share=1.0):
    loss = loss_of(model(batch[0]), batch[1]) * share
    loss.backward()
    return loss


def closure_of(model, optimizer, batch, passes=None):
    def closure():
        optimizer.zero_grad()
        if passes is not None:
            passes.append(optimizer.steps)
        return backward(model, batch)

    return closure


# Micro-batches.


def test_step_ascent_over_micro_batches_is_large_batch_sam():
    batches = data(8)
    model, whole = network(), network()
    accumulated, large = optim.SAM(sgd(model)), optim.SAM(sgd(whole))
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        accumulated.zero_grad()
        for micro in (first, second):
            backward(model, micro, 0.5)
        with accumulated.perturb():
            for micro in (first, second):
                backward(model, micro, 0.5)
        accumulated.step()
        joined = tuple(torch.cat(parts) for parts in zip(first, second, strict=True))
        large.step(closure_of(whole, large, joined))
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("method", [optim.SAM, optim.ASAM, optim.GSAM])
def test_micro_batch_ascent_sums_the_steps_of_its_micro_batches(method):
    first, second = data(2)
    model = network()
    optimizer = method(sgd(model), ascent="micro-batch")
    gradients = []
    for micro in (first, second):
        twin = copy.deepcopy(model)
        alone = method(sgd(twin))
        backward(twin, micro, 0.5)
        with alone.perturb():
            backward(twin, micro, 0.5)
        gradients.append([p.grad for p in twin.parameters()])
    for micro in (first, second):
        with optimizer.first_pass():
            backward(model, micro, 0.5)
        with optimizer.perturb():
            backward(model, micro, 0.5)
    for p, one, other in zip(model.parameters(), *gradients, strict=True):
        assert torch.equal(p.grad, one + other)
    optimizer.step()


def test_a_second_ascent_in_a_step_needs_first_pass():
    model, optimizer = (m := network()), optim.SAM(sgd(m), ascent="micro-batch")
    first, second = data(2)
    backward(model, first)
    with optimizer.perturb():
        backward(model, first)
    backward(model, second)
    weights = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match="first_pass"), optimizer.perturb():
        pass
    assert same_bits(weights, list(model.parameters()))
    model.zero_grad()  # a skipped step whose gradients were cleared behind the optimizer's back
    backward(model, first)
    with optimizer.perturb():
        backward(model, first)
    optimizer.step()


def test_first_pass_after_the_ascent_is_refused_per_step():
    model, optimizer = (m := network()), optim.SAM(sgd(m))
    (batch,) = data(1)
    with optimizer.first_pass():
        backward(model, batch)
    with optimizer.perturb():
        with pytest.raises(InputError, match="inside perturb"), optimizer.first_pass():
            pass
        backward(model, batch)
    with pytest.raises(InputError, match="micro-batch"), optimizer.first_pass():
        pass


def test_the_last_micro_batch_without_its_pass_is_missed():
    model, optimizer = (m := network()), optim.SAM(sgd(m), ascent="micro-batch")
    first, second = data(2)
    with optimizer.first_pass():
        backward(model, first)
    with optimizer.perturb():
        backward(model, first)
    with optimizer.first_pass():
        backward(model, second)
    with pytest.raises(MissingPass):
        optimizer.step()


def test_closure_refuses_gradients_it_would_lose():
    model, optimizer = (m := network()), optim.SAM(sgd(m))
    first, second = data(2)
    backward(model, first)
    weights = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match="earlier micro-batches"):
        optimizer.step(lambda: backward(model, second))
    assert same_bits(weights, list(model.parameters()))
    optimizer.step(closure_of(model, optimizer, first))
    model.zero_grad()
    optimizer.step(lambda: (model.zero_grad(), backward(model, second))[1])


def test_closure_that_runs_both_passes_itself():
    model, other = network(), network()
    mine, theirs = optim.SAM(sgd(model)), optim.SAM(sgd(other))
    for batch in data(3):

        def both(batch=batch):
            mine.zero_grad()
            loss = backward(model, batch)
            with mine.perturb():
                backward(model, batch)
            return loss

        assert mine.step(both) == theirs.step(closure_of(other, theirs, batch))
    assert same_bits(list(model.parameters()), list(other.parameters()))


# Which step has a second pass.


def passes_of(optimizer, model, steps):
    passes = []
    for batch in data(steps):
        optimizer.step(closure_of(model, optimizer, batch, passes))
    return passes


def test_skipped_passes_are_really_skipped():
    model = network()
    assert len(passes_of(optim.LookSAM(sgd(model), period=10), model, 100)) == 110
    assert len(passes_of(optim.SAM(sgd(model), interval=4), model, 100)) == 125
    assert passes_of(optim.SAM(sgd(model), start=7, stop=9), model, 10) == [*range(8), 7, 8, 8, 9]
    assert len(passes_of(optim.SAM(sgd(model), schedule=lambda step: float(step >= 6)), model, 10)) == 14
    assert len(passes_of(optim.SAM(sgd(model), rho=0.0), model, 10)) == 10
    for period in (2, 5):
        sala = optim.SALA(sgd(model), period=period)
        passes = len(passes_of(sala, model, 100))
        assert passes == 100 + round(sala.stage_two_share * (100 // period))


def test_intervals_start_again_where_a_checkpoint_ends():
    model = network()
    optimizer = optim.SAM(sgd(model), interval=3)
    passes_of(optimizer, model, 4)
    again = optim.SAM(sgd(model), interval=3)
    again.load_state_dict(optimizer.state_dict())
    assert not again.needs_perturbation() and again.steps == 4


def test_a_pass_that_is_not_wanted_is_refused():
    model, optimizer = (m := network()), optim.SAM(sgd(m), start=5)
    backward(model, data(1)[0])
    with pytest.raises(InputError, match="needs_perturbation"), optimizer.perturb():
        pass
    optimizer.step()


def test_schedule_scales_the_radius():
    model, optimizer = (m := network()), optim.SAM(sgd(m), rho=0.1, schedule=lambda step: 0.5)
    assert shift(model, optimizer) == pytest.approx(0.05, rel=1e-6)


def test_gsam_radius_follows_the_learning_rate():
    model = network()
    optimizer = optim.GSAM(sgd(model, lr=0.4), rho=0.2, rho_min=0.1, rate_min=0.2)
    for rate, radius in ((0.4, 0.2), (0.3, 0.15), (0.2, 0.1), (0.0, 0.1)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        assert shift(model, optimizer) == pytest.approx(radius, rel=1e-5)


# Length and direction of the ascent.


def shift(model, optimizer):
    """Length by which `perturb` moves the weights."""
    backward(model, data(1)[0])
    before = [p.detach().double() for p in model.parameters()]
    with optimizer.perturb():
        moved = [p.detach().double() - b for p, b in zip(model.parameters(), before, strict=True)]
        backward(model, data(1)[0])
    return float(torch.stack([m.square().sum() for m in moved]).sum().sqrt())


def test_two_bases_share_one_norm():
    model = network(torch.float32)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    bases = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(vectors, lr=0.01)
    optimizer = optim.SAM(bases, rho=0.05)
    assert shift(model, optimizer) == pytest.approx(0.05, rel=1e-6)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    assert len(optimizer.param_groups) == 2 and len(optimizer.state) == 4
    assert sorted(i for group in state["param_groups"] for i in group["params"]) == [0, 1, 2, 3]
    twin = network()
    again = optim.SAM(
        (
            torch.optim.Muon([p for p in twin.parameters() if p.ndim > 1], lr=0.02),
            torch.optim.AdamW([p for p in twin.parameters() if p.ndim < 2], lr=0.01),
        )
    )
    twin.load_state_dict(model.state_dict())
    again.load_state_dict(state)
    for batch in data(4):
        optimizer.step(closure_of(model, optimizer, batch))
        again.step(closure_of(twin, again, batch))
    assert same_bits(list(model.parameters()), list(twin.parameters()))
    with pytest.raises(InputError, match="base"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]}, base=1)
    assert len(bases[1].param_groups) == 2


def grouped(model, **options):
    return torch.optim.SGD([{"params": model[0].parameters(), **options}, {"params": model[2].parameters()}], lr=0.1)


def test_a_group_with_radius_zero_is_left_out():
    model = network()
    optimizer = optim.SAM(grouped(model, rho=0.0), rho=0.05)
    before = [p.clone() for p in model.parameters()]
    assert shift(model, optimizer) == pytest.approx(0.05, rel=1e-6)
    optimizer.zero_grad()
    backward(model, data(1)[0])
    with optimizer.perturb():
        assert all(p.grad is None for p in model.parameters()), "also where nothing was moved"
        assert same_bits(before[:2], list(model[0].parameters()))
        assert not same_bits(before[2:], list(model[2].parameters()))
        backward(model, data(1)[0])
    optimizer.step()
    assert optimizer.param_groups[0]["rho"] == 0.0


@pytest.mark.parametrize(("norm", "length"), [("global", 1.0), ("group", 2**0.5), ("tensor", 2.0)])
def test_other_norms_are_longer(norm, length):
    model = network()
    assert shift(model, optim.SAM(grouped(model), rho=0.05, norm=norm)) == pytest.approx(0.05 * length, rel=1e-6)


def test_weight_decay_may_be_part_of_the_ascent():
    model = network(torch.float64)
    optimizer = optim.SAM(sgd(model, weight_decay=0.3), rho=0.05, weight_decay="included")
    (x, y), before = data(1)[0], [p.detach().clone() for p in model.parameters()]
    loss_of(model(x.double()), y).backward()
    slopes = [p.grad + 0.3 * b for p, b in zip(model.parameters(), before, strict=True)]
    norm = torch.stack([s.square().sum() for s in slopes]).sum().sqrt()
    with optimizer.perturb():
        for p, b, s in zip(model.parameters(), before, slopes, strict=True):
            assert torch.allclose(p, b + 0.05 * s / norm, atol=1e-14, rtol=0)
        loss_of(model(x.double()), y).backward()


def test_zero_gradients_move_nothing():
    model, optimizer = (m := network()), optim.SAM(sgd(m))
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with optimizer.perturb():
        assert same_bits(before, list(model.parameters()))
        backward(model, data(1)[0])
    optimizer.step()


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("method", [optim.SAM, optim.ASAM, optim.GSAM, optim.LookSAM])
def test_scale_of_the_loss_changes_no_bit_of_the_ascent(method, factor):
    moved = []
    for scale in (1.0, factor):
        model = network()
        optimizer = method(sgd(model))
        backward(model, data(1)[0], scale)
        with optimizer.perturb():
            moved.append([p.clone() for p in model.parameters()])
            backward(model, data(1)[0], scale)
    assert same_bits(*moved)


@pytest.mark.parametrize("method", [optim.SAM, optim.ASAM])
def test_a_scale_that_is_no_power_of_two_changes_rounding_alone(method):
    moved = []
    for scale in (1.0, 3.0):
        model = network()
        optimizer = method(sgd(model), rho=0.3)
        before = [p.clone() for p in model.parameters()]
        backward(model, data(1)[0], scale)
        with optimizer.perturb():
            moved.append([p - old for p, old in zip(model.parameters(), before, strict=True)])
            backward(model, data(1)[0], scale)
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_bare_bfloat16_weights_are_warned_of_once():
    model = network(torch.bfloat16)
    optimizer = optim.SAM(sgd(model), rho=1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)

    def second_pass(of):
        for p in of.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)

    with pytest.warns(LowlandWarning, match="rounding swallows"), optimizer.perturb():
        second_pass(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.zero_grad()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with optimizer.perturb():
            second_pass(optimizer)
        wide = optim.SAM(sgd(network(torch.bfloat16)), rho=2.0)
        for p in wide.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        with wide.perturb():
            second_pass(wide)


def test_bfloat16_weights_beside_wide_ones_are_warned_of_too():
    low, wide = nn.Parameter(torch.ones(64, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2))
    optimizer = optim.SAM(torch.optim.SGD([low, wide], lr=0.1), rho=1e-3)
    low.grad, wide.grad = torch.ones_like(low), torch.ones_like(wide)
    with pytest.warns(LowlandWarning, match="rounding swallows"), optimizer.perturb():
        low.grad, wide.grad = torch.ones_like(low), torch.ones_like(wide)


# Random numbers, buffers, compiled models.


def replaying():
    """A network with dropout, SAM that replays its noise, and the masks as they are drawn."""
    seen = []

    class Spy(nn.Dropout):
        def forward(self, x):
            out = super().forward(x)
            seen.append((out == 0).detach())
            return out

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), Spy(0.5), nn.Linear(64, 3))
    return model, optim.SAM(sgd(model), rng="replay"), seen


@pytest.mark.parametrize("driver", ["closure", "loop"])
def test_replay_repeats_the_dropout_mask(driver):
    model, optimizer, seen = replaying()
    for batch in data(2):
        if driver == "closure":
            optimizer.step(closure_of(model, optimizer, batch))
        else:
            optimizer.zero_grad()
            with optimizer.first_pass():
                backward(model, batch)
            after = torch.get_rng_state()
            with optimizer.perturb():
                backward(model, batch)
            assert torch.equal(after, torch.get_rng_state())
            optimizer.step()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])
    optimizer.zero_grad()
    backward(model, data(1)[0])
    with pytest.raises(InputError, match="first_pass"), optimizer.perturb():
        pass


def test_replay_goes_through_all_micro_batches_again():
    model, optimizer, seen = replaying()
    for batch in data(2):
        with optimizer.first_pass():
            backward(model, batch, 0.5)
    with optimizer.perturb():
        for batch in data(2):
            backward(model, batch, 0.5)
    optimizer.step()
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1])


def test_fresh_random_numbers_by_default():
    model = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    optimizer = optim.SAM(sgd(model))
    states = []

    def closure():
        optimizer.zero_grad()
        states.append(torch.get_rng_state())
        return backward(model, data(1)[0])

    optimizer.step(closure)
    assert not torch.equal(*states)


def test_buffers_are_found_without_being_told():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3))
    optimizer = optim.SAM(sgd(model))
    passes_of(optimizer, model, 5)
    assert int(model[1].num_batches_tracked) == 5
    both = optim.SAM(sgd(model), batch_norm="both")
    passes_of(both, model, 5)
    assert int(model[1].num_batches_tracked) == 15


def test_buffers_of_every_network_of_a_closure_are_found():
    parts = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(2)]
    optimizer = optim.SAM(torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = parts[1](parts[0](torch.ones(4, 6).cumsum(0))).square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert [int(part[1].num_batches_tracked) for part in parts] == [3, 3]


def test_buffers_come_back_also_when_rebound():
    class Rebinder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count = self.count + 1
            return self.layer(x)

    model = Rebinder()
    passes_of(optim.SAM(sgd(model)), model, 3)
    assert model.count == 3


@pytest.mark.parametrize("value", [torch.full((3,), 0.1, dtype=torch.float64), torch.full((5,), 0.1)])
def test_tensors_may_become_others_between_steps(value):
    # as pruning, which cuts weights in place, and statistics that grow with what they see
    model = nn.Linear(6, 4)
    model.register_buffer("seen", torch.zeros(3))
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    model.seen.data = value.clone()
    for parameter in model.parameters():
        parameter.data = parameter.data[:3].clone()
    optimizer.step(closure)
    assert same_bits([model.seen], [value]) and model.weight.shape == (3, 6)


@pytest.mark.slow
def test_compiled_models_keep_their_graphs():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    compiled = torch.compile(model, backend=counter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes_of(optim.SAM(sgd(model)), compiled, 4)
    assert counter.frame_count == 1
    assert int(model[1].num_batches_tracked) == 4


# The names of the common port.


def test_first_and_second_step_are_the_same_step():
    model, other = network(), network()
    mine, theirs = optim.SAM(sgd(model)), optim.SAM(sgd(other))
    for batch in data(4):
        mine.zero_grad()
        backward(model, batch)
        mine.first_step(zero_grad=True)
        backward(model, batch)
        mine.second_step(zero_grad=True)
        theirs.step(closure_of(other, theirs, batch))
    assert same_bits(list(model.parameters()), list(other.parameters()))
    assert mine.steps == 4 and all(p.grad is None for p in model.parameters())


def test_first_step_does_not_mix_with_perturb():
    model, optimizer = (m := network()), optim.SAM(sgd(m))
    (batch,) = data(1)
    backward(model, batch)
    with pytest.raises(InputError, match="first_step"):
        optimizer.second_step()
    with optimizer.perturb():
        with pytest.raises(InputError, match="mix"):
            optimizer.first_step()
        with pytest.raises(InputError, match="mix"):
            optimizer.second_step()
        backward(model, batch)
    optimizer.zero_grad()
    backward(model, batch)
    optimizer.first_step()
    with pytest.raises(InputError, match="mix"), optimizer.perturb():
        pass
    backward(model, batch)
    optimizer.second_step()


# Bad input.


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"rho": -0.1}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"ascent": "batch"}, "ascent"),
        ({"distributed": "both"}, "distributed"),
        ({"batch_norm": "second"}, "batch_norm"),
        ({"rng": "same"}, "rng"),
        ({"norm": "layer"}, "norm"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"start": -1}, "start"),
        ({"start": 5, "stop": 4}, "stop"),
        ({"interval": 0}, "interval"),
    ],
)
def test_bad_options_are_refused(options, argument):
    base = sgd(network())
    with pytest.raises(InputError, match=f"`{argument}`"):
        optim.SAM(base, **options)
    assert "rho" not in base.param_groups[0]


def test_bad_options_of_the_methods_are_refused():
    base = sgd(network())
    for make, argument in [
        (lambda: optim.ASAM(base, eta=-1.0), "eta"),
        (lambda: optim.ASAM(base, scaled="names"), "scaled"),
        (lambda: optim.GSAM(base, alpha=1.5), "alpha"),
        (lambda: optim.GSAM(base, rho=0.1, rho_min=0.2), "rho_min"),
        (lambda: optim.GSAM(base, rate_max=0.1, rate_min=0.2), "rate_max"),
        (lambda: optim.LookSAM(base, period=0), "period"),
        (lambda: optim.LookSAM(base, alpha=-0.1), "alpha"),
        (lambda: optim.LookSAM(base, projection="layer"), "projection"),
        (lambda: optim.MSAM(base, rho=-1.0), "rho"),
        (lambda: optim.MSAM(base, start=-1), "start"),
        (lambda: optim.MSAM(sgd(network(), momentum=0.0)), "base"),
        (lambda: optim.MSAM(torch.optim.AdamW(network().parameters())), "base"),
        (lambda: optim.Lookahead(base, period=0), "period"),
        (lambda: optim.Lookahead(base, alpha=1.1), "alpha"),
        (lambda: optim.Lookahead(base, slow_weights="late"), "slow_weights"),
        (lambda: optim.SALA(base, period=0), "period"),
        (lambda: optim.SALA(base, rho=-0.1), "rho"),
        (lambda: optim.EMA(base, decay=1.5), "decay"),
        (lambda: optim.SWA(base, start=-1, interval=1), "start"),
        (lambda: optim.SWA(base, start=0, interval=0), "interval"),
        (lambda: optim.SAM(torch.optim.SGD([{"params": network().parameters(), "rho": -1.0}], lr=0.1)), "rho"),
    ]:
        with pytest.raises(InputError, match=f"`{argument}`"):
            make()


def test_sparse_gradients_are_refused_before_anything_moves():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = optim.SAM(torch.optim.SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1, 2])).sum().backward()
    before = table.weight.clone()
    with pytest.raises(InputError, match="dense"), optimizer.perturb():
        pass
    assert torch.equal(before, table.weight)
    plain = optim.SAM(torch.optim.SGD([{"params": table.parameters(), "rho": 0.0}], lr=0.1))
    plain.step()


# Averages.


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_have_the_bits_of_torchs_averaged_model(kind):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

    model = network()
    rule = get_ema_multi_avg_fn(0.9) if kind == "ema" else get_swa_multi_avg_fn()
    theirs = AveragedModel(model, multi_avg_fn=rule)
    mine = optim.EMA(sgd(model), decay=0.9) if kind == "ema" else optim.SWA(sgd(model), start=3, interval=2)
    for step, batch in enumerate(data(9), start=1):
        mine.step(closure_of(model, mine, batch))
        if kind == "ema" or (step >= 3 and (step - 3) % 2 == 0):
            theirs.update_parameters(model)
    assert mine.averaged_steps == int(theirs.n_averaged)
    with mine.averaged():
        assert same_bits(list(model.parameters()), list(theirs.module.parameters()))


def test_recalibration_belongs_to_the_averaged_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = optim.SWA(sgd(model), start=2, interval=1)
    loader = data(4)
    for batch in data(6):
        optimizer.step(closure_of(model, optimizer, batch))
    trained = [b.clone() for b in (*model.parameters(), *model.buffers())]
    optimizer.eval()
    assert optimizer.recalibrate(loader) == 4
    expected = torch.stack([model[0](x).mean(0) for x, _ in loader]).mean(0)
    assert torch.allclose(model[1].running_mean, expected, atol=1e-6)
    optimizer.train()
    assert same_bits(trained, [*model.parameters(), *model.buffers()])


# Counts.


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations(make, *, norms=False, steps=1):
    """Dispatched operations of the wrapper and its base alone, in the last of some steps."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) if norms else nn.Linear(6, 6)] * 1)
    model = nn.Sequential(*(copy.deepcopy(model) for _ in range(6)), nn.Linear(6, 3))
    optimizer = make(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, foreach=True))
    for batch in data(2 + steps):
        count = Count()
        optimizer.zero_grad()
        backward(model, batch)
        if optimizer.needs_perturbation():
            with count:
                pass_ = optimizer.perturb()
                pass_.__enter__()
            backward(model, batch)
            with count:
                pass_.__exit__(None, None, None)
        with count:
            optimizer.step()
    return count.names


@pytest.mark.parametrize(
    ("make", "norms", "limit"),
    [
        (lambda base: optim.SAM(base), False, 16),
        (lambda base: optim.SAM(base), True, 20),
        (lambda base: optim.GSAM(base), False, 40),
        (lambda base: optim.Lookahead(base, period=3), False, 10),
    ],
)
def test_dispatched_operations_stay_within_reach(make, norms, limit):
    names = operations(make, norms=norms)
    assert len(names) <= limit, names
    assert not any("_local_scalar_dense" in name or "item" in name for name in names)


def test_sala_reads_one_number_per_period():
    names = operations(lambda base: optim.SALA(base, rho=10.0, period=3))
    assert sum("_local_scalar_dense" in name for name in names) <= 1


@pytest.mark.parametrize("method", [optim.SAM, optim.ASAM, optim.SALA])
def test_gradients_of_the_first_pass_are_gone_in_the_second(method) -> None:
    layer = nn.Linear(4, 4)
    optimizer = method(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9), rho=10.0)
    met = 0
    for _ in range(8):
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).square().mean().backward()
        if optimizer.needs_perturbation():
            first = [weakref.ref(parameter.grad) for parameter in layer.parameters()]
            with optimizer.perturb():
                assert [gradient() for gradient in first] == [None, None]
                layer(torch.ones(2, 4)).square().mean().backward()
            met += 1
        optimizer.step()
    assert met


def test_filters_of_warnings_are_as_before_after_the_modules_were_met():
    model, before = network(), list(warnings.filters)
    optimizer, (batch,) = optim.SAM(sgd(model)), data(1)

    def closure():
        optimizer.zero_grad()
        return backward(model, batch)

    optimizer.step(closure)
    assert warnings.filters == before


def test_weights_are_back_where_a_second_step_was_left_out():
    model, optimizer = (m := network()), optim.SAM(sgd(m))
    (batch,) = data(1)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, batch)
    optimizer.first_step()
    assert not same_bits(list(model.parameters()), before)
    with pytest.raises(InputError, match="must be followed by second_step") as caught:
        optimizer.first_step()
    assert same_bits(list(model.parameters()), before)  # now, not when the last reference to the pass goes
    del caught


def test_gradients_that_a_closure_clears_are_gone_before_its_first_pass():
    model, optimizer = (m := network()), optim.SAM(sgd(m))
    first, second = data(2)
    optimizer.step(closure_of(model, optimizer, first))
    old, alive = [weakref.ref(p.grad) for p in model.parameters()], []

    def closure():
        optimizer.zero_grad()
        alive.append([gradient() is not None for gradient in old])
        return backward(model, second)

    optimizer.step(closure)
    assert alive == [[False] * 4] * 2
