"""Which code a number depends on: definitions followed from name to name through Lowland's own source, never run.

A row of the ledger is stale when code that it runs has changed, and only then. Starting from the functions and classes
that a row uses, every name that a definition mentions is looked up in its module, through re-exports, down to the
definition that it stands for. What is compared are syntax trees, so that comments, docstrings, annotations and layout
change nothing. Objects that are handed in (a model's layers, a base optimizer) are named by whoever builds them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Name", "Source", "bare_code", "names_in_call", "own_source"]

PACKAGE: Final = "lowland"

OUTSIDE: Final = (
    "cli", "report", "viz", "engine", "integrations", "testing", "core.errors", "core.names", "core.provenance",
    "core.schema", "store", "spec.parse", "spec.specs", "spec.study", "study.bench", "study.claims",
    "study.dependencies", "core.pace",
)  # fmt: skip
"""Modules that cannot change a number: drawing, messages, files, who computes; specs count by their content."""

INSIDE: Final = ("store.geometry",)
"""Exceptions to `OUTSIDE`."""

HUBS: Final = ("spec.build", "spec.runs", "models.registry", "data.registry")
"""Modules that know every method by name: they count, but what they mention elsewhere is named by the run instead."""


class Name(NamedTuple):
    """A definition at the top of a module."""

    module: str  # Module below `lowland`, such as ``"optim.sam"``; "" is the package itself
    name: str  # The name; ``"*"`` stands for everything in it


@dataclass
class _Module:
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, set[Name]] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)


class Source:
    """The source of the package, read once."""

    # What has been read is kept, since a process goes on running the code that it began with.

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._modules: dict[str, _Module | None] = {}
        self._mentions: dict[Name, frozenset[Name]] = {}
        self._digests: dict[Name, str] = {}
        self._fingerprints: dict[frozenset[Name], str] = {}

    def reached(self, roots: Iterable[Name]) -> set[Name]:
        """Follow names to everything that they depend on."""
        found: set[Name] = set()
        waiting = [name for root in roots for name in self._resolve(root)]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._mentioned(name) - found
        return found

    def fingerprint(self, roots: Iterable[Name]) -> str:
        """Return a fingerprint of everything that names depend on."""
        key = frozenset(roots)
        if key not in self._fingerprints:
            digest = hashlib.sha256()
            for name in sorted(self.reached(key)):
                digest.update(f"{name.module}:{name.name}|{self._digest(name)}\n".encode())
            self._fingerprints[key] = digest.hexdigest()[:16]
        return self._fingerprints[key]

    def _module(self, module: str) -> _Module | None:
        if module not in self._modules:
            base = self.folder.joinpath(*module.split(".")) if module else self.folder
            files = [base / "__init__.py", base.with_suffix(".py")] if module else [base / "__init__.py"]
            file = next((file for file in files if file.is_file()), None)
            self._modules[module] = None if file is None else _read(file, module)
        return self._modules[module]

    def _resolve(self, name: Name) -> set[Name]:
        """Return the definitions that a name stands for, through imports and re-exports."""
        below = f"{name.module}.{name.name}".strip(".")
        if _is_outside(name.module) and _is_outside(below):
            return set()
        module = self._module(name.module)
        if module is None:
            return set()
        if name.name == "*":
            return {Name(name.module, own) for own in module.definitions} | self._loose(name.module)
        if name.name in module.definitions:
            return {name} | self._loose(name.module)
        if name.name in module.imports:
            return {deep for target in module.imports[name.name] if target != name for deep in self._resolve(target)}
        return self._resolve(Name(below, "*")) if self._module(below) is not None else set()

    def _loose(self, module: str) -> set[Name]:
        """Return what a module does beyond defining names, which happens whenever it is imported."""
        own = self._module(module)
        return {Name(module, "")} if own is not None and own.loose else set()

    def _nodes(self, name: Name) -> list[ast.stmt]:
        module = self._module(name.module)
        assert module is not None
        return module.definitions[name.name] if name.name else module.loose

    def _mentioned(self, name: Name) -> frozenset[Name]:
        if name not in self._mentions:
            module = self._module(name.module)
            assert module is not None
            found: set[Name] = set()
            for chain in {chain for node in self._nodes(name) for chain in _chains(node)}:
                for target in self._targets(module, name.module, chain):
                    found |= self._resolve(target)
            hub = name.module in HUBS
            self._mentions[name] = frozenset(one for one in found if not hub or one.module == name.module)
        return self._mentions[name]

    def _targets(self, module: _Module, own: str, chain: tuple[str, ...]) -> Iterator[Name]:
        first, *rest = chain
        if first in module.definitions:
            yield Name(own, first)
        for target in module.imports.get(first, ()):
            place, parts = target, list(rest)
            below = f"{place.module}.{place.name}".strip(".")
            while parts and self._module(below) is not None:  # an attribute of a module is a name in it
                place = Name(below, parts.pop(0))
                below = f"{place.module}.{place.name}".strip(".")
            yield place

    def _digest(self, name: Name) -> str:
        if name not in self._digests:
            text = "\n".join(ast.dump(node) for node in self._nodes(name))
            self._digests[name] = hashlib.sha256(text.encode()).hexdigest()
        return self._digests[name]


@functools.cache
def own_source() -> Source:
    """Return Lowland's own source, as it was when it was first asked for."""
    return Source(Path(__file__).resolve().parent.parent)


