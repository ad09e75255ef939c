"""What ranks that train one model do together: start alike, average, keep a first pass to themselves."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.optim.moves import cut, flattened, is_dense, matched


def world_size() -> int:
    """Return the number of processes that train together."""
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return 1 if alone else torch.distributed.get_world_size()


@torch.no_grad()
def average_over_ranks(tensors: list[Tensor], group: Any = None) -> None:
    """Replace tensors by their mean over the ranks, with one collective per type; sharded ones are left alone."""
    whole = [t for t in tensors if not hasattr(t, "device_mesh")] if world_size() > 1 else []
    if not all(is_dense(tensor) for tensor in whole):
        raise InputError("params", "must have dense gradients, for ranks to average them", advice="use sparse=False")
    for members, _ in matched(whole, whole):
        flat = flattened(members)
        torch.distributed.all_reduce(flat, group=group)
        flat /= torch.distributed.get_world_size(group)
        torch._foreach_copy_(members, cut(flat, members))


@torch.no_grad()
def check_ranks_agree(
    tensors: Sequence[Tensor], settings: Sequence[Mapping[str, Any]], device: torch.device, group: Any = None
) -> None:
    """Refuse a first step on ranks that train one model and stand apart: one would wait for the other for ever."""
    said = [sorted((k, v) for k, v in one.items() if isinstance(v, int | float | str)) for one in settings]
    sums = [t.double().sum() + t.double().square().sum() * math.pi for t in tensors]
    mine = torch.stack([torch.tensor(zlib.crc32(repr(said).encode()), device=device).double(), *sums])
    all_of_them = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(all_of_them, mine, group=group)
    for rank, theirs in enumerate(all_of_them):
        if not torch.allclose(theirs, all_of_them[0], rtol=1e-9, atol=0.0, equal_nan=True):
            what = "its weights" if theirs[0] == all_of_them[0][0] else "its settings, steps or learning rates"
            advice = "seed all ranks alike, or load the same checkpoint of model and optimizer on each"
            rule, got = "must start alike on all ranks", f"rank {rank} differs from rank 0 in {what}"
            raise InputError("model", rule, got, advice)


def unsynced(model: nn.Module | None) -> AbstractContextManager[None]:
    """Return a context in which a distributed model keeps its gradients to itself."""
    silent: Callable[[], AbstractContextManager[None]] | None = getattr(model, "no_sync", None)
    if silent is None:
        rule = '"local" needs a model with no_sync(), such as DistributedDataParallel'
        raise InputError("distributed", rule, type(model).__name__, "use `with optimizer.first_pass(ddp_model):`")
    return silent()
