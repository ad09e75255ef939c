"""Curves through the weights of networks: their points, weights along them, lines and planes to survey, files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowland.core.batches import as_batch
from lowland.core.contexts import recalibrate
from lowland.core.errors import DAMAGED, CheckpointError, InputError, require, reworded
from lowland.core.params import ParameterSpace, copied
from lowland.core.provenance import fingerprint
from lowland.landscape.between import frame, placed
from lowland.landscape.checkpoints import Weights, as_model
from lowland.landscape.directions import given_axis
from lowland.landscape.grid import Grid, grid
from lowland.landscape.plane import Plane, at_origin, made, make_plane
from lowland.results.files import write_atomically
from lowland.results.ways import CurveShape

_SHOWN: Final = 61
"""Places of the path that is drawn over a plane; Garipov et al.'s code measures at as many."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve through the weights of networks.

    Args:
        shape: How its points weigh along it.
        points: Parameters by name of every point, ends among them, in order.
        losses: Mean loss of every epoch of its training.
        settings: How it was trained, as plain JSON values.

    Example:
        >>> first, second = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> straight = Curve.through(first, second)  # not trained yet
        >>> torch.equal(straight.weights(1.0)["bias"], second.bias)
        True
    """

    shape: CurveShape
    points: tuple[Mapping[str, Tensor], ...] = field(repr=False)
    losses: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def through(
        cls,
        model: nn.Module,
        others: Weights | Sequence[Weights],
        *,
        kind: Literal["bezier", "polychain"] = "bezier",
        bends: int = 1,
    ) -> Curve:
        """Return the curve from which training starts: points at equal distances on the straight lines between ends."""
        require(kind in ("bezier", "polychain"), "kind", 'must be "bezier" or "polychain"', kind)
        require(isinstance(bends, int) and bends >= 0, "bends", "must be a whole number of at least 0", bends)
        listed: Sequence[Any] = others if isinstance(others, list | tuple) else [others]
        require(listed, "others", "must hold at least one network", listed)
        found = [as_model(model, one, "other") for one in listed]
        with at_origin(model, None, *found) as space:
            start = [p.detach().clone() for p in space.tensors]
            ends = [start, *([p.clone() for p in placed(space, one).values()] for one in found)]
            points = [start]
            for first, last in pairwise(ends):
                same = all(torch.equal(a, b) for a, b in zip(first, last, strict=True))
                require(not same, "others", "must differ from the network before", "the same weights")
                points += [list(torch._foreach_lerp(first, last, (k + 1) / (bends + 1))) for k in range(bends)] + [last]
            return cls(CurveShape(kind, bends, len(listed)), tuple(space.named(list(point)) for point in points))

    def weights(self, t: float) -> dict[str, Tensor]:
        """Return the parameters at t from 0 to 1; the ends have the bits of the networks."""
        parts = [(float(c), point) for c, point in zip(self.shape.weights(t), self.points, strict=True) if c != 0.0]
        if len(parts) == 1:
            return {name: value.clone() for name, value in parts[0][1].items()}
        return {name: torch.stack([c * point[name] for c, point in parts]).sum(0) for name in self.points[0]}

    def network(self, model: nn.Module, t: float, batches: Iterable[Any] = ()) -> nn.Module:
        """Return a copy of a network at t, its batch-norm statistics made anew on batches where some are given."""
        made_anew = copied(model)
        space = ParameterSpace(made_anew)
        space.write(space.order(self.weights(t)))
        listed = [as_batch(raw).to(space.tensors[0].device) for raw in batches]
        if listed:
            recalibrate(made_anew, listed)
        return made_anew

    def line(self, model: nn.Module) -> Plane:
        """Return the curve as a line to survey, from 0 to 1; the model must be at its first end."""
        with at_origin(model) as space:
            self._check_start(space)
            axes = [given_axis(self._from_start(k), k - 1) for k in range(1, len(self.points))]
            recipe = made(
                "curve", other=[fingerprint(self.points[k]) for k in self.shape.ends()[1:]], training=self.settings
            )
            ends = {f"end {n + 1}": (n / self.shape.pieces,) for n in range(1, self.shape.pieces + 1)}
            return make_plane(space, axes, recipe, "share of the way", markers=ends, curve=self.shape)

    def plane(self, model: nn.Module) -> Plane:
        """Return the plane through the first three ends, or through two and the middle bend, with the curve on it.

        The model must be at the first end. Axes are orthogonal and equally long, as in `plane_through`.
        """
        ends = self.shape.ends()
        rule = "must be at least 1 for a plane through two ends and a bend"
        require(len(ends) > 2 or self.shape.bends, "bends", rule, 0)
        second, third = (ends[1], ends[2]) if len(ends) > 2 else (ends[1], (ends[1] + 1) // 2)
        with at_origin(model) as space:
            self._check_start(space)
            u, v = self._from_start(second), self._from_start(third)
            along, scale = frame(u, v)
            axes = [u, {name: (v[name] - along * u[name]) * scale for name in u}]
            name = "end 3" if len(ends) > 2 else "bend"
            recipe = made("curve plane", training=self.settings)
            recipe["paths"] = {f"{self.shape.kind} curve": self._path(second, third, along, scale)}
            return make_plane(
                space,
                [given_axis(axis, number) for number, axis in enumerate(axes)],
                recipe,
                "distance between the first two ends",
                markers={"end 2": (1.0, 0.0), name: (along, 1.0 / scale)},
            )

    def grid_around(self, plane: Plane, nx: int = 25, ny: int = 25, *, margin: float = 0.2) -> Grid:
        """Return coordinates that hold the curve on its plane, and a margin (share of the range) around it."""
        (path,) = plane.recipe["paths"].values()
        ranges = []
        for values in (path["x"], path["y"]):
            more = margin * max(max(values) - min(values), 0.5)
            ranges.append((min(values) - more, max(values) + more))
        return grid(nx, ny, extent=(ranges[0], ranges[1]))

    def joins_same(self, other: Curve) -> bool:
        """Tell whether another curve joins the same networks."""
        ends, theirs = ([one.points[k] for k in one.shape.ends()] for one in (self, other))
        return [fingerprint(end) for end in ends] == [fingerprint(end) for end in theirs]

    def save(self, path: str | Path) -> None:
        """Write the curve as one safetensors file."""
        tensors = {
            f"{place}/{name}": value.detach().cpu().contiguous()
            for place, point in enumerate(self.points)
            for name, value in point.items()
        }
        about = {"shape": asdict(self.shape), "losses": self.losses, "settings": dict(self.settings)}
        about["names"] = list(self.points[0])  # the file has an order of its own
        write_atomically(Path(path), safetensors.torch.save(tensors, {"lowland.curve": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Read a curve that `save` has written; a damaged or foreign file is a `CheckpointError`."""
        faults = (*DAMAGED, SafetensorError, OSError)
        with reworded(faults, lambda why: CheckpointError(f"{path} holds no curve ({why})")):
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})["lowland.curve"])
                shape = CurveShape(**about["shape"])
                points = [
                    {name: file.get_tensor(f"{k}/{name}") for name in about["names"]} for k in range(shape.points)
                ]
            return cls(shape, tuple(points), tuple(about["losses"]), about["settings"])

    def _from_start(self, place: int) -> dict[str, Tensor]:
        return {name: value - self.points[0][name] for name, value in self.points[place].items()}

    def _check_start(self, space: ParameterSpace) -> None:
        if fingerprint(space.named(space.tensors)) != fingerprint(self.points[0]):
            raise InputError("model", "must be at the curve's first end", advice="load the weights it was made from")

    def _path(self, second: int, third: int, along: float, scale: float) -> dict[str, list[float]]:
        """Return the curve's coordinates on a plane, and its distance from it in units of the first axis."""
        parts = [self._from_start(k) for k in range(1, len(self.points))]
        flat = torch.stack([torch.cat([t.double().reshape(-1) for t in part.values()]) for part in parts]).cpu()
        gram = (flat @ flat.T).numpy()
        axes = np.zeros((2, len(parts)))
        axes[0, second - 1], axes[1, second - 1], axes[1, third - 1] = 1.0, -along * scale, scale
        places = np.array([self.shape.weights(float(t))[1:] for t in np.linspace(0, 1, _SHOWN)])
        found: NDArray[np.float64] = np.linalg.solve(axes @ gram @ axes.T, axes @ gram @ places.T).T
        rest = places - found @ axes
        away = np.sqrt(np.clip(np.einsum("ti,ij,tj->t", rest, gram, rest), 0, None) / gram[second - 1, second - 1])
        ends = [n / self.shape.pieces for n in range(self.shape.pieces + 1)]
        return {"x": found[:, 0].tolist(), "y": found[:, 1].tolist(), "distance": away.tolist(), "ends": ends}
