"""The examples run, at a small size, and show what their page says."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import lowland as ll
from lowland.viz.spec import Figure, Line, Panels

ROOT = Path(__file__).resolve().parents[2]
SMALL = 0.25


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


traps = example("traps")


def test_the_gallery_draws_every_kind_and_the_page_shows_each(tmp_path: Path):
    images = example("gallery").draw_all(tmp_path, points=11)
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert len(images) >= 14
    for image in images:
        if image.suffix == ".gif":
            with Image.open(image) as film:
                assert film.n_frames == 13
        else:
            assert ElementTree.parse(image).getroot().tag.endswith("svg")
        assert f"images/{image.name}" in page


MEASURED = ("normalization", "ragged-batch", "refinement", "rescaling", "matched-loss", "barrier")
"""Traps whose tests ask what their figure shows; they are drawn there."""


@pytest.mark.parametrize("name", [name for name in traps.TRAPS if name not in MEASURED])
def test_a_trap_is_drawn_and_on_its_page(name: str, tmp_path: Path):
    assert drawn(name, SMALL, tmp_path) is not None


def drawn(name: str, size: float, tmp_path: Path) -> Figure:
    figure: Figure = traps.TRAPS[name](size)
    image = ll.viz.save(figure, tmp_path / f"{name}.svg", size=traps.inches(figure))
    assert ElementTree.parse(image).getroot().tag.endswith("svg")
    assert f"images/traps/{name}.svg" in (ROOT / "docs" / "figure-right.md").read_text()
    return figure


def heights(line: Line) -> list[np.ndarray]:
    return [curve.y for curve in line.curves]


def test_normalized_directions_do_not_see_the_scale_of_layers_and_plain_ones_do(tmp_path: Path):
    figure = drawn("normalization", SMALL, tmp_path)
    assert isinstance(figure, Panels)
    plain, normalized = (heights(panel) for panel in figure.panels)
    np.testing.assert_allclose(*normalized, rtol=1e-3)
    assert plain[1][0] > 2 * plain[0][0]


def test_the_mean_of_means_depends_on_the_batches(tmp_path: Path):
    exact, even, ragged = heights(drawn("ragged-batch", SMALL, tmp_path))
    np.testing.assert_allclose(exact, even, rtol=1e-5)
    assert np.abs(ragged / exact - 1).max() > 0.05


def test_the_refined_survey_misses_the_pit(tmp_path: Path):
    full, few = drawn("refinement", 1.0, tmp_path).panels
    assert full.field.values.min() < 0.16 < few.field.values.min()


def test_adaptive_sharpness_stays_where_the_eigenvalue_does_not(tmp_path: Path):
    eigenvalue, plain, adaptive = heights(drawn("rescaling", 1.0, tmp_path))
    assert np.abs(adaptive).max() < 1e-3
    assert eigenvalue.max() > 0.7 and plain.max() > 0.5


def test_the_numbers_beside_the_traps_are_those_of_their_pictures(tmp_path: Path):
    page = (ROOT / "docs" / "figure-right.md").read_text()
    sgd, sam = drawn("matched-loss", 1.0, tmp_path).curves  # log10 of the eigenvalue over log10 of the train loss
    losses = np.linspace(max(sgd.x.min(), sam.x.min()), min(sgd.x.max(), sam.x.max()), 50)
    apart = [10 ** np.subtract(*(np.interp(loss, c.x[::-1], c.y[::-1]) for c in (sgd, sam))) for loss in losses]
    assert 10 ** (sgd.y[-1] - sam.y[-1]) == pytest.approx(2, abs=0.5)
    assert 2.3 < min(apart) < 3.5 and 4.2 < max(apart) < 5.5
    assert "At their ends these two differ by a factor of 2, at equal loss by 3 to 5." in page
    assert "in batches of 149, 149 and 2" in page and "about 75 times the weight of any other" in page  # 149 / 2


def test_matching_lowers_the_barrier(tmp_path: Path):
    before, after = heights(drawn("barrier", 1.0, tmp_path))
    assert after.max() - after[0] < 0.5 * (before.max() - before[0])


def test_the_picture_of_the_demo_is_drawn_from_its_stores(tmp_path: Path):
    for name, height in (("sgd", 1.0), ("sam", 0.5)):
        surface = example("gallery").surface_of(height, 0, 11)
        ll.results.save(surface, tmp_path / "runs" / f"{name}-0" / "surfaces" / "plane.zarr")
    picture = tmp_path / "demo.png"
    example("demo_picture").main(str(tmp_path), str(picture))
    assert picture.read_bytes()[:4] == b"\x89PNG"
