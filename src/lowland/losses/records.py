"""What is kept of a past output, one tensor per field, and the number of its place.

A record is a stamp that says in which epoch it was written, what the precision needs, and the output. One that was
never written has stamp 0. Fields are tensors of their own in memory, and stand side by side where a file keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lowland.core.errors import InputError

Precision = Literal["float64", "float32", "float16", "int8"]
Records: TypeAlias = dict[str, Tensor]
"""Name of a field -> its values, shape [n, ...]."""

PRECISIONS: Final[dict[str, torch.dtype]] = {name: getattr(torch, name) for name in get_args(Precision)}
"""How outputs can be kept."""

_LARGEST_HALF: Final = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class RecordFormat:
    """The fields of a record: stamp, partner and share (if pairs are kept), scale and zero point (int8), output."""

    precision: Precision
    shape: tuple[int, ...]  # of one sample's output
    pairs: bool = False

    @property
    def fields(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of every field of one record."""
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"stamp": (torch.int32, ())}
        if self.pairs:
            found |= {"partner": (torch.int64, ()), "share": (torch.float32, ())}
        if self.precision == "int8":
            found |= {"scale": (torch.float32, ()), "zero": (torch.float32, ())}
        return found | {"output": (PRECISIONS[self.precision], self.shape)}

    @property
    def bytes(self) -> int:
        """Bytes of a record."""
        return sum(kind.itemsize * math.prod(shape) for kind, shape in self.fields.values())

    def encode(self, output: Tensor, epoch: int, partner: Tensor | None = None, share: Tensor | None = None) -> Records:
        """Turn outputs into records."""
        output = output.detach()
        none = output.new_zeros(len(output), dtype=torch.int64) - 1
        kept = {"stamp": (none * 0 + epoch + 1).int()}
        if self.pairs:
            kept["partner"] = none if partner is None else partner
            kept["share"] = torch.ones_like(none).float() if share is None else share.float()
        if self.precision == "int8":
            flat = output.float().reshape(len(output), -1)
            low, high = flat.aminmax(dim=1)
            kept["scale"], kept["zero"] = (high - low) / 254, (high + low) / 2
            steps = (flat - kept["zero"][:, None]) / torch.where(kept["scale"] > 0, kept["scale"], 1)[:, None]
            output = steps.round().clamp(-127, 127).reshape(output.shape)
        elif self.precision == "float16":
            output = output.clamp(-_LARGEST_HALF, _LARGEST_HALF)
        return kept | {"output": output.to(PRECISIONS[self.precision])}

    def decode(self, kept: Records) -> Tensor:
        """Return outputs, float64 if so kept, else float32; meaningless where the stamp is 0."""
        values = kept["output"]
        if self.precision != "float64":
            values = values.float()
        if self.precision == "int8":
            one = (-1, *[1] * (values.ndim - 1))
            values = values * kept["scale"].reshape(one) + kept["zero"].reshape(one)
        return values


def by_field(state: Mapping[str, Any], form: RecordFormat) -> dict[str, Any]:
    """Return what a ring or an exchange holds with one tensor per field, where 0.1.0 kept a record's bytes in a row."""
    if set(state) == {"table"}:
        return _fields_of(state["table"], form)
    old = {name: _fields_of(state[name], form) for name in ("owned", "recorded") if isinstance(state.get(name), Tensor)}
    return {**state, **old}


def _fields_of(rows: Tensor, form: RecordFormat) -> Records:
    fields = form.fields
    widths = [kind.itemsize * math.prod(shape) for kind, shape in fields.values()]
    parts = zip(fields.items(), torch.split(rows, widths, dim=1), strict=True)
    return {name: part.contiguous().view(kind).reshape(len(rows), *shape) for (name, (kind, shape)), part in parts}


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
        """Return the rows of ids; -1 for unknown ones."""
        if self.met is not None:
            met = self.met
            rows = [met.setdefault(number, len(met)) for number in index.tolist()]
            self.count = len(met)
            return torch.tensor(rows, dtype=torch.int64, device=index.device)
        if self.known is None:
            return torch.where((index >= 0) & (index < self.count), index, -1)
        self.known = self.known.to(index.device)
        return place_in(self.known, index)


def place_in(ascending: Tensor, values: Tensor) -> Tensor:
    """Return where values stand in an ascending tensor; -1 for those that it lacks."""
    if not len(ascending):
        return torch.full_like(values, -1)
    place = torch.searchsorted(ascending, values).clamp(max=len(ascending) - 1)
    return torch.where(ascending[place] == values, place, -1)


def last_of_each(rows: Tensor) -> Tensor:
    """Replace all but the last occurrence of every row by -1."""
    ordered, order = rows.sort(stable=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return torch.empty_like(rows).index_copy_(0, order, torch.where(last, ordered, -1))
