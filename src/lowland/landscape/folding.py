"""Batch norm with running statistics as part of the convolution before it, while a survey runs; undone at the end.

Between the two nothing is computed that the weights do not allow to be computed once: ``s (w * x - m) + b`` with the
scale s, mean m and shift b of the norm is the convolution by ``s w`` with the bias ``b - s m``. Two passes over the
activations are saved per layer, for operations on as many numbers as there are weights.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lowland.core.contexts import buffers_restored
from lowland.core.interrupts import held_interrupts

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
        with held_interrupts():
            for module in (part for pair in found for part in pair):
                vars(module).pop("forward", None)


def foldable(model: nn.Module) -> list[tuple[Any, Any]]:
    """Return convolutions, each with the batch norm that alone takes what it gives; none where forward branches."""
    torch_wide: Any = nn.modules.module
    if torch_wide._has_any_global_hook() or any(_hooked(module) for module in model.modules()):
        return []  # they would get what is no tensor
    tracer = _Tracer()
    try:
        versions = {buffer: buffer._version for buffer in model.buffers()}
        kept = {module: dict(vars(module)) for module in model.modules()}
        # forward may note what it sees, and count; an interrupted trace would leave every module of torch patched
        with held_interrupts(), buffers_restored(model):
            graph = tracer.trace(call := _Call(model))
            noted = tracer.noted()
            seen = {id(buffer) for buffer, version in versions.items() if buffer._version != version}
            seen |= {
                id(module)
                for module, before in kept.items()
                if any(vars(module).get(name) is not value for name, value in before.items())
            }
    except Exception:  # whatever a forward does that needs numbers
        return []
    called = {node: call.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    own = dict(chain(*(found(remove_duplicate=False) for found in (call.named_parameters, call.named_buffers))))
    seen |= {id(own.get(str(node.target))) for node in graph.nodes if node.op == "get_attr"}
    times, pairs = Counter(called.values()), []
    for node, norm in called.items():
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if isinstance(before, fx.Node) and before in called and len(before.users) == 1 and before not in noted:
            convolution = called[before]
            parts = [one for part in (convolution, norm) for one in (part, *part.parameters(), *part.buffers())]
            alone = not any(id(part) in seen for part in parts)
            if times[convolution] == times[norm] == 1 and alone and _plain(convolution, norm):
                pairs.append((convolution, norm))
    return pairs


class _Call(nn.Module):
    """Calls a model as the risk does: with its default arguments, through its own ``__call__`` and ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parameters = inspect.signature(model.forward).parameters.values()
        wanted = [one for one in parameters if one.default is one.empty]
        self.called = model
        self.inputs = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in wanted)
        self.names = [one.name for one in wanted if one.kind is one.KEYWORD_ONLY]

    def forward(self, value: Any) -> Any:
        alone = [value] if self.inputs or not self.names else []
        inputs = [value[k] for k in range(self.inputs)] if self.inputs > 1 else alone
        return self.called(*inputs, **{name: value[name] for name in self.names})


class _Tracer(fx.Tracer):
    """Notes what outlives the call, which somebody may read, and refuses what is computed in another precision."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[fx.Proxy]] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = super().proxy(node)
        self._made.append(weakref.ref(made))
        return made

    def noted(self) -> set[fx.Node]:
        return {made.node for reference in self._made if (made := reference()) is not None}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")):
            raise TypeError("what autocast rounds has other values when it is folded")
        return super().call_module(m, forward, args, kwargs)


def _plain(convolution: Any, norm: Any) -> bool:
    """Tell whether the two are torch's own, as they stand, and see nothing but running statistics."""
    return bool(
        type(convolution) in _CONVOLUTIONS
        and type(norm) in _NORMS
        and convolution.padding_mode == "zeros"
        and not norm.training
        and norm.running_var is not None
        and norm.running_var.dtype == convolution.weight.dtype
        and norm.running_var.dtype in (torch.float32, torch.float64)  # half types round otherwise
        and not any(_replaced(module) for module in (convolution, norm))
    )


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in _HOOKS)


def _replaced(module: nn.Module) -> bool:
    """Tell whether somebody replaces what a module computes."""
    own = vars(module)
    return "forward" in own or "_conv_forward" in own or parametrize.is_parametrized(module)


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
