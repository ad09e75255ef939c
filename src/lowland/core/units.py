"""The units of every kind of tensor: what produces one output.

A *unit* is the row of a linear or convolution weight (a filter), the column of a transposed convolution, one token of
an embedding. Filter normalisation, adaptive sharpness and the filter-weighted trace all use the rules given here, so
that they cannot disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["UnitRule", "clean_name", "unit_rules"]

_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.")
_WHOLE = re.compile(
    r"(^|[._])(pos(ition)?s?|wpe|relative|layer_?scale|cls|class_token|dist_token)([._]|$|\d|emb)",
    re.IGNORECASE,
)
_BIAS = re.compile(r"(^|\.)bias(_\w+)?$")


def clean_name(name: str) -> str:
    """Return a parameter's name without the prefixes of DDP, FSDP, Fabric and `torch.compile`.

    Args:
        name: A name as in ``named_parameters()``.

    Returns:
        The name as the user's own module has it.

    Example:
        >>> clean_name("module._orig_mod.conv.weight")
        'conv.weight'
    """
    for prefix in _WRAPPERS:
        name = name.replace("." + prefix, ".")
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


@dataclass(frozen=True, slots=True)
class UnitRule:
    """How a tensor is cut into units.

    Args:
        kind: ``"filter"``: one unit per output (`axis`, `groups`); ``"tensor"``: the whole tensor is one unit;
            ``"fixed"``: one unit too, but normalised directions leave it alone (biases and norm parameters).
        axis: The output axis, 0 or 1; 1 for transposed convolutions and for weights stored as [in, out].
        groups: Groups of a transposed convolution.

    Example:
        >>> UnitRule("filter").split(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
    """

    kind: Literal["filter", "tensor", "fixed"]
    axis: int = 0
    groups: int = 1

    def split(self, values: Tensor) -> Tensor:
        """View or copy a tensor as [units, entries].

        Args:
            values: A tensor of the parameter's shape.

        Returns:
            Shape [units, entries].
        """
        if self.kind != "filter":
            return values.reshape(1, -1)
        if self.axis == 0:
            return values.reshape(values.shape[0], -1)
        rows, columns = values.shape[0] // self.groups, values.shape[1]
        parted = values.reshape(self.groups, rows, columns, -1).transpose(1, 2)
        return parted.reshape(self.groups * columns, -1)

    def join(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Undo `split`.

        Args:
            units: Shape [units, entries].
            shape: Shape of the parameter.

        Returns:
            A tensor of that shape.
        """
        if self.kind != "filter" or self.axis == 0:
            return units.reshape(shape)
        rows, columns = shape[0] // self.groups, shape[1]
        return units.reshape(self.groups, columns, rows, -1).transpose(1, 2).reshape(shape)

    def norms(self, values: Tensor) -> Tensor:
        """Return the Frobenius norm of every unit.

        Args:
            values: A tensor of the parameter's shape.

        Returns:
            Shape [units].
        """
        norms: Tensor = torch.linalg.vector_norm(self.split(values), dim=1)
        return norms

    def describe(self) -> str:
        """Return the rule as a short text for a stored result.

        Returns:
            For instance ``"filter axis 1, groups 2"``.
        """
        if self.kind != "filter":
            return self.kind
        return f"filter axis {self.axis}" + (f", groups {self.groups}" if self.groups != 1 else "")


def unit_rules(model: nn.Module) -> dict[str, UnitRule]:
    """Return the rule of every parameter by its clean name; tied weights once, under their first name.

    Linear, convolution, recurrent and packed attention weights: rows. Transposed convolution: axis 1 per group. Weights
    stored as [in, out] (Hugging Face ``Conv1D``): axis 1. Embedding: rows. Position tables, class tokens, layer scales
    and relative-position tables: the whole tensor. Norm parameters, biases and other tensors of at most one dimension:
    fixed. Any other tensor (a bare ``nn.Parameter``): the whole tensor.

    Args:
        model: The model.

    Returns:
        Name -> rule, in the order of ``named_parameters()``.

    Example:
        >>> {name: rule.kind for name, rule in unit_rules(nn.Linear(3, 2)).items()}
        {'weight': 'filter', 'bias': 'fixed'}
    """
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
    kind = type(module).__name__
    if "LayerScale" in kind or (_WHOLE.search(name) and not _is_norm(module)):
        return UnitRule("tensor")
    if parameter.ndim <= 1 or _is_norm(module) or _BIAS.search(name):
        return UnitRule("fixed")
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return UnitRule("filter", axis=1, groups=module.groups)
    if kind == "Conv1D":  # transformers.pytorch_utils.Conv1D keeps [in, out]
        return UnitRule("filter", axis=1)
    rows = (
        nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
        nn.modules.conv._ConvNd,
    )  # fmt: skip
    return UnitRule("filter") if isinstance(module, rows) else UnitRule("tensor")


def _is_norm(module: nn.Module) -> bool:
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
    return isinstance(module, norms) or type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))
