"""What is stored of a plan, read for pictures and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from lowland.report import t_interval
from lowland.report.statistics import Interval
from lowland.results import read_li_hdf5
from studies.figure.plan import LEARNED, MNIST, Net, Size, Survey, plan
from studies.figure.work import Places, stored

__all__ = ["Entry", "Record"]


@dataclass(frozen=True)
class Entry:
    """A survey and what is stored of it."""

    survey: Survey
    content: dict[str, Any]

    def number(self, name: str) -> float:
        """Return a number of the surface or of the training."""
        numbers, training = self.content["numbers"], self.content["training"]
        return float(numbers[name] if name in numbers else training[name])

    @property
    def surveyed(self) -> bool:
        """Whether there is a surface; a network that has not learned has none."""
        return "promise" in self.content

    @property
    def learned(self) -> bool:
        """Whether the surface lies around a solution: only then it says something about one."""
        return self.number("center") <= LEARNED


@dataclass(frozen=True)
class Record:
    """All surveys of a plan with what is stored of them."""

    size: Size = MNIST
    places: Places = field(default_factory=Places)

    @property
    def surveys(self) -> list[Survey]:
        """The whole plan."""
        return plan(self.size)

    @property
    def entries(self) -> list[Entry]:
        """What is stored, in the order of the plan."""
        found = [(survey, stored(survey, self.size, self.places)) for survey in self.surveys]
        return [Entry(survey, content) for survey, content in found if content is not None]

    def surface(self, survey: Survey) -> xr.Dataset:
        """Read a stored surface."""
        return read_li_hdf5(self.places.store / f"{survey.name}.h5")

    def over_seeds(self, depth: int, skip: bool, width: int) -> list[Entry]:
        """Return the plain surveys of one network, seed by seed."""
        nets = [Net(depth, skip, width, seed) for seed in range(self.size.seeds)]
        return [e for e in self.entries if e.survey.part in ("pairs", "width") and e.survey.net in nets]


def interval(entries: Sequence[Entry], name: str) -> Interval:
    """Return the mean of a number over seeds and its interval."""
    return t_interval([entry.number(name) for entry in entries if entry.surveyed])
