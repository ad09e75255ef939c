"""Every name of Lowland that these checks use and that may move: a rename is an edit of one line here."""

from __future__ import annotations

import importlib
from typing import Any


def either(*places: str) -> Any:
    """Return the first of some ``module:name`` that exists."""
    for place in places:
        module, name = place.split(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {', '.join(places)} exists")


summarize = either("lowland.curvature:summarize", "lowland.curvature:survey")
logits_normalized = either("lowland.curvature:logits_normalized", "lowland.curvature:logits_normalised")
measurement_interval = either("lowland.curvature:measurement_interval", "lowland.curvature:interval")
open_result = either("lowland.results:open", "lowland.store:open")
save_result = either("lowland.results:save", "lowland.store:save")
SnapshotReader = either("lowland.results:SnapshotReader", "lowland.store:SnapshotReader")
open_run = either("lowland:open", "lowland.report:read_run")
command = either("lowland.cli.main:main")
COMMANDS = either("lowland.cli.main:COMMANDS")

SPELLED = {"normalised": "normalized"}
"""Words in results that are spelled another way since version 0.1.0."""

KEYS = {"colour_map": "color_map"}
"""Keys in YAML files that have another name since version 0.1.0: old files must be edited there."""


def respelled(text: str) -> str:
    """Return a text of 0.1.0 as it is written now."""
    for old, new in SPELLED.items():
        text = text.replace(old, new)
    return text
