"""The inner loop: many points of a survey, written in place from a saved base, measured on fixed batches.

With data on the device, each point is set once and all batches run at it; with data that stream, each batch is read
once for a whole chunk of points. Either way a point and a batch meet in the same state, so that the order changes no
bit. Sums stay on the device; one transfer per chunk brings them to the host.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lowland.core.batches import batch_bytes
from lowland.core.contexts import weights_restored
from lowland.core.params import ParameterSpace
from lowland.core.per_sample import Estimate, all_moments, merged
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.landscape.batchnorm import BufferLine
from lowland.landscape.directions import PlaneAxis, StoredAxis
from lowland.landscape.layout import laid_out, rebatched
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe

__all__ = ["ComputeSettings", "Point", "Row", "SurfaceTask", "computing", "measure"]

_RESIDENT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """How points are computed: decided once by the driver, stored, and obeyed by every worker and every resume."""

    chunk: int = 1  # Points handed out together
    batch_size: int | None = None  # Samples per forward pass; None keeps the risk's own batches
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"  # Layout of convolution weights and images
    # Type in which forward passes run; weights are moved and sums kept in their own types.
    precision: Literal["float32", "bfloat16"] = "float32"

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return asdict(self)


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
    """What a worker holds: the saved base, the axes, the data, the center's values."""

    task: SurfaceTask
    space: ParameterSpace
    base: list[Tensor]
    axes: list[list[PlaneAxis] | list[list[Tensor]]]
    data: dict[str, list[Batch] | None]
    buffers: list[BufferLine | None]
    center: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class SurfaceTask:
    """What a survey measures: points of lines or planes through one model, by risks on several splits."""

    risks: Mapping[str, EmpiricalRisk]  # Risk of each split by name; all of the same model and batch-norm mode
    planes: tuple[Plane, ...]  # The lines or planes; a point's ``group`` says which
    probes: tuple[Probe, ...] = ()  # What is measured beyond the risks' own metrics
    kernel: ComputeSettings = ComputeSettings()  # How points are computed
    paired: bool = True  # Also give the standard error of each loss's difference to the loss at the origin

    @property
    def first(self) -> EmpiricalRisk:
        """The risk whose model, batch-norm mode and recalibration batches are used."""
        return next(iter(self.risks.values()))

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
            stack.enter_context(laid_out(model, self.kernel.memory_format))
            space = self.planes[0].space(model)
            for plane in self.planes:
                plane.check_origin(space)
            base = stack.enter_context(weights_restored(space))
            place = _Place(
                task=self,
                space=space,
                base=base,
                axes=[_axes(plane, space, base) for plane in self.planes],
                data={name: self._batches(risk) for name, risk in self.risks.items()},
                buffers=[BufferLine(model, plane.buffers) if plane.buffers else None for plane in self.planes],
            )
            if self.paired:
                place.center = self._center(place)
            yield place

    @torch.no_grad()
    def measure(self, place: _Place, points: Sequence[Point]) -> list[Row]:
        """Return the rows of points."""
        sums: list[dict[str, dict[str, Tensor]]] = [{name: {} for name in self.risks} for _ in points]
        probed: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}) for _ in points]
        streams = any(held is None for held in place.data.values())
        together = streams and not self.probes and self.first.batch_norm != "recalibrated"
        groups = [list(range(len(points)))] if together else [[k] for k in range(len(points))]
        for group in groups:
            if len(group) == 1:
                self._set(place, points[group[0]])
            for split in self.risks:
                self._pass(place, split, [points[k] for k in group], [sums[k][split] for k in group])
            for k in [] if together else group:
                probed[k] = self._probe(points[k].warm_start)
        return self._rows(sums, probed)

    def _set(self, place: _Place, point: Point) -> None:
        """Write the weights (and buffers) of a point, and recalibrate if the risk asks for it."""
        axes = place.axes[point.group]
        if all(isinstance(axis, list) for axis in axes):
            place.space.move(place.base, axes, point.coordinates)  # type: ignore[arg-type]
        else:
            _move_regenerated(place, axes, point.coordinates)  # type: ignore[arg-type]
        line = place.buffers[point.group]
        if line is not None:
            line.move(point.coordinates)
        self.first.recalibrate()

    def _pass(self, place: _Place, split: str, points: list[Point], sums: list[dict[str, Tensor]]) -> None:
        """Run one pass over a split's data for all points, adding to their sums."""
        held = place.data[split]
        for number, batch in enumerate(self._streamed(self.risks[split]) if held is None else held):
            for point, total in zip(points, sums, strict=True):
                if len(points) > 1:
                    self._set(place, point)
                self._add(place, split, number, batch, total)

    def _add(self, place: _Place, split: str, number: int, batch: Batch, total: dict[str, Tensor]) -> None:
        with computing(self.first.device, self.kernel.precision):
            measured = self.risks[split].measure(batch)
        if split in place.center:
            values, weights = measured["loss"]
            measured["loss_difference"] = (values - place.center[split][number], weights)
        for name, part in all_moments(measured).items():
            total[name] = merged(total.get(name), part)

    @torch.no_grad()
    def _center(self, place: _Place) -> dict[str, list[Tensor]]:
        """Return the per-sample losses at the origin by split and batch; without a split whose loss has none."""
        self._set(place, Point((0.0,) * len(self.planes[0].axes)))
        center: dict[str, list[Tensor]] = {}
        for split, risk in self.risks.items():
            held = place.data[split]
            with computing(self.first.device, self.kernel.precision):
                found = [risk.measure(b)["loss"][0] for b in (self._streamed(risk) if held is None else held)]
            if all(values.ndim for values in found):
                center[split] = found
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

    def _rows(self, sums: Any, probed: Any) -> list[Row]:
        """Return values made of sums, with a single transfer from the device."""
        keys = [(k, s, name) for k, splits in enumerate(sums) for s, found in splits.items() for name in found]
        parts = [sums[k][s][name] for k, s, name in keys]
        stacked = torch.split(torch.cat(parts).cpu(), [len(part) for part in parts])
        values: list[dict[str, list[float]]] = [{} for _ in sums]
        for (k, _, name), part in zip(keys, stacked, strict=True):
            for label, number in _numbers(name, Estimate.of(part)).items():
                values[k].setdefault(label, []).append(number)
        rows = []
        for found, (numbers, handed_on) in zip(values, probed, strict=True):
            both = found | numbers
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
            if risk.resident == "auto" and size > _RESIDENT_BYTES:
                return None
        return found

    def _streamed(self, risk: EmpiricalRisk) -> Iterator[Batch]:
        return rebatched(risk.batches(), self.kernel.batch_size, self.kernel.memory_format)


