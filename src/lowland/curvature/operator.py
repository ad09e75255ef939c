"""Symmetric linear operators that are known only by their products: everything in this room eats them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Self, overload

import torch
from torch import Tensor
from typing_extensions import override

from lowland.core.contexts import measuring
from lowland.core.errors import InputError, require


class AbstractOperator(ABC):
    """A symmetric operator A of size n; ``A @ v`` is its product with a vector, a matrix or tensors by name.

    What a product needs (graphs, modes of the model) is opened by ``with operator:`` and kept until the block ends, so
    that all products inside share it; outside such a block each ``@`` opens and closes it for itself. The blocks nest.

    Args:
        size: Dimension n.
        dtype: Type of the vectors and of the arithmetic on them.
        device: Device of the vectors.
        shapes: Name -> shape of the tensors that make up a vector, in order; None where vectors have no names.
        on_product: Called with the number of vectors multiplied so far after each of them (for progress).
    """

    def __init__(
        self,
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        shapes: Mapping[str, torch.Size] | None = None,
        on_product: Callable[[int], None] | None = None,
    ) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self.shapes = None if shapes is None else dict(shapes)
        self.on_product = on_product
        self.products = 0
        self._depth = 0

    @abstractmethod
    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the product with each vector; called inside an open block.

        Args:
            vectors: Any number of vectors of shape [n], finite, of the operator's type and device.

        Returns:
            One new tensor of shape [n] for each.
        """

    def open(self) -> None:
        """Get ready for products; called when the outermost block begins."""
        return

    def close(self) -> None:
        """Undo `open`; called when the outermost block ends, also after an exception."""
        return

    def rounding(self) -> float:
        """Return by how much rounding in products may move an eigenvalue; 0 where not known; asked in an open block."""
        return 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (n, n)."""
        return (self.size, self.size)

    def __enter__(self) -> Self:
        if self._depth == 0:
            self.open()
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.close()

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __matmul__(self, other: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        if isinstance(other, Mapping):
            return self.split(self @ self.join(other))
        if not isinstance(other, Tensor) or other.ndim not in (1, 2) or other.shape[0] != self.size:
            got = tuple(other.shape) if isinstance(other, Tensor) else type(other).__name__
            raise InputError("vector", f"must have the shape [{self.size}] or [{self.size}, k]", got)
        require(other.is_floating_point(), "vector", "must hold real floating-point numbers", str(other.dtype))
        values = other.detach().to(device=self.device, dtype=self.dtype)
        require(bool(torch.isfinite(values).all()), "vector", "must be finite", "nan or inf")
        # contiguous columns, so that a column of a matrix gives the bits of the same vector by itself
        columns = [column.contiguous() for column in (values[:, None] if values.ndim == 1 else values).unbind(1)]
        results = self.apply(columns)
        return results[0] if other.ndim == 1 else torch.stack(results, 1) if results else values.clone()

    def apply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply checked vectors as `multiply` does, in one block, and count them."""
        with measuring(), self:
            results = self.multiply(vectors)
        for _ in vectors:
            self.products += 1
            if self.on_product is not None:
                self.on_product(self.products)
        return results

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """Join tensors by name, of the parameters' shapes, into a vector of the operator's type on its device."""
        shapes = self._named()
        if set(values) != set(shapes):
            raise InputError("vector", "must have the operator's names", sorted(set(values) ^ set(shapes)))
        for name, shape in shapes.items():
            if values[name].shape != shape:
                raise InputError("vector", f"must have the shape {tuple(shape)} at {name!r}", tuple(values[name].shape))
        return torch.cat([values[name].detach().to(self.device, self.dtype).reshape(-1) for name in shapes])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Cut a vector of shape [n] into tensors by name, the reverse of `join`."""
        shapes = self._named()
        parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}

    def _named(self) -> dict[str, torch.Size]:
        if self.shapes is None:
            raise InputError("vector", "must be a tensor for an operator without parameter names", "a mapping")
        return self.shapes

    def dense(self) -> Tensor:
        """Return the operator as a matrix of shape [n, n], by n products; for small n."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)


class MatrixOperator(AbstractOperator):
    """A symmetric matrix as an operator.

    Args:
        matrix: Shape [n, n], symmetric.
        on_product: See `AbstractOperator`.

    Example:
        >>> (MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))) @ torch.ones(2)).tolist()
        [1.0, 2.0]
    """

    def __init__(self, matrix: Tensor, *, on_product: Callable[[int], None] | None = None) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError("matrix", "must be square", tuple(matrix.shape))
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device, on_product=on_product)
        self.matrix = matrix

    @override
    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        return [self.matrix @ vector for vector in vectors]


class ScaledOperator(AbstractOperator):
    """The operator D A D with a diagonal D, such as the Hessian in the metric of a preconditioner.

    Args:
        operator: A.
        scale: Diagonal of D, shape [n], or tensors by name.

    Example:
        >>> scaled = ScaledOperator(MatrixOperator(torch.eye(2)), torch.tensor([1.0, 3.0]))
        >>> (scaled @ torch.ones(2)).tolist()
        [1.0, 9.0]
    """

    def __init__(self, operator: AbstractOperator, scale: Tensor | Mapping[str, Tensor]) -> None:
        if isinstance(scale, Mapping):
            scale = operator.join(scale)
        require(scale.shape == (operator.size,), "scale", f"must have the shape [{operator.size}]", tuple(scale.shape))
        super().__init__(operator.size, dtype=operator.dtype, device=operator.device, shapes=operator.shapes)
        self.operator, self.scale = operator, scale.to(operator.device, operator.dtype)

    @override
    def open(self) -> None:
        self.operator.__enter__()

    @override
    def close(self) -> None:
        self.operator.__exit__(None, None, None)

    @override
    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        return [self.scale * result for result in self.operator.apply([self.scale * vector for vector in vectors])]

    @override
    def rounding(self) -> float:
        return float(self.scale.abs().max()) ** 2 * self.operator.rounding()
