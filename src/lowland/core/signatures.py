"""What a registry names, read from its source: listed, or refused for a wrong option, before torch is imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parents[1]


@functools.cache
def keywords_of(room: str, path: str) -> tuple[str, ...] | None:
    """Return what ``module:callable`` of a room of Lowland takes by keyword; None where the source is silent."""
    function = _function(_definition(room, path))
    if function is None:
        return None
    given = [one.arg for one in (*function.args.args, *function.args.kwonlyargs) if one.arg not in ("self", "cls")]
    more = _unpacked(function.args.kwarg, _folder(room))
    return None if more is None else (*given, *more)


def first_line_of(room: str, path: str) -> str:
    """Return the first line of the docstring of ``module:callable`` of a room of Lowland; "" where there is none."""
    found = _definition(room, path)
    return (ast.get_docstring(found) or "").split("\n")[0] if found is not None else ""


def _folder(room: str) -> Path:
    return _PACKAGE.joinpath(*room.split(".")[1:])


def _definition(room: str, path: str) -> ast.FunctionDef | ast.ClassDef | None:
    module, _, name = path.partition(":")
    source = _folder(room).joinpath(*module.split(".")).with_suffix(".py")
    return _definitions(source).get(name) if room.startswith("lowland") and source.is_file() else None


@functools.cache
def _definitions(source: Path) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Return the functions and classes of a file."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}


def _function(found: ast.stmt | None) -> ast.FunctionDef | None:
    """Return what is called: a function, or how a class begins."""
    if isinstance(found, ast.ClassDef):
        return next((one for one in found.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    return found if isinstance(found, ast.FunctionDef) else None


def _unpacked(rest: ast.arg | None, folder: Path) -> list[str] | None:
    """Return the names behind ``**options: Unpack[KEYWORDS]``; None where anything may be given."""
    if rest is None:
        return []
    match rest.annotation:
        case ast.Subscript(value=ast.Name("Unpack"), slice=ast.Name(name)):
            return next(_fields(name, folder), None)
    return None


def _fields(name: str, folder: Path) -> Iterator[list[str]]:
    """Yield the names in a dictionary's type and in those it extends, from the file of the room where it stands."""
    for source in sorted(folder.glob("*.py")):
        known = _definitions(source) if f"class {name}(" in source.read_text(encoding="utf-8") else {}
        fields, types = [], [known.get(name)]
        while types and isinstance(found := types.pop(), ast.ClassDef):
            types += [known.get(base.id) for base in found.bases if isinstance(base, ast.Name)]
            lines = [one.target for one in found.body if isinstance(one, ast.AnnAssign)]
            fields += [one.id for one in lines if isinstance(one, ast.Name)]
        if known:
            yield fields
