"""Where a source file can be broken, and how: each place is one span of text and what stands there instead."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

Change = tuple[str, ast.AST, str]
"""Kind, node (or first and last node of a span) and the new text."""

OPPOSITE: dict[type[ast.AST], tuple[str, type[ast.AST]]] = {
    ast.Add: ("sign", ast.Sub), ast.Sub: ("sign", ast.Add), ast.Mult: ("factor", ast.Div),
    ast.Div: ("factor", ast.Mult), ast.FloorDiv: ("factor", ast.Mult), ast.Lt: ("off by one", ast.LtE),
    ast.LtE: ("off by one", ast.Lt), ast.Gt: ("off by one", ast.GtE), ast.GtE: ("off by one", ast.Gt),
    ast.Eq: ("comparison", ast.NotEq), ast.NotEq: ("comparison", ast.Eq), ast.Is: ("comparison", ast.IsNot),
    ast.IsNot: ("comparison", ast.Is), ast.In: ("comparison", ast.NotIn), ast.NotIn: ("comparison", ast.In),
    ast.And: ("comparison", ast.Or), ast.Or: ("comparison", ast.And),
}  # fmt: skip
REDUCTIONS = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "amax": "amin", "amin": "amax", "all": "any",
              "any": "all", "argmax": "argmin", "argmin": "argmax", "nansum": "nanmean"}  # fmt: skip
COPIES = {"clone", "copy", "deepcopy", "contiguous", "tolist"}
CACHES = {"clear", "cache_clear", "pop", "update", "append", "remove", "discard", "popitem"}
SYMMETRIC = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "zip", "max", "min", "cast", "print", "warn",
             "replace", "isclose", "allclose", "equal", "range", "field", "TypeVar"}  # fmt: skip
"""Calls whose two arguments either may change places or break at once."""


_PLACE = {"end", "on_import", "body", "start_byte", "end_byte"}


@dataclass(frozen=True)
class Mutant:
    """One place broken in one way."""

    path: str
    function: str
    """Dotted name inside the file; empty where the line runs when the module is imported."""
    kind: str
    line: int
    end: int
    on_import: bool
    """Whether it runs when the module is imported, as constants and defaults do."""
    body: tuple[int, int]
    """First and last line of the function, or of the file."""
    start_byte: int
    end_byte: int
    before: str
    after: str
    id: str

    @property
    def room(self) -> str:
        """The package that it lies in."""
        return Path(self.path).parent.name

    def apply(self, source: bytes) -> bytes:
        """Return the broken source."""
        return source[: self.start_byte] + self.after.encode() + source[self.end_byte :]

    def describe(self) -> dict[str, Any]:
        """Return what is stored of it."""
        return {"room": self.room, **{k: v for k, v in asdict(self).items() if k not in _PLACE}}


def mutants(path: Path, name: str) -> list[Mutant]:
    """Return every way to break a file; an id holds as long as its function's text does."""
    source = path.read_bytes()
    offsets = [0]
    for row in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(row))
    found, seen = [], dict[str, int]()
    module = Place("", "", (1, len(offsets)), True)
    for place, (kind, node, after) in _walk(ast.parse(source), module):
        first, last = node if isinstance(node, tuple) else (node, node)
        begin = offsets[first.lineno - 1] + first.col_offset
        end = offsets[last.end_lineno - 1] + last.end_col_offset
        before = source[begin:end].decode()
        key = "\n".join((name, place.function, place.text, kind, before, after))
        seen[key] = seen.get(key, 0) + 1
        identity = hashlib.sha1(f"{key}\n{seen[key]}".encode()).hexdigest()[:12]
        lines = first.lineno, last.end_lineno, place.on_import, place.lines
        found.append(Mutant(name, place.function, kind, *lines, begin, end, before, after, identity))
    return found


class Place(NamedTuple):
    """What a node lies in."""

    function: str
    text: str
    lines: tuple[int, int]
    on_import: bool


