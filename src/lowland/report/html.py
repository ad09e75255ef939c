"""Write a report as one HTML file that opens offline: plotly's script once, no request, all text escaped."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from lowland.core.errors import InputError
from lowland.report.sections import (
    Block,
    Box,
    Details,
    Figure,
    Gallery,
    Listing,
    Paragraph,
    Report,
    Section,
    Table,
)
from lowland.results.files import write_atomically
from lowland.viz.backends import draw
from lowland.viz.plotly import script

__all__ = ["render", "write"]

_ARRAY = re.compile(r'"bdata":"([A-Za-z0-9+/=]{256,})"')
"""An array in plotly's JSON, long enough to be worth sharing."""


def write(report: Report, path: str | Path) -> Path:
    """Write a report to one self-contained file, in whole or not at all.

    Args:
        report: The report.
        path: Ends in .html; its folder must exist.

    Returns:
        The path.

    Raises:
        InputError: If the suffix is another one or the folder is missing.
        StoreError: If the file cannot be written; an old one is kept.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError("path", "must end in .html", str(path))
    if not target.parent.is_dir():
        raise InputError("path", "must lie in a folder that exists", str(target.parent))
    text = render(report)
    write_atomically(target, text.encode())
    return target


def render(report: Report) -> str:
    """Return a report as HTML.

    Args:
        report: The report.

    Returns:
        The whole page.
    """
    page = _Page()
    body = "".join(page.section(number, section) for number, section in enumerate(report.sections, 1))
    contents = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(report.sections, 1)
    )
    toggles = "".join(
        f'<label><input type="checkbox" checked data-toggle="{escape(run)}"> {escape(run)}</label>'
        for run in report.runs
    )
    return Template(_resource("template.html")).substitute(
        title=escape(report.title),
        style=_resource("report.css"),
        lead="".join(f"<p>{escape(text)}</p>" for text in report.lead),
        contents=f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if contents else "",
        toggles=f'<div class="toggles" role="group" aria-label="Runs shown"><span>Show:</span>{toggles}</div>'
        if toggles
        else "",
        body=body,
        footer=escape(report.footer),
        figures=_figure_data(page.figures),
        plotly=script() if page.figures else "",
        script=_resource("report.js"),
    )


class _Page:
    """Turns blocks into HTML and collects the figures' data."""

    def __init__(self) -> None:
        self.figures: dict[str, str] = {}

    def section(self, number: int, section: Section) -> str:
        blocks = "".join(self.block(block) for block in section.blocks)
        return f'<section id="section-{number}"><h2>{escape(section.title)}</h2>{blocks}</section>'

    def block(self, block: Block) -> str:
        match block:
            case Paragraph():
                return f"<p{' class=note' if block.note else ''}>{escape(block.text)}</p>"
            case Table():
                return _table(block)
            case Figure():
                return self.figure(block)
            case Box():
                return _box(block)
            case Gallery():
                even = " even" if len(block.blocks) in (1, 2, 4) else ""
                return f'<div class="gallery{even}">{"".join(self.block(entry) for entry in block.blocks)}</div>'
            case Listing():
                return f"<pre>{escape(block.text, quote=False)}</pre>"  # recipes are full of quotes
            case Details():
                inner = "".join(self.block(entry) for entry in block.blocks)
                return f"<details><summary>{escape(block.summary)}</summary>{inner}</details>"

    def figure(self, figure: Figure) -> str:
        name = f"figure-{len(self.figures) + 1}"
        # Written anew, since plotly writes every "/" of its base64 as six characters.
        data = json.dumps(json.loads(draw(figure.spec, "plotly").to_json()), separators=(",", ":"), ensure_ascii=False)
        # Inside <script> only "<" could end the element; "\u003c" is the same character to JSON.
        safe = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        self.figures[name] = safe
        title = getattr(figure.spec, "title", "")
        label = escape(f"{title}. {figure.spec.caption}".strip(". ") or "figure")
        link = f' data-link="{escape(figure.link)}"' if figure.link else ""
        run = f' data-run="{escape(figure.run)}"' if figure.run else ""
        caption = f"<figcaption>{escape(figure.spec.caption)}</figcaption>" if figure.spec.caption else ""
        return (
            f'<figure{run}><div class="plot" id="{name}" role="img" aria-label="{label}"{link} '
            f'style="height:{int(figure.height)}px"></div>{caption}</figure>'
        )


def _figure_data(figures: dict[str, str]) -> str:
    """Write the figures as JSON elements, arrays that several figures show (contour and surface) once."""
    counts = Counter(found for text in figures.values() for found in set(_ARRAY.findall(text)))
    places = {found: place for place, found in enumerate(f for f, count in counts.items() if count > 1)}

    def refer(match: re.Match[str]) -> str:
        place = places.get(match.group(1))
        return match.group(0) if place is None else f'"bdata":"@{place}"'

    shared = f'<script type="application/json" id="shared">{json.dumps(list(places))}</script>\n'
    return shared + "".join(
        f'<script type="application/json" data-for="{name}">{_ARRAY.sub(refer, text)}</script>\n'
        for name, text in figures.items()
    )


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise InputError("rows", f"must have {len(table.header)} cells each", len(row))
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr data-run="{escape(row[0])}"><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{_two_lines(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    # A caption outside the table does not scroll away with it.
    caption = f'<p class="note">{escape(table.caption)}</p>' if table.caption else ""
    label = f' aria-label="{escape(table.caption)}"' if table.caption else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    body = f"<table{label}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    below = f'<ul class="notes">{notes}</ul>' if notes else ""
    return f'{caption}<div class="table" tabindex="0">{body}</div>{below}'


def _two_lines(cell: str) -> str:
    """Escape a cell and put the uncertainty in brackets on a second line, which keeps wide tables narrow."""
    return re.sub(r" (?=[\[(])", "<br>", escape(cell))


def _box(box: Box) -> str:
    run = f' data-run="{escape(box.run)}"' if box.run else ""
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd><strong>{escape(value)}</strong> {escape(meaning)}</dd></div>"
        for name, value, meaning in box.checks
    )
    return f'<aside class="box"{run}><h3>{escape(box.title)}</h3><dl>{rows}</dl></aside>'


def _resource(name: str) -> str:
    return resources.files("lowland.report").joinpath(name).read_text(encoding="utf-8")
