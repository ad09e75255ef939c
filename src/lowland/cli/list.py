"""``lowland list``: show the known models, data sets, methods and recipes."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lowland.cli.output import Output
from lowland.core.names import unknown
from lowland.workflows.recipe import read_recipe, recipe_names

__all__ = ["main"]

_KINDS = ("models", "data", "augmentations", "optimizers", "losses", "engines", "recipes")
_METHODS = ("optimizers", "losses")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "lowland list", description="Show the known models, data sets, methods and recipes."
    )
    parser.add_argument(
        "kinds", nargs="*", help=f"what to list: {', '.join(_KINDS)}; methods are optimizers and losses (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document (default: a table)")
    chosen = parser.parse_args(list(arguments))
    for kind in chosen.kinds:
        if kind not in (*_KINDS, "methods"):
            raise unknown("kinds", kind, (*_KINDS, "methods"))
    kinds = [part for kind in chosen.kinds for part in (_METHODS if kind == "methods" else (kind,))]
    found = {kind: _known(kind) for kind in kinds or _KINDS}
    rows = [[kind, name, text] for kind, entries in found.items() for name, text in entries.items()]
    Output(as_json=chosen.json).result(found, [], [["kind", "name", "what it is"], *rows])
    return 0


def _known(kind: str) -> dict[str, str]:
    if kind == "recipes":
        return {name: read_recipe(name).about for name in recipe_names()}
    import torch

    from lowland import data, engine, losses, models, optim
    from lowland.workflows.build import methods

    registries: dict[str, Mapping[str, Any]] = {
        "models": models.MODELS, "data": data.DATASETS, "augmentations": data.AUGMENTATIONS,
        "optimizers": methods(optim, torch.optim.Optimizer), "losses": methods(losses, losses.TrainingLoss),
    }  # fmt: skip
    if kind == "engines":
        return dict.fromkeys(engine.ENGINES, "computes surveys and studies")
    return {name: _line(entry) for name, entry in sorted(registries[kind].items())}


def _line(entry: Any) -> str:
    return (inspect.getdoc(getattr(entry, "func", entry)) or "").split("\n")[0]
