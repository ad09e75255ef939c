"""The spec of a run as its folder keeps it: a mapping, the text it was read from, and what it says of the method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

import yaml

_NOT_THE_METHOD: Final = (
    "seed",
    "folder",
    "threads",
    "snapshots_every_epochs",
    "snapshot_dtype",
    "checkpoint_every_steps",
    "critical_every_steps",
)
"""Keys in which the seeds of one method may differ."""


def _named(found: Any) -> Any:
    # keys of several types cannot be sorted, and dates are no keys of JSON
    if isinstance(found, dict):
        return {str(key): _named(value) for key, value in found.items()}
    return [_named(value) for value in found] if isinstance(found, list) else found


class Spec(Mapping[str, Any]):
    """What ``spec.yaml`` says, parsed when it is first looked at; empty where the text holds no mapping."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    @cached_property
    def _content(self) -> dict[str, Any]:
        try:
            found = _named(yaml.safe_load(self.text))
        except (yaml.YAMLError, ValueError, RecursionError):  # no YAML, a date that does not exist, one in itself
            return {}
        return found if isinstance(found, dict) else {}

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"Spec({self._content!r})"

    def part(self, name: str) -> dict[str, Any]:
        """Return one of its nested parts; empty where there is none."""
        found = self.get(name)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        found = self.get("seed")
        return found if isinstance(found, int) else None

    @property
    def method(self) -> str:
        """For instance ``"SAM + LLR"``; plain methods are named after their optimizer."""
        optimizer, loss = self.part("optimizer"), self.part("loss")
        wrapped = [str(part["method"]) for part in (optimizer, loss) if part.get("method") not in (None, "none")]
        names = wrapped or ([str(optimizer["name"])] if "name" in optimizer else [])
        return " + ".join(name.upper() for name in names)

    @property
    def without_seed(self) -> str:
        """Text that is equal for the seeds of one method, and for them alone; "" where nothing is known."""
        kept = {key: value for key, value in self.items() if key not in _NOT_THE_METHOD}
        return json.dumps(kept, sort_keys=True, default=str) if kept else ""

    def identity(self, name: str) -> str:
        """Return what identifies the ``"data"`` or the plain ``"loss"``, the method around it left out."""
        part = self.part(name)
        if name == "loss":
            part = {key: value for key, value in part.items() if key not in ("method", "options")}
        return json.dumps(part, sort_keys=True, default=str) if part else ""
