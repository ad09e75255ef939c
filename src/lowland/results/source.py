"""What a run asks of whatever knows its weights; implemented by `lowland.workflows.sources`, which needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lowland.core.settings import RiskSpec


class Source(ABC):
    """Where weights, data and loss of a run come from: the part that needs torch."""

    @abstractmethod
    def model(self, weights: str, data: Any = None) -> Any:
        """Return a new network in evaluation mode; the data may be handed in where they are loaded already."""

    @abstractmethod
    def load(self, model: Any, weights: str) -> None:
        """Put the weights of that name into a network of this kind."""

    @abstractmethod
    def other(self, path: str, weights: str) -> Any:
        """Return a new network with the weights of another run, or of another checkpoint of this model."""

    @abstractmethod
    def data(self) -> Any:
        """Return the data: `lowland.data.DataSplits`, or what there is by the names of their parts."""

    def called(self, split: str) -> str:
        """Return what a part of the data is called in results: as it is asked for, or "data" where it has no name."""
        return split

    @abstractmethod
    def criterion(self) -> Any:
        """Return the plain loss, without a method around it."""

    @abstractmethod
    def risks(self, splits: Sequence[str], options: RiskSpec, *, model: Any = None) -> Mapping[str, Any]:
        """Return the risks of parts of the data, all of one model, as `lowland.results.Run.risks` describes them."""
