"""What checking tools has found, as a document that programs read."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from lowland.core.provenance import provenance
from lowland.testing.reproduction import reproduce, run_alone
from lowland.testing.rulebook import Adapter, Outcome, check, rules

FORMAT: Final = {"format": "lowland conformance", "version": 2}
"""First entries of every document; the version changes when an entry changes its meaning."""


def examine(adapter: Adapter, distribution: str = "", *, alone: bool = False) -> dict[str, Any]:
    """Check a tool against all rules of its family, and reproduce what it breaks.

    Args:
        adapter: How the tool is driven.
        distribution: The package index's name of what the tool is part of, whose version is noted; empty if there is
            none.
        alone: Run each script once more in a process of its own, and drop the script if it shows nothing there.

    Returns:
        The tool's entry of a `document`.

    Example:
        >>> from lowland.testing import own_adapters
        >>> found = examine(own_adapters()[0], "lowland")
        >>> found["name"], found["outcomes"]["zero_gradient"]["status"]
        ('lowland SAM', 'holds')
    """
    entries = {outcome.rule.name: entry(adapter, outcome) for outcome in check(adapter)}
    made = [one["reproduction"] for one in entries.values() if one.get("reproduction", {}).get("source")]
    for one, output in zip(made, run_alone(*(one["source"] for one in made)) if alone and made else [], strict=False):
        one |= (
            {"output": output} if output else {"source": "", "output": "", "missing": "the script shows nothing alone"}
        )
    return tool(adapter, entries, distribution)


def entry(adapter: Adapter, outcome: Outcome) -> dict[str, Any]:
    """Return the entry of one rule: ``status``, ``detail``, and ``reproduction`` where it is broken."""
    found: dict[str, Any] = {"status": outcome.status, "detail": outcome.detail}
    if outcome.status == "broken":
        found["reproduction"] = asdict(reproduce(adapter, outcome.rule))
    return found


def tool(adapter: Adapter, entries: dict[str, Any], distribution: str = "") -> dict[str, Any]:
    """Return the entry of one tool."""
    version = importlib.metadata.version(distribution) if distribution else ""
    about = {"name": adapter.name, "family": adapter.family, "package": distribution, "version": version}
    return {**about, "outcomes": entries}


def document(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return all that was found, with the rules it was found by, as JSON takes it.

    Args:
        tools: What `examine` returned for each.

    Returns:
        ``format``, ``version``, ``provenance``, ``rules`` and ``tools``.

    Example:
        >>> made = document([])
        >>> made["format"], made["version"], len(made["rules"]) == len(rules())
        ('lowland conformance', 2, True)
    """
    said = [{name: getattr(one, name) for name in ("name", "family", "statement", "reason")} for one in rules()]
    return {**FORMAT, "provenance": provenance(), "rules": said, "tools": list(tools)}
