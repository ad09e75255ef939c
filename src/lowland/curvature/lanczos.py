"""One Krylov run: Lanczos with full reorthogonalization, from which extremes, top pairs and densities are read.

Lanczos 1950; Paige 1972 and Golub and Van Loan, "Matrix Computations", section 10.3, for its behavior in finite
precision. After m products ``A V = V T + beta v_next e_m^T`` with orthonormal V and tridiagonal T: an eigenpair
(theta, s) of T gives the Ritz pair (theta, V s) with the residual norm ``|beta s_m|``, known without a further product.

Deviations from the textbook:
1. Every new vector is orthogonalized twice against all before it, so that no ghost copies of eigenvalues appear; the
   orthogonality reached is measured.
2. At a breakdown (an invariant subspace is found) the run goes on with a fresh random vector, so that degenerate and
   zero operators are served too.
3. Residuals have a floor, so that none is claimed to be smaller than the arithmetic allows: the rounding error, or what
   a product has along basis vectors where a symmetric operator has nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.errors import InputError, NotFinite, require
from lowland.core.seeds import normal
from lowland.curvature.operator import AbstractOperator

_BREAKDOWN: Final = 30.0
"""A new direction below this many rounding units of the spectral scale is rounding noise."""
_ROOM: Final = 8, 4
"""Vectors that the basis has room for at first, and the part of those it holds that it grows by when it is full."""


@dataclass(frozen=True, slots=True)
class Ritz:
    """Eigenpairs of the tridiagonal matrix of a run.

    Args:
        values: Ritz values, ascending, shape [m].
        residuals: Norm of ``A x - theta x`` of each pair, shape [m].
        weights: Squared first component of each eigenvector: the weights of Gauss quadrature; they sum to one.
        coefficients: Eigenvectors of T in columns, shape [m, m].
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    weights: NDArray[np.float64]
    coefficients: NDArray[np.float64]

    @property
    def scale(self) -> float:
        """Largest absolute Ritz value: what residuals are compared with."""
        return float(np.abs(self.values).max())


