"""The inner loop: many points of a survey, written in place from a saved base, measured on fixed batches.

With data on the device, each point is set once and all batches run at it; with data that stream, each batch is read
once for a whole chunk of points. Either way a point and a batch meet in the same state, so that the order changes no
bit. Sums stay on the device; one transfer per chunk brings them to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from lowland.core.batches import batch_bytes
from lowland.core.contexts import weights_restored
from lowland.core.loaders import RESIDENT_BYTES
from lowland.core.moments import Estimate, Tally, estimates
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.landscape.folding import folded
from lowland.landscape.layout import laid_out, rebatched
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe
from lowland.landscape.tolerance import Tolerance


def _nothing() -> None:
    """Follow a move where nothing was computed from the weights."""


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """How points are computed: decided once by the driver, stored, and obeyed by every worker and every resume."""

    chunk: int = 1  # Points handed out together
    batch_size: int | None = None  # Samples per forward pass; None keeps the risk's own batches
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"  # Layout of convolution weights and images
    # Type in which forward passes run; weights are moved and sums kept in their own types.
    precision: Literal["float32", "bfloat16"] = "float32"
    folded: bool = False  # Convolutions compute the batch norms that follow them

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[Callable[[], None]]:
        """Let a model that is in the measured state compute so while inside; yield what follows each of its moves."""
        with laid_out(model, self.memory_format), folded(model) if self.folded else nullcontext(_nothing) as renew:
            yield renew


@dataclass(frozen=True, slots=True)
class Request:
    """How points may be computed, as the user asks for it."""

    batch_size: int | Literal["auto"] | None = None
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    refined: Tolerance | None = None

    @property
    def tolerance(self) -> Tolerance:
        """The tolerance that bfloat16 is held against."""
        return self.refined or Tolerance()


@dataclass(frozen=True, slots=True)
class Point:
    """Where to measure."""

    coordinates: tuple[float, ...]  # One number per axis
    group: int = 0  # Which of several planes or lines
    warm_start: Mapping[str, Any] | None = None  # What the parent's row hands on; None where there is none


@dataclass(frozen=True, slots=True)
class Row:
    """What a point gave."""

    values: Mapping[str, Any]  # Measured numbers by name, one per split where there are several
    warm_start: Mapping[str, Any]  # Arrays by name that the point's children get


@dataclass(slots=True)
class _Place:
    """What a worker holds: the saved base, what moves the weights and what follows, the data, the center's values."""

    task: SurfaceTask
    base: list[Tensor]
    movers: list[Callable[[Sequence[float]], None]]
    renew: Callable[[], None]
    data: dict[str, list[Batch] | None]
    center: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)


