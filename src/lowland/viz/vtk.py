"""Figures for ParaView: surfaces as ``.vts``, surfaces and paths as ``.vtp``; plain XML, no VTK needed to write.

Heights follow the scale of the spec (the logarithm where it is logarithmic), stretched to 0.6 of the plane's width; the
values themselves are point data. Points without a finite number are hidden (``vtkGhostType``), not bent to some height.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from lowland.core.errors import InputError
from lowland.viz.field import FloatArray
from lowland.viz.spec import Contour, Figure, OfField

_HEIGHT = 0.6  # of the wider side of the plane
_HIDDEN_POINT = 2  # bit of vtkGhostType
_TYPES = {"f8": "Float64", "i8": "Int64", "u1": "UInt8"}


@dataclass(frozen=True, slots=True)
class VtkFigure:
    """A surface as VTK sees it."""

    shape: tuple[int, int]  # Points along x and y
    points: FloatArray  # Shape [nx * ny, 3], x running fastest
    data: dict[str, NDArray[Any]]  # Point data by name, each of shape [nx * ny]
    paths: tuple[FloatArray, ...] = ()  # Points of each training path, shape [snapshots, 3]
    steps: tuple[NDArray[np.int64], ...] = ()  # Optimizer steps of each path, shape [snapshots]


def draw(spec: Figure, *, size: str | tuple[float, float] | None = None) -> VtkFigure:
    """Turn a spec of a field into points with data."""
    if not isinstance(spec, OfField):
        raise InputError("backend", "draws surfaces and paths on surfaces only", "vtk", "use matplotlib or plotly")
    field, scale = spec.field, spec.scale
    low, high = scale.ends
    stretch = _HEIGHT * max(np.ptp(field.x), np.ptp(field.y), 1e-12) / (high - low)
    heights = (scale.transform(field.shown) - low) * stretch
    x, y = np.meshgrid(field.x, field.y, indexing="ij")
    flat = np.stack([x, y, np.nan_to_num(heights)], axis=-1).transpose(1, 0, 2).reshape(-1, 3)
    name = scale.label.split(" (")[0] or "value"
    data: dict[str, NDArray[Any]] = {name: field.values.T.ravel(), "status": field.status.T.ravel()}
    if field.error is not None:
        data[f"{name} standard error"] = field.error.T.ravel()
    data["vtkGhostType"] = np.where(np.isfinite(heights), 0, _HIDDEN_POINT).astype(np.uint8).T.ravel()
    paths = spec.paths if isinstance(spec, Contour) else ()
    lifted = tuple(_on_surface(field.x, field.y, heights, path.x, path.y) for path in paths)
    return VtkFigure((field.x.size, field.y.size), flat, data, lifted, tuple(path.steps for path in paths))


def save(figure: VtkFigure, path: str | FilePath) -> None:
    """Write a scene."""
    structured = FilePath(path).suffix.lower() == ".vts"
    FilePath(path).write_text(_structured(figure) if structured else _polygons(figure), encoding="utf-8")


def _on_surface(x: FloatArray, y: FloatArray, heights: FloatArray, px: FloatArray, py: FloatArray) -> FloatArray:
    """Return the points of a path, lifted to the surface; the floor where there is no surface."""
    lift = np.zeros(px.size)
    if x.size > 1 and y.size > 1:
        surface = RegularGridInterpolator((x, y), heights, bounds_error=False, fill_value=np.nan)
        lift = np.nan_to_num(surface(np.stack([px, py], axis=-1)))
    return np.stack([px, py, lift], axis=-1)


def _structured(figure: VtkFigure) -> str:
    extent = f"0 {figure.shape[0] - 1} 0 {figure.shape[1] - 1} 0 0"
    body = (
        f"<StructuredGrid WholeExtent={quoteattr(extent)}><Piece Extent={quoteattr(extent)}>"
        f"<PointData>{''.join(_array(name, values) for name, values in figure.data.items())}</PointData>"
        f"<Points>{_array('points', figure.points)}</Points></Piece></StructuredGrid>"
    )
    return _file("StructuredGrid", body)


def _polygons(figure: VtkFigure) -> str:
    nx, ny = figure.shape
    corner = (np.arange(nx - 1)[None] + nx * np.arange(ny - 1)[:, None]).ravel()
    quads = np.stack([corner, corner + 1, corner + 1 + nx, corner + nx], axis=-1)
    visible = figure.data["vtkGhostType"] == 0
    quads = quads[visible[quads].all(axis=-1)]
    first = np.cumsum([len(figure.points), *(len(path) for path in figure.paths)])
    lines = [np.arange(start, start + len(path)) for start, path in zip(first, figure.paths, strict=False)]
    points = np.concatenate([figure.points, *figure.paths])
    extra = sum(len(path) for path in figure.paths)
    data = {n: np.concatenate([v, _filler(v, extra)]) for n, v in figure.data.items() if n != "vtkGhostType"}
    data["step"] = np.concatenate([np.full(len(figure.points), -1, dtype=np.int64), *figure.steps])
    body = (
        f'<PolyData><Piece NumberOfPoints="{len(points)}" NumberOfVerts="0" NumberOfLines="{len(lines)}" '
        f'NumberOfStrips="0" NumberOfPolys="{len(quads)}">'
        f"<PointData>{''.join(_array(name, values) for name, values in data.items())}</PointData>"
        f"<Points>{_array('points', points)}</Points>"
        f"<Lines>{_cells(lines)}</Lines><Polys>{_cells(list(quads))}</Polys></Piece></PolyData>"
    )
    return _file("PolyData", body)


def _filler(values: NDArray[Any], count: int) -> NDArray[Any]:
    return np.full(count, np.nan if values.dtype.kind == "f" else 0, dtype=values.dtype)


def _cells(cells: list[NDArray[Any]]) -> str:
    joined = np.concatenate(cells) if cells else np.zeros(0)
    ends = np.cumsum([len(cell) for cell in cells]) if cells else np.zeros(0)
    return _array("connectivity", joined.astype(np.int64)) + _array("offsets", ends.astype(np.int64))


def _array(name: str, values: NDArray[Any]) -> str:
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    kind = _TYPES[values.dtype.str.lstrip("<|")]
    raw = values.tobytes()
    text = base64.b64encode(struct.pack("<Q", len(raw)) + raw).decode("ascii")
    components = f' NumberOfComponents="{values.shape[1]}"' if values.ndim > 1 else ""
    return f'<DataArray type="{kind}" Name={quoteattr(name)}{components} format="binary">{text}</DataArray>'


def _file(kind: str, body: str) -> str:
    return (
        f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" '
        f'header_type="UInt64">{body}</VTKFile>\n'
    )
