"""``lowland claims``: run the claims ledger and write its page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowland.cli.output import Output, command_arguments
from lowland.spec import parse
from lowland.spec.study import ClaimsSpec

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What stood after ``lowland claims``; the words before the first flag are rows or groups.

    Returns:
        The exit code.
    """
    spec, flags = parse(ClaimsSpec, command_arguments(arguments, "rows"), "lowland claims", quiet=False, json=False)
    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    output.note("loading torch")
    from lowland.study.bench import Bench
    from lowland.study.claims import chosen, outcome, read_record, run_claim
    from lowland.study.page import budget_table, page
    from lowland.study.recipes import FULL, SMALL, claims

    every = claims(FULL if spec.full else SMALL)
    rows, store = chosen(every, spec.rows), Path(spec.store) / ("full" if spec.full else "")
    if spec.only == "budget":
        output.result({"rows": [claim.name for claim in rows]}, budget_table(rows).splitlines())
        return 0
    until = None if spec.minutes is None else time.monotonic() + 60 * spec.minutes
    for claim in rows if spec.only == "run" else ():
        tell = _teller(output, claim.name)
        run_claim(claim, store, Bench(spec.folder), seeds=spec.seeds, until=until, on_seed=tell)
    outcomes = [outcome(claim, read_record(store, claim.name)) for claim in every]
    Path(spec.page).parent.mkdir(parents=True, exist_ok=True)
    Path(spec.page).write_text(page(outcomes), encoding="utf-8")
    wanted = {claim.name for claim in rows}
    shown = [one for one in outcomes if one.claim.name in wanted]
    table = [
        ["row", "state", "answers"],
        *([o.claim.name, o.state, ", ".join(a.verdict for a in o.answers)] for o in shown),
    ]
    found = {o.claim.name: {"state": o.state, "answers": [a.verdict for a in o.answers]} for o in shown}
    output.result({"page": spec.page, "rows": found}, [f"Page: {spec.page}"], table)
    return 0


def _teller(output: Output, name: str) -> Any:
    def tell(seed: int, run: dict[str, Any]) -> None:
        output.note(f"{name}, seed {seed}: " + (run["error"] or f"{run['seconds']} s"))

    return tell
