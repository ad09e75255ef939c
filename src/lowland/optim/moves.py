"""Batched moves over many tensors: copy, ascend, interpolate, swap, and one norm over all of them.

Sharded tensors (DTensor) are moved shard by shard, in place; nothing here waits for the device. Whoever moves weights
has switched gradients off: the step does, around all that parts do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from lowland.core.params import global_norm, normalized_scale

_PLAIN = (Tensor, nn.Parameter)


def shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the local part of every tensor; it shares its storage."""
    return [t if type(t) in _PLAIN else getattr(t, "_local_tensor", t) for t in tensors]


def is_dense(gradient: Tensor) -> bool:
    """Tell whether a gradient can be normed, kept and combined."""
    return gradient.layout == torch.strided


def empty_twin(tensor: Tensor) -> Tensor:
    """Return an uninitialized tensor with the shape, type, layout and sharding of another."""
    return torch.empty_like(tensor, requires_grad=False, memory_format=torch.preserve_format)


def copy_for(tensor: Tensor, earlier: Tensor | None) -> Tensor:
    """Return memory for a copy of a tensor: that of an earlier copy, unless the tensor has become another since."""
    if earlier is None or earlier.shape != tensor.shape:
        return empty_twin(tensor)
    return earlier if earlier.dtype is tensor.dtype and earlier.device == tensor.device else empty_twin(tensor)


def matched(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the local parts of pairs of tensors, pairs of one device and type together."""
    one, other = shards(first), shards(second)
    if one and all(t.dtype is one[0].dtype and t.device == one[0].device for t in one):
        return [(one, other)]
    kinds: dict[Hashable, tuple[list[Tensor], list[Tensor]]] = {}
    for mine, theirs in zip(one, other, strict=True):
        both = kinds.setdefault((mine.device, mine.dtype), ([], []))
        both[0].append(mine)
        both[1].append(theirs)
    return list(kinds.values())


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors into one vector, which shares no memory with them."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into views of the shapes of others."""
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


@torch.no_grad()
def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others of the same shapes, bit for bit."""
    here, there = shards(targets), shards(sources)
    if here and all(tensor.is_cpu for tensor in here) and all(tensor.is_cpu for tensor in there):
        torch._foreach_copy_(here, there)  # one call for all types: only kernels of devices want one type
        return
    for into, values in matched(targets, sources):
        torch._foreach_copy_(into, values)


def interpolate(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move targets by ``weight (end - target)``; exact at the weights 0 and 1."""
    for into, values in matched(targets, ends):
        torch._foreach_lerp_(into, values, weight)


def swap(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Exchange the contents of two lists of tensors, bit for bit."""
    held = [tensor.clone() for tensor in shards(first)]
    copy_all(first, second)
    copy_all(second, held)


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over tensors on any devices, sharded or not."""
    kinds: dict[Hashable, list[Tensor]] = {}
    for tensor in tensors:
        mesh = None if type(tensor) in _PLAIN else getattr(tensor, "device_mesh", None)
        kinds.setdefault((tensor.device, tensor.dtype, mesh), []).append(tensor)
    norms = [global_norm(part) for part in kinds.values()]
    if len(norms) <= 1:
        return norms[0] if norms else torch.zeros((), device="cpu")
    joint: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    return joint


def scale_all(targets: Sequence[Tensor], scale: Tensor) -> None:
    """Multiply tensors by a scalar, in place."""
    for into, _ in matched(targets, targets):
        torch._foreach_mul_(into, scale.to(into[0].device))


def add_scaled(targets: Sequence[Tensor], directions: Sequence[Tensor], scale: Tensor) -> None:
    """Add ``scale * direction``, and nothing at all where the scale is 0 or not finite."""
    _add(targets, directions, scale, None)


def ascend(
    targets: Sequence[Tensor], directions: Sequence[Tensor], norm: Tensor, radius: float, *, consume: bool = False
) -> None:
    """Add ``radius * direction / norm``, and nothing at all where the norm is 0 or not finite."""
    if consume and norm.dtype == torch.float32:
        _add(targets, directions, norm, radius)
    else:
        add_scaled(targets, directions, radius / norm)


def _add(targets: Sequence[Tensor], directions: Sequence[Tensor], number: Tensor, radius: float | None) -> None:
    """Add ``number * direction``, or ``radius * direction / number`` and spoil the directions."""
    # Where torch's fused kernel can do it, one launch per device adds and skips, and the host never learns which: a
    # product with 0 would turn an infinite entry into NaN, a test on the host would wait for the device.
    for into, along in matched(targets, directions):
        local = number.to(into[0].device)
        if _fusable(into, along):
            skip = torch.nan_to_num(local, nan=0.0, posinf=0.0, neginf=0.0).eq_(0).float()
            options = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
            scaling = {"lr": local} if radius is None else {"lr": radius, "grad_scale": local}
            torch._fused_sgd_(into, along, [], maximize=True, is_first_step=False, found_inf=skip, **options, **scaling)  # type: ignore[call-overload]
            torch.autograd.graph.increment_version(into)  # the kernel writes without telling autograd
            continue
        scale = local if radius is None else normalized_scale(local, radius)
        usable = torch.isfinite(scale) & (scale != 0)
        for target, direction in zip(into, along, strict=True):
            target.add_(torch.where(usable, direction * scale, 0.0))


_FUSED = {("cpu", torch.float32), ("cpu", torch.float64), ("cuda", torch.float32)}


def _fusable(targets: list[Tensor], directions: list[Tensor]) -> bool:
    # the kernel takes both as flat memory of one type; torch's is wrong for 16-bit types on the host
    device, dtype = targets[0].device, targets[0].dtype
    return (device.type, dtype) in _FUSED and all(
        direction.dtype is dtype
        and direction.device == device
        and direction.stride() == target.stride()
        and (target.is_contiguous() or target.is_contiguous(memory_format=torch.channels_last))
        for target, direction in zip(targets, directions, strict=True)
    )


def lost_share(before: Sequence[Tensor], after: Sequence[Tensor], directions: Sequence[Tensor]) -> float:
    """Return the share of a move (in squared length) that rounding has swallowed."""
    lost, total = 0.0, 0.0
    for old, new, direction in zip(shards(before), shards(after), shards(directions), strict=True):
        squares = direction.double().square()
        total += float(squares.sum())
        lost += float(squares[old == new].sum())
    return lost / total if total > 0 else 0.0
