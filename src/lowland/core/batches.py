"""The front door for data: what a batch is, kind by kind; whatever is not in the table is refused.

kind                                   samples                             ``samples=k``, ``batch_size=``
-------------------------------------  ----------------------------------  ---------------------------------------
tensor, array; ``(input, target)``     first axis                          rows
``(input, target, ids)``               ids: int64, one axis; else refused  rows
mapping (Hugging Face)                 first axis its entries share        rows of every entry; settings are kept
namedtuple, tuple of several inputs    first axis they share               rows of every entry
list or tuple of samples (images,      its length                          entries
strings, mappings: detection)
`PackedSequence`, nested tensor        its sequences                       sequences
object with ``to`` (a graph)           ``num_graphs``; else the target's   refused; a DataLoader can choose samples
`Batch`                                ``count``, else as above            by its parts
anything else                          through ``adapt=``                  by what ``adapt`` returns

A number that parts contradict, or that nothing tells, is refused where it is needed: ``samples_of=`` or
``Batch(count=...)`` gives it. A list whose entries could be inputs of n rows as well as n samples is not cut.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from lowland.core.errors import InputError
from lowland.core.facts import ShowsFacts, form_of

RawBatch: TypeAlias = Any
"""What a loader yields; the table above."""

_TARGET_KEYS = ("target", "targets", "label", "labels")
_INDEX_KEYS = ("index", "sample_id", "idx")
_FIELDS = ("input", "target", "index", "partner", "share")
_SETTING = (str, bytes, int, float, bool, type(None))


@dataclass(repr=False, frozen=True, slots=True)
class Batch(ShowsFacts):
    """One batch of data.

    Args:
        input: What the model takes: a tensor, a dict of keyword arguments (Hugging Face), a tuple of several inputs, a
            list of samples, a graph.
        target: What the loss takes, or None.
        index: Sample ids, int64, shape [n]; None where the data set gives none.
        partner: Ids of the samples mixed in by mixup or cutmix, int64, shape [n]; None where nothing is mixed.
        share: Share of the sample itself in each mixture, shape [n], in [0, 1].
        count: Number of samples, where it cannot be read off the parts.
        number: Place of the batch in its data, which seeds the noise of a risk with ``seeded=True``.

    Example:
        >>> Batch(torch.zeros(2, 3), torch.tensor([0, 1])).size
        2
    """

    input: Any
    target: Any = None
    index: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None
    count: int | None = None
    number: int = 0

    def _facts(self) -> dict[str, str]:
        size = self.known_size
        parts = {name: form_of(getattr(self, name)) for name in ("input", "target", "index", "partner")}
        return {"n": "" if size is None else str(size), **parts}

    @property
    def size(self) -> int:
        """Number of samples: given, or what the parts agree on.

        Raises:
            InputError: If the parts contradict each other or none tells.
        """
        found = self.known_size
        if found is None:
            told = [sorted(some) for some in map(_counts, (self.target, self.index, self.input)) if some]
            rule = "must tell how many samples a batch holds" + (f" (its parts say {told})" if told else "")
            advice = "give samples_of=lambda batch: ..., or Batch(input, target, count=...)"
            raise InputError("batches", rule, type(self.input).__name__, advice)
        return found

    @property
    def known_size(self) -> int | None:
        """The number of samples, None where it is not known."""
        if self.count is not None:
            return self.count
        told = [found for part in (self.target, self.index, self.input) if (found := _counts(part))]
        common = set.intersection(*told) if told else set()
        if len(common) > 1 and isinstance(self.input, tuple):
            common &= _common(self.input)  # several inputs, if nothing speaks against it; a list could be either
        return common.pop() if len(common) == 1 else None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return a new batch on a device, as `torch.Tensor.to` does; tensors that are there already are shared."""
        return replace(self, **{name: move(getattr(self, name), device, non_blocking=non_blocking) for name in _FIELDS})


