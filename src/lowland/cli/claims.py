"""``lowland claims``: run the claims ledger and write its page."""

from __future__ import annotations

from collections.abc import Sequence

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
    from lowland.study.claims import chosen
    from lowland.study.ledger import rows_of, run_ledger, write_page
    from lowland.study.page import budget_table

    rows = chosen(rows_of(spec), spec.rows)
    if spec.only == "budget":
        output.result({"rows": [claim.name for claim in rows]}, budget_table(rows).splitlines())
        return 0
    if spec.only == "run":
        with output:
            run_ledger(spec, on_event=output.progress("claims"))
    wanted = {claim.name for claim in rows}
    shown = [one for one in write_page(spec) if one.claim.name in wanted]
    answers = {one.claim.name: [given.verdict for given in one.answers] for one in shown}
    table = [["row", "state", "answers"], *([o.claim.name, o.state, ", ".join(answers[o.claim.name])] for o in shown)]
    found = {o.claim.name: {"state": o.state, "answers": answers[o.claim.name]} for o in shown}
    output.result({"page": spec.page, "rows": found}, [f"Page: {spec.page}"], table)
    return 0
