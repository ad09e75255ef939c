"""Changes of a run's spec, as a study makes them: checked like values of a file, before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lowland.core.errors import InputError
from lowland.core.names import unknown
from lowland.workflows.options import is_known, is_nested, options_of
from lowland.workflows.parse import parse
from lowland.workflows.specs import FitSpec
from lowland.workflows.study import Changes, StudySpec

METHOD_KEYS: Final = ("optimizer", "loss", "schedule", "clip")
"""What a method may change; data, model, length and the rule that chooses the epoch are the same for all."""

VARIANT_KEYS: Final = ("model", "data", "augment", "epochs", "batch_size", "schedule", "optimizer", "loss")
"""What may differ between the parts of a study; methods are compared inside a part only."""


def variants(spec: StudySpec) -> dict[str, Changes]:
    """Return the parts of a study."""
    return dict(spec.variants) or {"": {}}


def run_spec(spec: StudySpec, variant: str, method: str, settings: Changes) -> FitSpec:
    """Return the run of a method: the base, changed by the part, the method, and what the search has chosen."""
    base = apply_changes(spec.base, variants(spec)[variant], f"variants.{variant}", VARIANT_KEYS)
    return apply_changes(
        apply_changes(base, spec.methods[method], f"methods.{method}", METHOD_KEYS), settings, "search", METHOD_KEYS
    )


def check_methods(spec: StudySpec) -> None:
    """Check what methods and parts of a study change against the run's spec."""
    spec.reference()
    for variant, method in itertools.product(variants(spec), spec.methods):
        run_spec(spec, variant, method, {})


def check_changes(spec: StudySpec) -> None:
    """Check every change of a study against the run's spec, those of the search too."""
    check_methods(spec)
    for variant, method in itertools.product(variants(spec), spec.methods):
        for key, values in (spec.search.grid | spec.search.grids.get(method, {})).items():
            for value in values:
                run_spec(spec, variant, method, {key: value})


def apply_changes(base: FitSpec, changes: Changes, where: str, allowed: tuple[str, ...] | None = None) -> FitSpec:
    """Return a run with some values changed.

    Args:
        base: The run.
        changes: Dotted key -> value, such as ``{"optimizer.method": "sam", "optimizer.options.rho": 0.1}``.
        where: What the changes are called in an error.
        allowed: First words that may be changed. Default: all.

    Returns:
        Another run, checked like one from a file.

    Raises:
        InputError: If a key is unknown or not allowed, or a value has the wrong type.

    Example:
        >>> from lowland.workflows import FitSpec
        >>> apply_changes(FitSpec(), {"optimizer.method": "sam"}, "methods.SAM").optimizer.method
        'sam'
    """
    if not changes:
        return base
    tree, known = dataclasses.asdict(base), options_of(FitSpec)
    for key, value in changes.items():
        first = key.split(".")[0]
        if allowed is not None and first not in allowed and first in tree:
            advice = "data, model, length and the rule that chooses the epoch are the same for all methods"
            raise InputError(f"{where}.{key}", f"must be one of {', '.join(allowed)}", first, advice)
        *path, last = key.split(".")
        place: Any = tree if is_known(key, known) else None
        for word in path:
            place = place.setdefault(word, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise unknown(f"{where}.{key}", key, (name for name in known if not is_nested(name, known)))
        place[last] = value
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in _leaves(tree, known)}
    return parse(FitSpec, [word for name, value in words.items() for word in (f"--{name}", value)])


def _leaves(tree: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        nested = isinstance(value, dict) and is_nested(prefix + name, known)
        yield from _leaves(value, known, f"{prefix}{name}.") if nested else [(prefix + name, value)]