def as_batch(raw: RawBatch, adapt: Callable[[Any], Any] | None = None) -> Batch:
    """Turn what a loader yields into a `Batch`; see the table of kinds."""
    # A dict keeps all its entries as ``input`` (the model takes them as keyword arguments) except a sample id
    # (``index``, ``sample_id`` or ``idx``); the target is looked up under ``target(s)`` or ``label(s)``. Keys
    # named ``label(s)`` stay in the input too, since Hugging Face models compute their loss from them.
    if adapt is not None and not isinstance(raw, Batch):
        raw = adapt(raw)
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Tensor | PackedSequence | np.ndarray):
        return Batch(raw)
    if isinstance(raw, Mapping):
        rest = dict(raw)
        index = next((rest.pop(key) for key in _INDEX_KEYS if _are_ids(rest.get(key))), None)
        target_key = next((key for key in _TARGET_KEYS if key in rest), None)
        target = rest.get(target_key) if target_key else None
        if target_key is not None and target_key.startswith("target"):
            rest.pop(target_key)
        return Batch(rest, target, index)
    if isinstance(raw, tuple | list) and 1 <= len(raw) <= 3 and not _are_samples(raw):
        if len(raw) == 3 and raw[2] is not None and not _are_ids(raw[2]):
            got = f"{raw[2].dtype} of shape {tuple(raw[2].shape)}" if isinstance(raw[2], Tensor) else type(raw[2])
            rule = "must hold sample ids (int64, one axis) as the third entry of a tuple"
            advice = "put weights or a second target into the target, (x, (y, w)), for a loss of (values, weights)"
            raise InputError("batches", rule, f"{got}", advice)
        return Batch(*raw)
    if callable(getattr(raw, "to", None)):
        return Batch(raw, getattr(raw, "y", None))
    rule = "must yield a tensor, (input, target), (input, target, index), a mapping, a Batch or an object with `to`"
    got = type(raw).__name__ + (f" of {len(raw)}" if isinstance(raw, tuple | list) else "")
    raise InputError(
        "batches", rule, got, "give adapt=, a function from what the loader yields to Batch(input, target)"
    )


def _are_samples(raw: Any) -> bool:
    """Tell whether a list, never collated, holds samples: texts, or mappings of the same keys."""
    kinds = {frozenset(entry) if isinstance(entry, Mapping) else type(entry) for entry in raw}
    return len(raw) > 1 and len(kinds) == 1 and all(isinstance(entry, Mapping | str) for entry in raw)


def _are_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _counts(value: Any) -> set[int]:
    """Return the numbers of samples that a part can be read to hold; empty where it tells nothing."""
    if isinstance(value, PackedSequence):
        return {int(value.batch_sizes[0])}
    if isinstance(value, Tensor | np.ndarray):
        return {value.size(0) if isinstance(value, Tensor) else value.shape[0]} if value.ndim else set()
    if isinstance(value, Mapping):
        return _common(value.values())
    if isinstance(value, tuple | list) and len(value):
        if _is_named(value):
            return _common(value)
        if all(isinstance(entry, Mapping | str) for entry in value):
            return {len(value)}
        return _common(value) | ({len(value)} if len({type(entry) for entry in value}) == 1 else set())
    graphs = getattr(value, "num_graphs", None)
    return {graphs} if isinstance(graphs, int) and not isinstance(value, type) else set()


def _common(entries: Iterable[Any]) -> set[int]:
    told = [found for entry in entries if (found := _counts(entry))]
    return set.intersection(*told) if told else set()


