"""Moving many tensors at once, and what ranks must share before they do."""

import pytest
import torch

from lowland.core.errors import InputError
from lowland.optim.moves import lost_share, matched
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
