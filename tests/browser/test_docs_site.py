"""The built pages need nothing from elsewhere, and are searched from disk: ``make docs`` makes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "site"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no pages are built: make docs"),
]
LOADS = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|data)=[\"']?(?:https?:)?//"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|prefetch|preconnect|dns-prefetch|icon|manifest))[^>]*href=[\"']?"
    r"(?:https?:)?//|@import\s+[\"']?(?:url\()?[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//"
)


def test_what_is_loaded_from_elsewhere_is_found():
    for text in ('<script src="https://a/b.js">', '<link href="//a" rel="stylesheet">', "x{background:url(//a/b)}"):
        assert LOADS.search(text)
    assert not LOADS.search('<a href="https://a">a</a><link rel="canonical" href="https://a"><img src="a.png">')


def test_no_page_and_no_style_loads_anything_from_elsewhere():
    pages = [path for kind in ("*.html", "*.css", "*.svg") for path in SITE.rglob(kind)]
    found = {str(path.relative_to(SITE)): LOADS.findall(path.read_text(encoding="utf-8")) for path in pages}
    assert len(pages) > 60 and {name: loads for name, loads in found.items() if loads} == {}


@pytest.mark.browser
def test_the_search_works_from_disk(browser):
    page, asked, errors = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((SITE / "index.html").as_uri())
    page.locator("input.md-search__input").click()
    page.locator("input.md-search__input").press_sequentially("lookahead")  # the search listens to keys
    link = page.locator(".md-search-result__link").first
    link.wait_for(timeout=120_000)  # the index is read by a worker, while other tests run
    assert "lookahead" in link.inner_text().lower()
    target = link.get_attribute("href")
    assert target is not None and ".html" in target
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []
    page.close()
