"""Runs a command in this process, and keeps what it says with times and places masked."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

from tests.golden.names import command

MASKS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"/tmp/golden\w+"), "<PLACE>"),
    (re.compile(r"(?:/[\w.+-]+)+/(?:src|site-packages)/"), "<CODE>/"),
    (re.compile(r"(?<=\(most recent call last\):\n)(?:  .*\n)+"), "  <FRAMES>\n"),
    (re.compile(r"\.py:\d+"), ".py:<LINE>"),
    (re.compile(r'("(?:seconds|created|revision|machine)": )[^,\n]+'), r"\1<TIME>"),
    (re.compile(r"\d+:\d\d(?::\d\d)? left"), "<TIME> left"),
    (re.compile(r"\b\d+(?:\.\d+)? (?:s|ms|seconds|minutes|min)\b"), "<TIME>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:[+-]\d\d:\d\d|Z)?( UTC)?"), "<DATE>"),
    (re.compile(r"\d{1,2} [A-Z][a-z]+ 20\d\d|\d{4}-\d\d-\d\d"), "<DATE>"),
    (re.compile(r"0x[0-9a-f]{6,}"), "<ADDRESS>"),
    (re.compile(r"\b[0-9a-f]{40}\b|(?<=revision: )[0-9a-f]{12}\b"), "<REVISION>"),
    # the order is that of a folder's listing
    (re.compile(r"(?<=`metric` must be one of )[\w, ]+"), lambda m: ", ".join(sorted(m.group().strip().split(", ")))),
)


UNTIMELY = re.compile(r".*: (\d+)/(\d+)(?:, .* left)?")


def masked(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, instead in MASKS:
        text = pattern.sub(instead, text)
    return text


def lines_of(text: str) -> list[str]:
    """Return the lines of a command's output, without last columns of times and lines of progress in between."""
    found, timed = [], False
    for line in masked(text).splitlines():
        progress = UNTIMELY.fullmatch(line)
        if progress and int(progress.group(1)) < int(progress.group(2)):
            continue  # one is written every ten seconds
        if progress and found and found[-1] == line.rstrip():
            continue
        if "┃" in line:
            timed = bool(re.match(r"\s*(?:seconds|ms per)", line.rpartition("┃")[2]))
        found.append(line.rpartition("│")[0] + "│ <TIME>" if timed and "│" in line else line.rstrip())
    return found


def say(*arguments: str) -> dict[str, Any]:
    """Run ``lowland ARGUMENTS``, and return exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    for handler in logging.getLogger().handlers[:]:  # each command logs to its own standard error
        logging.getLogger().removeHandler(handler)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            code: Any = command(list(arguments))
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:  # nothing may pass `main`; the comparison shows it
            code = f"{type(error).__name__}: {error}"
    return {"exit": code, "out": lines_of(out.getvalue()), "err": lines_of(err.getvalue())}


def _timeless(table: re.Match[str]) -> str:
    """Return a table without the cells that hold times."""
    rows = re.split(r"(?=<tr)", table.group())
    head: list[str] = []
    for number, row in enumerate(rows):
        cells = re.split(r"(?=<t[hd][ >])", row)
        head = head or (cells if len(cells) > 1 else [])
        timed = [i for i, cell in enumerate(head) if re.search(r">(?:seconds|minutes|time|ms per)\b", cell)]
        for place in timed:
            if row is not rows[0] and cells is not head and place < len(cells):
                cells[place] = re.sub(r"<td.*?</td>", "<td>&lt;TIME&gt;</td>", cells[place], flags=re.DOTALL)
        rows[number] = "".join(cells)
    return "".join(rows)


def page_text(path: Path) -> list[str]:
    """Return the visible text of a page, a line per block."""
    text = re.sub(r"<table.*?</table>", _timeless, path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"</(?:p|h\d|li|tr|table|div|figcaption|summary|title|pre)>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    lines = (" ".join(line.split()) for line in masked(text).splitlines())
    return [line for line in lines if line]


def files(folder: str) -> list[str]:
    """Return the files in a folder, those inside stores left out."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".zarr")]
        stores = [name for name in os.listdir(place) if name.endswith(".zarr")]
        found += [os.path.join(place, name) for name in [*names, *stores]]
    return sorted(name for name in found if not name.endswith(".lock"))
