"""Batch norm with running statistics as part of the convolution before it, while a survey runs; undone at the end.

Between the two nothing is computed that the weights do not allow to be computed once: ``s (w * x - m) + b`` with the
scale s, mean m and shift b of the norm is the convolution by ``s w`` with the bias ``b - s m``. Two passes over the
activations are saved per layer, for operations on as many numbers as there are weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

_CONVOLUTIONS: Final[dict[type, Callable[..., Tensor]]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def folded(model: nn.Module) -> Generator[Callable[[], None]]:
    """Let convolutions compute the norms that follow them while inside, for a model in evaluation mode.

    Yields:
        What renews their weights, to be called after each move of the model's.
    """
    found = foldable(model)

    def renew() -> None:
        for convolution, norm in found:
            convolution.forward = partial(_CONVOLUTIONS[type(convolution)], **_joint(convolution, norm))

    try:
        renew()
        for _, norm in found:
            norm.forward = _unchanged
        yield renew
    finally:
        for module in (part for pair in found for part in pair):
            vars(module).pop("forward", None)


def foldable(model: nn.Module) -> list[tuple[Any, Any]]:
    """Return convolutions, each with the batch norm that alone takes what it gives; none where forward branches."""
    kept = {module: dict(vars(module)) for module in model.modules()}
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever a forward does that needs numbers
        return []
    finally:
        for module, attributes in kept.items():  # forward may have noted what it saw, which was no tensor
            vars(module).clear()
            vars(module).update(attributes)
    called = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    times, pairs = Counter(called.values()), []
    for node, norm in called.items():
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if isinstance(before, fx.Node) and before in called and len(before.users) == 1:
            convolution = called[before]
            if times[convolution] == times[norm] == 1 and _plain(convolution, norm):
                pairs.append((convolution, norm))
    return pairs


def _plain(convolution: Any, norm: Any) -> bool:
    """Tell whether the two are torch's own, as they stand, and see nothing but running statistics."""
    return bool(
        type(convolution) in _CONVOLUTIONS
        and type(norm) in _NORMS
        and convolution.padding_mode == "zeros"
        and not norm.training
        and norm.running_var is not None
        and norm.running_var.dtype == convolution.weight.dtype
        and not any(_watched(module) for module in (convolution, norm))
    )


def _watched(module: nn.Module) -> bool:
    """Tell whether somebody looks at or replaces what a module computes."""
    own = vars(module)
    return "forward" in own or any(own[name] for name in _HOOKS) or parametrize.is_parametrized(module)


def _joint(convolution: Any, norm: Any) -> dict[str, Any]:
    """Return the arguments of a convolution that computes both."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    weight = convolution.weight * scale.reshape(-1, *(1,) * (convolution.weight.ndim - 1))
    kept = {name: getattr(convolution, name) for name in ("stride", "padding", "dilation", "groups")}
    return {"weight": weight, "bias": shift, **kept}


def _unchanged(value: Tensor) -> Tensor:
    return value
