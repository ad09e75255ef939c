"""Names, dimensions, units and version of every stored variable; imports no torch.

Three kinds of result are written by Lowland, each an `xarray.Dataset` with ``attrs["schema"]`` =
``"lowland.KIND/VERSION"``:

surface     dims ``x`` or ``x, y`` (plus ``split`` and ``direction`` where there is more than one).
            Point (i, j) is the value at ``(x[i], y[j])``, always. Variables: one per metric (``loss``,
            ``accuracy``, ...) with ``NAME_se`` beside it, ``status`` and ``error``.
trajectory  dims ``snapshot, axis``: projected coordinates of training snapshots, and what the projection loses.
curvature   dims ``pair``: eigenvalues with residuals, and scalars with standard errors.

Attributes hold plain JSON values only. Values are kept as measured: NaN and inf stay NaN and inf, and
`STATUS_OPEN` (never NaN) marks a point that was not computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from lowland.core.errors import InputError, StoreError

__all__ = [
    "KINDS",
    "MIGRATIONS",
    "STATUS_FAILED",
    "STATUS_INTERPOLATED",
    "STATUS_MEASURED",
    "STATUS_OPEN",
    "UNITS",
    "check",
    "identifier",
    "migrated",
    "new_curvature",
    "new_surface",
    "new_trajectory",
]

KINDS: Final = {"surface": 1, "trajectory": 1, "curvature": 1}
"""Kind of result -> its current schema version; a higher version is refused, a lower one migrated."""

MIGRATIONS: Final[dict[tuple[str, int], Callable[[xr.Dataset], xr.Dataset]]] = {}
"""Kind and version -> what turns a result of that version into one of the next; version 1 is the first there was.

A migration changes variables and attributes in memory; the stamp is renewed here, and the store is left as it is.
"""

STATUS_OPEN: Final = 0
STATUS_MEASURED: Final = 1
STATUS_INTERPOLATED: Final = 2
STATUS_FAILED: Final = 3

UNITS: Final[dict[str, str]] = {
    "x": "normalised direction",
    "y": "normalised direction",
    "loss": "loss",
    "accuracy": "fraction",
    "gradient_norm": "loss per unit of weight",
    "lambda_max": "loss per squared unit of weight",
    "lambda_min": "loss per squared unit of weight",
    "ratio": "1",
}
"""Unit of each coordinate and known metric; a user's own metric has the unit ``""``."""


def identifier(kind: str) -> str:
    """Return the schema string of a kind of result.

    Args:
        kind: One of `KINDS`.

    Returns:
        For instance ``"lowland.surface/1"``.

    Example:
        >>> identifier("surface")
        'lowland.surface/1'
    """
    return f"lowland.{kind}/{KINDS[kind]}"


def check(dataset: xr.Dataset, kind: str | None = None) -> str:
    """Check that a Dataset follows one of our schemas and return its kind.

    Args:
        dataset: The opened result.
        kind: The kind that is expected, or None for any.

    Returns:
        The kind found.

    Raises:
        StoreError: If the Dataset is foreign, of a newer schema, of another kind or incomplete.

    Example:
        >>> check(new_surface([0.0, 1.0], metrics=["loss"]))
        'surface'
    """
    name, version = _stamp(dataset)
    if version < KINDS[name]:
        raise StoreError(f"the result has the older schema {dataset.attrs['schema']!r}; open it by lowland.store.open")
    if kind is not None and name != kind:
        raise StoreError(f"expected a {kind}, but this result is a {name}")
    if name == "surface" and ("status" not in dataset or "x" not in dataset.dims):
        raise StoreError("the surface is damaged: `status` or the axis `x` is missing")
    return name


def migrated(dataset: xr.Dataset) -> xr.Dataset:
    """Return a result of any version up to the current one as one of the current version.

    Args:
        dataset: The result as it was stored.

    Returns:
        The result itself where it is current, else a migrated copy.

    Raises:
        StoreError: If it is foreign, newer, or of a version that nothing leads on from.

    Example:
        >>> migrated(new_surface([0.0, 1.0])).attrs["schema"]
        'lowland.surface/1'
    """
    name, version = _stamp(dataset)
    while version < KINDS[name]:
        step = MIGRATIONS.get((name, version))
        if step is None:
            stamp = dataset.attrs["schema"]
            raise StoreError(f"the result has schema {stamp!r}, which this Lowland no longer reads; measure it anew")
        try:
            dataset = step(dataset.copy())
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"the {name} is damaged: it cannot be migrated from version {version} ({error})"
            ) from error
        version += 1
        dataset.attrs["schema"] = f"lowland.{name}/{version}"
    return dataset


def _stamp(dataset: xr.Dataset) -> tuple[str, int]:
    """Return kind and version of a result; refuse foreign and newer ones."""
    stamp = str(dataset.attrs.get("schema", ""))
    name, _, version = stamp.removeprefix("lowland.").partition("/")
    if not stamp.startswith("lowland.") or name not in KINDS or not (version.isascii() and version.isdigit()):
        raise StoreError(f"not a result of Lowland: attribute `schema` is {stamp[:200]!r}")
    if len(version) > 6 or int(version) > KINDS[name]:
        raise StoreError(
            f"the result has schema {stamp[:200]!r}, newer than {identifier(name)!r}; update Lowland to read it"
        )
    return name, int(version)


