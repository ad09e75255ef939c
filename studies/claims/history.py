"""What the ledger said before, and what of a row was changed after its result had been seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from studies.claims.claim import Claim, declaration
from studies.claims.record import Record

__all__ = ["Edition", "differences", "last_edition", "words_of"]

EDITIONS: Final = Path(__file__).resolve().parent / "editions"


@dataclass(frozen=True)
class Edition:
    """The ledger of a day: what every row declared, and what it answered."""

    date: str  # Day of the page
    rows: dict[str, dict[str, Any]]  # Row -> "declared", and "answers" with comparison, difference and answer

    def answer(self, row: str, words: str) -> str:
        """Return what a comparison ended with; "" where the edition has none."""
        known = self.rows.get(row, {}).get("answers", [])
        return next((str(one["answer"]) for one in known if one["comparison"] == words), "")


def last_edition() -> Edition:
    """Return the newest edition that is kept."""
    path = max(EDITIONS.glob("*.json"))
    content = json.loads(path.read_text(encoding="utf-8"))
    return Edition(content["date"], content["rows"])


def words_of(names: tuple[str, ...]) -> str:
    """Return a comparison in words."""
    if len(names) == 2:
        return f"{names[0]} against {names[1]}"
    return f"{names[0]} keeps three quarters of {names[1]}'s gain over {names[2]}"


def differences(claim: Claim, record: Record | None, edition: Edition) -> list[str]:
    """Return what a row declares otherwise than when its stored numbers were measured.

    Records from before declarations were stored with them were declared as the edition has it.
    """
    if record is None:
        return []
    before = record.declared or edition.rows.get(claim.name, {}).get("declared", {})
    now = declaration(claim)
    return [f"{name} {before[name]!r}, now {now[name]!r}" for name in before if before[name] != now.get(name)]