def is_sample_list(value: Any, size: int | None, *, beside: Any = None) -> bool | None:
    """Tell whether a list holds one entry per sample instead of several inputs; None where it could be either."""
    # A list of mappings holds samples, and so does whatever stands beside one in a batch (detection).
    if not isinstance(value, tuple | list) or _is_named(value) or len(value) != size:
        return False
    if all(isinstance(entry, Mapping | str) for entry in value):
        return True
    if isinstance(beside, tuple | list) and len(beside) == size and all(isinstance(e, Mapping) for e in beside):
        return True
    if len({type(entry) for entry in value}) > 1:
        return False
    return None if all(size in _counts(entry) for entry in value) else True


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nested structure with all of its plain tensors changed."""
    if isinstance(value, Tensor):
        return value if value.is_nested else change(value)
    return _rebuilt(value, lambda entry: mapped(entry, change))


def move(value: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """Move every tensor in a nested structure to a device."""
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=non_blocking)
        # features computed under torch.inference_mode() can take no part in a graph, copies of them can
        return moved.clone() if moved.is_inference() and not torch.is_inference_mode_enabled() else moved
    if isinstance(value, PackedSequence):
        return value.to(device=torch.device(device))  # type: ignore[call-arg]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.as_tensor(value, device=device)
    if isinstance(value, Mapping | tuple | list):
        return _rebuilt(value, lambda entry: move(entry, device, non_blocking=non_blocking))
    return value.to(device) if callable(getattr(value, "to", None)) and not isinstance(value, type) else value


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a mapping, tuple or list of the same kind with changed entries; anything else as it is."""
    if isinstance(value, PackedSequence):
        return value
    if isinstance(value, Mapping):
        return {key: change(entry) for key, entry in value.items()}
    if _is_named(value):
        return type(value)(*(change(entry) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(change(entry) for entry in value)
    return value


def take(batch: Batch, index: Sequence[int] | Tensor) -> Batch:
    """Return chosen samples of a batch."""
    size, rows = batch.size, torch.as_tensor(index, device="cpu")
    sides = {"input": batch.target, "target": batch.input}
    parts = {name: _taken(getattr(batch, name), rows, size, sides.get(name)) for name in _FIELDS}
    return replace(batch, **parts, count=None if batch.count is None else len(rows))


def _taken(value: Any, rows: Tensor, size: int, beside: Any = None) -> Any:
    if isinstance(value, _SETTING) or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    if isinstance(value, Tensor) and value.is_nested:
        chosen = [value.unbind()[row] for row in rows.tolist()]
        return torch.nested.as_nested_tensor(chosen, layout=value.layout)
    if isinstance(value, Tensor) and value.size(0) == size:
        first = int(rows[0]) if len(rows) else 0
        following = torch.arange(first, first + len(rows), device="cpu")
        together = len(rows) > 0 and torch.equal(rows, following)
        return value[first : first + len(rows)] if together else value[rows.to(value.device)]
    if isinstance(value, np.ndarray) and value.ndim and value.shape[0] == size:
        return value[rows.numpy()]
    if isinstance(value, PackedSequence):
        padded, lengths = pad_packed_sequence(value)
        chosen = [padded[: int(lengths[row]), row] for row in rows.tolist()]
        return pack_sequence(chosen, enforce_sorted=value.sorted_indices is None)
    samples = is_sample_list(value, size, beside=beside)
    if samples:
        return type(value)(value[row] for row in rows.tolist())
    if samples is None or not isinstance(value, Mapping | tuple | list):
        got = tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else type(value).__name__
        rule = f"must be cut into samples here, and {size} samples cannot be told apart in a part of it"
        advice = "choose the samples in the data set, or give adapt= that returns tensors with one row per sample"
        raise InputError("batches", rule, got, advice)
    return _rebuilt(value, lambda entry: _taken(entry, rows, size))


def joined(batches: Sequence[Batch]) -> Batch:
    """Return several batches as one."""
    if len(batches) == 1:
        return batches[0]
    first, total = batches[0], sum(batch.size for batch in batches)
    lists = {
        "input": is_sample_list(first.input, first.size, beside=first.target),
        "target": is_sample_list(first.target, first.size, beside=first.input),
    }
    parts = {name: _join([getattr(batch, name) for batch in batches], lists.get(name, False)) for name in _FIELDS}
    return replace(first, **parts, count=None if first.count is None else total)


def _join(values: list[Any], samples: bool | None = False) -> Any:
    first = values[0]
    if samples:
        return type(first)(entry for value in values for entry in value)
    if isinstance(first, Tensor) and first.is_nested:
        entries = [entry for value in values for entry in value.unbind()]
        return torch.nested.as_nested_tensor(entries, layout=first.layout)
    if isinstance(first, Tensor) and first.ndim:
        if any(value.shape[1:] != first.shape[1:] for value in values):
            rule = "must be None where samples of different batches differ in shape"
            raise InputError("batch_size", rule, [tuple(value.shape) for value in values][:2])
        return torch.cat(values)
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, PackedSequence):
        parts = [
            padded[: int(lengths[row]), row]
            for padded, lengths in map(pad_packed_sequence, values)
            for row in range(len(lengths))
        ]
        return pack_sequence(parts, enforce_sorted=False)
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, tuple | list) and samples is not None:
        entries = [_join(list(parts)) for parts in zip(*values, strict=True)]
        return type(first)(*entries) if _is_named(first) else type(first)(entries)
    if isinstance(first, (*_SETTING, Tensor)) and all(_same_setting(first, value) for value in values):
        return first
    rule = "must be None where batches cannot be joined"
    raise InputError("batch_size", rule, type(first).__name__, "keep the batches")


