"""Films: the landscape along training, a frame per snapshot, on one plane and one scale.

A frame is the plane moved so that it holds a snapshot's weights. So every frame has the same axes and directions, and
the last one is the plane itself where the path ends in it; what differs is where training went beside the plane.

Frames resemble each other. They are refined from both ends inward, each between two that came before, and start from
those (see `lowland.landscape.refine`); each has checks and a promise of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from lowland.core.errors import InputError, check_positive, require
from lowland.core.pace import OnEvent
from lowland.core.params import ParameterSpace
from lowland.core.provenance import fingerprint
from lowland.core.risk import EmpiricalRisk
from lowland.engine.base import Engine
from lowland.landscape.autotune import BatchSize, Precision
from lowland.landscape.batchnorm import running_statistics
from lowland.landscape.directions import StoredAxis
from lowland.landscape.evaluate import evaluate
from lowland.landscape.grid import Grid
from lowland.landscape.plane import Plane, at_origin
from lowland.landscape.tolerance import Tolerance
from lowland.landscape.trajectory import Snapshots, grid_around, pca_plane, project_trajectory, snapshot_source

if TYPE_CHECKING:
    import xarray as xr

FRAMES: Final = 50
"""Most frames of a film; a second of film has 10."""

_PROMISE: Final = Tolerance()

Read = Callable[[int], Mapping[str, Any]]
"""Gives the arrays of a step by name."""


class _Snapshots:
    """The snapshots of a film, one of them in memory."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self._held: Any = None

    def __reduce__(self) -> Any:
        return _Snapshots, (self.read,)

    def tensors(self, step: int, space: ParameterSpace) -> tuple[Mapping[str, Any], list[Tensor]]:
        """Return all arrays of a step, and the parameters among them as the model holds them."""
        held = self._held
        if held is None or held[0] != step:
            arrays = self.read(step)
            placed = [torch.empty_like(p).copy_(torch.as_tensor(arrays[name], device="cpu")) for name, p, _ in space]
            held = self._held = (step, arrays, placed)
        return held[1], held[2]


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame(Plane):
    """A plane moved so that it holds the weights of one snapshot, in the coordinates of the plane."""

    step: int  # Optimizer step of the snapshot
    place: tuple[float, ...]  # Its projection on the plane
    weights: str  # Fingerprint of all that the snapshot holds
    snapshots: _Snapshots = field(repr=False)

    @override
    def mover(
        self, model: nn.Module, space: ParameterSpace, base: Sequence[Tensor]
    ) -> Callable[[Sequence[float]], None]:
        stored, statistics = [axis.tensors(space, base) for axis in self.axes], running_statistics(model)

        def move(coordinates: Sequence[float]) -> None:
            arrays, weights = self.snapshots.tensors(self.step, space)
            space.move(weights, stored, [c - at for c, at in zip(coordinates, self.place, strict=True)])
            for name, buffer in statistics.items():
                if name in arrays:
                    buffer.copy_(torch.as_tensor(arrays[name], device="cpu"))

        return move

    @override
    def describe(self) -> dict[str, Any]:
        own = {"frame": self.along, "step": self.step, "place": list(self.place), "weights": self.weights}
        return own if self.along else super().describe() | own  # what all frames share stands with the first


