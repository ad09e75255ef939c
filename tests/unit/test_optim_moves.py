"""Moving many tensors at once, and what ranks must share before they do."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lowland import optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.optim import ascent, ranks
from lowland.optim.holder import Holder
from lowland.optim.moves import copy_all, lost_share, matched, scale_all
from lowland.optim.ranks import check_ranks_agree


def test_ranks_that_stand_apart_are_told_in_what(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)

    def compare(*ranks):
        said = []

        def gather(places, mine, group):
            said.append(mine)
            for place, one in zip(places, (said[0], said[-1]), strict=True):
                place.copy_(one)

        monkeypatch.setattr(torch.distributed, "all_gather", gather)
        for weights, settings in ranks:
            check_ranks_agree([weights], [settings], torch.device("cpu"))

    first = torch.ones(3), {"lr": 0.1, "name": "SAM"}
    compare(first, (torch.ones(3), {"name": "SAM", "lr": 0.1}))
    with pytest.raises(InputError, match="rank 1 differs from rank 0 in its weights"):
        compare(first, (torch.full((3,), 2.0), first[1]))
    with pytest.raises(InputError, match="rank 1 differs from rank 0 in its settings"):
        compare(first, (first[0], {"lr": 0.2, "name": "SAM"}))


def test_gradients_that_ranks_cannot_average_are_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *call, **options: pytest.fail("sent"))
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (3,), check_invariants=True)
    with pytest.raises(InputError, match="dense gradients, for ranks to average them.*sparse=False"):
        ranks.average_over_ranks([torch.ones(3), sparse])


@pytest.mark.parametrize(("swallowed", "share"), [((), 0.0), ((0,), 0.64), ((0, 1), 1.0)])
def test_the_share_of_a_move_that_rounding_swallowed(swallowed, share):
    before, move = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 3.0])
    after = torch.where(torch.tensor([i in swallowed for i in range(2)]), before, before + move)
    assert lost_share([before], [after], [move]) == pytest.approx(share, abs=1e-12)
    assert lost_share([before], [before], [torch.zeros(2)]) == 0.0


def test_pairs_are_moved_by_device_and_type():
    first = [torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.zeros(3), torch.zeros(1, device="meta")]
    found = matched(first, [torch.ones_like(tensor) for tensor in first])
    assert [[t.shape[0] for t in one] for one, _ in found] == [[2, 3], [2], [1]]
    assert all(len({(t.device, t.dtype) for t in (*one, *other)}) == 1 for one, other in found)


def test_ctrl_c_waits_until_the_weights_are_back(monkeypatch):
    model = nn.Linear(3, 2)
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    before = [p.detach().clone() for p in model.parameters()]

    def interrupted(targets, sources):
        os.kill(os.getpid(), signal.SIGINT)
        copy_all(targets, sources)

    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(KeyboardInterrupt), optimizer.perturb():
        monkeypatch.setattr(ascent, "copy_all", interrupted)
        assert not same_bits(list(model.parameters()), before)
        model(torch.ones(1, 3)).sum().backward()
    assert same_bits(list(model.parameters()), before)


def test_a_step_of_one_group_at_rest_is_a_step():
    rest, moving = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": rest.parameters(), "lr": 0.0}, {"params": moving.parameters()}]
    optimizer = optim.EMA(torch.optim.SGD(groups, lr=0.1), decay=0.5)
    for parameter in (*rest.parameters(), *moving.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.steps == 1


@pytest.mark.parametrize(("before", "now", "factor"), [(2.0, 1.0, 0.5), (0.0, 0.0, 1.0), (0.0, 2.0, 1.0)])
def test_gradients_that_were_nothing_are_not_rescaled(before, now, factor):
    held = SimpleNamespace(scratch=SimpleNamespace(length=torch.tensor(before)), length=lambda: torch.tensor(now))
    assert float(Holder.rescaling(held)) == factor


def test_a_base_without_a_rate_cannot_weigh_the_sharpness_term():
    parameters = list(nn.Linear(2, 2).parameters())
    base = torch.optim.SGD(parameters, lr=0.1)
    base.param_groups[0]["lr"] = None
    with pytest.raises(InputError, match="learning rate for the sharpness term"):
        optim.WSAM(base)


def test_weights_that_ask_for_gradients_are_moved_in_place():
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    with torch.no_grad():  # as the whole step is
        scale_all(weights, torch.tensor(3.0))
    assert [w.tolist() for w in weights] == [[3, 3], [3, 3]] and all(w.is_leaf and w.requires_grad for w in weights)


def test_a_first_step_at_rate_zero_is_a_step_where_any_gradient_is_not_zero():
    """A warm-up may begin at 0, and layers that are not reached have gradients of 0."""
    reached, dead = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = optim.EMA(torch.optim.SGD([*reached.parameters(), *dead.parameters()], lr=0.0), decay=0.5)
    for layer, value in ((reached, 1.0), (dead, 0.0)):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    assert optimizer.steps == 1
