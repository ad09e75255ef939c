"""Copies into the pages what the source says: defaults, deviations and measured costs; ``python docs/tools/agree.py``.

A page asks for a piece by a pair of comments, ``<!-- deviations lowland.optim.sam -->`` and ``<!-- /deviations -->``.
What stands between them is written by this script, and a test fails where a page and its source no longer agree.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import griffe

DOCS = Path(__file__).resolve().parents[1]
_PIECE = re.compile(r"<!-- (?P<kind>deviations|defaults|cost) (?P<of>[^>]+?) -->\n.*?<!-- /(?P=kind) -->", re.DOTALL)


@cache
def package() -> griffe.Module:
    """Read the package without importing it.

    Returns:
        The package.
    """
    loaded = griffe.load("lowland", search_paths=[DOCS.parent / "src"], docstring_parser="google")
    assert isinstance(loaded, griffe.Module)
    return loaded


def deviations(name: str) -> str:
    """Return the list of deviations at the top of a file.

    Args:
        name: Name of the module.

    Returns:
        Its heading and the numbered list, or the word "None." where there is no list.
    """
    text = package()[name.removeprefix("lowland.")].docstring.value
    found = re.search(r"^(?P<head>Deviations?[^\n]*?):\s*(?P<list>.*)", text, re.DOTALL | re.MULTILINE) or re.search(
        r"(?P<head>Deviations?[^\n]*?):\s*(?P<list>.*)", text, re.DOTALL
    )
    if found is None:
        return "None.\n"
    listed = re.sub(r"\s*\n\s+(?!\d+\. )", " ", found["list"].strip())
    items = re.split(r"(?:^|\n\s*)\d+\. ", listed)[1:]
    if not items:
        return f"{_flat(found['head'])}: {_flat(listed)}\n"
    numbered = "\n".join(f"{number}. {_flat(item)}" for number, item in enumerate(items, 1))
    return f"{_flat(found['head'])}:\n\n{numbered}\n"


def defaults(name: str) -> str:
    """Return the arguments of a class or function as a table.

    Args:
        name: Its full name, as users type it.

    Returns:
        A table of argument, default and meaning; what the docstring says about where the default comes from included.
    """
    thing = package()[name.removeprefix("lowland.")]
    if thing.is_module:  # a function and the file it lives in may have one name
        thing = thing[name.rpartition(".")[2]]
    thing = thing.final_target if thing.is_alias else thing
    taken, described = {p.name: p for p in thing.parameters}, _arguments(thing)
    for base in thing.mro() if thing.is_class else ():  # what all of a kind take is described once, on their base
        described = _arguments(base) | described
        passed = (p for p in base.parameters if p.kind is griffe.ParameterKind.keyword_only and "options" in taken)
        taken |= {p.name: p for p in passed if p.name not in taken}
    words = {argument.lstrip("*"): (argument, text) for argument, text in described.items()}
    rows = []
    for name, parameter in taken.items():
        if name in words:
            given = "" if parameter.default in (None, "{}", "()") else f"`{parameter.default}`"
            rows.append(f"| `{words[name][0]}` | {given} | {_flat(words[name][1])} |")
    return (
        "| argument | default | meaning, and where the default comes from |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _arguments(thing: griffe.Object) -> dict[str, str]:
    parsed = thing.docstring.parsed if thing.docstring else []
    found = (section.value for section in parsed if section.kind is griffe.DocstringSectionKind.parameters)
    return {argument.name: argument.description for section in found for argument in section}


def cost(name: str) -> str:
    """Return the rows of the table of costs that belong to a method.

    Args:
        name: The method's name, as in the table.

    Returns:
        The table's head and these rows.
    """
    text = (DOCS / "measurements.md").read_text()
    table = [line for line in text.split("<!-- costs -->")[1].split("<!-- /costs -->")[0].splitlines() if "|" in line]
    rows = [row for row in table[2:] if re.match(rf"\| {re.escape(name)}(,[^|]*)? \|", row)]
    return "\n".join([*table[:2], *rows]) + "\n"


KINDS: dict[str, Callable[[str], str]] = {"deviations": deviations, "defaults": defaults, "cost": cost}


def filled(text: str) -> str:
    """Return a page with its pieces as the source has them now.

    Args:
        text: The page.

    Returns:
        The page; the same text where nothing changed.
    """

    def piece(found: re.Match[str]) -> str:
        kind, of = found["kind"], found["of"]
        return f"<!-- {kind} {of} -->\n" + KINDS[kind](of) + f"<!-- /{kind} -->"

    return _PIECE.sub(piece, text)


def _flat(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"``([^`]+)``", lambda found: "`" + found[1].replace("\\|", "|") + "`", flat)


def main() -> int:
    """Write every page.

    Returns:
        0.
    """
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if (new := filled(text)) != text:
            page.write_text(new)
            sys.stdout.write(f"{page.relative_to(DOCS.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
