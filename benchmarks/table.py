"""A table of stored results in Markdown, and the line that says where it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "|".join(["---", *["--:"] * (len(header) - 1)]) + "|", *lines[1:]])


def made(parts: Result | list[Result], script: str, threads: str = "1 thread") -> str:
    """Where, when and by which code, in one line under a table; parts may have been measured one after another."""
    parts = parts if isinstance(parts, list) else [parts]
    days, machines, versions, revisions = (
        ", ".join(sorted({str(value) for value in values}))
        for values in (
            [part["created"][:10] for part in parts],
            [part["machine"] for part in parts],
            [part["versions"]["torch"] for part in parts],
            [part["revision"] for part in parts],
        )
    )
    noun = "revision" if len({part["revision"] for part in parts}) == 1 else "parts at revisions"
    return (
        f"\n\nMeasured {days} on {machines}, torch {versions}, {threads}, {noun} {revisions}; "
        f"`python {script if script.startswith('-m') else f'benchmarks/{script}.py'}`."
    )
