"""What an optimizer says of itself: its parts with their settings, its bases with their groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lowland.optim.holder import Holder
from lowland.optim.parts import Part

_RATES = ("lr", "momentum", "betas", "weight_decay")
"""What of a group is shown."""
_SHOWN = 3
"""Most groups in a line."""


def nested(names: Iterable[str]) -> str:
    """Return names, the outermost first, as they are written around one another: ``EMA(SAM)``; none twice."""
    outside_in = list(dict.fromkeys(names))
    return "(".join(outside_in) + ")" * (len(outside_in) - 1)


def in_words(held: Holder) -> str:
    """Return an optimizer in one line, such as ``SAM(SGD): rho=0.05; SGD lr=0.1 momentum=0.9, 62 tensors``."""
    rows, bases = rows_of(held), ", ".join(type(base).__name__ for base in held.bases)
    parts, groups = rows[: len(held.parts)], rows[len(held.parts) :]
    told = [row["settings"] for row in parts]
    told += [f"{row['optimizer']} {row['settings']}, {row['tensors']} tensors" for row in groups[:_SHOWN]]
    told += [f"{len(groups) - _SHOWN} more groups"] if len(groups) > _SHOWN else []
    return f"{nested([*(row['optimizer'] for row in parts), bases])}: " + "; ".join(filter(None, told))


def rows_of(held: Holder) -> list[dict[str, str]]:
    """Return a row for each part, the outermost first, and for each group of a base."""
    parts = [
        {"optimizer": part.name, "settings": " ".join(f"{name}={value}" for name, value in settings_of(part).items())}
        for part in reversed(held.parts)
    ]
    groups = [
        {
            "optimizer": type(base).__name__,
            "settings": " ".join(f"{name}={_short(group[name])}" for name in _RATES if _given(group, name)),
            "tensors": str(len(group["params"])),
        }
        for base in held.bases
        for group in base.param_groups
    ]
    return [*parts, *groups]


def settings_of(part: Part) -> dict[str, Any]:
    """Return the settings of a part that fit into a line."""
    plain = bool | int | float | str
    return {n: v for n, v in vars(part).items() if not n.startswith("_") and isinstance(v, plain) and v != ""}


def _given(group: Mapping[str, Any], name: str) -> bool:
    value = group.get(name)
    return isinstance(value, tuple) or (isinstance(value, int | float) and not isinstance(value, bool) and value != 0)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