def _same_setting(first: Any, value: Any) -> bool:
    return torch.equal(first, value) if isinstance(first, Tensor) else type(first) is type(value) and first == value


def resized(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield the same samples in the same order in batches of another size; the last may be smaller."""
    rest: Batch | None = None
    number = 0
    for batch in batches:
        rest = batch if rest is None else joined([rest, batch])
        count = rest.size
        for start in range(0, count - size + 1, size):
            yield replace(take(rest, range(start, start + size)), number=number)
            number += 1
        rest = take(rest, range(count - count % size, count)) if count % size else None
    if rest is not None:
        yield replace(rest, number=number)


def batch_tensors(value: Any) -> list[Tensor]:
    """Return everything in a nested structure as tensors, in order; what holds none as the bytes of its content."""
    if isinstance(value, Tensor):
        return _dense(value)
    if isinstance(value, Batch):
        return batch_tensors([value.input, value.target, value.index, value.partner, value.share])
    if isinstance(value, PackedSequence):
        return [part for part in value if part is not None]
    if isinstance(value, Mapping):
        return [tensor for key in value for tensor in batch_tensors(value[key])]
    if isinstance(value, tuple | list):
        return [tensor for entry in value for tensor in batch_tensors(entry)]
    if value is None:
        return []
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [torch.as_tensor(value, device="cpu")]
    if isinstance(value, _SETTING):
        return [_as_bytes(repr(value).encode())]
    if is_dataclass(value) and not isinstance(value, type):
        return batch_tensors([getattr(value, field.name) for field in fields(value)])
    held = value.to_dict() if callable(getattr(value, "to_dict", None)) else getattr(value, "__dict__", None)
    if held:
        return [_as_bytes(repr(sorted(map(str, held))).encode()), *batch_tensors(held)]
    try:
        return [_as_bytes(pickle.dumps(value))]
    except Exception as error:  # whatever an object's own reduction raises
        rule, advice = "must hold data that can be told apart", "give adapt= for this kind"
        raise InputError("batches", rule, type(value).__name__, advice) from error


def _dense(value: Tensor) -> list[Tensor]:
    if value.is_nested:
        return [torch.tensor([part.shape for part in value.unbind()], device="cpu"), *value.unbind()]
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        return [value.indices(), value.values()]
    return [value] if value.layout == torch.strided else [value.to_dense()]


def _as_bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def batch_bytes(batch: Batch) -> int:
    """Return the memory that a batch takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in batch_tensors(batch))
