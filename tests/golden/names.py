"""Words that version 0.1.0 wrote another way: what it left is read with them."""

from __future__ import annotations

SPELLED = {"normalised": "normalized"}
"""Words in results that are spelled another way since version 0.1.0."""

KEYS = {"colour_map": "color_map"}
"""Keys in YAML files that have another name since version 0.1.0: old files must be edited there."""


def respelled(text: str) -> str:
    """Return a text of 0.1.0 as it is written now."""
    for old, new in SPELLED.items():
        text = text.replace(old, new)
    return text