def new_surface(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    metrics: Sequence[str] = ("loss",),
    errors: Sequence[str] = (),
    splits: Sequence[str] = (),
    directions: Sequence[str] = (),
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make an empty surface (or line) of schema v1: every point open.

    Args:
        x: Coordinates of the first axis, shape [nx], in units of the normalised direction.
        y: Coordinates of the second axis, shape [ny]; None for a line.
        metrics: Names of the measured quantities.
        errors: The metrics that get a standard error ``NAME_se``.
        splits: Names along the dimension ``split``; empty when there is one split.
        directions: Names along the dimension ``direction``; empty when there is one plane or line.
        attrs: Plain JSON values to store as attributes.

    Returns:
        A Dataset of float64 variables filled with NaN and ``status`` filled with `STATUS_OPEN`. Dims are in the
        order ``direction, split, x, y``; ``status`` and ``error`` have no ``split``.

    Raises:
        InputError: If an axis is empty, has equal coordinates or a metric has a reserved name.

    Example:
        >>> new_surface([-1, 0, 1], [0, 1], metrics=["loss"], errors=["loss"]).sizes["y"]
        2
    """
    axes = {"x": np.asarray(x, dtype=np.float64)}
    if y is not None:
        axes["y"] = np.asarray(y, dtype=np.float64)
    for name, values in axes.items():
        if values.ndim != 1 or values.size == 0:
            raise InputError(name, "must hold at least one coordinate", values.tolist())
        if np.unique(values).size != values.size or not np.isfinite(values).all():
            raise InputError(name, "must hold finite coordinates, each once", values.tolist())
    reserved = {"status", "error", "x", "y", "split", "direction"} & set(metrics)
    if reserved:
        raise InputError("metrics", "must not use the reserved names", sorted(reserved))
    coords: dict[str, Any] = {name: (name, values, {"units": UNITS[name]}) for name, values in axes.items()}
    outer = [("direction", list(directions)), ("split", list(splits))]
    for name, labels in outer:
        if labels:
            coords[name] = (name, labels)
    point_dims = [d for d, labels in outer[:1] if labels] + list(axes)
    dims = [d for d, labels in outer if labels] + list(axes)
    size = {name: len(values[1]) for name, values in coords.items()}
    blank = np.full([size[d] for d in dims], np.nan)
    variables: dict[str, Any] = {}
    for metric in metrics:
        variables[metric] = (dims, blank.copy(), {"units": UNITS.get(metric, "")})
        if metric in errors:
            variables[f"{metric}_se"] = (dims, blank.copy(), {"units": UNITS.get(metric, "")})
    shape = [size[d] for d in point_dims]
    variables["status"] = (
        point_dims,
        np.zeros(shape, dtype=np.uint8),
        {"flag_values": [0, 1, 2, 3], "flag_meanings": "open measured interpolated failed"},
    )
    variables["error"] = (point_dims, np.full(shape, "", dtype="U200"))
    return xr.Dataset(variables, coords=coords, attrs={"schema": identifier("surface"), **plain(attrs)})


def new_trajectory(
    coordinates: ArrayLike,
    *,
    steps: ArrayLike,
    variables: Mapping[str, Any],
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make a trajectory result: projected coordinates of training snapshots.

    Args:
        coordinates: Shape [snapshots, axes], units of the axes' directions.
        steps: Optimizer step of each snapshot, shape [snapshots].
        variables: Further variables ``name -> (dims, values)`` over ``snapshot`` and ``axis`` (distance to the
            plane, share of variance, random-walk null ...).
        attrs: Plain JSON values.

    Returns:
        A Dataset with dims ``snapshot, axis``.

    Example:
        >>> new_trajectory([[0.0, 1.0]], steps=[0], variables={}).sizes["axis"]
        2
    """
    values = np.asarray(coordinates, dtype=np.float64)
    return xr.Dataset(
        {"coordinate": (("snapshot", "axis"), values), **dict(variables)},
        coords={"step": ("snapshot", np.asarray(steps, dtype=np.int64))},
        attrs={"schema": identifier("trajectory"), **plain(attrs)},
    )


def new_curvature(
    eigenvalues: ArrayLike,
    residuals: ArrayLike,
    *,
    variables: Mapping[str, Any],
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make a curvature result: eigenvalues with residuals, and scalars with their errors.

    Args:
        eigenvalues: Shape [pairs], ascending.
        residuals: Norm of ``H v - lambda v`` of each pair, shape [pairs].
        variables: Further variables ``name -> (dims, values)``, scalars with ``dims = ()``.
        attrs: Plain JSON values: products, samples, seeds, batch-norm mode, train loss beside it.

    Returns:
        A Dataset with the dim ``pair``.

    Example:
        >>> new_curvature([0.1, 2.0], [0.0, 0.0], variables={"trace": ((), 2.1)}).sizes["pair"]
        2
    """
    return xr.Dataset(
        {
            "eigenvalue": ("pair", np.asarray(eigenvalues, dtype=np.float64)),
            "residual": ("pair", np.asarray(residuals, dtype=np.float64)),
            **dict(variables),
        },
        attrs={"schema": identifier("curvature"), **plain(attrs)},
    )


def plain(attrs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return attributes as plain JSON values; nested ones become JSON text.

    Args:
        attrs: Values to store; numbers, strings and None pass, lists and dicts are encoded.

    Returns:
        A new dictionary that every store can hold.

    Raises:
        InputError: If a value cannot be written as JSON.

    Example:
        >>> plain({"recipe": {"seed": 0}})
        {'recipe': '{"seed": 0}'}
    """
    result: dict[str, Any] = {}
    for key, value in (attrs or {}).items():
        if isinstance(value, str | int | float | bool):
            result[key] = value
            continue
        try:
            result[key] = json.dumps(value, sort_keys=True)
        except TypeError as error:
            raise InputError(key, f"must be a plain JSON value ({error})", type(value).__name__) from error
    return result
