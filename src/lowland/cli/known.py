"""``lowland list``: show what can be named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from lowland.cli.described import Description, describe, rows_of, wrapped
from lowland.cli.output import Shown
from lowland.core import names
from lowland.core.errors import InputError, require
from lowland.core.names import nearest_name
from lowland.workflows.parse import Call
from lowland.workflows.recipe import recipe_abouts

_METHODS: Final = ("optimizers", "losses")
_DESCRIBED: Final = (
    *("optimizers", "losses", "models", "data", "augmentations", "reshapers", "probes", "criteria", "torch-optimizers"),
)
"""Kinds whose names have options; of a name that two have, the first is meant."""
_ENGINES: Final = {
    "serial": "This process",
    "processes:N": "N processes of this machine",
    "ray": "The Ray cluster that this process belongs to; without one, a cluster on this machine",
    "ray:N": "The same, with N workers",
    "ray://HOST:PORT": "A Ray cluster, from outside",
}
_KINDS: Final[dict[str, Callable[[], Mapping[str, Any]]]] = {
    "models": lambda: names.MODELS,
    "data": lambda: names.DATASETS,
    "augmentations": lambda: names.AUGMENTATIONS,
    "torch-optimizers": names.torch_optimizers,
    "optimizers": lambda: names.OPTIMIZERS,
    "losses": lambda: names.LOSSES,
    "reshapers": lambda: names.RESHAPERS,
    "criteria": lambda: names.CRITERIA,
    "probes": lambda: names.PROBES,
    "metrics": lambda: names.METRICS,
    "engines": lambda: _ENGINES,
    "recipes": recipe_abouts,
}


def known(kinds: list[str] | None = None) -> dict[str, dict[str, str] | Description]:
    """Show the known models, data sets, methods and recipes, or what one of them takes.

    Args:
        kinds: What to list: models, data, augmentations, torch-optimizers, optimizers, losses, reshapers, criteria,
            probes, metrics, engines, recipes; methods are optimizers and losses; none lists all. The name of a method,
            model or data set shows its options, their defaults and where these come from.

    Returns:
        Kind -> name -> what it is; or name -> its options.
    """
    whose = {name: kind for kind in reversed(_DESCRIBED) for name in _KINDS[kind]()}
    for kind in kinds or ():
        if kind not in (*_KINDS, "methods", *whose):
            near = nearest_name(kind, (*_KINDS, "methods", *whose))
            said = f"did you mean {near!r}? " if near else ""
            advice = f"{said}Known: {', '.join(sorted((*_KINDS, 'methods')))}, and every name that these list"
            raise InputError("kinds", "must be a known kind or name", kind, advice)
    several = len({kind in (*_KINDS, "methods") for kind in kinds or ()}) > 1
    require(not several, "kinds", "must be kinds, or names of one of them, not both", kinds)
    chosen = [part for kind in kinds or _KINDS for part in (_METHODS if kind == "methods" else (kind,))]
    found: dict[str, dict[str, str] | Description] = {}
    for kind in chosen:
        if kind in _KINDS:
            entries = _KINDS[kind]()
            about = entries.about if isinstance(entries, names.Registry) else entries.__getitem__
            found[kind] = {name: str(about(name)).replace("`", "") for name in sorted(entries)}
        else:
            found[kind] = describe(whose[kind], kind, _KINDS[whose[kind]]()[kind])
    return found


def show_known(found: dict[str, dict[str, str] | Description], call: Call) -> Shown:
    """Show one row per name, or one per option."""
    described = [entry for entry in found.values() if isinstance(entry, Description)]
    listed = {kind: entries for kind, entries in found.items() if isinstance(entries, dict)}
    rows = [[kind, name, text] for kind, entries in listed.items() for name, text in entries.items()]
    table = rows_of(described) if described else [["kind", "name", "what it is"], *rows]
    result = {name: asdict(entry) if isinstance(entry, Description) else entry for name, entry in found.items()}
    return Shown(result, [line for entry in described for line in _said(entry)], table)


def _said(entry: Description) -> list[str]:
    lines = ["", wrapped(f"{entry.name}: {entry.what}")]
    lines += [wrapped(f"Source: {entry.source}")] if entry.source else []
    return [*lines, *([wrapped(f"As flags: {entry.typed}")] if entry.typed else [])]
