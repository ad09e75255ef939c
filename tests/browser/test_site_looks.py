"""The pages of a site at three widths: nothing overlaps or is cut, links lead on, and only plotly's file is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.browser.test_report_looks import check_blocks, check_contrast, check_texts
from tests.browser.test_report_page import opened
from tests.report_cases import card, film, plane, run

from lowland import report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("SGD", "SAM, with a long name", "LLR")
    runs = [run(f"{name}, seed {s}", method=name, seed=s, accuracy=0.8 + 0.01 * s) for name in names for s in range(2)]
    for number, one in enumerate(runs):
        vars(one)["result"] = {**one.result, "epoch": 4, "select": "best", "labels_changed": {"train": 0.18}}
        vars(one)["cards"] = {"card": card(0.1 + 0.01 * number)}
    vars(runs[0])["surfaces"] = {"plane": plane(21, 17, scale=3.0), "film": film(5, 21, 17)}
    return report.write_site(runs, tmp_path_factory.mktemp("site") / "pages", title="Three ways to train").parent


@pytest.mark.parametrize("width", [1300, 1100, 390])
@pytest.mark.parametrize("name", ["index.html", "SGD-seed-0.html", "SAM-with-a-long-name-seed-1.html"])
def test_a_page_of_a_site_fits(browser: Any, site: Path, screenshots: Path, name: str, width: int) -> None:
    page, errors, outside = opened(browser, site / name, size={"width": width, "height": 900})
    page.screenshot(path=screenshots / f"site-{Path(name).stem}-{width}.png", full_page=True)
    assert errors == [] and outside == [(site / "plotly.js").as_uri()]
    check_texts(page, width, least=100)
    check_blocks(page)
    check_contrast(page)
    page.context.close()


def test_links_lead_from_the_index_through_the_pages_and_back(browser: Any, site: Path) -> None:
    page, errors, _ = opened(browser, site / "index.html")
    page.get_by_role("link", name="SGD, seed 0").click()
    for name in ("SGD, seed 1", "SAM, with a long name, seed 0"):
        page.get_by_role("link", name=f"{name} →").click()
        assert page.locator("h1").inner_text() == name
    page.keyboard.press("Tab")  # the keyboard finds the way back first
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-ready=true]")
    assert page.locator("h1").inner_text() == "Three ways to train" and errors == []
    page.context.close()
