"""How the page looks, measured from the DOM: nothing overlaps, is clipped or too pale, at three widths, dark and on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser.test_report_page import convexity, opened
from tests.report_cases import card, curvature, film, plane, run, spectrum

from lowland import report
from lowland.core.schema import new_surface

pytestmark = pytest.mark.browser

TEXTS = """() => {
  // every piece of text that can be seen: its rectangle, cut to what scrolls around it
  const found = [];
  const shown = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const add = (text, element, box) => {
    let [left, top, right, bottom] = [box.left, box.top, box.right, box.bottom];
    for (let outer = element; outer; outer = outer.parentElement) {
      if (outer.namespaceURI.endsWith("svg")) continue;
      const style = getComputedStyle(outer);
      if (style.overflowX === "visible" && style.overflowY === "visible") continue;
      const clip = outer.getBoundingClientRect();
      const plot = outer.classList.contains("plot");
      if (plot && (left < clip.left - 1 || right > clip.right + 1 || top < clip.top - 1 || bottom > clip.bottom + 1))
        found.push({ clipped: true, text });
      left = Math.max(left, clip.left); right = Math.min(right, clip.right);
      top = Math.max(top, clip.top); bottom = Math.min(bottom, clip.bottom);
    }
    if (right - left > 1 && bottom - top > 1) found.push({ text, left, top: top + scrollY, right, bottom: bottom + scrollY,
      color: getComputedStyle(element).fill !== "rgb(0, 0, 0)" && element.namespaceURI.endsWith("svg")
        ? getComputedStyle(element).fill : getComputedStyle(element).color, ground: ground(element) });
  };
  const ground = (element) => {
    for (let outer = element; outer; outer = outer.parentElement) {
      const color = getComputedStyle(outer).backgroundColor;
      if (color && !/, 0\\)$|transparent/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest("script, style, noscript, .modebar") || !shown(element)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const svg = element.closest(".plot svg");
    const boxes = svg ? [element.closest("text").getBoundingClientRect()] : Array.from(range.getClientRects());
    for (const box of boxes) add(node.textContent.trim().slice(0, 40), element, box);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    line = new_surface(np.linspace(-1, 1, 9), directions=["0", "1"])
    line["loss"][:], line["status"][:] = 1.0 + line["x"] ** 2, 1
    refined = plane(21, 17, scale=3.0)
    refined["status"][1::2] = 2
    refined["loss_se"][1::2] = np.nan
    parts: dict[str, dict[str, Any]] = {
        "SGD": {"surfaces": {"plane": refined, "line": line, "trajectory": plane(11, 11), "film": film(5, 21, 17)}},
        "SAM, with a long name": {"surfaces": {"plane": convexity(), "line": line}},
        "LLR": {"surfaces": {"plane": plane(9, 9)}, "trajectory": None},
    }
    parts["SGD"]["curvature"] = {"density": spectrum(), "end": curvature(0.1)}
    outcome = {"epoch": 4, "select": "best", "labels_changed": {"train": 0.18, "validation": 0.19}}
    runs = []
    for name, own in parts.items():
        one = run(f"{name}, seed 0", method=name, seed=0, accuracy=0.8, **own)
        runs.append(one)
        vars(one)["result"] = {**one.result, **outcome}
        vars(one)["cards"] = {"card": card()}
        vars(one)["cards"]["card"]["first"][-4] = -3.0  # a prediction below zero, on a logarithmic axis
    built = report.build(runs, title="Three ways to train", lead=["What was compared, in a sentence or two." * 3])
    return report.write(built, tmp_path_factory.mktemp("looks") / "report.html")


VIEWS = {
    "1300": ({"width": 1300, "height": 900}, {}, "screen"),
    "1100": ({"width": 1100, "height": 900}, {}, "screen"),
    "390": ({"width": 390, "height": 844}, {}, "screen"),
    "dark": ({"width": 1300, "height": 900}, {"color_scheme": "dark"}, "screen"),
    "paper": ({"width": 718, "height": 1000}, {}, "print"),  # A4 within its margins
}


@pytest.fixture(scope="module", params=list(VIEWS))
def view(request: pytest.FixtureRequest, browser: Any, page_path: Path, screenshots: Path) -> Iterator[Any]:
    viewport, context, medium = VIEWS[request.param]
    page, errors, outside = opened(browser, page_path, size=viewport, **context)
    page.emulate_media(media=medium)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))" if medium == "print" else "0")
    page.wait_for_timeout(300)
    page.screenshot(path=screenshots / f"looks-{request.param}.png", full_page=True)
    yield page, request.param, viewport["width"]
    assert errors == [] and outside == []
    page.context.close()


def check_texts(page: Any, width: int, least: int = 200) -> None:
    """Check that no text lies over another, is cut, or reaches beyond the page."""
    found = page.evaluate(TEXTS)
    assert [one["text"] for one in found if one.get("clipped")] == []
    texts = sorted((one for one in found if not one.get("clipped")), key=lambda one: one["top"])
    assert len(texts) > least
    for number, one in enumerate(texts):
        assert one["left"] >= -1 and one["right"] <= width + 1, one["text"]
        for other in texts[number + 1 :]:
            if other["top"] >= one["bottom"] - 1:
                break
            wide = min(one["right"], other["right"]) - max(one["left"], other["left"])
            high = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
            # line boxes are taller than their letters, by a quarter
            assert wide <= 1 or high <= 0.3 * min(one["bottom"] - one["top"], other["bottom"] - other["top"]), (
                one,
                other,
            )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_text_lies_over_another_or_is_cut(view: Any) -> None:
    page, _, width = view
    check_texts(page, width)


def test_what_is_folded_on_a_screen_stands_on_paper(view: Any) -> None:
    page, medium, _ = view
    boxes = page.locator("details.box")
    assert boxes.count() >= 4 and boxes.first.locator("dd").first.is_visible() == (medium == "paper")
    if medium != "paper":
        assert "of 357 measured" in boxes.first.locator("summary span").inner_text()
        boxes.first.locator("summary").press("Enter")
        assert boxes.first.locator("dd").first.is_visible()
        boxes.first.locator("summary").press("Enter")


def luminance(color: str) -> float:
    parts = [float(part) / 255 for part in color.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def check_contrast(page: Any) -> None:
    """Check that every text stands out from its ground."""
    for one in page.evaluate(TEXTS):
        if one.get("clipped"):
            continue
        light, dark = sorted((luminance(one["color"]), luminance(one["ground"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, one


def test_every_text_stands_out_from_its_ground(view: Any) -> None:
    page, _, _ = view
    check_contrast(page)


def check_blocks(page: Any) -> None:
    """Check that no block lies over another."""
    boxes = page.locator("main").evaluate(
        """main => [...main.querySelectorAll("figure > *, aside, .key > *, .frames, p, .table, .notes, summary, h2")]
          .filter(part => part.checkVisibility() && !part.closest(".gl-container"))
          .map(part => { const box = part.getBoundingClientRect();
            return [part.tagName + "." + part.className, box.left, box.top, box.right, box.bottom]; })"""
    )
    for number, (name, left, top, right, bottom) in enumerate(boxes):
        for other, left2, top2, right2, bottom2 in boxes[number + 1 :]:
            inside = left2 >= left - 1 and right2 <= right + 1 and top2 >= top - 1 and bottom2 <= bottom + 1
            apart = right <= left2 + 1 or right2 <= left + 1 or bottom <= top2 + 1 or bottom2 <= top + 1
            assert apart or inside, (name, other)


def test_blocks_do_not_lie_over_each_other(view: Any) -> None:
    page, _, _ = view
    check_blocks(page)


def test_the_tool_bar_has_a_place_of_its_own(view: Any) -> None:
    page, medium, _ = view
    if medium == "paper":
        assert page.locator(".modebar").first.is_hidden()
        return
    for plot in page.locator(".plot").all()[:4]:
        plot.scroll_into_view_if_needed()
        plot.hover(position={"x": 60, "y": 60})
        bar, box = plot.locator(".modebar").bounding_box(), plot.bounding_box()
        heading = plot.locator("xpath=../h3").bounding_box()
        assert heading["y"] + heading["height"] <= bar["y"] + 1
        assert bar["y"] + bar["height"] <= box["y"] + 32  # above the axes


def test_every_figure_is_told_in_words(view: Any) -> None:
    page, _, _ = view
    words = page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.getAttribute('aria-label'))")
    assert len(words) > 10
    assert all(any(part in text for part in ("lowest", "highest", " at ", "of the points")) for text in words), words
    assert page.locator(".plot").evaluate_all("plots => plots.every(plot => plot.getAttribute('role') === 'img')")


def test_tables_that_scroll_say_so(view: Any) -> None:
    page, medium, _ = view
    said = page.locator(".wide").evaluate_all(
        """parts => parts.filter(part => part.checkVisibility()).map(part => { const table = part.querySelector(".table");
            return [table.scrollWidth > table.clientWidth + 1, part.querySelector(".hint").checkVisibility()]; })"""
    )
    assert said
    if medium == "paper":
        assert not any(scrolls or hint for scrolls, hint in said)
    else:
        assert all(scrolls == hint for scrolls, hint in said)
        assert medium != "390" or any(scrolls for scrolls, _ in said)


def test_the_keyboard_reaches_everything(view: Any) -> None:
    page, medium, _ = view
    if medium == "paper":
        return
    page.evaluate(
        """() => { window.reached = new Set();
            document.addEventListener("focusin", event => window.reached.add(event.target)); document.activeElement.blur(); }"""
    )
    for _ in range(200):
        page.keyboard.press("Tab")
    left = page.evaluate(
        """() => [...document.querySelectorAll("button, input, summary, a[href], [tabindex='0']")]
            .filter(part => part.checkVisibility() && !part.closest(".modebar"))
            .filter(part => !window.reached.has(part)).map(part => part.outerHTML.slice(0, 80))"""
    )
    assert left == []
    first = page.locator("[data-link=surfaces]").first
    first.focus()
    eye = "() => document.querySelector('[data-link=surfaces]').layout.scene.camera.eye.x"
    before = page.evaluate(eye)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert page.evaluate(eye) != before


def test_a_click_on_a_legend_hides_a_curve_in_its_row(view: Any) -> None:
    page, medium, _ = view
    if medium == "paper":
        return
    row = page.locator("section", has=page.locator("h2", has_text="Training")).locator(".row")
    entry = row.locator(".entry").first
    seen = (
        """row => [...row.querySelectorAll(".plot")].map(plot => plot.data.filter(t => t.visible === false).length)"""
    )
    assert sum(row.evaluate(seen)) == 0
    entry.click()
    page.wait_for_timeout(300)
    assert entry.get_attribute("aria-pressed") == "false" and min(row.evaluate(seen)) > 0
    entry.click()
    page.wait_for_timeout(300)
    assert sum(row.evaluate(seen)) == 0
