"""How objects show themselves in a terminal and in a notebook: a line, and a table of the same facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HEAD = ("run", "method", "seed")
_ROUNDING = 1e-12
"""Relative errors up to this are those of arithmetic."""


class ShowsFacts:
    """An object that shows itself by its facts; where they cannot be told, by its name alone."""

    __slots__ = ()

    def _facts(self) -> dict[str, str]:
        """Return the numbers that matter, nothing of which is computed for it; the first may have no name."""
        return {}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}{'=' if name == 'n' else ' ' * bool(name)}{text}" for name, text in _told(self))
        return f"{type(self).__name__}({shown})"

    def _repr_html_(self) -> str:
        return table_of([{type(self).__name__: "", **{name or "value": text for name, text in _told(self)}}])


def _told(shows: ShowsFacts) -> list[tuple[str, str]]:
    try:
        return [(name, text) for name, text in shows._facts().items() if text]
    except Exception:  # a representation must not fail, whatever was put into the object
        return []


def with_error(value: float, error: float) -> str:
    """Return a number and its standard error, which has two digits; or the number alone where it has none."""
    if not (math.isfinite(value) and math.isfinite(error) and error > _ROUNDING * abs(value)):
        return f"{value:.4g}"
    decimals = 1 - math.floor(math.log10(error))
    if 0 <= decimals <= 6 and abs(value) < 1e6:
        return f"{value:.{decimals}f} +- {error:.{decimals}f}"
    return f"{value:.4g} +- {error:.2g}"


def form_of(value: Any) -> str:
    """Return what a part of a batch is: type and shape of a tensor, the parts of a mapping or sequence, or a kind."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} [{', '.join(map(str, value.shape))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {form_of(part)}" for name, part in value.items()) + "}"
    if isinstance(value, tuple | list) and 0 < len(value) <= 4:
        return f"({', '.join(map(form_of, value))})"
    return "" if value is None else type(value).__name__


def line_of(facts: Mapping[str, str]) -> str:
    """Return a run in one line."""
    head = [repr(facts["run"]), *(facts.get(key, "") for key in _HEAD[1:])]
    shown = [text if key == "state" else f"{key} {text}" for key, text in facts.items() if key not in _HEAD]
    return f"Run({', '.join(filter(None, head))})" + (f": {', '.join(shown)}" if shown else "")


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table of HTML, one row for each mapping."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(column, ''))}</td>" for column in columns) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
