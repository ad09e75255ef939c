"""Past outputs by sample id: a ring of epochs whose rows say when they were written.

Deviations from the code that accompanies SAF (``SAF_train.py``):
1. A row carries the epoch it was written in; rows never seen or too old are reported as missing, never read as zeros.
2. There is always one slot more than the look-back. What an epoch reads is then never what it writes, so that a sample
   met twice, a second pass at perturbed weights, and an epoch repeated after a crash all find the same past output.
3. The size follows from the data set (the original reserves 240 GB), and processes share what they hold (the original
   finds the right output for one sample in `world`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from lowland.core.errors import CheckpointError, InputError, require
from lowland.losses.base import Plan
from lowland.losses.records import PRECISIONS, Precision, RecordFormat, SampleRows, by_field, last_of_each
from lowland.losses.rings import EpochRing
from lowland.losses.sharing import Exchange, rank_and_world
from lowland.losses.tables import FileTable, Table, available_bytes

Placement = Literal["device", "host", "file"]

_CLASSES: Final = "start a new memory when the classes change"
_LENGTHS: Final = "give all samples one size (tokens: pad to max_length), or use MESA, which keeps no outputs"
_JOINED: Final = "give one output per id; a collator that joins rows (padding-free, packing into one) leaves none"


def memory_bytes(
    samples: int, outputs: int, *, precision: Precision = "float32", look_back: int = 3, pairs: bool = False
) -> int:
    """Return the bytes of an output memory of all processes together.

    Args:
        samples: All that have an id, in every process together.
        outputs: Numbers in one sample's output, such as classes.
        precision: How they are kept. Default ``"float32"``.
        look_back: Epochs between an output and its use; one slot more is kept. Default 3.
        pairs: Whether partners of mixed samples are kept. Default False.

    Example:
        >>> round(memory_bytes(1_281_167, 1000, precision="int8") / 1e9, 2)
        5.19
    """
    return samples * (look_back + 1) * RecordFormat(precision, (outputs,), pairs).bytes


class OutputMemory:
    """The outputs of the last epochs, by sample id.

    Args:
        look_back: Epochs between an output and its use, at least 1.
        precision: How outputs are kept; ``"int8"`` has a scale and a zero point per row.
        placement: ``"device"`` memory of the outputs' device, page-locked ``"host"`` memory, or a ``"file"``. The
            latter two wait for an accelerator once per step, since outputs must arrive before they are kept.
        path: The file, which all processes must reach under this path.
        samples: Number of samples, or all their ids; None learns it from `configure`, or numbers ids as they are met.
        pairs: Whether outputs of mixed samples are kept with their partner and share.
    """

    def __init__(
        self,
        *,
        look_back: int = 3,
        precision: Precision = "float32",
        placement: Placement = "device",
        path: str | Path | None = None,
        samples: int | Tensor | None = None,
        pairs: bool = False,
    ) -> None:
        require(precision in PRECISIONS, "precision", f"must be one of {', '.join(PRECISIONS)}", precision)
        require(placement in ("device", "host", "file"), "placement", 'must be "device", "host" or "file"', placement)
        if (path is None) == (placement == "file"):
            raise InputError("path", 'must be given for placement="file", and only then', path)
        self.look_back, self.precision, self.placement, self.pairs = look_back, precision, placement, pairs
        self.path = None if path is None else Path(path)
        self.rows = SampleRows(samples)
        self._given = samples is not None
        self._plan: Plan | None = None
        self._format: RecordFormat | None = None
        self._ring: EpochRing | Exchange | None = None
        self._room = 0  # samples there is room for
        self._device: torch.device | None = None
        self._noticed: dict[str, Tensor] = {}
        self._epoch, self._recording = 0, False

    def configure(self, samples: int | Tensor | None, plan: Plan | None) -> None:
        """Learn of the run's data unless built with them, and of the ids to be met; forget what an earlier run left."""
        if not self._given:
            self.rows = SampleRows(samples)
        self._plan, self._format, self._ring, self._room, self._noticed = plan, None, None, 0, {}

    def begin(self, epoch: int, *, recording: bool, reading: bool) -> None:
        """Begin an epoch, or go on with it after a resume; with several processes, on all of them together."""
        self._epoch, self._recording = epoch, recording
        if self._ring is not None:
            self._ring.begin(epoch, recording=recording, reading=reading)

    def locate(self, index: Tensor | None, output: Tensor) -> Tensor:
        """Check a batch, make room at the first, and return the rows of its samples.

        On the CPU a wrong id or an output that is not finite is an error at once, on an accelerator at the end of the
        epoch (`raise_noticed`); either way nothing of it is kept.

        Args:
            index: Sample ids, int64, shape [n].
            output: Outputs, shape [n, ...].

        Returns:
            int64, shape [n]; -1 where nothing may be kept.

        Raises:
            InputError: If ids are missing, of another form or unknown, or outputs are not finite or change their shape.
        """
        if index is None:
            raise InputError("batch", "must carry sample ids", None, "wrap the data set in lowland.data.Indexed")
        if index.dtype != torch.int64 or index.shape != output.shape[:1]:
            rule, got = f"must be int64 of shape [{output.shape[0]}]", (index.dtype, tuple(index.shape))
            raise InputError("batch.index", rule, got, _JOINED)
        shape = tuple(output.shape[1:])
        if self._format is not None and shape != self._format.shape:
            rule = f"must keep its shape {list(self._format.shape)} per sample through the whole run"
            raise InputError("output", rule, list(shape), _LENGTHS if len(shape) > 1 else _CLASSES)
        finite = torch.isfinite(output.detach()).reshape(len(index), -1).all(1)
        self._report("output", ~finite)
        rows = self.rows.of(index)
        if self.placement == "device":
            rows = rows.to(output.device, non_blocking=True)
        self._report("index", rows < 0)
        ring = self._make_room(output)
        if isinstance(ring, Exchange):
            self._report("plan", (rows >= 0) & (ring.place(rows) < 0))
        return torch.where(finite.to(rows.device), rows, -1)

    def recall(
        self, rows: Tensor, like: Tensor, partner: Tensor | None = None, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs of `look_back` epochs ago.

        Args:
            rows: From `locate`.
            like: The present output; the result is on its device.
            partner: Ids of mixed-in samples, -1 for none; asks for the same pair where pairs are kept.
            share: The samples' own shares; asks for the same to within 0.05.

        Returns:
            Outputs, shape [n, ...], finite everywhere, and whether each is a hit, bool, shape [n].
        """
        assert self._format is not None and self._ring is not None
        found = {name: value.to(like.device, non_blocking=True) for name, value in self._ring.read(rows).items()}
        # an epoch before the first has stamp 0 or less, as records that were never written
        hit = (found["stamp"] == self._epoch - self.look_back + 1) & (found["stamp"] > 0)
        if self.pairs:
            asked = torch.full_like(found["partner"], -1) if partner is None else partner.to(like.device)
            own = torch.ones_like(found["share"]) if share is None else share.to(found["share"])
            hit = hit & (found["partner"] == asked) & ((found["share"] - own).abs() <= 0.05)
        values = self._format.decode(found)
        return torch.where(hit.reshape(-1, *[1] * (values.ndim - 1)), values, torch.zeros_like(values)), hit

    def record(self, rows: Tensor, output: Tensor, partner: Tensor | None = None, share: Tensor | None = None) -> None:
        """Keep outputs at the rows of `locate` (-1 drops them) with partners and shares; of equal rows, the last."""
        assert self._format is not None and self._ring is not None
        self._ring.write(last_of_each(rows), self._format.encode(output, self._epoch, partner, share))

    def raise_noticed(self) -> None:
        """Raise what an accelerator noticed since the last call (it was not kept); reads from the device."""
        noticed, self._noticed = self._noticed, {}
        for kind, flag in noticed.items():
            if bool(flag):
                raise self._error(kind)

    def state_dict(self) -> dict[str, Any]:
        """Return what this process holds: tables as they are, of a file its key."""
        return {
            "layout": self._layout(self._format),
            "process": rank_and_world(),
            "met": None if self.rows.met is None else list(self.rows.met),
            "shelf": None if self._ring is None else self._ring.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError where a state is of another size, layout or number of processes."""
        if {"layout", "process", "met", "shelf"} - set(state):
            raise CheckpointError("the state of an output memory lacks entries; nothing was loaded")
        layout, own = state["layout"], self._layout(self._format)
        if self._format is None or layout["shape"] is None:
            own["shape"] = layout["shape"]
        wrong = [f"{name} {layout.get(name)} instead of {own[name]}" for name in own if layout.get(name) != own[name]]
        if wrong:
            rule = "the output memory of the checkpoint does not fit this run"
            raise CheckpointError(f"{rule}: {', '.join(wrong)}; nothing was loaded")
        theirs, ours = tuple(state["process"]), rank_and_world()
        if theirs[1] != ours[1] or (theirs != ours and self.placement != "file"):
            raise CheckpointError(
                f"the output memory is that of process {theirs[0]} of {theirs[1]}, this is process {ours[0]} of "
                f"{ours[1]}; each process must save and load its own; nothing was loaded"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `check_state` accepted."""
        shape, held = state["layout"]["shape"], state["shelf"]
        known = None if shape is None else RecordFormat(self.precision, tuple(shape), self.pairs)
        if state["met"] is not None:
            self.rows.met = {number: row for row, number in enumerate(state["met"])}
            self.rows.count = len(state["met"])
        self._ring = None
        if known is not None and held is not None:
            self._device = torch.device("cpu")  # the first batch says where it belongs
            self._ring = self._new_ring(known, self._device, count=0, key=held.get("key"))
            self._ring.load_state_dict(by_field(held, known))
        self._format, self._noticed, self._room = known, {}, self.rows.count

    def _layout(self, known: RecordFormat | None) -> dict[str, Any]:
        return {
            "count": self.rows.count if self.rows.met is None else None,
            "shape": None if known is None else list(known.shape),
            "precision": self.precision,
            "look_back": self.look_back,
            "pairs": self.pairs,
            "placement": "file" if self.path is not None else "memory",
        }

    def _report(self, kind: str, wrong: Tensor) -> None:
        if wrong.device.type != "cpu":
            self._noticed[kind] = wrong.any() if kind not in self._noticed else self._noticed[kind] | wrong.any()
        elif wrong.any():
            raise self._error(kind)

    def _error(self, kind: str) -> InputError:
        if kind == "index":
            rule = f"must hold ids of the {self.rows.count} samples of the run"
            advice = "pass samples=number of samples where ids are 0 to N-1, or all ids (samples=data.index)"
            return InputError("batch.index", rule, "an unknown id", advice)
        if kind == "plan":
            return InputError("plan", "must name every id that this process meets in an epoch", "an id it lacks")
        return InputError("output", "must be finite", "NaN or infinity", "lower the learning rate, or clip gradients")

    def _make_room(self, output: Tensor) -> EpochRing | Exchange:
        device = torch.device("cpu") if self.placement == "host" else output.device
        if self._ring is None:
            known = RecordFormat(self.precision, tuple(output.shape[1:]), self.pairs)
            self._check_room(self._size(known), device)
            self._ring = self._new_ring(known, device, count=self.rows.count)
            self._ring.begin(self._epoch, recording=self._recording, reading=False)  # nothing is there to be read
            self._format, self._device, self._room = known, device, self.rows.count
        elif self.rows.count > self._room:
            assert self._format is not None
            more = max(self.rows.count, 2 * self._room)
            self._check_room((more - self._room) * (self.look_back + 1) * self._format.bytes, device)
            assert isinstance(self._ring, EpochRing)  # several processes know all samples beforehand
            self._ring.table.grow(more * (self.look_back + 1))
            self._room = more
        if self._device != device:
            self._ring.to(device)
            self._device = device
        return self._ring

    def _new_ring(
        self, known: RecordFormat, device: torch.device, *, count: int, key: str | None = None
    ) -> EpochRing | Exchange:
        plan, pinned, (rank, world) = self._plan, self.placement == "host", rank_and_world()
        if self.rows.met is not None and world > 1:
            raise InputError("samples", "must be known when several processes share a memory", None, "pass samples=...")
        planned = None if plan is None else lambda epoch: self.rows.of(plan(epoch))
        if self.path is None and world > 1:
            return Exchange(self.rows.count, known, self.look_back, planned, device, pinned=pinned)
        places = count * (self.look_back + 1)
        if self.path is None:
            return EpochRing(Table(known, places, device, pinned=pinned), count, self.look_back, planned)
        layout, places = self._layout(known), self.rows.count * (self.look_back + 1)
        if key is None and world > 1:
            made = [FileTable(self.path, known, places, layout).key if rank == 0 else None]
            torch.distributed.broadcast_object_list(made, src=0)
            key = made[0]
        table = FileTable(self.path, known, places, layout, key=key)
        return EpochRing(table, self.rows.count, self.look_back, planned)

    def _size(self, known: RecordFormat) -> int:
        """Return the bytes of this process's part: with others, what it owns, needs and records."""
        world, slots = rank_and_world()[1], self.look_back + 1
        if world == 1 or self.path is not None:
            return self.rows.count * slots * known.bytes
        met = self.rows.count if self._plan is None else len(self._plan(self._epoch))
        return (-(-self.rows.count // world) * slots + 2 * met) * known.bytes

    def _check_room(self, size: int, device: torch.device) -> None:
        free = available_bytes(device, self.path)
        if size <= 0.9 * free:
            return
        where = "file system" if self.path is not None else "device" if device.type != "cpu" else "host memory"
        need = f"the output memory needs {size / 1e9:.2f} GB, the {where} has {free / 1e9:.2f} GB free"
        advice = 'precision="int8", placement="host" or "file", a smaller look-back, or MESA, which keeps no outputs'
        got = (self.precision, self.placement)
        raise InputError("precision, placement", f"must leave room: {need}", got, f"choose {advice}")
