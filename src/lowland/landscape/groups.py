"""Which units of a network may be reordered together: found by tracing it.

Every tensor in the network carries, for its channel axis, the group of units that made it. A linear or convolution
layer consumes one group and makes another; norms and elementwise functions keep it; an addition joins the groups of its
terms. The groups of the network's inputs and outputs, and of everything an unknown function touches, stay in order.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from lowland.core.errors import InputError, require
from lowland.core.types import Batch

_RECTIFIERS: Final = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)
_POOLS: Final = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_OTHERS: Final = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AdaptiveMaxPool2d)
_KEEPING: Final = (*_RECTIFIERS, *_POOLS, *_OTHERS)
_OF_TORCH: Final = (torch.relu, torch.tanh, torch.sigmoid, functional.relu, functional.gelu, functional.silu)
_MEANS: Final = (functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool1d)
_SOFT: Final = (functional.tanh, functional.leaky_relu, functional.elu, functional.dropout, functional.max_pool2d)
_KEEPING_FUNCTIONS: Final = (*_OF_TORCH, *_MEANS, *_SOFT)
_ADDING: Final = (operator.add, operator.iadd, torch.add)
_POOLING: Final = ("mean", "amax", "sum")


@dataclass(frozen=True, slots=True)
class Member:
    """A tensor whose axis is ordered by a group's units."""

    name: str  # Name of the parameter or buffer
    axis: int  # The axis, 0 or 1
    repeat: int = 1  # Consecutive entries per unit (a flattened image has one per pixel)

    def rows(self, tensor: Tensor, size: int) -> Tensor:
        """Return the tensor as one row per unit in float64."""
        moved = tensor.detach().double().cpu().movedim(self.axis, 0)
        return moved.reshape(size, self.repeat, -1).reshape(size, -1)

    def reordered(self, tensor: Tensor, order: Tensor) -> Tensor:
        """Return the tensor with its units in a new order."""
        index = (order[:, None] * self.repeat + torch.arange(self.repeat, device="cpu")).reshape(-1)
        return tensor.index_select(self.axis, index.to(tensor.device))


