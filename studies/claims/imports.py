"""Which files a row depends on: all that its module imports, inside Lowland and the studies, followed to the end.

A row is stale when one of them has changed. The import system says where a module lies; nothing is imported for it.
Comments, docstrings, layout and the version change no number and do not count. Objects named in a spec (a method, a
data set) need no entry of their own: the rooms that look them up import every one.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Final

__all__ = ["fingerprint", "imported_files", "plain_code"]

PACKAGES: Final = ("lowland", "studies")

OUTSIDE: Final = tuple(f"lowland.{room}" for room in ("cli", "engine", "integrations", "report", "testing", "viz"))
"""Rooms that print, draw or decide who computes: no number depends on them."""


@functools.cache
def fingerprint(*modules: str) -> str:
    """Return the fingerprint of all files that modules import, themselves included, as they were when first asked."""
    digest = hashlib.sha256()
    for name, path in sorted(imported_files(*modules).items()):
        digest.update(f"{name}|{plain_code(path)}\n".encode())
    return digest.hexdigest()[:24]


def imported_files(*modules: str) -> dict[str, Path]:
    """Return the file of every module that modules import, directly or through others."""
    found: dict[str, Path] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name in found or not _counts(name):
            continue
        spec = _spec(name)
        if spec is not None and spec.origin is not None:
            found[name] = Path(spec.origin)
            waiting += [name.rpartition(".")[0], *_imports(name)]  # a package's own file runs before its modules
    return found


@functools.cache
def plain_code(path: Path) -> str:
    """Return a program without comments, docstrings, layout and version."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [child for child in node.body if not _is_text(child) and not _is_version(child)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_version(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"


def _counts(name: str) -> bool:
    def within(*places: str) -> bool:
        return any(name == place or name.startswith(f"{place}.") for place in places)

    return within(*PACKAGES) and not within(*OUTSIDE)


@functools.cache
def _spec(name: str) -> ModuleSpec | None:
    """Find a module without importing the packages above it, which `importlib.util.find_spec` would."""
    above, _, _ = name.rpartition(".")
    if not above:
        return importlib.util.find_spec(name)
    package = _spec(above)
    places = None if package is None else package.submodule_search_locations
    return None if places is None else PathFinder.find_spec(name, places)


@functools.cache
def _imports(name: str) -> tuple[str, ...]:
    """Return the modules that a module's text imports when it runs, also inside its functions."""
    running, _ = _split(name)
    return tuple(dict.fromkeys(target for node in running for target in _targets(name, node)))


def _targets(name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = _base(name, node)
    for alias in node.names if _counts(base) else ():
        below = f"{base}.{alias.name}"
        yield base
        yield below if _spec(below) is not None else _lazy_home(base, alias.name)


def _lazy_home(package: str, name: str) -> str:
    """Return the module from which a lazy package takes a name: it declares it for type checkers."""
    _, declared = _split(package)
    homes = (_base(package, node) for node in declared if any((a.asname or a.name) == name for a in _names(node)))
    return next(homes, package)


def _names(node: ast.Import | ast.ImportFrom) -> list[ast.alias]:
    return node.names if isinstance(node, ast.ImportFrom) else []


def _base(name: str, node: ast.Import | ast.ImportFrom) -> str:
    if isinstance(node, ast.Import) or not node.level:
        return getattr(node, "module", None) or ""
    spec = _spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return importlib.util.resolve_name(
        "." * node.level + (node.module or ""), name if is_package else name.rpartition(".")[0]
    )


@functools.cache
def _split(name: str) -> tuple[list[ast.Import | ast.ImportFrom], list[ast.Import | ast.ImportFrom]]:
    """Return a module's imports: those that run, and those for type checkers alone."""
    spec = _spec(name)
    if spec is None or spec.origin is None:
        return [], []
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    checked = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for child in ast.walk(part)
    }
    every = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [node for node in every if node not in checked], [node for node in every if node in checked]
