"""The tables of docs/conformance.md, and a page for each family of tools, from what a run has stored."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.conformance.peers import PEERS

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- begin of the results -->", "<!-- end of the results -->"

_MARKS = {"holds": "✓", "broken": "**✗**", "not offered": "–", "other convention": "○"}
_FAMILIES = {
    "optimizer": "Sharpness-aware optimizers, and averages",
    "landscape": "Landscape tools",
    "curvature": "Curvature tools",
}
_HEAD = """# Conformance: {title}

Which rule does each tool hold? ✓ it holds. **✗** it is broken. ○ it is broken, and the documentation says that it is
meant. – the tool does not offer what the rule is about. [Conformance](../conformance.md) has a summary, and how a tool
of your own is checked.
"""
_SCRIPTS = """## Failures, and the smallest script for each

Each script has at most 15 lines, needs torch and the peer alone, and ends with the error shown. The suite writes it
from how the tool is called and what the rule states, makes sizes smaller while the error stays, sees that Lowland's own
tool in its place gives none, and runs it in a process of its own. Where several tools of a package break a rule, the
script is that of the first.
"""

Document = dict[str, Any]


def write(found: Document) -> None:
    """Replace the part of the page between the marks, and the pages of the families."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{results(found)}\n{END}{tail}", encoding="utf-8")
    PAGE.with_suffix("").mkdir(exist_ok=True)
    for family in _FAMILIES:
        family_page(family).write_text(details(found, family), encoding="utf-8")


def family_page(family: str) -> Path:
    """Return where the page of a family lies."""
    return PAGE.with_suffix("") / f"{family}.md"


def results(found: Document) -> str:
    """Return the generated part of the first page: a summary and the peers."""
    rows = [
        f"Checked on {found['provenance']['created'][:10]}.\n",
        "| tool | holds, of the rules it offers | broken, and documented as meant | not offered |",
        "|---|---|---|---|",
    ]
    for family, title in _FAMILIES.items():
        rows.append(f"| [**{title}**](conformance/{family}.md) | | | |")
        for tool in (tool for tool in found["tools"] if tool["family"] == family):
            count = Counter(outcome["status"] for outcome in tool["outcomes"].values())
            rows.append(f"| {_column(tool)} | {_share(tool)} | {count['other convention']} | {count['not offered']} |")
    return "\n".join([*rows, "", _peers(found)])


def details(found: Document, family: str) -> str:
    """Return the page of a family: every rule for every tool, and each failure with its script."""
    parts = [_HEAD.format(title=_FAMILIES[family]), _family(found, family), _SCRIPTS]
    own = [tool for tool in found["tools"] if tool["family"] == family and _broken(tool)]
    for package in dict.fromkeys(tool["package"] for tool in own):
        parts.append(_failures([tool for tool in own if tool["package"] == package]))
    return "\n".join(parts)


def _broken(tool: Document) -> dict[str, Document]:
    return {rule: outcome for rule, outcome in tool["outcomes"].items() if outcome["status"] == "broken"}


def _peers(found: Document) -> str:
    rows = [
        "| package | version | released | what it is | how it was driven |",
        "|---|---|---|---|---|",
    ]
    versions = {tool["package"]: tool["version"] for tool in found["tools"]}
    for peer in PEERS:
        if peer.distribution in found["absent"]:
            why = found["absent"][peer.distribution]
            rows.append(f"| {peer.distribution} | – | | {peer.about} | not checked: {why} |")
            continue
        version = versions[peer.distribution]
        released = peer.released if version == peer.version else ""
        rows.append(f"| {peer.distribution} | {version} | {released} | {peer.about} | {peer.note} |")
    rows.append(
        "\nLi et al.'s own scripts (`tomgoldstein/loss-landscape`) are a repository without a package and were not run."
    )
    return "\n".join(rows) + "\n"


def _family(found: Document, family: str) -> str:
    tools = [tool for tool in found["tools"] if tool["family"] == family]
    rules = [rule for rule in found["rules"] if rule["family"] == family]
    rows = [
        "| rule | " + " | ".join(_column(tool) for tool in tools) + " |",
        "|---" * (len(tools) + 1) + "|",
    ]
    for rule in rules:
        marks = " | ".join(_MARKS[tool["outcomes"][rule["name"]]["status"]] for tool in tools)
        rows.append(f"| `{rule['name']}`<br>{rule['statement']} | {marks} |")
    rows.append("| holds, of those offered | " + " | ".join(_share(tool) for tool in tools) + " |")
    rows.append("\n<details><summary>What goes wrong where a rule is broken</summary>\n")
    rows += [f"<p><code>{rule['name']}</code>: {_html(rule['reason'])}</p>" for rule in rules]
    rows.append("\n</details>\n")
    for tool in tools:
        for name, outcome in tool["outcomes"].items():
            if outcome["status"] == "other convention":
                rows.append(f"- ○ {tool['name']} {tool['version']}, `{name}`: {outcome['detail']}.")
    return "\n".join(rows) + "\n"


def _column(tool: Document) -> str:
    ours = tool["package"] == "lowland"
    return f"{tool['name'].removeprefix('lowland ')} (ours)" if ours else f"{tool['name']} {tool['version']}"


def _share(tool: Document) -> str:
    count = Counter(outcome["status"] for outcome in tool["outcomes"].values())
    return f"{count['holds']} of {count['holds'] + count['broken']}"


def _failures(tools: list[Document]) -> str:
    """Return the failures of a package: each rule once, with the script of the first tool that breaks it."""
    rows = [f"### {tools[0]['package']} {tools[0]['version']}\n"]
    for rule in dict.fromkeys(rule for tool in tools for rule in _broken(tool)):
        broken = [tool for tool in tools if rule in _broken(tool)]
        names = ", ".join(tool["name"] for tool in broken) + ": " if len(tools) > 1 else ""
        rows.append(f"**`{rule}`** {names}{_plain(broken[0]['outcomes'][rule]['detail'])}\n")
        made = [tool["outcomes"][rule]["reproduction"] for tool in broken]
        shown = next((one for one in made if one["source"]), None)
        if shown is None:
            rows.append(f"No script stands alone: {_plain(made[0]['missing'])}\n")
            continue
        rows.append(f"<details><summary>Script; it ends with <code>{_escaped(shown['output'])}</code></summary>\n")
        rows.append(f"```py\n{shown['source']}```\n\n</details>\n")
    return "\n".join(rows)


def _plain(detail: str) -> str:
    return detail.replace("<", "&lt;").replace("_", "\\_").replace("[", "\\[").replace("*", "\\*") + "."


def _html(reason: str) -> str:
    """Return a text for inside a raw block, where Markdown is not read."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", _escaped(reason))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
