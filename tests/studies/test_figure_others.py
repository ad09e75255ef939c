"""The other papers' pictures: measured once, stored, drawn and written from what is stored."""

import numpy as np
import pytest
from studies.figure import others
from studies.figure.others import PICTURES, Curves, Small, draw_others, measure_others, stored_others
from studies.figure.others_page import others_page
from studies.figure.work import Places

from lowland.viz.curves import build_line

TINY = Small(images=32, epochs=2, seeds=2, points=5, directions=2, every=1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    found = Places(folder / "runs", folder / "store", folder / "page.md", folder / "images")
    measure_others(found, TINY)
    return found


@pytest.mark.slow  # nine networks are trained
def test_every_picture_is_stored_drawn_and_on_the_page(places):
    curves = stored_others(places)
    text = others_page(places)
    assert len(curves) == 11
    assert {path.stem for path in draw_others(places)} == set(curves)
    assert all(f"images/figure/{name}.svg" in text for name in curves)


@pytest.mark.slow  # nine networks are trained
def test_every_row_has_a_value_at_every_place(places):
    for curves in stored_others(places).values():
        for rows in curves.rows.values():
            assert all(len(row) == len(curves.x) for row in rows) and np.isfinite(rows).all()


@pytest.mark.slow  # nine networks are trained
def test_the_stage_follows_from_the_distance(places):
    found = stored_others(places)
    for apart, share in zip(found["sala-distance"].rows["SALA"], found["sala-share"].rows["SALA"], strict=True):
        near = np.array(apart[:-1]) < found["sala-distance"].marks["rho"]
        # the share after a period, and how many of the decisions before it were for the ascent
        np.testing.assert_allclose(np.array(share[1:]), np.cumsum(near) / np.arange(1, len(near) + 1), atol=1e-12)


@pytest.mark.slow  # nine networks are trained
def test_what_is_stored_is_not_measured_again(places, monkeypatch):
    monkeypatch.setattr(others, "PICTURES", {name: lambda *_: pytest.fail("again") for name in PICTURES})
    before = stored_others(places)
    measure_others(places, TINY)
    assert stored_others(places) == before


def test_the_page_follows_from_the_stored_curves():
    places = Places()
    page = places.page.with_name(f"{places.page.stem}-others.md")
    assert others_page(places) == page.read_text()


def test_a_band_says_what_it_ranges_over():
    rows = {"SAM": [[1.0, 2.0], [3.0, 4.0]]}
    for over in ("seeds", "directions"):
        curves = Curves("A title", "epoch", "train loss", [0.0, 1.0], rows, over=over)
        assert build_line(curves.lines(), "train loss").curves[0].entry == f"SAM, range over 2 {over}"
