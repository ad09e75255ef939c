"""What a run asks of whatever knows its weights; implemented by `lowland.workflows.sources`, which needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

__all__ = ["BatchNorm", "Source"]

BatchNorm: TypeAlias = Literal["running", "batch", "recalibrated"]
"""Which statistics normalize in a risk."""


class Source(Protocol):
    """Where weights, data and loss of a run come from: the part that needs torch."""

    def model(self, weights: str) -> Any:
        """Return a new network in evaluation mode with the weights of that name."""

    def load(self, model: Any, weights: str) -> None:
        """Put the weights of that name into a network of this run."""

    def other(self, path: str, weights: str) -> Any:
        """Return a new network with the weights of another run, or of another checkpoint of this model."""

    def data(self) -> Any:
        """Return the data."""

    def criterion(self) -> Any:
        """Return the plain loss, without a method around it."""

    def risks(
        self,
        splits: Sequence[str],
        *,
        model: Any,
        weights: str,
        split: str,
        samples: int | None,
        seed: int,
        batch_size: int,
        batch_norm: BatchNorm,
    ) -> Mapping[str, Any]:
        """Return the risks of parts of the data, as `lowland.results.Run.risks` describes them."""
