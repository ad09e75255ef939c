"""Training paths on a plane: principal directions, projected coordinates, and how faithful the picture is.

Li et al. 2018, Section 7: the principal components of M = [theta_0 - theta_n; ...; theta_{n-1} - theta_n] span the
plane onto which the path is projected. Deviations from the authors' code:

1. The components come from the Gram matrix, snapshot by snapshot, never from all weights at once.
2. M is anchored at the end as in the paper (their code centers it); centring can be asked for. The end is the model's
   present weights, at which the surface is drawn.
3. Coordinates solve the least-squares problem for whatever axes the plane has (theirs divides by the length of the axis
   once, wrong unless it is 1 and the axes are orthogonal).
4. Shares come with those of a random walk of the same step lengths, which are large too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.core.contexts import buffers_restored, weights_restored
from lowland.core.effective import effective_weights
from lowland.core.errors import InputError, require
from lowland.core.params import ParameterSpace, unwrap
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import check, new_trajectory
from lowland.core.seeds import generator
from lowland.landscape.batchnorm import running_statistics
from lowland.landscape.checkpoints import Weights, checkpoint_reader
from lowland.landscape.directions import given_axis
from lowland.landscape.grid import Grid, grid
from lowland.landscape.paths import (
    centered,
    consecutive_cosines,
    principal_shares,
    principal_weights,
    step_lengths,
    walk_shares,
)
from lowland.landscape.plane import Plane, at_origin, made, make_plane
from lowland.results.snapshots import SnapshotReader

if TYPE_CHECKING:
    import xarray as xr

Snapshots: TypeAlias = "SnapshotReader | str | Path | Sequence[tuple[int, Mapping[str, Any]]] | Sequence[Weights]"
"""A folder of snapshots (or its reader); pairs (step, arrays or tensors by parameter name) in ascending order; or
checkpoints in the order of training: paths, state dicts or networks, whose steps are counted from 0."""

Matrix: TypeAlias = NDArray[np.float64]

_BLOCK_BYTES: Final = 1 << 28
"""Rows of the path held at a time while the Gram matrix is made: 256 MiB."""


class SnapshotSource(NamedTuple):
    """What reads snapshots by their step."""

    steps: Sequence[int]
    read: Callable[[int], Mapping[str, Any]]
    rounding: Callable[[int], float] = lambda step: np.nan  # How much a snapshot lost when stored; NaN: unknown


def snapshot_source(model: nn.Module, snapshots: Snapshots) -> SnapshotSource:
    """Return what reads snapshots; before parametrized weights are shown as the layers use them."""
    if isinstance(snapshots, str | Path):
        snapshots = SnapshotReader(snapshots)
    if isinstance(snapshots, SnapshotReader):
        return SnapshotSource(snapshots.steps, snapshots.read, snapshots.rounding)
    given: Sequence[Any] = snapshots
    if not (len(given) and isinstance(given[0], tuple | list)):
        return SnapshotSource(range(len(given)), checkpoint_reader(model, given))
    for place, pair in enumerate(given):
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            rule = "must be a pair (step, tensors) like the first"
            raise InputError(f"snapshots[{place}]", rule, type(pair).__name__)
    return SnapshotSource([step for step, _ in given], dict(given).__getitem__)


class _Path:
    """A path relative to the model's present weights, read one snapshot at a time."""

    def __init__(self, source: SnapshotSource, space: ParameterSpace) -> None:
        self.source, self.space = source, space
        self.steps = np.asarray(list(source.steps), dtype=np.int64)
        if len(self.steps) < 2 or (np.diff(self.steps) <= 0).any():
            raise InputError("snapshots", "must be at least two, in ascending order of steps", self.steps.tolist())
        self.base = self._vector({name: value.detach() for name, value, _ in space})
        if not np.isfinite(self.base).all():
            rule = "must have finite weights at the origin of the plane"
            raise InputError("model", rule, "NaN or infinite ones", "its training diverged: show an earlier checkpoint")

    def arrays(self, place: int) -> Mapping[str, Any]:
        """Return everything that a snapshot holds, by name."""
        return self.source.read(int(self.steps[place]))

    def row(self, place: int) -> Matrix:
        """Return theta_t - theta_origin as a float64 vector."""
        found = self._vector(self.arrays(place)) - self.base
        if not np.isfinite(found).all():
            rule = "must have finite weights, for a path that can be drawn"
            step, way = int(self.steps[place]), "training diverged by then: show the snapshots before it"
            raise InputError("snapshots", rule, f"NaN or infinite ones at step {step}", way)
        return found

    def rows(self, places: Sequence[int]) -> Matrix:
        """Return several rows, shape [rows, numel]."""
        return np.stack([self.row(place) for place in places])

    def blocks(self) -> Iterator[range]:
        """Yield ranges of rows that fit in memory."""
        step = max(1, _BLOCK_BYTES // (8 * self.space.numel))
        for start in range(0, len(self.steps), step):
            yield range(start, min(start + step, len(self.steps)))

    def rounding(self) -> Matrix:
        """Return how much each snapshot lost when it was stored, NaN where nobody knows."""
        return np.array([self.source.rounding(int(step)) for step in self.steps])

    def gram(self) -> Matrix:
        """Return the inner products of all rows."""
        result = np.zeros((len(self.steps),) * 2)
        for first in self.blocks():
            ours = self.rows(first)
            for second in self.blocks():
                if second.start < first.start:
                    continue
                part = ours @ (ours if second == first else self.rows(second)).T
                result[first.start : first.stop, second.start : second.stop] = part
                result[second.start : second.stop, first.start : first.stop] = part.T
        return result

    def _vector(self, arrays: Mapping[str, Any]) -> Matrix:
        parts = []
        for name, parameter, _ in self.space:
            require(name in arrays, "snapshots", "must hold every parameter that moves", name)
            value = arrays[name]
            array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value)
            fits = array.shape == tuple(parameter.shape)
            require(fits, "snapshots", f"must fit the model at {name!r}", array.shape)
            parts.append(array.astype(np.float64).reshape(-1))
        return np.concatenate(parts)


