"""Draws the picture at the top of the README from what ``make demo`` measured: ``python examples/demo_picture.py``."""

from __future__ import annotations

import sys
from pathlib import Path

import lowland as ll

METHODS = ("SGD", "SAM", "SALA", "LLR", "SAF", "MESA")


def main(demo: str = "runs/demo", picture: str = "docs/demo.png") -> None:
    stores = {name: Path(demo, "runs", f"{name.lower()}-0", "surfaces", "plane.zarr") for name in METHODS}
    surfaces = {name: ll.results.open(store) for name, store in stores.items() if store.exists()}
    figure = ll.viz.compare(surfaces, columns=3, size=(7.2, 4.6))
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
