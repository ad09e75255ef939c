"""Checkpoints: what stands beside the bases' own state, and what must fit before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import CheckpointError
from lowland.optim.holder import PREFIX, Holder
from lowland.optim.moves import empty_twin

FORMAT = 1
"""Version of our part of a checkpoint."""


def own_tensors(held: Holder) -> dict[str, dict[int, Tensor]]:
    """Return the own tensors by name and position of the parameter."""
    own: dict[str, dict[int, Tensor]] = {}
    for index, parameter in enumerate(held.parameters()):
        for name, value in held.readable(parameter).items():
            own.setdefault(name, {})[index] = value
    return own


def export(held: Holder, method: str) -> dict[str, Any]:
    """Build the state of the bases with ours added, in torch's own flat form."""
    # Ours stands twice, sharing memory: complete under "lowland", and beside the bases' own entries, where torch's
    # distributed checkpoint keeps it. A parameter without an entry of its base gets none from us, since Adam takes any
    # entry for a sign that its own are there.
    held.settle()
    state: dict[Any, Any] = {}
    groups: list[dict[str, Any]] = []
    offset = 0
    for base in held.bases:
        if getattr(base, "_all_state_dicts", None) == []:
            rule = f"the state of {type(base).__name__} is spread over processes and was not gathered on this one"
            advice = "call optimizer.consolidate_state_dict() on all of them before every save, and save on rank 0"
            raise CheckpointError(f"{rule}; {advice}")
        packed = base.state_dict()
        count = sum(len(group["params"]) for group in packed["param_groups"])
        for key, value in packed["state"].items():
            state[key + offset if isinstance(key, int) else key] = dict(value) if isinstance(value, dict) else value
        for group in packed["param_groups"]:
            mode = {"train_mode": True} if "train_mode" in group else {}  # the same in either mode
            groups.append({**group, **mode, "params": [i + offset for i in group["params"]]})
        offset += count
    own = own_tensors(held)
    stateless = held.stepped and not any(state.values())
    for name, values in own.items():
        for index, value in values.items():
            if stateless or state.get(index):
                state.setdefault(index, {})[f"{PREFIX}.{name}"] = value
    mark = {"format": FORMAT, "method": method, **held.numbers}
    groups[0][PREFIX] = dict(mark)
    return {"state": state, "param_groups": groups, PREFIX: {**mark, "tensors": {n: dict(v) for n, v in own.items()}}}


def _parted(
    saved: Mapping[str, Any], held: Holder, method: str
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, dict[int, Tensor]]]:
    """Part a checkpoint into the states of the bases, our numbers, and our tensors; a bare one has none of ours."""
    groups = [{k: v for k, v in group.items() if k != PREFIX} for group in saved["param_groups"]]
    if len(groups) != len(held.groups()):
        raise CheckpointError(f"the checkpoint has {len(groups)} parameter groups, the optimizer {len(held.groups())}")
    mark = dict(saved.get(PREFIX) or saved["param_groups"][0].get(PREFIX, {}))
    whole, tensors = PREFIX in saved, {name: dict(values) for name, values in mark.pop("tensors", {}).items()}
    theirs, version = mark.pop("method", None), mark.pop("format", FORMAT)
    if theirs not in (None, method):
        advice = "to go on with the base optimizer's state alone, drop its 'lowland' entries"
        raise CheckpointError(f"the checkpoint is of {theirs}, the optimizer is {method}; {advice}")
    if version > FORMAT:
        raise CheckpointError(f"the checkpoint has format {version}, this version reads up to {FORMAT}")
    order = {key: i for i, key in enumerate(key for group in groups for key in group["params"])}
    clean: dict[Any, Any] = {}
    for key, entry in saved["state"].items():
        ours = [name for name in entry if str(name).startswith(f"{PREFIX}.")] if isinstance(entry, dict) else []
        if not ours or len(ours) < len(entry):
            clean[key] = {k: v for k, v in entry.items() if k not in ours} if ours else entry
        for name in ours if not whole else ():
            tensors.setdefault(name.removeprefix(f"{PREFIX}."), {})[order[key]] = entry[name]
    parts, rest = [], iter(groups)
    for base in held.bases:
        chosen = list(islice(rest, len(base.param_groups)))
        keys = clean.keys() if len(held.bases) == 1 else {key for group in chosen for key in group["params"]}
        parts.append({"state": {k: v for k, v in clean.items() if k in keys}, "param_groups": chosen})
    return (parts, {}, {}) if theirs is None else (parts, mark, tensors)


