"""Write a report as one HTML file that opens offline: plotly's script once and packed, no request, all text escaped."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lowland.core.errors import require
from lowland.report.keys import captions_of, key_of, key_of_row
from lowland.report.sections import Report
from lowland.results.files import write_atomically
from lowland.viz.describe import describe
from lowland.viz.plotly import plain, script
from lowland.viz.plotly_canvas import encoded
from lowland.viz.spec import Figure

_ARRAY = re.compile(r'"bdata":"([A-Za-z0-9+/=]{256,})"')
"""An array in plotly's JSON, long enough to be worth sharing."""

_MARGIN: Final = {"l": 56, "r": 16, "t": 30, "b": 48}
"""The tool bar has the upper margin for itself."""


def write(report: Report, path: str | Path) -> Path:
    """Write a report to one self-contained .html file in a folder that exists, in whole or not at all."""
    target = Path(path)
    require(target.suffix.lower() in (".html", ".htm"), "path", "must end in .html", str(path))
    require(target.parent.is_dir(), "path", "must lie in a folder that exists", str(target.parent))
    write_atomically(target, render(report).encode("utf-8"))
    return target


def runs_of(page: str | Path) -> list[str] | None:
    """Return the folders of the runs that a page shows; None where it is no page of Lowland."""
    with Path(page).open(encoding="utf-8", errors="replace") as lines:
        head = "".join(itertools.takewhile(lambda line: "<style>" not in line, lines))
    found = re.search(r'<meta name="runs" content="(.*)">', head)
    places: list[str] | None = json.loads(unescape(found[1])) if found else None
    return places


def render(report: Report, *, plotly: str = "", links: Mapping[str, str] | None = None) -> str:
    """Return the whole page of a report as HTML; a page of a site names the file with plotly's script."""
    loader = PackageLoader("lowland", "report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"kind": lambda block: type(block).__name__, "two_lines": _two_lines, "describe": describe}
    style, code = (Markup(loader.get_source(pages, name)[0]) for name in ("report.css", "report.js"))
    words: dict[str, Any] = {
        "key_of": key_of,
        "key_of_row": key_of_row,
        "captions_of": captions_of,
        "links": links or {},
        "plotly": plotly,
    }
    with ThreadPoolExecutor(1) as other:
        figures = _Figures(None if plotly else other)
        page = pages.get_template("page.html.j2")
        return page.render(report=report, figures=figures, style=style, script=code, **words)


class _Figures:
    """The data of the figures, in the order in which the page shows them."""

    def __init__(self, other: Executor | None) -> None:
        self.texts: dict[str, str] = {}
        self._other = other
        self._plotly: Future[str] | None = None

    def add(self, spec: Figure) -> str:
        if self._plotly is None and self._other is not None:
            self._plotly = self._other.submit(_packed_plotly)  # which takes as long as the figures
        figure = plain(spec)
        layout = figure["layout"]
        for own in ("title", "meta", "legend"):  # the page writes title, caption and legend
            layout.pop(own, None)
        layout["showlegend"] = False
        for name in [name for name in layout if name.startswith("coloraxis")]:
            layout[name]["showscale"] = False
            layout[name].pop("colorbar", None)
        if "constraintoward" in layout.get("xaxis", {}):
            layout["xaxis"]["constraintoward"] = "left"  # no color bar stands on the right
        layout["margin"] = {"l": 0, "r": 0, "t": 0, "b": 0} if "scene" in layout else _MARGIN
        name = f"figure-{len(self.texts) + 1}"
        self.texts[name] = encoded(figure)
        return name

    def script(self) -> Markup:
        """Return plotly's own script, packed; empty without a figure, or where it has a file of its own."""
        return Markup("" if self._plotly is None else self._plotly.result())

    def license(self) -> str:
        """Return whose script that is."""
        return " ".join(re.sub(r"[/*\s]+", " ", script()[:400].split("*/")[0]).split()) if self.texts else ""

    def data(self) -> Markup:
        """Return the figures by name as JSON, packed; arrays that several show (contour and surface) are shared."""
        counts = Counter(found for text in self.texts.values() for found in dict.fromkeys(_ARRAY.findall(text)))
        places = {found: place for place, found in enumerate(f for f, count in counts.items() if count > 1)}

        def refer(match: re.Match[str]) -> str:
            place = places.get(match.group(1))
            return match.group(0) if place is None else f'"bdata":"@{place}"'

        figures = ",".join(f'"{name}":{_ARRAY.sub(refer, text)}' for name, text in self.texts.items())
        return Markup(_packed(f'{{"shared":{json.dumps(list(places))},"figures":{{{figures}}}}}'))


def _packed(text: str) -> str:
    # a browser unpacks it; base64 has no character that HTML knows
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=4, mtime=0)).decode()


@cache
def _packed_plotly() -> str:
    return _packed(script())


def _two_lines(cell: str) -> Markup:
    # the uncertainty in brackets stands on a second line, which keeps wide tables narrow
    return Markup(re.sub(r" (?=[\[(])", "<br>", escape(cell)))
