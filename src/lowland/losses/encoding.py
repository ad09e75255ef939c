"""How a past output becomes a row of bytes, and a sample id the number of its row.

A row is one record, the same in device memory, host memory, a file, and on its way between processes: a stamp that says
in which epoch it was written, then what the precision needs, then the output. A row that was never written has stamp 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from lowland.core.errors import InputError

Precision = Literal["float64", "float32", "float16", "int8"]

PRECISIONS: Final[dict[str, torch.dtype]] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "int8": torch.int8,
}
"""How outputs can be kept."""

_LARGEST_HALF: Final = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Recalled:
    """What rows hold."""

    values: Tensor  # Outputs, shape [n, ...], float64 if so kept, else float32; meaningless where the stamp is 0
    stamp: Tensor  # Epoch + 1 in which each row was written, 0 for never; int32, shape [n]
    # Id of the sample that was mixed in, -1 for none; int64, shape [n], or None if pairs are not kept.
    partner: Tensor | None = None
    share: Tensor | None = None  # The sample's own share in the mixture; float32, shape [n], or None


@dataclass(frozen=True)
class RowFormat:
    """The layout of a row: stamp (4 bytes), pair (12, if kept), scale and zero point (8, for int8), output."""

    # How numbers are kept: ``"float64"``, ``"float32"``, ``"float16"``, or ``"int8"`` with a scale and a zero
    # point per row.
    precision: Precision
    shape: tuple[int, ...]  # Shape of one sample's output
    pairs: bool = False  # Whether the partner and share of mixed samples are kept. Default False

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        header = 4 + 12 * self.pairs + 8 * (self.precision == "int8")
        return header + math.prod(self.shape) * PRECISIONS[self.precision].itemsize

    def encode(self, output: Tensor, epoch: int, partner: Tensor | None = None, share: Tensor | None = None) -> Tensor:
        """Turn outputs into rows."""
        n = output.shape[0]
        flat = output.detach().reshape(n, -1)
        parts = [torch.full((n,), epoch + 1, dtype=torch.int32, device=flat.device)]
        if self.pairs:
            parts.append(torch.full((n,), -1, device=flat.device) if partner is None else partner)
            ones = torch.ones(n, device=flat.device)
            parts.append(ones if share is None else share.to(torch.float32))
        if self.precision == "int8":
            low, high = flat.float().aminmax(dim=1)
            scale, zero = (high - low) / 254, (high + low) / 2
            steps = (flat.float() - zero[:, None]) / torch.where(scale > 0, scale, 1)[:, None]
            parts += [scale, zero, steps.round().clamp(-127, 127).to(torch.int8)]
        elif self.precision == "float16":
            parts.append(flat.clamp(-_LARGEST_HALF, _LARGEST_HALF).to(torch.float16))
        else:
            parts.append(flat.to(PRECISIONS[self.precision]))
        return torch.cat([_as_bytes(part, n) for part in parts], dim=1)

    def decode(self, rows: Tensor) -> Recalled:
        """Turn rows into outputs."""
        n, start = rows.shape[0], 0

        def take(dtype: torch.dtype, count: int = 1) -> Tensor:
            nonlocal start
            stop = start + count * dtype.itemsize
            part = rows[:, start:stop].contiguous().view(dtype)
            start = stop
            return part

        stamp = take(torch.int32)[:, 0]
        partner, share = (take(torch.int64)[:, 0], take(torch.float32)[:, 0]) if self.pairs else (None, None)
        count = math.prod(self.shape)
        if self.precision == "int8":
            scale, zero = take(torch.float32), take(torch.float32)
            values = take(torch.int8, count).float() * scale + zero
        else:
            values = take(PRECISIONS[self.precision], count)
            values = values.float() if self.precision == "float16" else values
        return Recalled(values.reshape(n, *self.shape), stamp, partner, share)


class SampleRows:
    """The row of every sample id."""

    def __init__(self, samples: int | Tensor | None) -> None:
        self.known: Tensor | None = None
        self.count = 0
        self.met: dict[int, int] | None = {} if samples is None else None
        if isinstance(samples, Tensor):
            ids = samples.detach().cpu().reshape(-1)
            if ids.dtype != torch.int64 or not len(ids) or torch.unique(ids).numel() != len(ids):
                raise InputError("samples", "must hold int64 sample ids, each once", f"{samples.dtype} x {len(ids)}")
            ids = ids.sort().values
            self.count = len(ids)
            plain = int(ids[0]) == 0 and int(ids[-1]) == self.count - 1
            self.known = None if plain else ids
        elif samples is not None:
            if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
                raise InputError("samples", "must be a positive number of samples, or their ids", samples)
            self.count = samples

    def of(self, index: Tensor) -> Tensor:
        """Return the rows of ids."""
        if self.met is not None:
            met = self.met
            rows = [met.setdefault(number, len(met)) for number in index.tolist()]
            self.count = len(met)
            return torch.tensor(rows, dtype=torch.int64, device=index.device)
        if self.known is None:
            return torch.where((index >= 0) & (index < self.count), index, -1)
        if self.known.device != index.device:
            self.known = self.known.to(index.device)
        place = torch.searchsorted(self.known, index).clamp(max=self.count - 1)
        return torch.where(self.known[place] == index, place, -1)


def _as_bytes(part: Tensor, n: int) -> Tensor:
    return part.contiguous().view(torch.uint8).reshape(n, -1) if n else part.new_zeros((0, 0), dtype=torch.uint8)
