"""``lowland demo``: the whole system in minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lowland.cli.output import Output
from lowland.workflows import DemoSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    spec, flags = parse(DemoSpec, arguments, "lowland demo", quiet=False, json=False)
    started = time.monotonic()
    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    output.note("loading torch")
    from lowland.study import demo

    with output:
        result = demo(spec, output.progress)
    table = [result.table.header, *result.table.rows]
    rows = [dict(zip(result.table.header, row, strict=True)) for row in result.table.rows]
    seconds = time.monotonic() - started
    output.result(
        {"report": str(result.report), "methods": rows, "seconds": round(seconds, 1)},
        [*result.table.notes, f"Report: {result.report} ({seconds:.0f} s)"],
        table,
    )
    return 0
