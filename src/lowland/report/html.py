"""Write a report as one HTML file that opens offline: plotly's script once, no request, all text escaped."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lowland.core.errors import InputError
from lowland.report.sections import Report
from lowland.results.files import write_atomically
from lowland.viz.backends import draw
from lowland.viz.plotly import script
from lowland.viz.spec import Figure

_ARRAY = re.compile(r'"bdata":"([A-Za-z0-9+/=]{256,})"')
"""An array in plotly's JSON, long enough to be worth sharing."""


def write(report: Report, path: str | Path) -> Path:
    """Write a report to one self-contained .html file in a folder that exists, in whole or not at all."""
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError("path", "must end in .html", str(path))
    if not target.parent.is_dir():
        raise InputError("path", "must lie in a folder that exists", str(target.parent))
    write_atomically(target, render(report).encode("utf-8"))
    return target


def render(report: Report) -> str:
    """Return the whole page of a report as HTML."""
    loader = PackageLoader("lowland", "report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"kind": lambda block: type(block).__name__, "two_lines": _two_lines}
    style, code = (Markup(loader.get_source(pages, name)[0]) for name in ("report.css", "report.js"))
    return pages.get_template("page.html.j2").render(report=report, figures=_Figures(), style=style, script=code)


class _Figures:
    """The data of the figures, in the order in which the page shows them."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, spec: Figure) -> str:
        # Written anew, since plotly writes every "/" of its base64 as six characters.
        data = json.dumps(json.loads(draw(spec, "plotly").to_json()), separators=(",", ":"), ensure_ascii=False)
        name = f"figure-{len(self.texts) + 1}"
        # Inside <script> only "<" could end the element; "\u003c" is the same character to JSON.
        self.texts[name] = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        return name

    def script(self) -> Markup:
        return Markup(script() if self.texts else "")

    def data(self) -> tuple[Markup, dict[str, Markup]]:
        """Return arrays that several figures show (contour and surface), and the figures' JSON that refers to them."""
        counts = Counter(found for text in self.texts.values() for found in dict.fromkeys(_ARRAY.findall(text)))
        places = {found: place for place, found in enumerate(f for f, count in counts.items() if count > 1)}

        def refer(match: re.Match[str]) -> str:
            place = places.get(match.group(1))
            return match.group(0) if place is None else f'"bdata":"@{place}"'

        texts = {name: Markup(_ARRAY.sub(refer, text)) for name, text in self.texts.items()}
        return Markup(json.dumps(list(places))), texts


def _two_lines(cell: str) -> Markup:
    # the uncertainty in brackets stands on a second line, which keeps wide tables narrow
    return Markup(re.sub(r" (?=[\[(])", "<br>", escape(cell)))
