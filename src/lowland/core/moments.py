"""Moments of per-sample numerators and denominators, from which values and standard errors follow.

What batches gave is joined before it is summed, in blocks of a fixed number of samples: the same bits for every
batching of the same values, and few operations per batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

import torch
from torch import Tensor

from lowland.core.facts import ShowsFacts, with_error
from lowland.core.ranks import Ranks

Pair: TypeAlias = "tuple[Tensor, Tensor | float | None]"
"""Numerators and denominators of the samples of a batch, or two totals; no denominators means ones."""

_BLOCK: Final = 1 << 14
"""Samples summed at once; below the 32,768 from which torch would share one sum among threads, and change its bits."""


class Tally:
    """Collects what is measured batch by batch, and gives the moments of each quantity.

    Residuals ``u = v - (sum v / sum w) w`` are those of a block, since sums of powers of v cancel where its values lie
    far from 0; `Estimate.of` joins the blocks.
    """

    def __init__(self) -> None:
        self._pending: dict[str, list[Pair]] = {}
        self._sizes: dict[str, int] = {}
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, measured: Mapping[str, Pair]) -> None:
        """Add the quantities of a batch, each per sample or as totals."""
        for name, (values, weights) in measured.items():
            rows = self._rows.setdefault(name, [])
            if not values.ndim:
                rows.append(_totals(values.detach(), weights))
                continue
            self._pending.setdefault(name, []).append((values.detach(), weights))
            self._sizes[name] = self._sizes.get(name, 0) + values.numel()
        if any(size >= 2 * _BLOCK for size in self._sizes.values()):
            _reduce([self], whole=False)

    def moments(self) -> dict[str, Tensor]:
        """Return name -> rows ``n, sum v, sum w`` and the sums of ``uu, uw, ww, uuu, uuw, uww, www``, float64."""
        # Where totals alone are known, n is 0 and all beyond the first order is NaN.
        _reduce([self], whole=True)
        return {name: _joined(rows) for name, rows in self._rows.items()}


def _reduce(tallies: Sequence[Tally], *, whole: bool) -> None:
    """Sum the blocks that are full, or everything; what has equally many samples in common operations."""
    groups: dict[tuple[int, torch.device, bool], list[tuple[Tally, str]]] = {}
    for tally in tallies:
        own: dict[tuple[int, torch.device], list[str]] = {}
        for name, pairs in tally._pending.items():
            own.setdefault((tally._sizes[name], pairs[0][0].device), []).append(name)
        for (size, device), names in own.items():  # those of a tally together: other tallies change no bit
            weighted = not _all_ones([weights for name in names for _, weights in tally._pending[name]])
            groups.setdefault((size, device, weighted), []).extend((tally, name) for name in names)
    for (size, device, weighted), places in groups.items():
        kind, every = wide_type(device), [tally._pending[name] for tally, name in places]
        v = torch.stack([_joined([values for values, _ in pairs]) for pairs in every]).to(kind)
        w = None
        if weighted:
            w = torch.stack([_joined([_row(weights, values) for values, weights in pairs]) for pairs in every]).to(kind)
        stop = size if whole else size // _BLOCK * _BLOCK
        for start in range(0, max(stop, whole), _BLOCK):  # nothing at all is a block too
            end = min(start + _BLOCK, stop)
            found = _residual_sums(v[:, start:end], None if w is None else w[:, start:end])
            for (tally, name), row in zip(places, found.unsqueeze(1).unbind(), strict=True):
                tally._rows[name].append(row)
        for number, (tally, name) in enumerate(places):
            del tally._pending[name]
            tally._sizes[name] = size - stop
            if size > stop:
                tally._pending[name] = [(v[number, stop:], None if w is None else w[number, stop:])]


def wide_type(device: torch.device) -> torch.dtype:
    """Return the type of sums on a device: float64 where there is one."""
    return torch.float32 if device.type == "mps" else torch.float64


def _totals(value: Tensor, weights: Tensor | float | None) -> Tensor:
    result = torch.full((1, 10), math.nan, dtype=wide_type(value.device), device=value.device)
    total = 1.0 if weights is None else weights.detach() if isinstance(weights, Tensor) else float(weights)
    result[0, 0], result[0, 1], result[0, 2] = 0.0, value, total
    return result


def _all_ones(weights: Sequence[Tensor | float | None]) -> bool:
    """Tell whether nothing is weighted, where asking costs less than the operations that it saves."""
    different = {id(one): one for one in weights if one is not None}.values()
    return all(_ones(one) if isinstance(one, Tensor) else one == 1.0 for one in different)


def _ones(weights: Tensor) -> bool:
    known = weights.device.type == "cpu" and weights.numel() > 0
    return known and all(bound == 1 for bound in torch.aminmax(weights.detach()))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _row(weights: Tensor | float | None, values: Tensor) -> Tensor:
    if isinstance(weights, Tensor):
        return weights.detach().expand_as(values)
    return torch.full_like(values, 1.0 if weights is None else weights, dtype=wide_type(values.device))


def _residual_sums(v: Tensor, w: Tensor | None) -> Tensor:
    """Return the ten numbers of quantities of equally many samples, shape [quantities, 10]."""
    n, first = v.new_full((len(v),), float(v.shape[1])), v.sum(1)
    if w is None:
        u = v - first[:, None] / v.shape[1]
        uu = u * u
        second, none = uu.sum(1), torch.zeros_like(n)
        return torch.stack([n, first, n, second, none, n, (uu * u).sum(1), second, none, n], 1)
    total = w.sum(1)
    ratio = torch.nan_to_num(first / total, nan=0.0, posinf=0.0, neginf=0.0)
    u = torch.addcmul(v, w, ratio[:, None], value=-1)
    uu, uw, ww = u * u, u * w, w * w
    rest = torch.stack([uu, uw, ww, uu * u, uu * w, uw * w, ww * w]).sum(2)
    return torch.cat([torch.stack([n, first, total]), rest]).t()


@dataclass(repr=False, frozen=True, slots=True)
class Estimate(ShowsFacts):
    """A measured number with its uncertainty."""

    # The value is ``R = sum v / sum w``. As an estimate of a population it has the standard error of a ratio,
    # ``sqrt(n / (n - 1) * sum (v - R w)^2) / sum w`` (Cochran 1977, eq. 2.39 without the finite-population
    # factor).

    value: float  # The ratio
    standard_error: float  # NaN where only totals or a single sample are known
    samples: int  # Number of samples n (0 where only totals are known)
    weight: float  # Total of the denominators
    skewness: float  # Skewness of the residuals; the plain interval is unreliable for n < 25 skewness^2

    def _facts(self) -> dict[str, str]:
        shown = {"": with_error(self.value, self.standard_error), "n": str(self.samples or "")}
        return shown | {"skewness": "" if self.reliable or math.isnan(self.skewness) else f"{self.skewness:.3g}"}

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Estimate:
        """Return the estimate that belongs to the rows of `Tally.moments`."""
        n, v, w = functools.reduce(lambda a, b: [a[0] + b[0], a[1] + b[1], a[2] + b[2]], rows)[:3]
        if w == 0.0 or math.isnan(w):
            return cls(math.nan, math.nan, int(n), w, math.nan)
        ratio = v / w
        if n < 2 or any(math.isnan(row[3]) for row in rows) or not math.isfinite(ratio):
            return cls(ratio, math.nan, int(n), w, math.nan)
        square = cube = 0.0
        for _, first, total, uu, uw, ww, uuu, uuw, uww, www in rows:
            # a residual of all data is that of the block, moved by the difference of the ratios: v - R w = u + d w
            d = 0.0 if len(rows) == 1 else (first / total if total else 0.0) - ratio
            square += uu + 2 * d * uw + d * d * ww
            cube += uuu + 3 * d * uuw + 3 * d * d * uww + d * d * d * www
        square = max(0.0, square)
        unit = square / n * math.sqrt(square / n)  # 0 for the smallest squares, infinite for the largest
        skewness = cube / n / unit if unit > 0 else 0.0
        return cls(ratio, math.sqrt(n / (n - 1) * square) / abs(w), int(n), w, skewness)

    @property
    def reliable(self) -> bool:
        """Whether nothing in the sample speaks against a plain interval of two standard errors: n >= 25 skewness^2."""
        # It is no proof: a rare large loss that the sample does not hold shows in no moment of it.
        return self.samples >= 25 * self.skewness**2


def estimates(tallies: Sequence[Tally], ranks: Ranks | None = None) -> list[dict[str, Estimate]]:
    """Return the estimates of each tally by name, joined over ranks, with a single transfer from the device."""
    _reduce(tallies, whole=True)  # in common operations
    moments = [tally.moments() for tally in tallies]
    rows = iter(_joined([part for found in moments for part in found.values()]).tolist())
    mine = [{name: list(islice(rows, len(part))) for name, part in found.items()} for found in moments]
    shards = [mine] if ranks is None else ranks.gather(mine)
    return [
        {name: Estimate.of([row for shard in shards for row in shard[place][name]]) for name in found}
        for place, found in enumerate(mine)
    ]
