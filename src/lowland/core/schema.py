"""Names, dimensions, units and version of every stored variable; imports no torch.

Four kinds of result are written by Lowland, each an `xarray.Dataset` with ``attrs["schema"]`` =
``"lowland.KIND/VERSION"``:

surface     dims ``x`` or ``x, y`` (plus ``split`` and ``direction`` where there is more than one).
            Point (i, j) is the value at ``(x[i], y[j])``, always. Variables: one per metric (``loss``,
            ``accuracy``, ...) with ``NAME_se`` beside it, ``status`` and ``error``.
trajectory  dims ``snapshot, axis``: projected coordinates of training snapshots, and what the projection loses.
curvature   dims ``pair``: eigenvalues with residuals, and scalars with standard errors.
robustness  dims ``row, quantile``: what a change of the weights or inputs did, beside what curvature predicts.

Attributes hold plain JSON values only. Values are kept as measured: NaN and inf stay NaN and inf, and
`STATUS_OPEN` (never NaN) marks a point that was not computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike

from lowland.core.errors import DAMAGED, InputError, StoreError, refused, require, reworded

if TYPE_CHECKING:
    import xarray as xr

KINDS: Final = {"surface": 2, "trajectory": 1, "curvature": 2, "robustness": 1}
"""Kind of result -> its current schema version; a higher version is refused, a lower one migrated."""


def _american(dataset: xr.Dataset) -> xr.Dataset:
    # version 1 (Lowland 0.1.0) wrote "normalised" in units of axes and in names of measures; no number differs
    for name in dataset.variables:
        units = dataset[name].attrs.get("units")
        if units == "normalised direction":
            dataset[name] = dataset[name].assign_attrs(units="normalized direction")
    if "measure" in dataset.variables:
        labels = [str(label).replace(", normalised", ", normalized") for label in dataset["measure"].values]
        dataset["measure"] = (dataset["measure"].dims, labels, dataset["measure"].attrs)
    return dataset


MIGRATIONS: Final[dict[tuple[str, int], Callable[[xr.Dataset], xr.Dataset]]] = {
    ("surface", 1): _american,
    ("curvature", 1): _american,
}
"""Kind and version -> what turns a result of that version into one of the next; version 1 is the first there was.

A migration changes variables and attributes in memory; the stamp is renewed here, and the store is left as it is until
a survey goes on in it.
"""

STATUS_OPEN: Final = 0
STATUS_MEASURED: Final = 1
STATUS_INTERPOLATED: Final = 2
STATUS_FAILED: Final = 3

UNITS: Final[dict[str, str]] = {
    "x": "normalized direction",
    "y": "normalized direction",
    "loss": "loss",
    "loss_difference_se": "loss",
    "accuracy_difference_se": "fraction",
    "accuracy": "fraction",
    "gradient_norm": "loss per unit of weight",
    "lambda_max": "loss per squared unit of weight",
    "lambda_min": "loss per squared unit of weight",
    "lambda_min_bound": "loss per squared unit of weight",
    "residual_max": "loss per squared unit of weight",
    "residual_min": "loss per squared unit of weight",
    "ratio": "1",
    "loss_skew": "1",
    "accuracy_skew": "1",
    "products": "products",
}
"""Unit of each coordinate and known metric; a user's own metric has the unit ``""``."""


def identifier(kind: str) -> str:
    """Return the schema string of a kind of result."""
    return f"lowland.{kind}/{KINDS[kind]}"


def check(dataset: xr.Dataset, kind: str | None = None) -> str:
    """Check that a Dataset follows one of our schemas and return its kind."""
    name, version = _stamp(dataset)
    if version < KINDS[name]:
        stamp = dataset.attrs["schema"]
        raise StoreError(f"the result has the older schema {stamp!r}; open it by lowland.results.open")
    if kind is not None and name != kind:
        raise StoreError(f"expected a {kind}, but this result is a {name}")
    if name == "surface" and ("status" not in dataset or "x" not in dataset.dims):
        raise StoreError("the surface is damaged: `status` or the axis `x` is missing")
    return name


