"""Print every difference between two recordings of `record.py`; exit code 1 if there is any.

    python tools/golden/compare.py OLD NEW [PATTERN ...]

OLD and NEW are folders. What a pattern (a regular expression on ``file:part:path``) finds is counted and not shown.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = ("numbers.json", "cli.json")
MISSING = "(missing)"


def differences(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    """Return path, old and new value wherever two trees differ."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict) and not {"sha256", "hex"} & (set(old) | set(new)):
        keys = sorted(set(old) | set(new))
        places = ((key, old.get(key, MISSING), new.get(key, MISSING)) for key in keys)
        return [found for key, a, b in places for found in differences(a, b, f"{path}:{key}" if path else key)]
    return [(path, old, new)]


def shown(path: str, old: Any, new: Any) -> list[str]:
    """Return the lines that show one difference."""
    lines = [path]
    if isinstance(old, dict) and isinstance(new, dict):  # numbers
        a, b = (value.get("values", [value.get("value")]) for value in (old, new))
        if (old.get("shape"), old.get("dtype")) != (new.get("shape"), new.get("dtype")):
            lines.append(f"    {old.get('dtype')}{old.get('shape')} -> {new.get('dtype')}{new.get('shape')}")
        lines += [f"    - {a}", f"    + {b}", f"    largest relative difference shown: {_distance(a, b):.2g}"]
        return lines
    if isinstance(old, list) and isinstance(new, list):  # lines of text
        old_lines, new_lines = [str(line) for line in old], [str(line) for line in new]
        lines += [f"    - {line}" for line in old_lines if line not in new_lines]
        lines += [f"    + {line}" for line in new_lines if line not in old_lines]
        return lines if len(lines) > 1 else [*lines, "    the same lines in another order or number"]
    return [*lines, f"    - {old}", f"    + {new}"]


def _distance(old: Sequence[Any], new: Sequence[Any]) -> float:
    pairs = [
        (a, b) for a, b in zip(old, new, strict=False) if isinstance(a, int | float) and isinstance(b, int | float)
    ]
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in pairs if a != b and math.isfinite(a - b)]
    return max(apart, default=0.0)


def main(old: str, new: str, *patterns: str) -> int:
    """Compare two folders."""
    found: list[tuple[str, Any, Any]] = []
    for name in FILES:
        before, after = (json.loads((Path(folder) / name).read_text()) for folder in (old, new))
        found += differences(before, after, name)
    kept = [entry for entry in found if not any(re.search(pattern, entry[0]) for pattern in patterns)]
    for entry in kept:
        print("\n".join(shown(*entry)))
    print(f"{len(kept)} differences" + (f", {len(found) - len(kept)} left out" if len(found) > len(kept) else ""))
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
