"""The mathematics of a training path: principal components from the Gram matrix, and what a random walk would show.

With rows d_t = theta_t - theta_origin, the Gram matrix G = D D^T holds all inner products of a path; its size is the
number of snapshots squared, whatever the size of the network. Centring is G -> H G H with H = I - 1 1^T / T.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]


def centered(gram: Matrix) -> Matrix:
    """Return the Gram matrix of the rows minus their mean."""
    middle: Matrix = gram - gram.mean(0, keepdims=True)
    result: Matrix = middle - middle.mean(1, keepdims=True)
    return result


def principal_shares(gram: Matrix) -> Matrix:
    """Return each principal component's share of the total squared length, largest first."""
    values = np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None)
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, np.nan)


def principal_weights(gram: Matrix, count: int) -> Matrix:
    """Return how the rows combine to unit principal directions: v_k = sum_t weights[t, k] row_t."""
    # Each direction is signed so that the first row that is not orthogonal to it has a positive coordinate.
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    usable = values > values[0] * 1e-14 if len(values) and values[0] > 0 else np.zeros(len(values), dtype=np.bool_)
    weights = np.where(usable, vectors / np.sqrt(np.where(usable, values, 1.0)), 0.0)
    largest = np.abs(vectors).argmax(0)
    first = (np.abs(vectors) > 1e-6 * np.abs(vectors[largest, range(vectors.shape[1])])).argmax(0)
    return np.asarray(weights * np.where(vectors[first, range(vectors.shape[1])] < 0, -1.0, 1.0))


def step_lengths(gram: Matrix) -> Matrix:
    """Return the lengths of the steps between consecutive rows."""
    return np.sqrt(np.clip(np.diag(_steps(gram)), 0.0, None))


def consecutive_cosines(gram: Matrix) -> Matrix:
    """Return the cosines between consecutive steps; a random walk has 0, a straight run 1."""
    steps = _steps(gram)
    lengths = np.sqrt(np.clip(np.diag(steps), 0.0, None))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.diag(steps, 1) / (lengths[:-1] * lengths[1:]))


def _steps(gram: Matrix) -> Matrix:
    return np.asarray(np.diff(np.diff(gram, axis=0), axis=1))


def walk_shares(
    lengths: Matrix, dimensions: int, count: int, generator: np.random.Generator, *, anchored: bool, walks: int
) -> Matrix:
    """Return the shares of the first principal components of random walks with given step lengths, one row each."""
    # Steps of independent directions in so many dimensions have the Gram matrix of a normalized Wishart matrix,
    # which is drawn as such (Bartlett's decomposition): no vector of the network's size is ever made. See
    # Antognini and Sohl-Dickstein 2018, who explain why the shares are large.
    shares = np.full((walks, count), np.nan)
    for walk in range(walks):
        gram = _walk_gram(lengths, dimensions, generator)
        found = principal_shares(gram if anchored else centered(gram))[:count]
        shares[walk, : len(found)] = found
    return shares


def _walk_gram(lengths: Matrix, dimensions: int, generator: np.random.Generator) -> Matrix:
    """Return the Gram matrix of a walk's places relative to its end."""
    count = len(lengths)
    if dimensions >= count:
        factor = np.tril(generator.standard_normal((count, count)), -1)
        factor[np.diag_indices(count)] = np.sqrt(generator.chisquare(dimensions - np.arange(count)))
    else:
        factor = generator.standard_normal((count, dimensions))
    steps: Any = factor / np.linalg.norm(factor, axis=1, keepdims=True) * lengths[:, None]
    places = np.vstack(
        [np.cumsum(steps[::-1], 0)[::-1], np.zeros((1, steps.shape[1]))]
    )  # minus the place, from the end
    return np.asarray(places @ places.T)
