"""``python -m benchmarks.conformance``: check, print a table, store it, and write the page.

``python -m benchmarks.conformance page`` writes the page anew from what is stored.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.conformance import page
from benchmarks.conformance.run import run

STORED: Final = Path(__file__).resolve().parents[1] / "results" / "conformance.json"


def main() -> None:
    if sys.argv[1:] != ["page"]:
        found = run()
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        table(found)
    found = json.loads(STORED.read_text(encoding="utf-8"))
    page.write(found)
    print(f"wrote {STORED.name} and {page.PAGE.name}")
    ours = [tool for tool in found["tools"] if tool["package"] == "lowland"]
    broken = [(tool["name"], rule) for tool in ours for rule, o in tool["outcomes"].items() if o["status"] == "broken"]
    if broken:
        raise SystemExit(f"our own tools break rules: {broken}")


def table(found: dict[str, Any]) -> None:
    print(f"{'tool':40} {'holds':>6} {'broken':>7} {'scripts':>8} {'other convention':>17} {'not offered':>12}")
    for tool in found["tools"]:
        count = Counter(outcome["status"] for outcome in tool["outcomes"].values())
        scripts = sum(bool(o.get("reproduction", {}).get("source")) for o in tool["outcomes"].values())
        print(
            f"{tool['name'] + ' ' + tool['version']:40} {count['holds']:6} {count['broken']:7} {scripts:8} "
            f"{count['other convention']:17} {count['not offered']:12}"
        )
    for name, reason in found["absent"].items():
        print(f"{name}: not checked, {reason}")


if __name__ == "__main__":
    main()
