"""``python -m benchmarks.conformance``: check, print a table, store it, and write the page."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.conformance import page
from benchmarks.conformance.run import run

from lowland.core.provenance import provenance


def main() -> None:
    found = run()
    origin = provenance()
    print(f"{'tool':32} {'holds':>6} {'broken':>7} {'other convention':>17} {'not offered':>12}")
    for tool in found.tools:
        count = tool.counts()
        print(
            f"{tool.name + ' ' + tool.version:32} {count['holds']:6} {count['broken']:7} "
            f"{count['other convention']:17} {count['not offered']:12}"
        )
    for name, reason in found.absent.items():
        print(f"{name}: not checked, {reason}")
    path = Path(__file__).resolve().parents[1] / "results" / "conformance.json"
    path.write_text(json.dumps({"provenance": origin, **found.describe()}, indent=1) + "\n", encoding="utf-8")
    page.write(found, str(origin["created"])[:10])
    print(f"wrote {path.name} and {page.PAGE.name}")
    ours = [
        (t.name, rule)
        for t in found.tools
        if t.package == "lowland"
        for rule, o in t.outcomes.items()
        if o[0] == "broken"
    ]
    if ours:
        raise SystemExit(f"our own tools break rules: {ours}")


if __name__ == "__main__":
    main()
