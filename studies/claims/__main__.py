"""``python -m studies.claims [ROW ...]``: measure the published claims and write ``docs/claims.md`` and its groups.

Rows that are done and whose files have not changed are left alone; an interrupted run goes on with the next seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

from lowland.core.errors import LowlandError
from lowland.engine import Event
from studies.claims.budget import chosen, in_order
from studies.claims.ledger import Options, page_of, rows_of, run_ledger, write_page
from studies.claims.page import budget_table, minutes_left


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 done, 2 bad input, 130 interrupted."""
    given = vars(_parser().parse_args(arguments))
    show = {"quiet": given.pop("quiet"), "as_json": given.pop("json")}
    try:
        return _run(Options(**given), **show)
    except LowlandError as error:
        print(f"studies.claims: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstudies.claims: interrupted; the same command goes on from what is stored", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    defaults = {field.name: field.default for field in fields(Options)}
    parser = argparse.ArgumentParser("python -m studies.claims", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", help="names of rows or groups; none takes all")
    parser.add_argument("--full", action="store_true", help="the larger size")
    parser.add_argument("--only", choices=("run", "table", "budget"), default="run", help="run nothing: write the page")
    parser.add_argument("--seeds", type=int, help="seeds of each row; default: each row's own number")
    parser.add_argument("--minutes", type=float, help="begin no new seed after this time")
    parser.add_argument("--engine", default=defaults["engine"], help="serial, processes:N or ray")
    for name in ("folder", "store", "page"):
        parser.add_argument(f"--{name}", default=defaults[name], help=f"default {defaults[name]}")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _run(options: Options, *, quiet: bool, as_json: bool) -> int:
    rows = [claim.name for claim in in_order(chosen(rows_of(options), options.rows))]
    if options.only == "run":
        run_ledger(options, on_event=None if quiet or as_json else _tell)
    shown = [one for one in write_page(options) if one.claim.name in rows]
    found: dict[str, Any] = {"page": str(page_of(options))}
    if options.only == "budget":
        found |= {"rows": rows, "minutes_left": minutes_left(shown)}
        lines = [*budget_table(shown).splitlines(), "", f"Order: {', '.join(rows)}."]
    else:
        answers = {one.claim.name: [given.verdict for given in one.answers] for one in shown}
        found["rows"] = {one.claim.name: {"state": one.state, "answers": answers[one.claim.name]} for one in shown}
        lines = [f"{one.claim.name:<24}{one.state:<14}{', '.join(answers[one.claim.name])}" for one in shown]
    if not quiet:
        print(json.dumps(found, indent=2) if as_json else "\n".join([*lines, f"Page: {found['page']}"]))
    return 0


def _tell(event: Event) -> None:
    left = "" if event.remaining is None else f", about {event.remaining / 60:.0f} min left"
    print(f"claims: {event.done}/{event.total} rows{left}{event.message and ': ' + event.message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
