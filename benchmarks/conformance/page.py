"""The tables of docs/conformance.md, from what a run has found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from benchmarks.conformance.peers import PEERS
from benchmarks.conformance.run import Found, Tool

from lowland.testing import rules

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- begin of the results -->", "<!-- end of the results -->"

_MARKS = {"holds": "✓", "broken": "**✗**", "not offered": "–", "other convention": "○"}
_FAMILIES = {
    "optimizer": "Sharpness-aware optimizers",
    "landscape": "Landscape tools",
    "curvature": "Curvature tools",
}


def write(found: Found, date: str) -> None:
    """Replace the part of the page between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{results(found, date)}\n{END}{tail}", encoding="utf-8")


def results(found: Found, date: str) -> str:
    """Return the generated part: peers, tables, failures."""
    parts = [_peers(found, date)]
    parts += [_family(found, family, title) for family, title in _FAMILIES.items()]
    parts.append("### Failures, and the smallest script for each\n")
    parts.append(
        "Each script needs torch and the peer alone. It says what should be true, and ends with the error shown as "
        "long as it is not. Where several tools of a package are named, the script is that of the first; those of the "
        "others differ in the name.\n"
    )
    packages = {
        tool.package: [t for t in found.tools if t.package == tool.package] for tool in found.tools if tool.scripts
    }
    parts += [_failures(tools) for tools in packages.values()]
    return "\n".join(parts)


def _peers(found: Found, date: str) -> str:
    rows = [
        f"Checked on {date}.\n",
        "| package | version | released | what it is | how it was driven |",
        "|---|---|---|---|---|",
    ]
    versions = {tool.package: tool.version for tool in found.tools}
    for peer in PEERS:
        if peer.distribution in found.absent:
            rows.append(
                f"| {peer.distribution} | – | | {peer.about} | not checked: {found.absent[peer.distribution]} |"
            )
            continue
        version = versions[peer.distribution]
        released = peer.released if version == peer.version else ""
        rows.append(f"| {peer.distribution} | {version} | {released} | {peer.about} | {peer.note} |")
    rows.append(
        "\nLi et al.'s own scripts (`tomgoldstein/loss-landscape`) are a repository without a package and were not run."
    )
    return "\n".join(rows) + "\n"


def _family(found: Found, family: str, title: str) -> str:
    tools = [tool for tool in found.tools if tool.family == family]
    rows = [
        f"### {title}\n",
        "| rule | " + " | ".join(_column(tool) for tool in tools) + " |",
        "|---" * (len(tools) + 1) + "|",
    ]
    for rule in rules(family):  # type: ignore[arg-type]
        marks = " | ".join(_MARKS[tool.outcomes[rule.name][0]] for tool in tools)
        rows.append(f"| `{rule.name}`<br>{rule.statement} | {marks} |")
    counts = [tool.counts() for tool in tools]
    rows.append("| holds, of those offered | " + " | ".join(_share(count) for count in counts) + " |")
    rows.append("\n<details><summary>What goes wrong where a rule is broken</summary>\n")
    rows += [f"<p><code>{rule.name}</code>: {_html(rule.reason)}</p>" for rule in rules(family)]  # type: ignore[arg-type]
    rows.append("\n</details>\n")
    for tool in tools:
        for rule_name, (status, detail) in tool.outcomes.items():
            if status == "other convention":
                rows.append(f"- ○ {tool.name} {tool.version}, `{rule_name}`: {detail}.")
    return "\n".join(rows) + "\n"


def _column(tool: Tool) -> str:
    return (
        f"{tool.name} {tool.version}" if tool.package != "lowland" else tool.name.removeprefix("lowland ") + " (ours)"
    )


def _share(count: dict[str, int]) -> str:
    return f"{count.get('holds', 0)} of {count.get('holds', 0) + count.get('broken', 0)}"


def _failures(tools: list[Tool]) -> str:
    """Return the failures of a package: each rule once, with the script of the first tool that breaks it."""
    rows = [f"#### {tools[0].package} {tools[0].version}\n"]
    shown: dict[str, str] = {}
    for rule in dict.fromkeys(rule for tool in tools for rule in tool.scripts):
        broken = [tool for tool in tools if rule in tool.scripts]
        text = broken[0].scripts[rule]
        names = ", ".join(tool.name for tool in broken) + ": " if len(tools) > 1 else ""
        rows.append(f"**`{rule}`** {names}{_plain(broken[0].outcomes[rule][1])}\n")
        if text in shown:
            rows.append(f"Shown by the script of `{shown[text]}`.\n")
            continue
        shown[text] = rule
        error = _escaped(broken[0].errors[rule])
        rows.append(f"<details><summary>Script; it ends with <code>{error}</code></summary>\n")
        rows.append(f"```py\n{text}```\n\n</details>\n")
    return "\n".join(rows)


def _plain(detail: str) -> str:
    return detail.replace("<", "&lt;").replace("_", "\\_").replace("[", "\\[").replace("*", "\\*") + "."


def _html(reason: str) -> str:
    """Return a text for inside a raw block, where Markdown is not read."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", _escaped(reason))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
