"""Films as files: frames drawn with matplotlib, written as GIF (Pillow) or MP4 (H.264, by the extra `film`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path as FilePath
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lowland.core.errors import InputError, optional_import
from lowland.results.files import replacing
from lowland.viz import matplotlib
from lowland.viz import spec as specs

PER_SECOND: Final = 10
"""Frames of a second."""
_HELD: Final = 10
"""Frames for which the last one stays."""
_DPI: Final = 160

Image8: TypeAlias = NDArray[np.uint8]
Size: TypeAlias = "str | tuple[float, float] | None"


@dataclass(frozen=True)
class Movie:
    """The frames of a film, drawn one after the other."""

    spec: specs.Film | specs.Animation
    size: Size = None

    def images(self) -> Iterator[Image8]:
        """Yield all frames as red, green and blue, with an even number of rows and columns, as encoders want."""
        for contour in _contours(self.spec):
            figure = matplotlib.draw(contour, size=self.size)
            figure.set_dpi(_DPI)
            canvas: Any = figure.canvas
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            yield np.ascontiguousarray(pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2])


def draw(spec: specs.Figure, *, size: Size = None) -> Movie:
    """Draw a film, or the animation of a path."""
    if not isinstance(spec, specs.Film | specs.Animation):
        rule = "must not end in .gif or .mp4 for a figure that does not move"
        raise InputError("path", rule, type(spec).__name__, "write a .png, .pdf, .svg or .html file")
    return Movie(spec, size)


def save(movie: Movie, path: str | FilePath) -> None:
    """Write a film to a .gif or .mp4 file, in whole or not at all."""
    target = FilePath(path)
    write = _gif if target.suffix.lower() == ".gif" else _mp4
    with replacing(target) as temporary:
        write(movie, temporary)


def _contours(spec: specs.Film | specs.Animation) -> Iterator[specs.Contour]:
    if isinstance(spec, specs.Film):
        yield from spec.frames
        return
    for step in spec.frames:
        paths = tuple(path.until(step) for path in spec.contour.paths)
        yield replace(spec.contour, paths=paths, caption="", title=f"{spec.title} step {step}".strip())


def _gif(movie: Movie, path: FilePath) -> None:
    images = [Image.fromarray(image) for image in movie.images()]
    palette = images[-1].quantize(256)  # one for all: a palette of its own would let each frame flicker
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    shown = [1000 // PER_SECOND] * (len(indexed) - 1) + [1000 * _HELD // PER_SECOND]
    indexed[0].save(
        path, format="GIF", save_all=True, append_images=indexed[1:], duration=shown, loop=0, optimize=False
    )


def _mp4(movie: Movie, path: FilePath) -> None:
    ffmpeg = optional_import("imageio_ffmpeg", extra="film", needed_for="a film as .mp4")
    images = movie.images()
    first = next(images)
    how: dict[str, Any] = {"fps": PER_SECOND, "codec": "libx264", "macro_block_size": 2, "quality": None}
    asked = ["-crf", "18", "-f", "mp4", "-movflags", "+faststart", "-threads", "1"]
    writer = ffmpeg.write_frames(str(path), (first.shape[1], first.shape[0]), output_params=asked, **how)
    writer.send(None)  # which starts it
    try:
        for last in chain([first], images):
            writer.send(last)
        for _ in range(_HELD):
            writer.send(last)
    finally:
        writer.close()