def load(held: Holder, saved: Mapping[str, Any], method: str) -> None:
    """Take over a checkpoint, if all of it fits."""
    parts, numbers, tensors = _parted(saved, held, method)
    _check(held, parts, tensors)
    evaluating = held.evaluating
    with torch.inference_mode(False):  # what is made here takes part in training
        held.switch(evaluating=False)
        for base, part in zip(held.bases, parts, strict=True):
            kept = [dict(group) for group in base.param_groups]
            base.load_state_dict(part)
            for group, old in zip(base.param_groups, kept, strict=True):
                group.update({**old, **group})  # a bare checkpoint lacks options of ours
        held.scratch.forget()
        _restore(held, numbers, tensors)
        held.switch(evaluating=evaluating)


def _check(held: Holder, parts: list[dict[str, Any]], tensors: dict[str, dict[int, Tensor]]) -> None:
    """Refuse a checkpoint of other groups, parameters or shapes, for every base, before anything is changed."""
    for base, part in zip(held.bases, parts, strict=True):
        for position, (group, saved) in enumerate(zip(base.param_groups, part["param_groups"], strict=True)):
            kind, ours, theirs = type(base).__name__, len(group["params"]), len(saved["params"])
            if ours != theirs:
                said = f"group {position} of {kind} has {ours} parameters, the checkpoint's has {theirs}"
                raise CheckpointError(said)
            for parameter, key in zip(group["params"], saved["params"], strict=True):
                _check_entry(parameter, part["state"].get(key, {}), key)
    parameters = list(held.parameters())
    for name, values in tensors.items():
        for index, value in values.items():
            has = list(parameters[index].shape) if index < len(parameters) else "missing"
            if has != list(value.shape):
                raise _foreign(index, has, f"`{name}`", value.shape)


def _check_entry(parameter: Tensor, entry: Any, key: Any) -> None:
    if not isinstance(entry, Mapping):
        return
    if "old_p" in entry:
        rule = "the checkpoint is of the common SAM port, which does not save its base"
        raise CheckpointError(f"{rule}: load the model alone, and begin with a new optimizer")
    # factored and preconditioning states have shapes of their own: what has none of the parameter's is foreign
    shapes = [value.shape for value in entry.values() if isinstance(value, Tensor) and value.ndim == parameter.ndim > 0]
    if shapes and parameter.shape not in shapes:
        raise _foreign(key, list(parameter.shape), "state", shapes[0])


def _foreign(key: Any, has: Any, what: str, shape: torch.Size) -> CheckpointError:
    both = f"parameter {key} is {has}, its {what} in the checkpoint {list(shape)}"
    return CheckpointError(f"{both}: it is of another model; nothing was changed")


@torch.no_grad()
def _restore(held: Holder, numbers: dict[str, Any], tensors: dict[str, dict[int, Tensor]]) -> None:
    """Take over own numbers and tensors; what is missing begins at the next step."""
    parameters = list(held.parameters())
    for index, value in tensors.get("trained", {}).items():
        parameters[index].copy_(value)
    held.numbers.clear()  # mutated, since the first group holds them too
    held.numbers["steps"] = 0
    for begun in (*(part.numbers() for part in held.parts), numbers):
        held.numbers.update(begun)
    for name in held.tensors:
        values = tensors.get(name, {})
        held.tensors[name] = {parameters[i]: empty_twin(parameters[i]).copy_(values[i]) for i in sorted(values)}
    held.scratch.pending = None
    torch.clear_autocast_cache()