class _Groups:
    """Union-find over groups; group 0 holds everything that must stay in its order."""

    def __init__(self) -> None:
        self._parent = [0]
        self._size: dict[int, int] = {}
        self._axes: dict[tuple[int, int], int] = {}
        self._members: list[tuple[int, Member]] = []

    def new(self, size: int) -> int:
        self._parent.append(len(self._parent))
        self._size[len(self._parent) - 1] = size
        return len(self._parent) - 1

    def find(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def join(self, first: int, second: int) -> int:
        a, b = sorted((self.find(first), self.find(second)))
        self._parent[b] = a
        return a

    def own(self, group: int, member: Member, tensor: Tensor) -> None:
        """Let a group order an axis of a tensor; where another has it already (tied or shared), the two are one."""
        place = (id(tensor), member.axis)
        if place in self._axes:
            self.join(self._axes[place], group)
        else:
            self._axes[place] = group
            self._members.append((group, member))

    def pin(self, tensor: Tensor) -> None:
        """Keep a tensor as it is: something uses it that is not known here."""
        for axis in range(tensor.ndim):
            self._axes[id(tensor), axis] = self.join(0, self._axes.get((id(tensor), axis), 0))

    def size(self, group: int) -> int | None:
        """Return how many units a group has; None where it stays in order."""
        return self._size.get(self.find(group))

    def result(self) -> list[tuple[int, list[Member]]]:
        found: dict[int, list[Member]] = {}
        for group, member in self._members:
            root = self.find(group)
            if root != 0:
                found.setdefault(root, []).append(member)
        return [(self._size[root], members) for root, members in sorted(found.items())]


@dataclass(frozen=True, slots=True)
class _Flow:
    """The group along a tensor's channel axis (1), and how many entries each unit takes there."""

    group: int
    repeat: int = 1


def unit_groups(model: nn.Module, batch: Batch) -> list[tuple[int, list[Member]]]:
    """Return the groups of units that may be reordered without changing the function."""
    if not isinstance(batch.input, Tensor):
        raise InputError("model", "must take one tensor to be matched", type(batch.input).__name__)
    try:
        traced = fx.symbolic_trace(model)
        ShapeProp(traced).propagate(batch.input)
    except Exception as error:  # torch.fx raises whatever the model's own control flow makes of its proxies
        advice = "draw the line without matching"
        raise InputError("model", f"must be traceable to be matched ({error})", type(model).__name__, advice) from error
    groups = _Groups()
    flows: dict[fx.Node, _Flow] = {}
    modules = dict(traced.named_modules(remove_duplicate=False))
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            held = getattr(modules[owner], name, None)
            if isinstance(held, Tensor):
                groups.pin(held)
        flows[node] = _flow(node, flows, modules, groups)
    found = groups.result()
    require(found, "model", "must have units that can be reordered", type(model).__name__)
    return found


def _flow(node: fx.Node, flows: dict[fx.Node, _Flow], modules: dict[str, nn.Module], groups: _Groups) -> _Flow:
    """Return the group of a node's result, joining and filling groups on the way."""
    inputs = [flows[n] for n in node.all_input_nodes]
    if node.op == "call_module" and len(inputs) == 1:
        module, source = modules[str(node.target)], inputs[0]
        if isinstance(module, _KEEPING):
            return source
        if isinstance(module, nn.Flatten):
            return _flattened(node, source)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and getattr(module, "groups", 1) == 1:
            return _layer(str(node.target), module, source, groups)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            return _norm(str(node.target), module, source, groups)
    if node.op == "call_function" and len(inputs) >= 1:
        if node.target in _KEEPING_FUNCTIONS:
            return inputs[0]
        if node.target in _ADDING and len(inputs) == 2:
            sizes = [_shape(n) for n in node.all_input_nodes]
            if len(sizes[0]) == len(sizes[1]) > 1:
                for one, other in ((0, 1), (1, 0)):  # one channel is added to all alike, in whatever order they are
                    if sizes[one][1] == 1 and sizes[other][1] > 1:
                        groups.join(0, inputs[one].group)
                        return inputs[other]
                if sizes[0][1] == sizes[1][1] and inputs[0].repeat == inputs[1].repeat:
                    return _Flow(groups.join(inputs[0].group, inputs[1].group), inputs[0].repeat)
        if node.target is torch.flatten:
            return _flattened(node, inputs[0])
    if node.op == "call_method" and inputs:
        if node.target in ("flatten", "view", "reshape") and _ndim(node) == 2:
            return _flattened(node, inputs[0])
        if node.target in ("relu", "tanh", "contiguous", "relu_"):
            return inputs[0]
        if node.target in _POOLING and _ndim(node.all_input_nodes[0]) == 4 and _keeps_channels(node):
            return inputs[0]
    for source in inputs:  # the output, and whatever is not known here
        groups.join(0, source.group)
    return _Flow(0)


def _layer(name: str, module: Any, source: _Flow, groups: _Groups) -> _Flow:
    groups.own(source.group, Member(f"{name}.weight", 1, source.repeat), module.weight)
    made = groups.new(module.weight.shape[0])
    groups.own(made, Member(f"{name}.weight", 0), module.weight)
    if module.bias is not None:
        groups.own(made, Member(f"{name}.bias", 0), module.bias)
    return _Flow(made)


def _norm(name: str, module: Any, source: _Flow, groups: _Groups) -> _Flow:
    for part in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, part, None) is not None:
            groups.own(source.group, Member(f"{name}.{part}", 0, source.repeat), getattr(module, part))
    return source


def _flattened(node: fx.Node, source: _Flow) -> _Flow:
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    if len(before) < 2 or len(after) != 2 or after[0] != before[0]:
        return _Flow(0) if source.group == 0 else source
    return _Flow(source.group, source.repeat * (after[1] // before[1]))


def _keeps_channels(node: fx.Node) -> bool:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = dims if isinstance(dims, tuple | list) else (dims,)
    return all(isinstance(d, int) and (d in (2, 3, -1, -2)) for d in dims)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape) if "tensor_meta" in node.meta else ()


def _ndim(node: fx.Node) -> int:
    return len(_shape(node))
