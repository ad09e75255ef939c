"""Looking into autograd graphs: what they hold in memory, and whether they have a second derivative."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lowland.core.errors import InputError, NotFinite

__all__ = ["check_finite", "check_twice_differentiable", "graph_bytes"]


def graph_bytes(roots: Sequence[Tensor], parameters: Sequence[Tensor] = ()) -> int:
    """Return the bytes of all tensors that the graph behind some tensors keeps alive."""
    storages: dict[int, int] = {}
    for node in _nodes(roots):
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    return sum(size for pointer, size in storages.items() if pointer not in known)


def check_twice_differentiable(loss: Tensor) -> None:
    """Refuse a graph that holds a function marked by torch's ``once_differentiable``."""
    # Torch itself raises for it only where the incoming gradient depends on a parameter, and else silently
    # leaves its second derivative out.
    for node in _nodes([loss]):
        function = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if backward is not None and getattr(backward, "__globals__", {}).get("__name__") == "torch.autograd.function":
            name = getattr(function, "__name__", "a function")
            raise InputError(
                "risk", "must have a second derivative", f"{name}, which is once_differentiable",
                "replace that operation",
            )  # fmt: skip


def check_finite(gradients: Sequence[Tensor]) -> None:
    """Refuse a gradient that is not finite (one synchronization with the host)."""
    # The sum of all entries is looked at first, which costs next to nothing; only if that is not finite (an
    # entry is not, or the sum overflows) is every tensor looked at by itself.
    if not gradients:
        return
    with torch.no_grad():
        total = torch.cat([gradient.reshape(-1) for gradient in gradients]).sum()
        if bool(torch.isfinite(total)):
            return
        norms = torch.stack(torch._foreach_norm(list(gradients), torch.inf))
    if not bool(torch.isfinite(norms).all()):
        raise NotFinite(
            "risk", "must have a finite gradient at the present weights", "nan or inf",
            "the loss has overflowed here: lower the learning rate, shorten the axis, or use float64",
        )  # fmt: skip


def _nodes(roots: Sequence[Tensor]) -> Iterator[Any]:
    stack: list[Any] = [root.grad_fn for root in roots]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(following for following, _ in node.next_functions)


def _saved(node: Any) -> Iterator[Tensor]:
    for name in _saved_names(cast("Any", type(node))):
        value = getattr(node, name)
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, Tensor):
                yield entry


@functools.cache
def _saved_names(kind: Any) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")