def check_dataset(result: object) -> None:
    """Check that something is a result at all, and not what it would be measured from."""
    import xarray as xr  # as late as this: workers of a survey need none of it

    advice = "measure it first by landscape.evaluate(risk, plane, grid) or curvature.summarize(risk), or open a store"
    require(isinstance(result, xr.Dataset), "result", "must be an xarray.Dataset", type(result).__name__, advice)


def migrated(dataset: xr.Dataset) -> xr.Dataset:
    """Return a result of any version up to the current one as one of the current version."""
    name, version = _stamp(dataset)
    while version < KINDS[name]:
        step = MIGRATIONS.get((name, version))
        if step is None:
            stamp = dataset.attrs["schema"]
            raise StoreError(f"the result has schema {stamp!r}, which this Lowland no longer reads; measure it anew")
        damaged = f"the {name} is damaged: it cannot be migrated from version {version}"
        with reworded(DAMAGED, lambda why, damaged=damaged: StoreError(f"{damaged} ({why})")):  # type: ignore[misc]
            dataset = step(dataset.copy())
        version += 1
        dataset.attrs["schema"] = f"lowland.{name}/{version}"
    return dataset


def _stamp(dataset: xr.Dataset) -> tuple[str, int]:
    """Return kind and version of a result; refuse foreign and newer ones."""
    check_dataset(dataset)
    stamp = str(dataset.attrs.get("schema", ""))
    name, _, version = stamp.removeprefix("lowland.").partition("/")
    if not stamp.startswith("lowland.") or name not in KINDS or not (version.isascii() and version.isdigit()):
        raise StoreError(f"not a result of Lowland: attribute `schema` is {stamp[:200]!r}")
    if len(version) > 6 or int(version) > KINDS[name]:
        newer = f"{stamp[:200]!r}, newer than {identifier(name)!r}"
        raise StoreError(f"the result has schema {newer}; update Lowland to read it")
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
    """Make an empty surface (or line) of the current schema: every point open."""
    import xarray as xr

    axes = {"x": np.asarray(x, dtype=np.float64)}
    if y is not None:
        axes["y"] = np.asarray(y, dtype=np.float64)
    for name, values in axes.items():
        require(values.ndim == 1 and values.size != 0, name, "must hold at least one coordinate", values.tolist())
        if np.unique(values).size != values.size or not np.isfinite(values).all():
            raise InputError(name, "must hold finite coordinates, each once", values.tolist())
    reserved = {"status", "error", "x", "y", "split", "direction"} & set(metrics)
    require(not reserved, "metrics", "must not use the reserved names", sorted(reserved))
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
    """Make a trajectory result: projected coordinates of training snapshots."""
    import xarray as xr

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
    """Make a curvature result: eigenvalues with residuals, and scalars with their errors."""
    import xarray as xr

    return xr.Dataset(
        {
            "eigenvalue": ("pair", np.asarray(eigenvalues, dtype=np.float64)),
            "residual": ("pair", np.asarray(residuals, dtype=np.float64)),
            **dict(variables),
        },
        attrs={"schema": identifier("curvature"), **plain(attrs)},
    )


def new_robustness(
    rows: Sequence[Mapping[str, Any]], quantiles: Sequence[float], *, attrs: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Make a robustness card: one row for every change that was made; fields of several numbers are by quantile."""
    import xarray as xr

    names = rows[0] if rows else {}
    found = {name: np.asarray([row[name] for row in rows]) for name in names}
    variables = {name: (("row", "quantile")[: values.ndim], values) for name, values in found.items()}
    coords = {"quantile": list(quantiles)}
    return xr.Dataset(variables, coords=coords, attrs={"schema": identifier("robustness"), **plain(attrs)})


def plain(attrs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return attributes as plain JSON values; nested ones become JSON text."""
    result: dict[str, Any] = {}
    for key, value in (attrs or {}).items():
        if isinstance(value, str | int | float | bool):
            result[key] = value
            continue
        with refused(TypeError, key, "must be a plain JSON value", type(value).__name__):
            result[key] = json.dumps(value, sort_keys=True)
    return result
