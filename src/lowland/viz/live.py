"""A survey or a training that draws itself in place while it runs, from what it has written."""

from __future__ import annotations

import base64
import html
import importlib
import io
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import check_positive
from lowland.core.pace import Event, OnEvent
from lowland.core.schema import STATUS_FAILED, STATUS_OPEN
from lowland.results import open as open_store
from lowland.results.run import Run
from lowland.viz import verbs
from lowland.viz.caption import axes_of
from lowland.viz.live_path import PathSoFar, path_as_text

if TYPE_CHECKING:
    import xarray as xr

_PATIENCE: Final = 5.0
"""Drawing takes at most the inverse of this share of the time."""
_COLUMNS: Final = 61
"""Most cells of a row in a terminal."""
_BARS: Final = " ▁▂▃▄▅▆▇█"


@contextmanager
def live(store: str | Path, metric: str = "loss", *, every: float = 2.0) -> Generator[OnEvent]:
    """Draw a survey or a training while it runs, in a notebook's cell or in a terminal; elsewhere nothing is drawn.

    A survey is drawn from its store, with the path where it is over the plane of one; a training as its path so far, in
    the plane of the two principal directions of its snapshots. What goes wrong in drawing never ends either.

    Args:
        store: The store that the survey is written to, or the folder of the run that is trained, with snapshots.
        metric: Variable of a survey that is drawn. Default ``"loss"``.
        every: Seconds between two pictures, more where drawing is slow; a store is written every two seconds.

    Yields:
        What to hand to the survey or training as ``on_event``.

    Raises:
        InputError: If `every` is not positive.

    Example:
        >>> with live("surface.zarr") as on_event:
        ...     pass  # ll.landscape.evaluate(risk, plane, grid, store="surface.zarr", on_event=on_event)
    """
    check_positive(every=every)
    bars: Any = importlib.import_module("lowland.core.bars")  # heavy, and only for those who look
    drawn, took, path = -math.inf, 0.0, PathSoFar(store)
    with bars.place() as draw:

        def show() -> None:
            nonlocal drawn, took
            begun = time.monotonic()
            with suppress(Exception):  # a picture must not end a survey
                draw(*_views(store, metric, path))
            drawn = time.monotonic()
            took = drawn - begun

        def receive(event: Event) -> None:
            if time.monotonic() - drawn > max(every, _PATIENCE * took):
                show()

        try:
            yield receive
        finally:
            show()


def _views(store: str | Path, metric: str, path: PathSoFar) -> tuple[Callable[[], str], Callable[[], str]]:
    """Return what draws the present state as HTML and as text."""
    if (path.folder / "snapshots").is_dir():
        walked = path.trajectory()
        words = path.said(walked)
        return lambda: _image(verbs.path(walked), "Path of training", words), (
            lambda: f"{path_as_text(walked)}\n{words}"
        )
    found = open_store(store)
    return lambda: as_html(found, metric, path_on(store, found)), lambda: as_text(found, metric)


def path_on(store: str | Path, found: xr.Dataset) -> xr.Dataset | None:
    """Return the path over whose plane a survey is, where the run that it belongs to has it."""
    walked = None if "y" not in found.dims else Run.of_store(store).trajectory
    return walked if walked is not None and axes_of(walked) and axes_of(walked) == axes_of(found) else None


def as_html(found: xr.Dataset, metric: str, walked: xr.Dataset | None = None) -> str:
    """Return a surface or line, as far as it is measured, as an image with words; with the path in its plane."""
    if walked is not None:
        drawing = verbs.path(walked, found, metric)
    else:
        drawing = (verbs.line if "y" not in found.dims else verbs.heat_map)(found, metric)
    return _image(drawing, f"{metric} where measured", said(found, metric))


def _image(drawing: Any, about: str, words: str) -> str:
    picture = io.BytesIO()
    drawing.savefig(picture, format="png", dpi=100)
    about, words = html.escape(about), html.escape(words)
    data = base64.b64encode(picture.getvalue()).decode()
    image = f'<img alt="{about}; {words}" style="max-width:100%" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def as_text(found: xr.Dataset, metric: str) -> str:
    """Return a surface or line, as far as it is measured, as colored characters."""
    first = {name: 0 for name in found[metric].dims if name not in ("x", "y")}  # split and direction
    values = np.asarray(found[metric].isel(first), dtype=np.float64)
    heights = _heights(values[:: -(-len(values) // _COLUMNS)])
    if heights.ndim == 1:
        whole = np.where(np.isfinite(heights), 1 + np.round(np.nan_to_num(heights) * (len(_BARS) - 2)), 0).astype(int)
        return "".join(_BARS[place] for place in whole) + "\n" + said(found, metric)
    rows = heights[:, :: -(-heights.shape[1] // _COLUMNS)].T[::-1]  # y upward
    rows = np.vstack([rows, np.full((len(rows) % 2, rows.shape[1]), math.nan)])
    pairs = zip(rows[::2], rows[1::2], strict=True)
    lines = ["".join(map(_cell, *pair)) + "\x1b[0m" for pair in pairs]
    return "\n".join([*lines, said(found, metric)])


def said(found: xr.Dataset, metric: str) -> str:
    """Return how far a survey is, and between which values it lies."""
    status, values = found["status"].values, found[metric].values
    finite = values[np.isfinite(values)]
    span = f", {metric} {finite.min():.4g} to {finite.max():.4g}" if finite.size else ""
    failed = int((status == STATUS_FAILED).sum())
    known = int((status != STATUS_OPEN).sum())
    return f"{known} of {status.size} points{span}" + (f", {failed} failed" if failed else "")


def _heights(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values between 0 and 1, on a logarithmic scale where all are positive; NaN where there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.full(values.shape, math.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.log(values) if finite.min() > 0 else values
    seen = np.where(np.isfinite(seen), seen, math.nan)
    low, high = float(np.nanmin(seen)), float(np.nanmax(seen))
    return (seen - low) / ((high - low) or 1.0)


def _cell(up: float, down: float) -> str:
    return f"\x1b[38;2;{_color(up)}m\x1b[48;2;{_color(down)}m▀"


def _color(height: float) -> str:
    if not math.isfinite(height):
        return "40;40;40"
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["viridis"](height, bytes=True)
    return f"{red};{green};{blue}"