def names_in_call(value: Any) -> tuple[set[Name], list[str]]:
    """Return what a function was made of: its own name, those of the functions that it encloses, and their numbers."""
    if isinstance(value, functools.partial):
        parts: list[Any] = [
            value.func,
            *value.args,
            *(part for pair in sorted(value.keywords.items()) for part in pair),
        ]
    elif isinstance(value, tuple):
        parts = [*value]
    elif isinstance(value, str | int | float | bool | None):
        return set(), [repr(value)]
    else:
        parts = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    names, plain = set(), []
    for part in parts:
        more, texts = names_in_call(part)
        names |= more
        plain += texts
    own = name_of(value) if isinstance(value, Callable) else None  # type: ignore[arg-type]
    return names | ({own} if own is not None else set()), plain


def name_of(value: Any) -> Name | None:
    """Return the definition that a function or class belongs to."""
    module, name = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", "")
    if not name or module.split(".")[0] != PACKAGE:
        return None
    return Name(module.removeprefix(PACKAGE).removeprefix("."), name.split(".")[0])


def bare_code(text: str) -> str:
    """Return a program without comments, docstrings, annotations and layout."""
    return ast.dump(_bare(ast.parse(text)))


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [child for child in body if not _is_text(child)] or [ast.Pass()]  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_outside(module: str) -> bool:
    def within(places: Iterable[str]) -> bool:
        return any(module == place or module.startswith(f"{place}.") for place in places)

    return within(OUTSIDE) and not within(INSIDE)


def _read(file: Path, module: str) -> _Module:
    tree = _bare(ast.parse(file.read_text(encoding="utf-8")))
    found = _Module()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):  # imports inside functions as well
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, target in _imported(node, package):
                found.imports.setdefault(name, set()).add(target)
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
            continue
        bound = [name for name in _bound(statement) if name != "__all__"]
        for name in bound:
            found.definitions.setdefault(name, []).append(statement)
        if not bound and not _binds(statement) and not _only_imports(statement):
            found.loose.append(statement)
    return found


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, Name]]:
    """Yield the local name and the target of each import from the package."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == PACKAGE and alias.asname:
                place, _, name = alias.name.removeprefix(PACKAGE).removeprefix(".").rpartition(".")
                yield alias.asname, Name(place, name)
        return
    whole = node.module or ""
    if node.level:
        whole = ".".join([PACKAGE, *package.split(".")[: len(package.split(".")) + 1 - node.level], whole]).strip(".")
    if whole.split(".")[0] == PACKAGE:
        for alias in node.names:
            yield alias.asname or alias.name, Name(whole.removeprefix(PACKAGE).removeprefix("."), alias.name)


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    return [n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)] + [
        n.name for n in ast.walk(statement) if isinstance(n, ast.FunctionDef | ast.ClassDef)
    ]


def _binds(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign | ast.AnnAssign)


def _only_imports(statement: ast.stmt) -> bool:
    # as those under `if TYPE_CHECKING` do
    return isinstance(statement, ast.If) and all(isinstance(n, ast.Import | ast.ImportFrom) for n in statement.body)


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield every name that is read, with the attributes that follow it: ``curvature.Hessian`` as two parts."""
    if isinstance(node, ast.Attribute):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield (inner.id, *reversed(parts))
        else:
            yield from _chains(inner)
        return
    if isinstance(node, ast.Name):
        yield (node.id,)
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        children = iter(node.args[:1])  # the class counts where the object is built
    for child in children:
        yield from _chains(child)
