"""The whole API as one plain text, for assistants and for those who search: ``site/llms.txt``; a hook of mkdocs.

Room by room, every exported name with its signature and docstring as they are installed. ``python docs/tools/api.py``
prints it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lowland

_HEAD = """# Lowland {version}

> {about}

`import lowland as ll`; names are reached by one dot after their room: `ll.optim.SAM`. Errors name the argument, the
rule, the value and what to try. Examples run as they stand.
"""


def rooms() -> dict[str, ModuleType]:
    """Return the package and its rooms, those with exports, by name.

    Returns:
        ``"lowland"`` first, then in alphabetical order.
    """
    names = sorted(found.name for found in pkgutil.iter_modules(lowland.__path__) if found.ispkg)
    found = {f"lowland.{name}": importlib.import_module(f"lowland.{name}") for name in names}
    return {"lowland": lowland} | {name: room for name, room in found.items() if hasattr(room, "__all__")}


def exports(room: ModuleType) -> dict[str, Any]:
    """Return what a room exports, other rooms and dunder names left out.

    Args:
        room: The package or one of its rooms.

    Returns:
        Objects by name, in the order of ``__all__``.
    """
    found = {name: getattr(room, name) for name in room.__all__ if not name.startswith("__")}
    return {name: thing for name, thing in found.items() if not inspect.ismodule(thing)}


def entry(name: str, thing: Any) -> str:
    """Return one name with all that is said of it.

    Args:
        name: As it is exported.
        thing: What it is.

    Returns:
        Heading, docstring, and a line for each public method of a class.
    """
    if not callable(thing) or not inspect.getdoc(thing):
        return f"### {name}\n\nA constant or an alias of types: `{_short(thing)}`.\n"
    methods = [
        f"- `.{own}{signature(member)}` {(inspect.getdoc(member) or '').partition(chr(10))[0]}"
        for own, member in vars(thing).items()
        if inspect.isclass(thing) and not own.startswith("_") and inspect.isfunction(member)
    ]
    listed = "\n" + "\n".join(methods) + "\n" if methods else ""
    return f"### {name}{signature(thing)}\n\n{inspect.getdoc(thing)}\n{listed}"


def signature(thing: Any) -> str:
    """Return how something is called, types as they are written in the source.

    Args:
        thing: A class or function.

    Returns:
        Its parameters in brackets; empty where it has none that are known.
    """
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("(self, ", "(").replace("(self)", "()")


def text() -> str:
    """Return the whole file.

    Returns:
        Markdown.
    """
    about = " ".join((lowland.__doc__ or "").partition("\n\n")[0].split())
    parts = [_HEAD.format(version=lowland.__version__, about=about)]
    for name, room in rooms().items():
        parts.append(f"## {name}\n\n{(inspect.getdoc(room) or '').partition(chr(10))[0]}\n")
        parts += [entry(each, thing) for each, thing in exports(room).items()]
    return "\n".join(parts)


def on_post_build(config: Any, **context: Any) -> None:
    """Write the file beside the pages.

    Args:
        config: The settings of mkdocs.
        **context: What else mkdocs hands over.
    """
    del context
    (Path(config["site_dir"]) / "llms.txt").write_text(text(), encoding="utf-8")


def _short(thing: Any) -> str:
    shown = " ".join(repr(sorted(thing) if isinstance(thing, dict) else thing).split())
    return re.sub(r" at 0x[0-9a-f]+", "", shown if len(shown) < 200 else shown[:197] + "...")


if __name__ == "__main__":
    sys.stdout.write(text())
