"""The report in a real browser: no error, no request, cameras follow, sliders move, toggles hide, phones fit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.report_cases import film, plane, run, walk

from lowland import report, viz
from lowland.report.sections import Figure, Gallery, Section
from lowland.viz.curves import build_density
from lowland.viz.surfaces import build_convexity_map, build_heat_map

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script> $a_b$ &amp;"


def damaged() -> Any:
    surface = plane(21, 17)
    surface["loss"][2, 3], surface["loss"][5, 5] = np.inf, np.nan
    surface["status"][8, 4], surface["loss"][8, 4] = 3, np.nan
    surface["status"][15:], surface["loss"][15:] = 0, np.nan
    return surface


def convexity() -> Any:
    surface = plane(15, 11)
    surface["negative_curvature"] = np.sign(surface["loss"] - 2)
    return surface


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gains = {0: 0.02, 1: 0.03, 2: 0.01, 3: 0.02}
    bare: dict[str, Any] = {"surfaces": {}, "curvature": {}, "trajectory": None}
    sgd: list[dict[str, Any]] = [bare] * len(gains)
    sam = list(sgd)
    sgd[0] = {"surfaces": {"random": plane(31, 25), "trajectory": plane(21, 21, scale=2.0)}}
    sam[0] = {"surfaces": {"random": damaged()}}
    runs = [run(f"SGD, seed {s}", method="SGD", seed=s, accuracy=0.8 + 0.01 * s, **sgd[s]) for s in gains]
    names = [HOSTILE, *(f"SAM, seed {s}" for s in gains if s)]
    runs += [run(names[s], method=HOSTILE, seed=s, accuracy=0.8 + g, passes=200, **sam[s]) for s, g in gains.items()]
    grid = np.linspace(-1, 10, 200)
    density = build_density(
        {HOSTILE: (grid, np.exp(-(grid**2)) + 1e-3 * np.exp(-((grid - 7) ** 2)))}, eigenvalues=[7.0]
    )
    figures = (
        Figure(build_heat_map(damaged(), title="cells")),
        Figure(build_convexity_map(convexity(), title="convexity")),
        Figure(density),
    )
    built = report.build(runs, title=HOSTILE, lead=[HOSTILE], extra=[Section("Further figures", (Gallery(figures),))])
    return report.write(built, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def film_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts: dict[str, Any] = {"surfaces": {"film": film(5, 31, 25)}, "curvature": {}, "trajectory": None}
    built = report.build([run("SGD, seed 0", method="SGD", seed=0, accuracy=0.8, **parts)])
    return report.write(built, tmp_path_factory.mktemp("film") / "report.html")


def opened(
    browser: Any, path: Path, *, size: dict[str, int] | None = None, **context: Any
) -> tuple[Any, list[str], list[str]]:
    """Open a file and return the page, its errors and its requests beyond the file itself."""
    page = browser.new_context(viewport=size or {"width": 1280, "height": 900}, **context).new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=true]", timeout=120_000)
    outside = [url for url in requests if not url.startswith(("data:", "blob:")) and url != path.as_uri()]
    return page, errors, outside


@pytest.fixture(scope="module")
def desktop(browser: Any, page_path: Path) -> Iterator[tuple[Any, list[str], list[str]]]:
    found = opened(browser, page_path)
    yield found
    found[0].context.close()


def test_it_opens_from_disk_without_an_error_or_a_request(desktop: Any, screenshots: Path) -> None:
    page, errors, outside = desktop
    page.screenshot(path=screenshots / "report-desktop.png", full_page=True)
    assert errors == []
    assert outside == []
    plots = page.locator(".plot").count()
    assert plots >= 12
    assert page.locator(".plot .main-svg").count() >= plots


def test_a_hostile_name_stays_text(desktop: Any) -> None:
    page, _, _ = desktop
    assert page.title() == HOSTILE
    assert page.locator("img[onerror]").count() == 0
    assert HOSTILE in page.locator("h1").inner_text()
    assert any("<script>document.title" in title for title in page.locator("figure h3").all_text_contents())
    assert any("<script>document.title" in name for name in page.locator(".key .entry").all_text_contents())


def camera(page: Any, index: int) -> dict[str, float]:
    found: dict[str, float] = page.evaluate(
        "i => document.querySelectorAll('[data-link=surfaces]')[i].layout.scene.camera.eye", index
    )
    return found


def test_surfaces_rotate_and_linked_cameras_follow(desktop: Any) -> None:
    page, errors, _ = desktop
    first = page.locator("[data-link=surfaces]").first
    first.scroll_into_view_if_needed()
    before = camera(page, 0)
    assert camera(page, 1) == before
    box = first.bounding_box()
    x, y = box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 30, steps=6)
    page.mouse.up()
    page.wait_for_timeout(500)
    after = camera(page, 0)
    assert abs(after["x"] - before["x"]) > 0.05
    assert camera(page, 1) == pytest.approx(after, abs=1e-6)
    assert errors == []


def test_the_slider_moves_the_path(desktop: Any) -> None:
    page, _, _ = desktop
    length = """() => document.querySelector('.frames').previousElementSibling.calcdata.at(-1).length"""
    assert page.evaluate(length) == 12
    rail = page.locator(".frames input").first
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    page.wait_for_timeout(400)
    assert page.evaluate(length) == 1
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(400)
    assert 3 < page.evaluate(length) < 10


def film_of(page: Any) -> Any:
    section = page.locator("section", has=page.locator("h2", has_text="Films"))
    section.scroll_into_view_if_needed()
    return section


@pytest.mark.parametrize("width", [1300, 1100, 390])
def test_a_film_is_moved_by_the_keyboard_and_says_where_it_is(
    browser: Any, film_path: Path, screenshots: Path, width: int
) -> None:
    page, errors, outside = opened(browser, film_path)
    page.set_viewport_size({"width": width, "height": 844})
    page.reload()
    page.wait_for_selector("html[data-ready=true]", timeout=120_000)
    section = film_of(page)
    low = """() => { const plot = [...document.querySelectorAll('.plot')].find(p => p.data[0].type === 'contour'
        && p.nextElementSibling.className === 'frames'
        && p.closest('section').querySelector('h2').textContent === 'Films');
        return [Math.min(...plot._fullData[0].z.flatMap(row => [...row])), plot._fullData.at(-1).x.length]; }"""
    slider = section.locator(".frames input")
    assert slider.get_attribute("aria-valuetext") == "step 40, frame 5 of 5"
    assert section.locator(".frames").get_attribute("aria-label").startswith("Frames of: SGD, seed 0")
    assert "full surfaces" in section.locator(".plot").get_attribute("aria-label")
    last = page.evaluate(low)
    for _ in range(200):  # by the keyboard alone: as many stops as the page may have
        page.keyboard.press("Tab")
        if page.evaluate(
            "document.activeElement.matches('.frames input') && document.activeElement.closest('section')"
            "?.querySelector('h2').textContent === 'Films'"
        ):
            break
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    assert slider.get_attribute("aria-valuetext") == "step 30, frame 4 of 5"
    assert section.locator(".frames output").inner_text() == "step 30"
    page.keyboard.press("Home")
    page.wait_for_timeout(300)
    first = page.evaluate(low)
    assert slider.get_attribute("aria-valuetext") == "step 0, frame 1 of 5"
    assert first[0] > last[0] + 0.05 and (first[1], last[1]) == (1, 5)
    section.screenshot(path=screenshots / f"film-{width}.png")
    section.locator(".frames button").press("Enter")
    assert section.locator(".frames button").inner_text() == "pause"
    page.wait_for_timeout(1500)
    assert section.locator(".frames button").inner_text() == "play"
    assert page.evaluate(low) == last
    boxes = section.locator("figure, aside, .frames, p, details").evaluate_all(
        "parts => parts.map(p => [p.className || p.tagName, ...Object.values(p.getBoundingClientRect().toJSON())])"
    )
    for place, (name, x, y, wide, high, *_) in enumerate(boxes):
        assert x >= 0 and x + wide <= width + 1, name
        for other, x2, y2, wide2, high2, *_ in boxes[place + 1 :]:
            apart = x + wide <= x2 + 1 or x2 + wide2 <= x + 1 or y + high <= y2 + 1 or y2 + high2 <= y + 1
            inside = x2 >= x - 1 and x2 + wide2 <= x + wide + 1 and y2 >= y - 1 and y2 + high2 <= y + high + 1
            assert apart or inside, (name, other)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == [] and outside == []
    page.context.close()


def test_toggles_hide_and_show_a_run(desktop: Any) -> None:
    page, _, _ = desktop
    box = page.locator("[data-toggle]").first
    parts = page.locator('[data-run="SGD, seed 0"]')
    assert parts.first.is_visible()
    box.uncheck()
    assert not any(parts.nth(k).is_visible() for k in range(parts.count()))
    assert page.locator("[data-link=surfaces]").last.is_visible()
    box.check()
    assert all(parts.nth(k).is_visible() for k in range(parts.count()))


def test_details_open(desktop: Any) -> None:
    page, _, _ = desktop
    inner = page.locator("details pre").first
    assert not inner.is_visible()
    page.locator("details", has=page.locator("pre")).first.locator("summary").first.click()
    assert inner.is_visible()


def test_the_theme_switches_page_and_figures(desktop: Any) -> None:
    page, _, _ = desktop
    colors = (
        "() => [getComputedStyle(document.body).backgroundColor, document.querySelector('.plot').layout.font.color]"
    )
    light = page.evaluate(colors)
    page.locator("#theme").click()
    dark = page.evaluate(colors)
    assert light == ["rgb(255, 255, 255)", "#1b1f24"]
    assert dark == ["rgb(20, 24, 29)", "#e4e8ec"]
    page.locator("#theme").click()
    assert page.evaluate(colors) == light


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768])
def test_nothing_overflows_on_a_small_screen(browser: Any, page_path: Path, screenshots: Path, width: int) -> None:
    page, errors, _ = opened(browser, page_path)
    page.set_viewport_size({"width": width, "height": 844})
    page.reload()
    page.wait_for_selector("html[data-ready=true]", timeout=120_000)
    page.screenshot(path=screenshots / f"report-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        """w => [...document.querySelectorAll('main *')].filter(e => !e.closest('.table, pre, svg, .plot, details'))
               .filter(e => e.getBoundingClientRect().right > w + 1).map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert wide == []
    # Plots clip what does not fit, so their own drawing must fit too.
    over = page.evaluate(
        """() => [...document.querySelectorAll('.plot')].filter(p => p._fullLayout.width > p.clientWidth + 1)
                 .map(p => p.id)"""
    )
    assert over == []
    assert errors == []
    page.context.close()