class Lanczos:
    """A Krylov run on an operator; it can be extended at any time, and stored and resumed.

    Args:
        operator: The symmetric operator.
        start: Start vector of shape [n], or several of shape [n, k] that are summed, longer ones counting for more
            (warm start: approximate eigenvectors); None starts from a random normal vector.
        noise: Length of the random vector added to a given start, relative to it; without it, what is orthogonal to
            the given vectors would never be seen. Default 0.1.
        against: Orthonormal columns of shape [n, q] that the run stays orthogonal to (eigenvectors already known).
        seed: Seed of the random vectors.
        stream: Number of the run: different ones draw different random vectors from the same seed.

    Raises:
        InputError: If the start has another shape, is zero or not finite.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> run = Lanczos(MatrixOperator(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))))
        >>> run.extend(3)
        3
        >>> run.ritz().values.round(6).tolist()
        [1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        operator: AbstractOperator,
        *,
        start: Tensor | None = None,
        noise: float = 0.1,
        against: Tensor | None = None,
        seed: int = 0,
        stream: int = 0,
    ) -> None:
        self.operator, self.seed, self.stream = operator, seed, stream
        self._against = None if against is None else against.to(operator.device, operator.dtype)
        self.epsilon = torch.finfo(operator.dtype).eps
        self.randomness = 1.0
        """Share of the start vector's length that is random: 1 for a cold start."""
        self._blocks: list[Tensor] = []  # of the basis: one storage that grew would be held twice while it is copied
        self._diagonal: list[float] = []
        self._off_diagonal: list[float] = []
        self._largest, self._noise = 0.0, 0.0
        vector = self._random(0)
        if start is not None:
            vector = self._warm(start, vector, noise)
        vector = self._outside(vector)
        self._append(vector / torch.linalg.vector_norm(vector))

    def _random(self, step: int) -> Tensor:
        return normal(self._empty(), self.seed, "krylov", self.stream, step)

    def _empty(self, *rows: int) -> Tensor:
        return torch.empty(*rows, self.operator.size, dtype=self.operator.dtype, device=self.operator.device)

    def _outside(self, vector: Tensor) -> Tensor:
        return vector if self._against is None else _orthogonalized(vector, [self._against.T])[0]

    def _warm(self, start: Tensor, random: Tensor, noise: float) -> Tensor:
        columns = start.detach().to(random)
        columns = columns[:, None] if columns.ndim == 1 else columns
        size, fits = self.operator.size, columns.ndim == 2 and columns.shape[0] == self.operator.size
        require(fits, "start", f"must have the shape [{size}] or [{size}, k]", tuple(start.shape))
        norms = torch.linalg.vector_norm(columns, dim=0)
        if not bool((torch.isfinite(norms) & (norms > 0)).all()):
            raise InputError("start", "must hold finite vectors that are not zero", norms.tolist())
        guess = columns.sum(1) / torch.linalg.vector_norm(columns.sum(1))
        self.randomness = noise / float(np.hypot(1.0, noise))
        warm: Tensor = guess + noise * random / torch.linalg.vector_norm(random)
        return warm

    @property
    def steps(self) -> int:
        """Number of products taken."""
        return len(self._diagonal)

    @property
    def exhausted(self) -> bool:
        """Whether the whole space is spanned."""
        return self.steps >= self.size

    @property
    def size(self) -> int:
        """Dimension of the space that the run lives in."""
        return self.operator.size - (0 if self._against is None else self._against.shape[1])

    @property
    def couplings(self) -> NDArray[np.float64]:
        """What leads from each vector of the basis to the next: the length of every new direction, shape [steps]."""
        return np.asarray(self._off_diagonal)

    def extend(self, steps: int = 1) -> int:
        """Take so many further steps, one product each, or until the space is exhausted; return those of the run."""
        with self.operator:
            for _ in range(steps):
                if self.exhausted:
                    break
                self._step()
        return self.steps

    def _step(self) -> None:
        step = self.steps
        basis = self._basis(step + 1)
        image = self._outside(self.operator.apply([basis[-1][-1]])[0])
        self._largest = max(self._largest, float(torch.linalg.vector_norm(image)))
        image, overlap = _orthogonalized(image, basis)
        length = float(torch.linalg.vector_norm(image))
        alpha = float(overlap[step])
        if step > 1:
            self._noise = max(self._noise, float(torch.linalg.vector_norm(overlap[: step - 1])))
        if not np.isfinite(alpha) or not np.isfinite(length):
            raise NotFinite("operator", "must give finite products", "nan or inf")
        self._diagonal.append(alpha)
        if self.exhausted:
            self._off_diagonal.append(0.0)
            return
        if length <= _BREAKDOWN * self.epsilon * self._largest:
            self._off_diagonal.append(0.0)
            image, _ = _orthogonalized(self._outside(self._random(step + 1)), basis)
            length = float(torch.linalg.vector_norm(image))
        else:
            self._off_diagonal.append(length)
        self._append(image / length)

    def _append(self, vector: Tensor) -> None:
        """Add the vector that follows those of the steps taken."""
        room = sum(map(len, self._blocks))
        if self.steps >= room:
            first, part = _ROOM
            self._blocks.append(self._empty(min(max(first, room // part), self.operator.size - room)))
            room += len(self._blocks[-1])
        self._blocks[-1][self.steps - room] = vector

    def _basis(self, count: int) -> list[Tensor]:
        """Return the first vectors of the basis, as rows of its blocks."""
        rows, left = [], count
        for block in self._blocks:
            rows.append(block[:left])
            left -= len(rows[-1])
        return [part for part in rows if len(part)]

    def ritz(self) -> Ritz:
        """Return the Ritz pairs of the run so far; without a step that is an `InputError`."""
        from scipy.linalg import eigh_tridiagonal  # slow to import; most workers do without

        require(self.steps != 0, "steps", "must be at least 1 before Ritz pairs exist", 0)
        diagonal, beside = np.asarray(self._diagonal), np.asarray(self._off_diagonal)
        values, vectors = (np.asarray(part, dtype=np.float64) for part in eigh_tridiagonal(diagonal, beside[:-1]))
        residuals = np.hypot(np.abs(beside[-1] * vectors[-1]), self.rounding(values))
        return Ritz(values, residuals, vectors[0] ** 2, vectors)

    def rounding(self, values: NDArray[np.float64]) -> float:
        """Return the larger error at Ritz values: the arithmetic's, or what a symmetric operator would not have."""
        return max(self.epsilon * float(np.abs(values).max()), self._noise)

    def vectors(self, ritz: Ritz, which: list[int]) -> Tensor:
        """Return the Ritz vectors of numbered pairs of `ritz` at the present length: columns of length one, [n, k]."""
        chosen = torch.as_tensor(ritz.coefficients[:, which], device="cpu").to(self._blocks[0])
        return _combined(self._basis(len(ritz.values)), chosen)

    def orthogonality(self) -> float:
        """Return the largest entry of ``|V^T V - 1|``: a value far above the rounding error would mean ghosts."""
        basis = self._basis(self.steps)
        gram = torch.cat([torch.cat([left @ right.T for right in basis], 1) for left in basis])
        return float((gram - torch.eye(self.steps, dtype=gram.dtype, device=gram.device)).abs().max())

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on later: tensors and numbers that ``torch.save(..., weights_only)`` can hold."""
        filled = min(self.steps + 1, self.operator.size)
        return {
            "basis": torch.cat(self._basis(filled)),
            "diagonal": list(self._diagonal),
            "off_diagonal": list(self._off_diagonal),
            "largest": self._largest,
            "noise": self._noise,
            "randomness": self.randomness,
            "seed": self.seed,
            "stream": self.stream,
        }

    @classmethod
    def resume(cls, operator: AbstractOperator, state: dict[str, Any]) -> Lanczos:
        """Return a stored run, to go on with the same operator: the same bits as if it had never stopped."""
        if state["basis"].shape[1] != operator.size:
            raise InputError("state", f"must belong to an operator of size {operator.size}", state["basis"].shape[1])
        run = cls(operator, seed=state["seed"], stream=state["stream"])
        run._blocks = []
        for step, vector in enumerate(state["basis"]):
            run._diagonal = list(state["diagonal"][:step])
            run._append(vector)
        run._diagonal, run._off_diagonal = list(state["diagonal"]), list(state["off_diagonal"])
        run._largest, run._noise, run.randomness = state["largest"], state["noise"], state["randomness"]
        return run


def _orthogonalized(vector: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return a vector without its part in a basis (two classical Gram-Schmidt passes), and what was removed in all."""
    overlap = torch.cat([rows @ vector for rows in basis])
    vector = vector - _combined(basis, overlap)
    again = torch.cat([rows @ vector for rows in basis])
    return vector - _combined(basis, again), overlap + again


def _combined(basis: list[Tensor], weights: Tensor) -> Tensor:
    """Return the sum of the vectors of a basis, each times its weight (or its row of weights)."""
    shares = torch.split(weights, [len(rows) for rows in basis])
    total: Tensor = basis[0].T @ shares[0]
    for rows, share in zip(basis[1:], shares[1:], strict=True):
        total.addmv_(rows.T, share) if share.ndim == 1 else total.addmm_(rows.T, share)
    return total