def measure(place: _Place, points: Sequence[Point]) -> list[Row]:
    """Return the rows of points where a task has been set up; a plain function, which travels by its name."""
    return place.task.measure(place, points)


def computing(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which forward passes run in a precision."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def _axes(plane: Plane, space: ParameterSpace, base: Sequence[Tensor]) -> list[PlaneAxis] | list[list[Tensor]]:
    """Return tensors for axes that are stored, and the axes themselves where one is drawn again at each point."""
    if all(isinstance(axis, StoredAxis) for axis in plane.axes):
        return [axis.tensors(space, base) for axis in plane.axes]
    return list(plane.axes)


def _move_regenerated(place: _Place, axes: Sequence[PlaneAxis], coordinates: Sequence[float]) -> None:
    """Set the weights tensor by tensor, holding one tensor of one direction at a time."""
    for number, (parameter, base) in enumerate(zip(place.space.tensors, place.base, strict=True)):
        parameter.copy_(base)
        for axis, coordinate in zip(axes, coordinates, strict=True):
            if coordinate != 0.0:
                parameter.add_(axis.entry(place.space, number, base), alpha=float(coordinate))


def _numbers(name: str, estimate: Estimate) -> dict[str, float]:
    """Return the stored numbers of one metric: value, standard error, skewness; the value alone of mere totals."""
    if estimate.samples == 0:
        return {name: estimate.value}
    if name == "loss_difference":
        return {"loss_difference_se": estimate.standard_error}
    return {name: estimate.value, f"{name}_se": estimate.standard_error, f"{name}_skew": estimate.skewness}
