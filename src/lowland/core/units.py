"""The units of every kind of tensor: what produces one output.

A *unit* is the row of a linear or convolution weight (a filter), the column of a transposed convolution, one token of
an embedding. Filter normalization, adaptive sharpness and the filter-weighted trace all use the rules given here, so
that they cannot disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

_WRAPPERS = ("_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch and Fabric call the module inside a wrapper; a user's own attribute ``module`` is none."""
_WHOLE = re.compile(
    r"(^|[._])(pos(ition)?s?|wpe|relative|layer_?scale|cls|class_token|dist_token)([._]|$|\d|emb)",
    re.IGNORECASE,
)
_BIAS = re.compile(r"(^|\.)bias(_\w+)?$")


def clean_name(name: str) -> str:
    """Return a parameter's name without what FSDP, Fabric and `torch.compile` put into it."""
    for prefix in _WRAPPERS:
        name = name.replace("." + prefix, ".").removeprefix(prefix)
    return name


@dataclass(frozen=True, slots=True)
class UnitRule:
    """How a tensor is cut into units."""

    # ``"filter"``: one unit per output (`axis`, `groups`); ``"tensor"``: the whole tensor is one unit;
    # ``"fixed"``: one unit too, but normalized directions leave it alone (biases and norm parameters).
    kind: Literal["filter", "tensor", "fixed"]
    axis: int = 0  # The output axis, 0 or 1; 1 for transposed convolutions and for weights stored as [in, out]
    groups: int = 1  # Groups of a transposed convolution

    def split(self, values: Tensor) -> Tensor:
        """View or copy a tensor as [units, entries]."""
        if self.kind != "filter":
            return values.reshape(1, -1)
        if self.axis == 0:
            return values.reshape(values.shape[0], -1)
        rows, columns = values.shape[0] // self.groups, values.shape[1]
        parted = values.reshape(self.groups, rows, columns, -1).transpose(1, 2)
        return parted.reshape(self.groups * columns, -1)

    def join(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Undo `split`."""
        if self.kind != "filter" or self.axis == 0:
            return units.reshape(shape)
        rows, columns = shape[0] // self.groups, shape[1]
        return units.reshape(self.groups, columns, rows, -1).transpose(1, 2).reshape(shape)

    def norms(self, values: Tensor) -> Tensor:
        """Return the Frobenius norm of every unit."""
        norms: Tensor = torch.linalg.vector_norm(self.split(values), dim=1)
        return norms

    def matched(self, values: Tensor, weights: Tensor) -> Tensor:
        """Return values with the norms of the weights' units; a unit of norm 0 stays (Li et al. 2018, section 4)."""
        found = self.norms(values)
        usable = found > 0
        ratio = torch.where(usable, self.norms(weights) / torch.where(usable, found, torch.ones_like(found)), 0.0)
        return self.join(self.split(values) * ratio.unsqueeze(1), weights.shape)

    def describe(self) -> str:
        """Return the rule as a short text for a stored result."""
        if self.kind != "filter":
            return self.kind
        return f"filter axis {self.axis}" + (f", groups {self.groups}" if self.groups != 1 else "")


def unit_rules(model: nn.Module) -> dict[str, UnitRule]:
    """Return the rule of every parameter by its clean name; tied weights once, under their first name."""
    # Linear, convolution, recurrent and packed attention weights: rows. Transposed convolution: axis 1 per
    # group. Weights stored as [in, out] (Hugging Face ``Conv1D``): axis 1. Embedding: rows. Position tables,
    # class tokens, layer scales and relative-position tables: the whole tensor. Norm parameters, biases and
    # other tensors of at most one dimension: fixed. Any other tensor (a bare ``nn.Parameter``): the whole
    # tensor.
    rules: dict[str, UnitRule] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = clean_name(f"{prefix}.{name}" if prefix else name)
            rules[full] = _rule(module, full, parameter)
    return rules


def _rule(module: nn.Module, name: str, parameter: Tensor) -> UnitRule:
    kind = class_of(module)
    if "LayerScale" in kind.__name__ or (_WHOLE.search(name) and not _is_norm(kind)):
        return UnitRule("tensor")
    if parameter.ndim <= 1 or _is_norm(kind) or _BIAS.search(name):
        return UnitRule("fixed")
    if issubclass(kind, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return UnitRule("filter", axis=1, groups=int(getattr(module, "groups", 1)))
    # transformers.pytorch_utils.Conv1D keeps [in, out]; FSDP2 and parametrizations make a subclass of another name
    if any(base.__name__ == "Conv1D" for base in kind.__mro__):
        return UnitRule("filter", axis=1)
    rows = (
        nn.Linear | nn.Bilinear | nn.Embedding | nn.EmbeddingBag | nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase
    )
    return UnitRule("filter" if issubclass(kind, rows | nn.modules.conv._ConvNd) else "tensor")


def class_of(module: nn.Module) -> type:
    """Return the class of a module; of a scripted layer of torch, which is of another class, the one it had."""
    named = getattr(nn, getattr(module, "original_name", ""), None) if isinstance(module, torch.jit.ScriptModule) else 0
    return named if isinstance(named, type) else type(module)


def _is_norm(kind: type) -> bool:
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
    return issubclass(kind, norms) or kind.__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))
