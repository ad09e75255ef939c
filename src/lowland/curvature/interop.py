"""Operators of curvlinops (Fisher, KFAC, EKFAC and others) for the estimators of this room.

Nothing that curvlinops offers is rewritten here: any symmetric operator of it, or of another library with ``shape``,
``dtype``, ``device`` and ``@``, becomes an `AbstractOperator`. Names of parameters travel along where the operator has
them (curvlinops 3 keeps a list of tensors, its later versions a dict).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lowland.core.errors import InputError, require
from lowland.core.params import unwrap
from lowland.core.units import clean_name
from lowland.curvature.operator import AbstractOperator


class ForeignOperator(AbstractOperator):
    """An operator of another library.

    Args:
        foreign: Anything square and symmetric with ``shape``, ``dtype``, ``device`` and ``@`` on tensors of shape [n]
            and [n, k].
        shapes: Name -> shape of the tensors that make up a vector, in order; None where they have no names.
        columns: Multiply all vectors at once as a matrix (curvlinops does so in one data pass); False: one by one,
            which needs less memory. Default False.
        on_product: See `AbstractOperator`.

    Example:
        >>> (ForeignOperator(torch.eye(2)) @ torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(
        self,
        foreign: Any,
        *,
        shapes: Mapping[str, torch.Size] | None = None,
        columns: bool = False,
        on_product: Callable[[int], None] | None = None,
    ) -> None:
        for name in ("shape", "dtype", "device", "__matmul__"):
            require(hasattr(foreign, name), "foreign", f"must have `{name}`", type(foreign).__name__)
        if len(foreign.shape) != 2 or foreign.shape[0] != foreign.shape[1]:
            raise InputError("foreign", "must be square", tuple(foreign.shape))
        size = int(foreign.shape[0])
        if shapes is not None and sum(shape.numel() for shape in shapes.values()) != size:
            raise InputError("shapes", f"must add up to {size} entries", {k: tuple(v) for k, v in shapes.items()})
        super().__init__(
            size, dtype=foreign.dtype, device=torch.device(foreign.device), shapes=shapes, on_product=on_product
        )
        self.foreign, self.columns = foreign, columns

    @override
    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        if not self.columns or len(vectors) == 1:
            return [(self.foreign @ vector).detach() for vector in vectors]
        product: Tensor = self.foreign @ torch.stack(list(vectors), 1)
        return [column.contiguous() for column in product.detach().unbind(1)]


def from_curvlinops(
    operator: Any,
    *,
    model: nn.Module | None = None,
    columns: bool = False,
    on_product: Callable[[int], None] | None = None,
) -> ForeignOperator:
    """Return a curvlinops operator as one for our estimators.

    Args:
        operator: A square linear operator of curvlinops, such as ``GGNLinearOperator`` or ``KFACLinearOperator``.
        model: The model whose parameters the operator was made from, to give vectors their names; None gives no names.
        columns: See `ForeignOperator`.
        on_product: See `AbstractOperator`.
    """
    return ForeignOperator(
        operator, shapes=None if model is None else _shapes(operator, model), columns=columns, on_product=on_product
    )


def _shapes(operator: Any, model: nn.Module) -> dict[str, torch.Size]:
    """Return the names and shapes of an operator's parameters in its own order."""
    held = getattr(operator, "_params", None)
    if isinstance(held, Mapping):
        return {clean_name(name): parameter.shape for name, parameter in held.items()}
    names = {id(p): clean_name(name) for name, p in unwrap(model).named_parameters()}
    parameters = list(held) if held is not None else [p for p in unwrap(model).parameters() if p.requires_grad]
    if any(id(p) not in names for p in parameters):
        raise InputError("model", "must hold the operator's parameters", type(model).__name__)
    return {names[id(p)]: p.shape for p in parameters}
