"""The live view as a notebook's cell shows it, at three widths: it fits, says in words what it draws, and can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser.test_report_looks import luminance
from tests.report_cases import plane, walk

from lowland.core.bars import CellBars
from lowland.core.pace import Event
from lowland.viz.live import as_html

pytestmark = pytest.mark.browser

PAGE = """<!DOCTYPE html><html lang="en"><meta name="viewport" content="width=device-width"><title>cell</title>
<body style="margin: 8px; color: {ink}; background: {paper}"><div id="cell">{html}</div></body></html>"""
THEMES = {"light": {"ink": "#1b1f24", "paper": "#ffffff"}, "dark": {"ink": "#e4e8ec", "paper": "#111111"}}


def cell_of() -> str:
    """A surface half measured, the path over its plane, and bars of which one has failed points."""
    shown: list[str] = []
    surface = plane(15, 11)
    surface["status"][8:], surface["loss"][8:] = 0, np.nan
    with CellBars(shown.append) as bars:
        bars.progress("surface")(Event("progress", 88, 165, remaining=65.0))
        bars.progress("curvature of a run with a long name")(Event("failed", 3, 9, message="ValueError: no" * 20))
    return as_html(surface, "loss") + as_html(surface, "loss", walk()) + shown[-1]


@pytest.mark.parametrize("theme", list(THEMES))
@pytest.mark.parametrize("width", [1300, 1100, 390])
def test_it_fits_says_what_it_draws_and_can_be_read(browser: Any, screenshots: Path, width: int, theme: str) -> None:
    page, errors = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else errors.append(request.url))
    page.set_content(PAGE.format(html=cell_of(), **THEMES[theme]))
    page.screenshot(path=screenshots / f"live-{width}-{theme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and errors == []
    boxes = page.locator("img, figcaption, #cell > div").evaluate_all(
        """parts => parts.map(part => { const box = part.getBoundingClientRect();
             return [box.left, box.top, box.right, box.bottom]; })"""
    )
    assert len(boxes) == 2 + 2 + 3
    for (left, top, right, bottom), following in zip(boxes, [*boxes[1:], [0, 1e9, 0, 1e9]], strict=True):
        assert 0 <= left < right <= width and top < bottom <= following[1] + 1  # one below the other
    pictures = page.locator("img").evaluate_all("all => all.map(one => [one.alt, one.naturalWidth, one.clientWidth])")
    for words, whole, drawn in pictures:
        assert words.startswith("loss where measured; 88 of 165 points, loss ") and 250 < drawn <= whole
    bars = page.locator("[role=status]").evaluate_all("all => all.map(one => one.textContent.trim())")
    assert bars == ["surface  88/165 1:05 left", "curvature of a run with a long name  3/9"]
    for text in page.locator("figcaption, #cell > div").all():
        light, dark = sorted(
            (
                luminance(text.evaluate("e => getComputedStyle(e).color")),
                luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")),
            ),
            reverse=True,
        )
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    page.close()
