"""The one object that holds everything mutable of a wrapper, and its form in a checkpoint."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import CheckpointError
from lowland.optim.buffers import ModelFinder
from lowland.optim.moves import empty_twin

__all__ = ["FORMAT", "PREFIX", "Holder", "JointState", "Scratch", "adopt", "export", "strip"]

PREFIX = "lowland"
"""Key of our part of a checkpoint, and prefix of our tensors' names in ``state``."""

FORMAT = 1
"""Version of our part of a checkpoint."""


@dataclass(slots=True)
class Scratch:
    """What lives between the passes of one step; never saved.

    Args:
        inside: Whether ``perturb()`` is open.
        ready: Whether the second pass of the current micro-batch is done.
        marked: Whether ``first_pass()`` was entered for the current micro-batch.
        in_first: Whether ``first_pass()`` is open.
        steps_inside: Open context of ``first_step``.
        aside: Gradients of earlier micro-batches.
        first: Gradients of the first pass, for methods that use them again.
        length: Norm of the first pass's gradients, where the ascent has computed it.
        kept: What the second passes of this step leave for ``step()``.
        backup: Persistent copies of the weights, so that no step allocates.
        moved: Parameters that ``perturb()`` moved, and where they were.
        random: Random state at the start of the first pass.
        witness: A parameter with the gradient it had at the end of the second pass.
        zeroings: How often gradients were cleared through the optimizer.
        finder: Finds the model by its parameters.
        buffers: Persistent copies of the model's buffers.
        trained_buffers: The buffers of the trained weights, while recalibrated ones are in the model.
        pending: A number on its way from the device, and the event after which it is there.
        warned: Whether the warning of rounding had its chance.
        driven: Whether somebody else runs all passes: a closure given to ``step()`` is then whole as it is.
    """

    inside: bool = False
    ready: bool = False
    marked: bool = False
    in_first: bool = False
    steps_inside: ExitStack | None = None
    aside: dict[Tensor, Tensor] = field(default_factory=dict)
    first: dict[Tensor, Tensor] = field(default_factory=dict)
    length: Tensor | None = None
    kept: dict[Tensor, Tensor] = field(default_factory=dict)
    backup: dict[Tensor, Tensor] = field(default_factory=dict)
    moved: tuple[list[Tensor], list[Tensor]] = ([], [])
    random: Any = None
    witness: tuple[Tensor, Tensor | None] | None = None
    zeroings: int = 0
    finder: ModelFinder | None = None
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    trained_buffers: dict[Tensor, Tensor] = field(default_factory=dict)
    pending: tuple[Tensor, Any] | None = None
    warned: bool = False
    driven: bool = False

    def forget(self) -> None:
        """Drop everything that belongs to the step in progress; the backup's memory is kept."""
        self.ready = self.marked = False
        self.aside, self.first, self.kept, self.random, self.witness = {}, {}, {}, None, None