@dataclass(frozen=True)
class SurfaceTask:
    """What a survey measures: points of lines or planes through one model, by risks on several splits."""

    risks: Mapping[str, EmpiricalRisk]  # Risk of each split by name; all of the same model and batch-norm mode
    planes: tuple[Plane, ...]  # The lines or planes; a point's ``group`` says which
    probes: tuple[Probe, ...] = ()  # What is measured beyond the risks' own metrics
    kernel: ComputeSettings = ComputeSettings()  # How points are computed
    # Also give the standard error of each loss's difference to the loss at the origin; or of these metrics' differences
    paired: bool | tuple[str, ...] = True

    @property
    def first(self) -> EmpiricalRisk:
        """The risk whose model, batch-norm mode and recalibration batches are used."""
        return next(iter(self.risks.values()))

    @property
    def differing(self) -> tuple[str, ...]:
        """The metrics whose differences to the origin have errors."""
        return ("loss",) * self.paired if isinstance(self.paired, bool) else self.paired

    @property
    def device(self) -> torch.device:
        """Where points are computed."""
        return self.first.device

    @contextmanager
    def setup(self) -> Generator[_Place]:
        """Bring the model into the measured state, save its base, and restore it bit for bit at the end."""
        model = self.first.model
        with ExitStack() as stack:
            stack.enter_context(self.first.prepared())
            renew = stack.enter_context(self.kernel.applied(model))
            space = self.planes[0].space(model)
            for plane in self.planes:
                plane.check_origin(space)
            base = stack.enter_context(weights_restored(space))
            place = _Place(
                task=self,
                base=base,
                movers=[plane.mover(model, space, base) for plane in self.planes],
                renew=renew,
                data={name: self._batches(risk) for name, risk in self.risks.items()},
            )
            if self.paired:
                place.center = self._center(place)
            yield place

    @torch.no_grad()
    def measure(self, place: _Place, points: Sequence[Point]) -> list[Row]:
        """Return the rows of points."""
        tallies = [{name: Tally() for name in self.risks} for _ in points]
        probed: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}) for _ in points]
        streams = any(held is None for held in place.data.values())
        together = streams and not self.probes and self.first.batch_norm != "recalibrated"
        groups = [list(range(len(points)))] if together else [[k] for k in range(len(points))]
        for group in groups:
            if len(group) == 1:
                self._set(place, points[group[0]])
            for split, risk in self.risks.items():
                with risk.ranks.together():
                    self._pass(place, split, [points[k] for k in group], [tallies[k][split] for k in group])
            for k in [] if together else group:
                probed[k] = self._probe(points[k].warm_start)
        return self._rows(tallies, probed)

    def _set(self, place: _Place, point: Point) -> None:
        """Write the weights (and buffers) of a point, and recalibrate if the risk asks for it."""
        place.movers[point.group](point.coordinates)
        place.renew()
        self.first.recalibrate()

    def _pass(self, place: _Place, split: str, points: list[Point], tallies: list[Tally]) -> None:
        """Run one pass over a split's data for all points, adding to their tallies."""
        held = place.data[split]
        for number, batch in enumerate(self._streamed(self.risks[split]) if held is None else held):
            for point, tally in zip(points, tallies, strict=True):
                if len(points) > 1:
                    self._set(place, point)
                self._add(place, split, number, batch, tally)

    def _add(self, place: _Place, split: str, number: int, batch: Batch, tally: Tally) -> None:
        with computing(self.first.device, self.kernel.precision):
            measured = self.risks[split].measure(batch)
        for name, center in place.center.get(split, {}).items():
            values, weights = measured[name]
            measured[_DIFFERENCE + name] = (values - center[number], weights)
        tally.add(measured)

    @torch.no_grad()
    def _center(self, place: _Place) -> dict[str, dict[str, list[Tensor]]]:
        """Return the per-sample values at the origin by split and metric, one entry a batch; those that have some."""
        self._set(place, Point((0.0,) * self.planes[0].dimensions))
        center: dict[str, dict[str, list[Tensor]]] = {}
        for split, risk in self.risks.items():
            held, found = place.data[split], dict[str, list[Tensor]]()
            with computing(self.first.device, self.kernel.precision):
                for batch in self._streamed(risk) if held is None else held:
                    for name, (values, _) in risk.measure(batch).items():
                        if name in self.differing:
                            found.setdefault(name, []).append(values)
            center[split] = {name: each for name, each in found.items() if all(values.ndim for values in each)}
        return center

    def _probe(self, parent: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what all probes give: numbers (one per split), and arrays for the point's children."""
        numbers: dict[str, Any] = {}
        handed_on: dict[str, Any] = {}
        for place, probe in enumerate(self.probes):
            for split, risk in self.risks.items():
                prefix = f"{place}.{split}."
                warm = None
                if parent is not None and probe.warm_start:
                    warm = {k.removeprefix(prefix): v for k, v in parent.items() if k.startswith(prefix)}
                with torch.enable_grad():
                    found = probe(risk, warm or None)
                for name in probe.names:
                    numbers.setdefault(name, []).append(float(found[name]))
                handed_on |= {prefix + key: array for key, array in found.items() if key not in probe.names}
        return numbers, handed_on

    def _rows(self, tallies: list[dict[str, Tally]], probed: Any) -> list[Row]:
        found = iter(estimates([tally for splits in tallies for tally in splits.values()], self.first.ranks))
        rows = []
        for splits, (numbers, handed_on) in zip(tallies, probed, strict=True):
            values: dict[str, list[float]] = {}
            for _ in splits:
                for name, estimate in next(found).items():
                    for label, number in _numbers(name, estimate).items():
                        values.setdefault(label, []).append(number)
            both = values | numbers
            rows.append(Row({n: v if len(self.risks) > 1 else v[0] for n, v in both.items()}, handed_on))
        return rows

    def _batches(self, risk: EmpiricalRisk) -> list[Batch] | None:
        """Return the batches of a risk if they fit on the device, in the kernel's size and layout."""
        if risk.resident is False:
            return None
        found, size = [], 0
        for batch in self._streamed(risk):
            found.append(batch)
            size += batch_bytes(batch)
            if risk.resident == "auto" and size > RESIDENT_BYTES:
                return None
        return found

    def _streamed(self, risk: EmpiricalRisk) -> Iterator[Batch]:
        return rebatched(risk.batches(), self.kernel.batch_size, self.kernel.memory_format)


_DIFFERENCE: Final = "difference of "
"""Before the name of a metric: what it differs by from the origin, sample by sample; no name of a metric itself."""


def measure(place: _Place, points: Sequence[Point]) -> list[Row]:
    """Return the rows of points where a task has been set up; a plain function, which travels by its name."""
    return place.task.measure(place, points)


def computing(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which forward passes run in a precision."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def _numbers(name: str, estimate: Estimate) -> dict[str, float]:
    """Return the stored numbers of one metric: value, standard error, skewness; the value alone of mere totals."""
    if estimate.samples == 0:
        return {name: estimate.value}
    if name.startswith(_DIFFERENCE):
        return {f"{name.removeprefix(_DIFFERENCE)}_difference_se": estimate.standard_error}
    return {name: estimate.value, f"{name}_se": estimate.standard_error, f"{name}_skew": estimate.skewness}