def pca_plane(
    model: nn.Module, snapshots: Snapshots, *, anchored: bool = True, modules: Sequence[str] | None = None
) -> Plane:
    """Return the plane of the first two principal directions of a training path (Li et al. 2018, Section 7).

    Its axes have length 1, so that coordinates are Euclidean distances.

    Memory: 3 sets of weights, whatever the number of snapshots.

    Args:
        model: The model at the weights that shall lie at (0, 0), usually the end of the path.
        snapshots: The path: a folder of snapshots, pairs (step, tensors by name), or checkpoints in the order of
            training, as paths, state dicts or networks; files are read without executing code.
        anchored: Principal directions of the differences to the model's weights (default, as in the paper), or of the
            differences to the path's mean.
        modules: Move only parameters of these submodules; None (default) moves all trainable ones.

    Raises:
        InputError: If there are fewer than two snapshots, they do not fit the model, or the path spans no plane.
    """
    source = snapshot_source(model, snapshots)
    with at_origin(model, modules) as space:
        path = _Path(source, space)
        gram = path.gram()
        weights = principal_weights(gram if anchored else centered(gram), 2)
        if weights.shape[1] < 2 or not weights.any(0).all():
            raise InputError("snapshots", "must span a plane", len(path.steps), "give at least two that differ")
        if not anchored:
            weights = weights - weights.mean(0)  # directions of centered rows, written in rows that are not
        vectors = np.zeros((2, space.numel))
        for place in range(len(path.steps)):
            vectors += weights[place][:, None] * path.row(place)
        axes = []
        for number, vector in enumerate(vectors):
            parts = space.unflatten(torch.as_tensor(vector, device="cpu"))
            values = {n: torch.empty_like(p).copy_(v) for (n, p, _), v in zip(space, parts, strict=True)}
            axes.append(given_axis(values, number, "principal"))
        recipe = made("pca", anchored=anchored, steps=path.steps.tolist())
        return make_plane(space, axes, recipe, "Euclidean distance")


