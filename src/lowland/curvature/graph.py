"""Looking into autograd graphs: what they hold in memory, and whether they have a second derivative."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor

from lowland.core.errors import InputError, NotFinite


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
            got = f"{name}, which is once_differentiable"
            raise InputError("risk", "must have a second derivative", got, "replace that operation")


_KINKED: Final = re.compile(
    r"(LeakyRelu|Relu|RreluWithNoise|PreluKernel|Threshold|Hardtanh|Hardsigmoid|Hardswish|Softshrink|Hardshrink|Elu"
    r"|Abs|Clamp|ClampMin|ClampMax|Maximum|Minimum|Fmax|Fmin|Max|Min|Amax|Amin|Aminmax|Cummax|Cummin|Sort|Topk"
    r"|Kthvalue|Median|Nanmedian|.*MaxPool.*|MultiMarginLoss|MultilabelMarginLoss)Backward[0-9]*"
)
"""Nodes of autograd whose slope jumps somewhere."""


def kinked(roots: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the functions in a graph that are known to have kinks, by autograd's names without ``Backward``."""
    found = [node for node in _nodes(roots) if _KINKED.fullmatch(type(node).__name__)]
    names = {type(node).__name__.partition("Backward")[0] for node in found if not _smooth_elu(node)}
    return tuple(sorted(names))


def _smooth_elu(node: Any) -> bool:
    # Torch's notes on autograd document `_saved_NAME` of a node as the way to what it saved; there is no other.
    return hasattr(node, "_saved_input_scale") and node._saved_alpha * node._saved_input_scale == 1.0


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
        advice = "the loss has overflowed here: lower the learning rate, shorten the axis, or use float64"
        raise NotFinite("risk", "must have a finite gradient at the present weights", "nan or inf", advice)


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
