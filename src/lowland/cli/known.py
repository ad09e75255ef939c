"""``lowland list``: show what can be named."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from lowland.cli.output import Shown
from lowland.core.names import unknown
from lowland.workflows.checks import ENGINES
from lowland.workflows.parse import Call
from lowland.workflows.recipe import read_recipe, recipe_names

_METHODS: Final = ("optimizers", "losses")
_WITH_TORCH: Final = ("models", "data", "augmentations", "torch-optimizers", *_METHODS, "reshapers", "probes")
_KINDS: Final = (*_WITH_TORCH, "metrics", "engines", "recipes")


def known(kinds: list[str] | None = None) -> dict[str, dict[str, str]]:
    """Show the known models, data sets, methods and recipes.

    Args:
        kinds: What to list: models, data, augmentations, torch-optimizers, optimizers, losses, reshapers, probes,
            metrics, engines, recipes; methods are optimizers and losses; none lists all.

    Returns:
        Kind -> name -> what it is.
    """
    for kind in kinds or ():
        if kind not in (*_KINDS, "methods"):
            raise unknown("kinds", kind, (*_KINDS, "methods"))
    chosen = [part for kind in kinds or _KINDS for part in (_METHODS if kind == "methods" else (kind,))]
    return {kind: _known(kind) for kind in chosen}


def show_known(found: dict[str, dict[str, str]], call: Call) -> Shown:
    """Show one row per name."""
    rows = [[kind, name, text] for kind, entries in found.items() for name, text in entries.items()]
    return Shown(found, (), [["kind", "name", "what it is"], *rows])


def _known(kind: str) -> dict[str, str]:
    if kind == "recipes":
        return {name: read_recipe(name).about for name in recipe_names()}
    if kind == "engines":
        return dict.fromkeys(ENGINES, "computes surveys and studies")
    if kind == "metrics":
        return {"accuracy": "Share of right answers; there by itself where the data have classes."}
    from lowland import data, losses, models, optim
    from lowland.workflows.build import PROBES, torch_optimizers

    registries: dict[str, Mapping[str, Any]] = {
        "models": models.MODELS,
        "data": data.DATASETS,
        "augmentations": data.AUGMENTATIONS,
        "optimizers": optim.METHODS,
        "losses": losses.METHODS,
        "reshapers": losses.RESHAPERS,
        "probes": PROBES,
    }
    if kind == "torch-optimizers":
        return {name: f"torch.optim.{found.__name__}" for name, found in sorted(torch_optimizers().items())}
    return {name: _line(entry) for name, entry in sorted(registries[kind].items())}


def _line(entry: Any) -> str:
    return (inspect.getdoc(getattr(entry, "func", entry)) or "").split("\n")[0]
