"""How runs show themselves in a terminal and in a notebook; no store is read for it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from lowland.core.errors import LowlandError

if TYPE_CHECKING:
    from lowland.results.run import Run


def _facts(run: Run) -> dict[str, str]:
    """Return the numbers that matter; what is damaged is said, since a representation must not fail."""
    try:
        count, accuracy, loss = len(run.metrics), run.number("test_accuracy"), run.number("train_loss")
        loss = run.last("train_loss") if loss is None else loss
        found = {
            "epochs": f"{count}" if count else "",
            "test accuracy": "" if accuracy is None else f"{100 * accuracy:.2f} %",
            "train loss": "" if loss is None else f"{loss:.4g}",
            "surfaces": ", ".join(run.surfaces),
            "curvature": ", ".join(run.curvature),
            "state": "unfinished" if count and not run.finished else "",
        }
    except LowlandError as error:
        found = {"damaged": str(error)}
    return {key: text for key, text in found.items() if text}


def _head(run: Run) -> list[str]:
    try:
        return [run.method, "" if run.seed is None else f"seed {run.seed}"]
    except LowlandError:
        return ["", ""]


def line_of(run: Run) -> str:
    """Return a run in one line."""
    head = ", ".join(part for part in (repr(run.place), *_head(run)) if part)
    facts = ", ".join(text if key == "state" else f"{key} {text}" for key, text in _facts(run).items())
    return f"Run({head})" + (f": {facts}" if facts else "")


def table_of(runs: Sequence[Run]) -> str:
    """Return runs as a table of HTML, one row each."""
    rows = [{"run": run.place, "method": _head(run)[0], "seed": _head(run)[1], **_facts(run)} for run in runs]
    columns = list(dict.fromkeys(key for row in rows for key, text in row.items() if text))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(column, ''))}</td>" for column in columns) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