@pytest.mark.slow
def test_dark_mode_follows_the_system(browser: Any, page_path: Path, screenshots: Path) -> None:
    page, errors, _ = opened(browser, page_path, color_scheme="dark")
    page.screenshot(path=screenshots / "report-dark.png", full_page=True)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert page.evaluate("document.querySelector('.plot').layout.font.color") == "#e4e8ec"
    assert errors == []
    page.context.close()


def test_it_is_loaded_once_all_is_drawn(browser: Any, page_path: Path) -> None:
    page = browser.new_page()
    page.goto(path := page_path.as_uri())  # which waits for the page alone, as a printer does
    assert page.url == path and page.evaluate("document.documentElement.dataset.ready") == "true"
    assert page.locator("iframe").count() == 0
    page.close()


@pytest.mark.slow
def test_it_prints_without_empty_pages(browser: Any, page_path: Path, screenshots: Path) -> None:
    page, _, _ = opened(browser, page_path)
    page.pdf(path=screenshots / "report.pdf", format="A4")
    page.context.close()
    assert (screenshots / "report.pdf").stat().st_size > 100_000
    if shutil.which("pdftoppm") is None:
        pytest.skip("poppler is not installed")
    subprocess.run(["pdftoppm", "-r", "30", "-gray", "report.pdf", "paper"], cwd=screenshots, check=True)
    pages = [np.asarray(Image.open(file)) for file in sorted(screenshots.glob("paper-*.pgm"))]
    inked = [np.nonzero((one < 245).any(1))[0] for one in pages]
    assert len(pages) > 3 and all(rows[-1] > len(one) / 2 for rows, one in zip(inked[:-1], pages, strict=False))


@pytest.mark.slow
def test_a_saved_comparison_turns_together(browser: Any, tmp_path: Path) -> None:
    path = viz.export({"a": plane(), "b": plane(scale=3.0)}, tmp_path / "compare.html", "surface")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector(".js-plotly-plot .gl-container", state="attached", timeout=60_000)
    eyes = page.evaluate(
        """async () => {
            const plot = document.querySelector('.js-plotly-plot');
            await Plotly.relayout(plot, {'scene.camera': {eye: {x: 2, y: 0.5, z: 1}}});
            await new Promise(done => setTimeout(done, 300));
            return [plot.layout.scene.camera.eye, plot.layout.scene2.camera.eye];
        }"""
    )
    assert eyes[0] == eyes[1] == {"x": 2, "y": 0.5, "z": 1}
    assert errors == []
    page.close()


@pytest.mark.slow
def test_a_saved_animation_has_a_slider(browser: Any, tmp_path: Path) -> None:
    path = viz.export({"s": plane()}, tmp_path / "path.html", "animation", trajectories={"SGD": walk()})
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".slider-rail-touch-rect", timeout=60_000)
    assert page.locator(".updatemenu-button").count() == 2
    page.close()
