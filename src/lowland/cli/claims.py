"""``lowland claims``: run the claims ledger and write its page."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.cli.output import Output, command_arguments
from lowland.workflows import parse
from lowland.workflows.study import ClaimsSpec

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words = [word for word in arguments if word != "--full"] + ["--full", "true"] * ("--full" in arguments)
    spec, flags = parse(ClaimsSpec, command_arguments(words, "rows"), "lowland claims", quiet=False, json=False)
    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    output.note("loading torch")
    from lowland.study.claims import chosen, in_order
    from lowland.study.ledger import page_of, rows_of, run_ledger, write_page
    from lowland.study.page import budget_table, minutes_left

    rows, page = chosen(rows_of(spec), spec.rows), str(page_of(spec))
    if spec.only == "budget":
        order = [claim.name for claim in in_order(rows)]
        known = [one for one in write_page(spec) if one.claim.name in order]
        text = [*budget_table(known).splitlines(), "", f"Order: {', '.join(order)}.", f"Page: {page}"]
        output.result({"rows": order, "page": page, "minutes_left": minutes_left(known)}, text)
        return 0
    if spec.only == "run":
        with output:
            run_ledger(spec, on_event=output.progress("claims"))
    wanted = {claim.name for claim in rows}
    shown = [one for one in write_page(spec) if one.claim.name in wanted]
    answers = {one.claim.name: [given.verdict for given in one.answers] for one in shown}
    table = [["row", "state", "answers"], *([o.claim.name, o.state, ", ".join(answers[o.claim.name])] for o in shown)]
    found = {o.claim.name: {"state": o.state, "answers": answers[o.claim.name]} for o in shown}
    output.result({"page": page, "rows": found}, [f"Page: {page}"], table)
    return 0