def _walk(node: ast.AST, place: Place) -> Iterator[tuple[Place, Any]]:
    """Yield changes below a node, without annotations, documentation, messages of errors and text for people."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        if node.name in ("__repr__", "__str__"):
            return
        name, lines = f"{place.function}.{node.name}".lstrip("."), (node.lineno, node.end_lineno or node.lineno)
        place = Place(name, ast.unparse(node), lines, True)
        for decorator in node.decorator_list:
            if "no_grad" in ast.dump(decorator):
                yield place, ("no_grad", decorator, "(lambda function: function)")
        inside = place._replace(on_import=isinstance(node, ast.ClassDef))
        for child in node.body:
            yield from _walk(child, inside)
        for child in [] if isinstance(node, ast.ClassDef) else node.args.defaults + node.args.kw_defaults:
            if child is not None:
                yield from _walk(child, place)
        return
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.Assign) and any("__all__" in ast.dump(target) for target in node.targets):
        return
    for change in _changes(node):
        yield place, change
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or (isinstance(node, ast.keyword) and node.arg == "stacklevel"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, place)


def _new(node: ast.expr, **fields: Any) -> str:
    """Return an expression's text with some fields changed."""
    copy = type(node)(**{**dict(ast.iter_fields(node)), **fields})
    return f"({ast.unparse(copy)})"


def _texty(*nodes: ast.expr) -> bool:
    return any(
        isinstance(node, ast.JoinedStr | ast.List | ast.Tuple)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        for node in nodes
    )


def _changes(node: ast.AST) -> Iterator[Any]:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPPOSITE and not _texty(left, right):
            kind, other = OPPOSITE[type(op)]
            yield kind, node, _new(node, op=other())
        case ast.BoolOp(op=op):
            yield "comparison", node, _new(node, op=OPPOSITE[type(op)][1]())
        case ast.Compare(ops=[op], comparators=[_]) if type(op) in OPPOSITE:
            kind, other = OPPOSITE[type(op)]
            yield kind, node, _new(node, ops=[other()])
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "sign", node, f"({ast.unparse(operand)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "comparison", node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield "constant", node, str(not value)
        case ast.Constant(value=int(value)):
            yield "off by one", node, str(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", node, str(2 * value if value else 1.0)
        case ast.keyword(arg="reduction", value=ast.Constant(value="mean" | "sum") as value):
            yield "reduction", value, '"sum"' if value.value == "mean" else '"mean"'
        case ast.Call():
            yield from _calls(node)
        case ast.AugAssign(op=op, target=target, value=value) if type(op) in OPPOSITE and not _texty(value):
            other = _new(ast.BinOp(target, OPPOSITE[type(op)][1](), value))
            yield OPPOSITE[type(op)][0], node, f"{ast.unparse(target)} = {other}"
        case ast.With(items=items):
            for item in items:
                if item.optional_vars is None:
                    kind = "no_grad" if "no_grad" in ast.dump(item) else "missing restore"
                    yield kind, item.context_expr, "__import__('contextlib').nullcontext()"
        case ast.Try(finalbody=[first, *rest]):
            yield "missing restore", (first, rest[-1] if rest else first), "pass"
        case ast.If(test=test, body=[ast.Raise()]):
            yield "missing check", test, "False"
        case ast.Expr(value=ast.Call(func=func)):
            name = _name(func)
            if name.endswith("_") and not name.endswith("__"):
                yield "in place", node, "pass"
            elif name in CACHES:
                yield "stale state", node, "pass"
            elif name.lstrip("_").startswith("check"):
                yield "missing check", node, "pass"
        case ast.Delete():
            yield "stale state", node, "pass"
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"))], value=value) if isinstance(
            value, ast.Constant | ast.List | ast.Dict
        ):
            yield "stale state", node, "pass"


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _calls(node: ast.Call) -> Iterator[Any]:
    func, args = node.func, node.args
    name = _name(func)
    if isinstance(func, ast.Attribute) and not args and name in {*COPIES, "detach"}:
        yield "missing copy", node, f"({ast.unparse(func.value)})"
    elif name in {*COPIES, "list", "dict"} and len(args) == 1 and not node.keywords:
        yield "missing copy", node, f"({ast.unparse(args[0])})"
    if name in REDUCTIONS and not (isinstance(func, ast.Name) and name in ("sum", "mean")):
        other = REDUCTIONS[name]
        replaced = ast.Name(other) if isinstance(func, ast.Name) else ast.Attribute(func.value, other)
        yield "reduction", func, ast.unparse(replaced)
    plain = len(args) == 2 and not any(isinstance(some, ast.Starred) for some in args)
    if plain and name not in SYMMETRIC and not _texty(*args) and ast.dump(args[0]) != ast.dump(args[1]):
        yield "swapped", (args[0], args[1]), f"{ast.unparse(args[1])}, {ast.unparse(args[0])}"