def film(
    risk: EmpiricalRisk | Mapping[str, EmpiricalRisk],
    snapshots: Snapshots,
    grid: Grid | None = None,
    *,
    plane: Plane | None = None,
    frames: int = FRAMES,
    engine: str | Engine = "serial",
    store: str | Path | None = None,
    refined: Tolerance | None = _PROMISE,
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    verify: bool = True,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Measure the landscape along training: a frame per snapshot, on one plane and one scale.

    Frame t at (x, y) is the loss at ``snapshot_t + (x - x_t) d1 + (y - y_t) d2``, where (x_t, y_t) is the snapshot's
    projection on the plane: the value there is the snapshot's true loss. Measured points, what is left of them and what
    was interpolated are carried from frame to frame, so that 50 frames cost a few full surfaces; each frame is checked
    by itself.

    Memory: 7 sets of weights, whatever the number of snapshots, and the activations of a batch without a graph.

    Args:
        risk: What is measured, at the weights at the end of the path; or several splits by name. Batch-norm statistics
            are the snapshots' own with ``"running"``.
        snapshots: The path, as for `pca_plane`.
        grid: Where on the plane. Default None: 51 x 51 points around the path (Li et al. 2018), see `grid_around`.
        plane: Default None: the principal one of the path, see `pca_plane`.
        frames: Most frames (50); of more snapshots so many are taken, evenly, the first and the last among them.
        engine: Where points are computed, as for `evaluate`; so are the next options.
        store: Folder of a Zarr store, in which an interrupted film goes on.
        refined: What each frame promises; None measures every point of every frame.
        precision: See `evaluate`.
        batch_size: See `evaluate`.
        verify: See `evaluate`.
        on_event: Receives progress; a step is a point.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Returns:
        A surface of schema 2 with a frame per entry of ``direction``, whose label is the step; the attribute
        ``refinement`` has the promise of each. `lowland.viz.film` draws it.

    Raises:
        InputError: If arguments do not fit together, there are fewer than two snapshots, or ``"running"`` statistics
            are wanted which the snapshots lack.

    Example:
        >>> model, batch = nn.Linear(2, 1), (torch.ones(4, 2), torch.ones(4, 1))
        >>> path = [(step, {"weight": torch.eye(2)[:1] * step, "bias": torch.tensor([step**2.0])}) for step in range(3)]
        >>> _ = model.load_state_dict(path[-1][1])
        >>> moving = film(EmpiricalRisk(model, nn.MSELoss(), [batch]), path, Grid(np.arange(5.0), np.arange(5.0)))
        >>> dict(moving.sizes), moving.direction.values.tolist()
        ({'direction': 3, 'x': 5, 'y': 5}, ['0', '1', '2'])
    """
    first = risk if isinstance(risk, EmpiricalRisk) else next(iter(risk.values()))
    check_positive(frames=frames)
    plane = pca_plane(first.model, snapshots) if plane is None else plane
    require(plane.dimensions == 2, "plane", "must have two axes", plane.dimensions)
    path = project_trajectory(first.model, snapshots, plane, walks=1)
    chosen = np.unique(np.linspace(0, path.sizes["snapshot"] - 1, frames).round().astype(int))
    require(len(chosen) >= 2, "frames", "must be at least 2", frames)
    return evaluate(
        risk,
        _frames(first, snapshots, plane, path.isel(snapshot=chosen)),
        grid_around(path, 51, 51) if grid is None else grid,
        engine=engine,
        store=store,
        refined=refined,
        precision=precision,
        batch_size=batch_size,
        paired=False,  # the origin of the plane is no frame's own
        verify=verify,
        on_event=on_event,
        progress=progress,
    )


def _frames(risk: EmpiricalRisk, snapshots: Snapshots, plane: Plane, path: xr.Dataset) -> dict[str, Frame]:
    held = _Snapshots(snapshot_source(risk.model, snapshots).read)
    with at_origin(risk.model, plane.modules) as space:
        base = [parameter.detach() for parameter in space.tensors]
        axes = tuple(StoredAxis(space.named(axis.tensors(space, base)), axis.describe()) for axis in plane.axes)
        parameters, statistics = tuple(space.names), tuple(running_statistics(risk.model))
    shared: dict[str, Any] = {f.name: getattr(plane, f.name) for f in fields(Plane)} | {"axes": axes, "buffers": ()}
    made: dict[str, Frame] = {}
    for number, (step, place) in enumerate(zip(path["step"].values, path["coordinate"].values, strict=True)):
        arrays = held.read(int(step))
        if risk.batch_norm == "running" and (missing := [name for name in statistics if name not in arrays]):
            rule, advice = "must hold the batch-norm statistics that are shown", 'or take batch_norm="recalibrated"'
            raise InputError("snapshots", rule, f"no {missing[0]}", advice)
        seen = {
            name: torch.as_tensor(arrays[name], device="cpu") for name in (*parameters, *statistics) if name in arrays
        }
        at = tuple(place.tolist())
        own = Frame(**shared | {"along": number}, step=int(step), place=at, weights=fingerprint(seen), snapshots=held)
        made[str(step)] = own
    return made
