"""Rules of curvature tools: ends of the spectrum, traces and densities, on spectra that are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lowland.testing.adapters import CurvatureAdapter
from lowland.testing.planted import Planted, planted_data
from lowland.testing.rulebook import NotOffered, demand, rule

_Floats = NDArray[np.float64]


def _ends(adapter: CurvatureAdapter, eigenvalues: list[float], tolerance: float = 0.02) -> None:
    low, high = adapter.ends(Planted(eigenvalues), nn.MSELoss(), [planted_data()])
    scale = max(abs(value) for value in eigenvalues)
    wanted = min(eigenvalues), max(eigenvalues)
    for name, found, exact in (("smallest", low, wanted[0]), ("largest", high, wanted[1])):
        if found is not None:
            demand(
                abs(found - exact) <= tolerance * scale,
                f"the {name} eigenvalue comes out as {found:.4g}, it is {exact:g}",
            )


def _both(adapter: CurvatureAdapter) -> None:
    if None in adapter.ends(Planted([2.0, 1.0, -1.0]), nn.MSELoss(), [planted_data()]):
        raise NotOffered("only the eigenvalue of largest magnitude")


@rule("Power iteration does not converge between a pair of opposite signs, and reports a mean of the two.")
def ends_of_mixed_signs(adapter: CurvatureAdapter) -> None:
    """Of the eigenvalues 5, 1, 0.5, -5 the ends are 5 and -5."""
    _ends(adapter, [5.0, 1.0, 0.5, -5.0])


@rule("A stop at a small relative change is a stop between neighbors.")
def ends_of_clusters(adapter: CurvatureAdapter) -> None:
    """Of the eigenvalues 5, 4.95, 4.9, 1 the largest is 5."""
    _ends(adapter, [5.0, 4.95, 4.9, 1.0], 0.001)


@rule("A shift by the largest one does not make the smallest dominant; a convexity map then shows saddles at minima.")
def smallest_of_definite(adapter: CurvatureAdapter) -> None:
    """Of the positive eigenvalues 1 to 5 the smallest is 1."""
    _both(adapter)
    _ends(adapter, [5.0, 4.0, 3.0, 2.0, 1.0])


@rule("The largest in magnitude is not the largest.")
def largest_of_negative(adapter: CurvatureAdapter) -> None:
    """Of the negative eigenvalues -5 to -0.5 the largest is -0.5."""
    _both(adapter)
    _ends(adapter, [-5.0, -3.0, -1.0, -0.5])


@rule("A Krylov run that does not notice its end goes on with rounding noise.")
def ends_of_low_rank(adapter: CurvatureAdapter) -> None:
    """Of a rank-one Hessian in 40 dimensions the ends are its one eigenvalue and 0."""
    _ends(adapter, [3.0, *[0.0] * 39])


@rule("Linear models, and regions where all units are dead, have it.")
def ends_of_nothing(adapter: CurvatureAdapter) -> None:
    """The ends of a Hessian that is 0 are 0."""
    low, high = adapter.ends(Planted([0.0] * 6), nn.MSELoss(), [planted_data()])
    for found in (low, high):
        demand(found is None or abs(found) < 1e-9, f"an end comes out as {found}")


_TRACE_SPECTRUM = [*[8.0, 5.0, 3.0, -2.0], *np.linspace(-0.5, 0.9, 60).tolist()]


@rule("A rule that stops when the mean happens to stand still stops anywhere.")
def trace_is_near(adapter: CurvatureAdapter) -> None:
    """With default settings twenty seeds give the trace within 25 % each."""
    model, exact = Planted(_TRACE_SPECTRUM), float(sum(_TRACE_SPECTRUM))
    found = [adapter.trace(model, nn.MSELoss(), [planted_data()], seed=seed)[0] for seed in range(20)]
    worst = max(found, key=lambda value: abs(value - exact))
    # plain Hutchinson probes, a hundred of them, have a standard deviation of 6 % here
    demand(abs(worst - exact) < 0.25 * exact, f"the trace is {exact:.3g}; twenty seeds give up to {worst:.3g}")


@rule("A number without an error cannot be compared; one with too small an error is compared wrongly.")
def trace_states_its_error(adapter: CurvatureAdapter) -> None:
    """The stated standard error of a trace covers its deviation, over twenty seeds."""
    model, exact = Planted(_TRACE_SPECTRUM), float(sum(_TRACE_SPECTRUM))
    scores = []
    for seed in range(20):
        value, error = adapter.trace(model, nn.MSELoss(), [planted_data()], seed=seed)
        if error is None:
            raise NotOffered("no standard error")
        scores.append(abs(value - exact) / error if error > 0 else 0.0)
    beyond = sum(score > 2 for score in scores)
    # a right error leaves 5 % beyond two of it, 1 of 20; more than 5 has a probability of 0.0003
    demand(beyond <= 5, f"{beyond} of 20 traces are more than two standard errors away")


def _density(adapter: CurvatureAdapter, eigenvalues: list[float]) -> list[tuple[_Floats, _Floats]]:
    return [
        (np.asarray(nodes), np.asarray(weights))
        for nodes, weights in adapter.density(Planted(eigenvalues), nn.MSELoss(), [planted_data()], seed=0)
    ]


@rule("Otherwise it is no density.")
def density_has_mass_one(adapter: CurvatureAdapter) -> None:
    """Nodes and weights of the density are real, weights are not negative, and sum to one for every start vector."""
    for nodes, weights in _density(adapter, _TRACE_SPECTRUM):
        demand(weights.shape == nodes.shape, f"{nodes.shape} nodes have {weights.shape} weights")
        demand(not np.iscomplexobj(weights) and not np.iscomplexobj(nodes), "nodes and weights are complex")
        demand(abs(weights.sum() - 1) < 1e-4 and weights.min() > -1e-9, f"weights sum to {weights.sum():.4g}")


@rule("Without full reorthogonalization, or a test for the end of the Krylov space, copies and noise appear.")
def density_has_no_ghosts(adapter: CurvatureAdapter) -> None:
    """A spectrum of three distinct eigenvalues gives nodes at those three only."""
    for nodes, weights in _density(adapter, [*[4.0] * 10, *[1.0] * 20, *[-1.0] * 10]):
        demand(not np.iscomplexobj(weights) and weights.shape == nodes.shape, "no real weights, one for each node")
        heavy = np.sort(nodes[weights > 1e-6])
        near = np.abs(heavy[:, None] - np.array([-1.0, 1.0, 4.0])).min(1)
        demand(len(heavy) == 3 and near.max() < 1e-3, f"{len(heavy)} nodes carry weight: {np.round(heavy, 3)[:8]}")


@rule("The first step of a Krylov run divides by a norm of 0 there.")
def density_of_nothing(adapter: CurvatureAdapter) -> None:
    """The density of a Hessian that is 0 has all its weight at 0."""
    for nodes, weights in _density(adapter, [0.0] * 12):
        demand(not np.iscomplexobj(weights) and weights.shape == nodes.shape, "no real weights, one for each node")
        demand(bool(np.isfinite(nodes).all() and np.isfinite(weights).all()), "nodes or weights are not finite")
        demand(np.abs(nodes[np.abs(weights) > 1e-6]).max() < 1e-6, "weight lies away from 0")