def project_trajectory(
    model: nn.Module,
    snapshots: Snapshots,
    plane: Plane | None = None,
    *,
    anchored: bool = True,
    risk: EmpiricalRisk | None = None,
    walks: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Project a training path onto a plane, with everything needed to judge the picture.

    Memory: 7 sets of weights, whatever the number of snapshots.

    Args:
        model: The model at the plane's origin, usually the end of the path.
        snapshots: The path, as for `pca_plane`.
        plane: The plane; None makes the principal one, see `pca_plane`.
        anchored: Shares of the squared distance to the model's weights (default), or of the variance about the mean.
        risk: Also measure the true loss of every snapshot and the loss at its place on the plane. Default None.
        walks: Random walks of the null. Default 20: its standard deviation over walks is about 0.01 for 100 snapshots.
        seed: Seed of the walks.

    Returns:
        A trajectory with ``coordinate[snapshot, axis]``, ``distance`` to the plane and to the origin
        (``distance_to_origin``), ``step_length``, ``cosine`` with the step before, ``rounding`` of the stored weights,
        per axis ``variance_share`` (what it adds to the axes before it), ``null_share`` and ``null_share_sd`` of random
        walks, ``share_above_null``, and with a risk ``loss`` and ``plane_loss``. Attributes say whether rounding is
        small against the smallest step, and how far the sum of two shares scatters over walks
        (``null_share_sd_of_two``: less than either alone, since one takes what the other leaves).

    Raises:
        InputError: If the snapshots do not fit the model, or the model is not at the plane's origin.
    """
    model = unwrap(model)
    source = snapshot_source(model, snapshots)
    plane = pca_plane(model, snapshots, anchored=anchored) if plane is None else plane
    with effective_weights(model), torch.no_grad():
        space = plane.space(model)
        plane.check_origin(space)
        path = _Path(source, space)
        axes = _axis_matrix(plane, space)
        gram = path.gram()
        coordinates, distance = _project(path, axes)
    shares, walked = _shares(plane, path, gram, axes, anchored=anchored, walks=walks, seed=seed)
    lengths, rounding = step_lengths(gram), path.rounding()
    variables = {"distance": ("snapshot", distance), **_steps(gram, lengths), "rounding": ("snapshot", rounding)}
    variables |= _against_walks(shares, walked)
    if risk is not None:
        variables |= _losses(path, plane, coordinates, risk)
    attrs = {
        "anchored": int(anchored),
        "plane": plane.describe(),
        "units": plane.units,
        "parameters": space.numel,
        "walks": walks,
        "null_share_sd_of_two": float(_spread(walked[:, :2].sum(1))),
        "seed": seed,
        "rounding_over_smallest_step": float(np.max(rounding) / lengths.min()) if lengths.min() > 0 else float("inf"),
        **({} if risk is None else {"risk": risk.describe(), "batch_norm": risk.batch_norm}),
        **provenance(),
    }
    return new_trajectory(coordinates, steps=path.steps, variables=variables, attrs=attrs)


def _axis_matrix(plane: Plane, space: ParameterSpace) -> Matrix:
    """Return the axes as float64 rows, shape [axes, numel]."""
    base = [parameter.detach() for parameter in space.tensors]
    return np.stack([space.flatten(axis.tensors(space, base)).double().cpu().numpy() for axis in plane.axes])


def _project(path: _Path, axes: Matrix) -> tuple[Matrix, Matrix]:
    """Return least-squares coordinates and the distance from the plane of every snapshot."""
    inner = axes @ axes.T
    coordinates, distance = np.zeros((len(path.steps), len(axes))), np.zeros(len(path.steps))
    for place in range(len(path.steps)):
        row = path.row(place)
        coordinates[place] = np.linalg.solve(inner, axes @ row)
        distance[place] = np.linalg.norm(row - coordinates[place] @ axes)
    return coordinates, distance


def _shares(
    plane: Plane, path: _Path, gram: Matrix, axes: Matrix, *, anchored: bool, walks: int, seed: int
) -> tuple[Matrix, Matrix]:
    """Return what each axis adds to the share, and the same for random walks, one row each."""
    count = len(axes)
    if plane.recipe.get("kind") == "pca" and plane.recipe["arguments"]["anchored"] == anchored:
        shares = principal_shares(gram if anchored else centered(gram))[:count]
        stream = generator(seed, "bootstrap", "walk")
        return shares, walk_shares(step_lengths(gram), path.space.numel, count, stream, anchored=anchored, walks=walks)
    basis = np.linalg.qr(axes.T)[0].T  # row k is axis k without its part along the axes before
    inside = np.stack([basis @ path.row(place) for place in range(len(path.steps))])
    if not anchored:
        inside, gram = inside - inside.mean(0), centered(gram)
    total = np.trace(gram)
    shares = (inside**2).sum(0) / total if total > 0 else np.full(count, np.nan)
    return shares, np.full((1, count), 1 / path.space.numel)  # an axis chosen without the path


def _spread(values: Matrix) -> Matrix:
    return np.asarray(values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan))


def _steps(gram: Matrix, lengths: Matrix) -> dict[str, Any]:
    cosines = np.concatenate([[np.nan, np.nan], consecutive_cosines(gram)])[: len(gram)]
    return {
        "distance_to_origin": ("snapshot", np.sqrt(np.diag(gram))),
        "step_length": ("snapshot", np.concatenate([[np.nan], lengths])),
        "cosine": ("snapshot", cosines),
    }


def _against_walks(shares: Matrix, walked: Matrix) -> dict[str, Any]:
    null = walked.mean(0)
    return {
        "variance_share": ("axis", shares),
        "null_share": ("axis", null),
        "null_share_sd": ("axis", _spread(walked)),
        "share_above_null": ("axis", shares - null),
    }


def _losses(path: _Path, plane: Plane, coordinates: Matrix, risk: EmpiricalRisk) -> dict[str, Any]:
    """Return the true loss of every snapshot and the loss at its place on the plane."""
    loss, flat = np.zeros(len(coordinates)), np.zeros(len(coordinates))
    with torch.no_grad(), risk.prepared():
        space = plane.space(risk.model)
        plane.check_origin(space)
        statistics = running_statistics(risk.model)
        with weights_restored(space) as base:
            move = plane.mover(risk.model, space, base)
            for place, at in enumerate(coordinates):
                with buffers_restored(risk.model):
                    move(at.tolist())
                    flat[place] = _loss(risk)
                arrays = path.arrays(place)
                space.write([torch.as_tensor(arrays[name], device="cpu").to(p) for name, p, _ in space])
                with buffers_restored(risk.model):
                    for name, buffer in statistics.items():
                        if name in arrays:  # the snapshot's own statistics, where they were kept
                            buffer.copy_(torch.as_tensor(arrays[name], device="cpu"))
                    loss[place] = _loss(risk)
    return {"loss": ("snapshot", loss), "plane_loss": ("snapshot", flat)}


def _loss(risk: EmpiricalRisk) -> float:
    risk.recalibrate()
    return risk.estimates()["loss"].value


def grid_around(trajectory: xr.Dataset, nx: int, ny: int, *, margin: float = 0.2) -> Grid:
    """Return a grid that shows a whole path and its origin.

    Args:
        trajectory: A projected path, see `project_trajectory`.
        nx: Points along the first axis.
        ny: Points along the second axis.
        margin: Room beyond the path on each side, as a fraction of its range. Default 0.2.

    Example:
        >>> path = new_trajectory([[-1.0, 0.0], [0.0, 2.0]], steps=[0, 1], variables={})
        >>> grid_around(path, 3, 3, margin=0.5).x.tolist()
        [-1.5, -0.5, 0.5]
    """
    check(trajectory, "trajectory")
    values = trajectory["coordinate"].values
    ranges = []
    for axis in range(2):
        low, high = min(0.0, float(values[:, axis].min())), max(0.0, float(values[:, axis].max()))
        room = margin * (high - low) if high > low else 1.0
        ranges.append((low - room, high + room))
    return grid(nx, ny, extent=(ranges[0], ranges[1]))
