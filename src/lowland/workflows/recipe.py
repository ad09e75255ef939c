"""Recipes: the papers' training settings by name, and the rule that makes a small run of any of them.

A recipe is a YAML file with the keys ``about``, ``source``, ``published``, ``unknown``, ``differs`` and ``run``; the
last one holds what a spec of `lowland fit` holds. Those of Lowland lie in the folder ``recipes`` beside this file.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import yaml

from lowland.core.errors import InputError, require
from lowland.core.names import find, unknown
from lowland.workflows.parse import from_text
from lowland.workflows.specs import FitSpec
from lowland.workflows.words import mapping_of, read_text

_IMAGES: Final = ("cifar10", "cifar100", "svhn", "mnist", "folders", "digits")
_WIDTHS: Final = ("width", "factor", "growth", "widening")
_TRAIN, _SIDE, _PUBLISHED_SIDE = 896, 8, 32  # digits against the images of the papers' CIFAR settings


@dataclass(frozen=True)
class Recipe:
    """Settings of a published run."""

    name: str  # The name it is called by
    about: str  # What it trains
    source: str  # Where the settings come from
    published: str  # What the source reports
    unknown: list[str]  # What the source leaves open
    differs: list[str]  # Where a run of ours differs from the source's
    run: dict[str, Any]  # Values of `FitSpec`, as read from YAML

    def spec(self) -> FitSpec:
        """Return the run's spec, checked."""
        return _spec(self.run)


def recipe_names() -> list[str]:
    """Return the names of Lowland's recipes, sorted."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: Its name, or the path of a file of the same form.

    Returns:
        The recipe.

    Raises:
        InputError: If there is none of that name or the file is not a recipe.

    Example:
        >>> read_recipe("li-resnet56").spec().epochs
        300
    """
    path = Path(name)
    if path.is_file():
        text, called = read_text(path), path.stem
    elif name in recipe_names():
        text, called = (_folder() / f"{name}.yaml").read_text(encoding="utf-8"), name
    else:
        raise unknown("config", name, recipe_names())
    found = mapping_of(text, name=name)
    keys = [field.name for field in dataclasses.fields(Recipe)][1:]
    if set(found) != set(keys) or not isinstance(found["run"], dict):
        raise InputError("config", f"must have the keys of a recipe ({', '.join(keys)})", name)
    return Recipe(called, **found)


def recipe_abouts() -> dict[str, str]:
    """Return what each recipe trains: its first line, since a parser of YAML takes 0.1 s for all of them."""
    first = {
        name: (_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0] for name in recipe_names()
    }
    return {name: str(mapping_of(line)["about"]) for name, line in first.items()}


def small(spec: FitSpec) -> FitSpec:
    """Return a run of the same kind that takes two CPU cores minutes, on data that are there offline.

    1. The data are 896 training digits of 8 x 8 pixels. (Of all 897, a batch of 32 would leave one image alone, which
       batch norm cannot take where a network has come down to one pixel.)
    2. Widths (width, factor, growth, widening) are a quarter, rounded up; VGG's are divided by four. Depths stay.
    3. Epochs, milestones and warm-up are a tenth; of epochs at least one.
    4. Batches are a quarter, and at most a sixth of the training images.
    5. Lengths in pixels (padding of the crop, size of cutout) shrink with the images, to at least 1; no flips, since a
       mirrored digit is another sign.
    6. It runs on the CPU. Everything else is as in the recipe: optimizer, method, learning rate, weight decay.

    Args:
        spec: The run of a recipe, or any run on images.

    Returns:
        A new spec.

    Raises:
        InputError: If the data are not images.

    Example:
        >>> made = small(read_recipe("li-resnet56").spec())
        >>> made.epochs, made.batch_size, made.schedule.milestones, made.model.options["width"]
        (30, 32, [15.0, 22.5, 27.5], 4)
    """
    require(spec.data.name in _IMAGES, "scale", f"must be full but for images ({', '.join(_IMAGES)})", spec.data.name)
    options = {"train_size": _TRAIN} | {k: v for k, v in spec.data.options.items() if k == "label_noise"}
    schedule = dataclasses.replace(
        spec.schedule, milestones=[epoch / 10 for epoch in spec.schedule.milestones], warmup=spec.schedule.warmup / 10
    )
    return dataclasses.replace(
        spec,
        model=dataclasses.replace(spec.model, options=_narrow(spec.model.name, spec.model.options)),
        data=dataclasses.replace(spec.data, name="digits", options=options),
        schedule=schedule,
        augment=[_shrunk(part) for part in spec.augment if part not in ("flip", {"name": "flip"})],
        epochs=max(1, round(spec.epochs / 10)),
        batch_size=max(1, min(round(spec.batch_size / 4), _TRAIN // 6)),
        accelerator="cpu",
    )


def expand(arguments: Sequence[str]) -> list[str]:
    """Replace recipes in a command's arguments by their values; what stands after ``--config`` still wins."""
    words = [part for word in arguments for part in _parts(word)]
    scaled = ("--scale", "small") in pairwise(words)
    places = [i + 1 for i, word in enumerate(words[:-1]) if word == "--config"]
    require(not scaled or places, "scale", "must come with a --config whose run is made small")
    folder = ""
    for place in places:
        name, run = _run_of(words[place])
        if scaled:
            made = dataclasses.asdict(small(_spec(run)))
            changed = ("model", "data", "schedule", "augment", "epochs", "batch_size", "accelerator")
            run = {**run, **{key: made[key] for key in changed}}
        if name or scaled:
            words[place] = yaml.safe_dump(run, sort_keys=False)
        folder = f"runs/{name}{'-small' if scaled else ''}" if name else folder
    return ["--folder", folder, *words] if folder else words


def _parts(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith(("--config=", "--scale=")) else [word]


def _run_of(config: str) -> tuple[str, dict[str, Any]]:
    # the name of the recipe ("" for a plain spec) and its values
    path = Path(config)
    if not path.is_file():
        looks_like_path = "/" in config or config.endswith((".yaml", ".yml"))
        require(not looks_like_path, "config", "must be a YAML file or the name of a recipe", config)
    elif "run" not in (found := mapping_of(read_text(path), name=config)):
        return "", found
    recipe = read_recipe(config)
    return recipe.name, recipe.run


def _spec(run: Mapping[str, Any]) -> FitSpec:
    made: FitSpec = from_text(FitSpec, yaml.safe_dump(dict(run), sort_keys=False)).spec
    return made


def _folder() -> Any:
    return files("lowland.workflows") / "recipes"


def _narrow(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from lowland.models import MODELS

    known = inspect.signature(find("model.name", name, MODELS)).parameters
    made = dict(options)
    for key in _WIDTHS:
        if key in known:
            made[key] = max(1, math.ceil(made.get(key, known[key].default) / 4))
    if "narrow" in known:
        made["narrow"] = 4 * made.get("narrow", known["narrow"].default)
    return made


def _shrunk(part: str | dict[str, Any]) -> str | dict[str, Any]:
    published = {"crop": ("padding", 4), "cutout": ("size", 16)}
    name = part.get("name", "") if isinstance(part, dict) else part
    if name not in published:
        return part
    key, default = published[name]
    options: dict[str, Any] = part if isinstance(part, dict) else {"name": part}
    return {**options, key: max(1, options.get(key, default) * _SIDE // _PUBLISHED_SIDE)}