class Holder:
    """Everything mutable of a wrapper; mutated, never rebound, so that proxies of the wrapper share it.

    Args:
        bases: The wrapped optimizers.
        evaluation: Name of the own tensors that are evaluated; None: the trained weights.

    Attributes:
        bases: The wrapped optimizers.
        numbers: Own numbers that are saved, ``steps`` among them.
        tensors: Own tensors that are saved: name -> parameter -> tensor.
        evaluating: Whether the model holds the evaluation weights.
        stepped: Whether the bases have run a step in this process.
        scratch: What is never saved.
    """

    def __init__(self, bases: tuple[torch.optim.Optimizer, ...], evaluation: str | None = None) -> None:
        self.bases, self.evaluation = bases, evaluation
        self.numbers: dict[str, int | float | bool] = {"steps": 0}
        self.tensors: dict[str, dict[Tensor, Tensor]] = {}
        self.evaluating = False
        self.stepped = False
        self.scratch = Scratch()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "scratch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.scratch = Scratch()

    def readable(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a parameter's own tensors under the names that a checkpoint has them by, whatever the mode.

        Args:
            parameter: The parameter.

        Returns:
            Name -> tensor.
        """
        found = {name: values[parameter] for name, values in self.tensors.items() if parameter in values}
        if self.evaluation in found:
            found["trained"] = parameter.detach()
            if self.evaluating:
                found[self.evaluation], found["trained"] = found["trained"], found[self.evaluation]
        return found

    def parameters(self) -> Iterator[Tensor]:
        """Yield every optimized parameter in the order of the groups.

        Yields:
            The parameters.
        """
        for base in self.bases:
            for group in base.param_groups:
                yield from group["params"]


class JointState(MutableMapping[Tensor, Any]):
    """The per-parameter state of the bases as one mapping, with ours beside it under prefixed names.

    What is written goes to the owner of the parameter; ours is there to be read, by checkpoints that ask for each name.

    Args:
        holder: The state of the wrapper.
    """

    def __init__(self, holder: Holder) -> None:
        self._holder, self._bases = holder, holder.bases

    def _owner(self, parameter: Tensor) -> torch.optim.Optimizer:
        for base in self._bases[1:]:
            if any(parameter is p for group in base.param_groups for p in group["params"]):
                return base
        return self._bases[0]

    def __getitem__(self, parameter: Tensor) -> Any:
        ours = {f"{PREFIX}.{name}": value for name, value in self._holder.readable(parameter).items()}
        return ChainMap(self._owner(parameter).state[parameter], ours)

    def __setitem__(self, parameter: Tensor, value: Any) -> None:
        self._owner(parameter).state[parameter] = value

    def __delitem__(self, parameter: Tensor) -> None:
        del self._owner(parameter).state[parameter]

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in base.state for base in self._bases)

    def __iter__(self) -> Iterator[Tensor]:
        for base in self._bases:
            yield from base.state

    def __len__(self) -> int:
        return sum(len(base.state) for base in self._bases)


def export(holder: Holder, method: str, own: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Any]:
    """Build the state of the bases with ours added, in torch's own flat form.

    Ours stands twice, sharing memory: complete under ``"lowland"``, and beside the bases' own entries, where torch's
    distributed checkpoint keeps it. A parameter without an entry of its base gets none from us, since Adam takes any
    entry for a sign that its own are there.

    Args:
        holder: The state.
        method: Name of the wrapper.
        own: Own tensors: name -> index of the parameter -> tensor.

    Returns:
        ``state``, ``param_groups`` and ``lowland``.
    """
    state: dict[Any, Any] = {}
    groups: list[dict[str, Any]] = []
    offset = 0
    for base in holder.bases:
        packed = base.state_dict()
        count = sum(len(group["params"]) for group in packed["param_groups"])
        for key, value in packed["state"].items():
            state[key + offset if isinstance(key, int) else key] = dict(value) if isinstance(value, dict) else value
        groups += [{**group, "params": [i + offset for i in group["params"]]} for group in packed["param_groups"]]
        offset += count
    stateless = holder.stepped and not any(state.values())
    for name, values in own.items():
        for index, value in values.items():
            if stateless or state.get(index):
                state.setdefault(index, {})[f"{PREFIX}.{name}"] = value
    mark = {"format": FORMAT, "method": method, **holder.numbers}
    groups[0][PREFIX] = dict(mark)
    return {"state": state, "param_groups": groups, PREFIX: {**mark, "tensors": {n: dict(v) for n, v in own.items()}}}


def strip(saved: Mapping[str, Any], sizes: list[int], method: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Part a checkpoint into the states of the bases and ours; nothing is changed.

    Args:
        saved: What `export`, a bare optimizer or torch's distributed checkpoint made.
        sizes: Number of groups of each base.
        method: Name of the wrapper that loads.

    Returns:
        One state per base, and ours: the numbers, and ``tensors`` by name and position of the parameter; empty for a
        bare checkpoint.

    Raises:
        CheckpointError: If the checkpoint is of another method, a newer format, or has another number of groups.
    """
    groups = [{k: v for k, v in group.items() if k != PREFIX} for group in saved["param_groups"]]
    if len(groups) != sum(sizes):
        raise CheckpointError(f"the checkpoint has {len(groups)} parameter groups, the optimizer {sum(sizes)}")
    mark = dict(saved.get(PREFIX) or (saved["param_groups"][0].get(PREFIX, {}) if groups else {}))
    if "method" not in mark:  # the bare state of a base that we wrap
        mark = {}
    if mark and mark["method"] != method:
        raise CheckpointError(
            f"the checkpoint is of {mark['method']}, the optimizer is {method}; to go on with the base optimizer's "
            f"state alone, drop its 'lowland' entries"
        )
    if mark and mark["format"] > FORMAT:
        raise CheckpointError(f"the checkpoint has format {mark['format']}, this version reads up to {FORMAT}")
    order = {key: i for i, key in enumerate(key for group in groups for key in group["params"])}
    clean: dict[Any, Any] = {}
    tensors: dict[str, dict[int, Tensor]] = {n: dict(v) for n, v in mark.pop("tensors", {}).items()}
    whole = PREFIX in saved
    for key, entry in saved["state"].items():
        if not isinstance(entry, dict):
            clean[key] = entry
            continue
        rest = {k: v for k, v in entry.items() if not str(k).startswith(PREFIX + ".")}
        if rest or len(rest) == len(entry):
            clean[key] = rest
        for name, value in entry.items():
            if len(rest) < len(entry) and not whole and str(name).startswith(PREFIX + "."):
                tensors.setdefault(str(name)[len(PREFIX) + 1 :], {})[order[key]] = value
    if mark:
        mark = {k: v for k, v in mark.items() if k not in ("method", "format")} | {"tensors": tensors}
    return _split(clean, groups, sizes), mark


def _split(state: dict[Any, Any], groups: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Any]]:
    if len(sizes) == 1:
        return [{"state": state, "param_groups": groups}]
    parts, start = [], 0
    for size in sizes:
        chosen = groups[start : start + size]
        keys = {key for group in chosen for key in group["params"]}
        parts.append({"state": {k: v for k, v in state.items() if k in keys}, "param_groups": chosen})
        start += size
    return parts


def adopt(
    values: Mapping[int, Tensor], parameters: list[Tensor], make: Callable[[Tensor], Tensor]
) -> dict[Tensor, Tensor]:
    """Copy saved tensors to where the parameters live.

    Args:
        values: Position of the parameter -> saved tensor.
        parameters: The parameters in order.
        make: What a parameter without a saved tensor gets.

    Returns:
        Parameter -> own tensor.
    """
    found = {}
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            if index in values:
                found[parameter] = empty_twin(parameter).copy_(values[index])
            else:
                found[parameter] = make(parameter)
    return found
