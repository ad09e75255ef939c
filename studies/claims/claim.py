"""One row of the ledger, as it is declared before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lowland.study import Instrument
from studies.claims.imports import fingerprint
from studies.claims.runs import Arm, RunCache

__all__ = ["Claim", "Measure", "declaration"]

Measure = Callable[[RunCache, Mapping[str, Arm], int], dict[str, float]]
"""(runs, arms, seed) -> endpoint of every arm, and beside it, where they count, ``"passes ARM"``, ``"train loss ARM"``,
``"reached ARM"`` (1 or 0), ``"reach ARM"`` (share of the steps before the measured weights in which the treatment
acted), ``"edge ARM"`` (loss on the border of a surface) and ``"planted ARM"`` (what the measure says of the arm's own
data once an effect of the smallest size is planted in them)."""


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    name: str  # Name of the row and of its file
    group: str  # Method or paper
    statement: str  # What is claimed, in a sentence
    published: str  # The published number, with its setting; "no number published" where there is none
    endpoint: str  # What is measured, with its unit and the task
    smallest: float  # Smallest effect of interest, in the endpoint's unit
    # (treated, base) pairs; three names (treated, reference, base) ask whether the treated arm keeps three
    # quarters of the reference's gain.
    comparisons: tuple[tuple[str, ...], ...]
    measure: Measure  # Gives the numbers of a seed
    arms: Mapping[str, Arm] = field(default_factory=dict)  # What is trained
    higher: bool = True  # Whether the claim says that the treated arm is higher
    seeds: int = 20  # Seeds to run
    # Expected seconds per seed on one core, with the seed's share of a search; runs of rows in ``after`` are
    # not counted.
    seconds: float = 10.0
    after: tuple[str, ...] = ()  # Rows whose runs it reads as well, which run before it
    primary: bool = True  # Whether the row counts in the correction over the ledger
    note: str = ""  # What differs from the published setting
    module: str = ""  # Where the row stands; a change of what that module imports makes the row stale
    instrument: Instrument = field(kw_only=True)  # What the measure has to show before its answer counts
    # Row with a better instrument; this one's numbers are judged as they are and never measured again.
    better: str = field(default="", kw_only=True)
    # Expected standard deviation of the paired differences, and where it is from; for the power before it runs.
    spread: tuple[float, str] | None = field(default=None, kw_only=True)
    changed: str = field(default="", kw_only=True)  # What was changed after a result had been seen, and why

    @property
    def fingerprint(self) -> str:
        """Fingerprint of every file that the row's module imports."""
        return fingerprint(self.module)


def declaration(claim: Claim) -> dict[str, Any]:
    """Return what a row says before it runs, as plain values; stored with its numbers."""
    names = ("statement", "endpoint", "smallest", "higher", "seeds")
    return {name: getattr(claim, name) for name in names} | {"comparisons": [list(one) for one in claim.comparisons]}
