"""A real ``torch.optim.Optimizer`` whose groups, state and defaults are those of the optimizers it stands around."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.core.errors import InputError, require
from lowland.optim.holder import Holder, JointState
from lowland.optim.options import Base
from lowland.optim.parts import Part


class OptimizerViews(Optimizer):
    """What torch keeps as attributes, read through to the bases: sharing them would end at a base's first load."""

    def __init__(self, held: Holder) -> None:
        self._held = Holder((), held.options)  # without bases, so that what torch's constructor writes goes nowhere
        super().__init__([{"params": []}], {})
        self._held = held

    @property
    def base(self) -> Optimizer | tuple[Optimizer, ...]:
        """The wrapped optimizer, or the tuple of them."""
        bases = self._held.bases
        return bases[0] if len(bases) == 1 else bases

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base; of several bases, all groups in order."""
        bases = self._held.bases
        return bases[0].param_groups if len(bases) == 1 else self._held.groups()

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        bases, rest = self._held.bases, iter(groups)
        for base in bases:
            base.param_groups = list(islice(rest, None if len(bases) == 1 else len(base.param_groups)))

    @property
    def state(self) -> Any:
        """The per-parameter state of the base; a view where there are several, or own tensors beside it."""
        held = self._held
        return held.bases[0].state if len(held.bases) == 1 and not held.tensors else JointState(held)

    @state.setter
    def state(self, state: Any) -> None:
        entries = dict(state)  # it may be a view of what is cleared
        for base in self._held.bases:
            base.state.clear()
        JointState(self._held).update(entries)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the first base."""
        return next((base.defaults for base in self._held.bases), {})

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        for base in self._held.bases[:1]:
            base.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any], *, base: int | None = None) -> None:
        """Add a group to the base, at any time but inside ``perturb()``.

        Args:
            param_group: As torch's optimizers take it; may hold the method's own options, such as ``rho``.
            base: Which of several bases gets it.

        Raises:
            InputError: If there are several bases and none is named, or the group cannot be treated.
        """
        held = self._held
        if not held.bases:  # torch's constructor brings its own, empty group
            return
        held.require("add_param_group()")
        if base is None and len(held.bases) > 1:
            raise InputError("base", "must say which of several bases gets the group", None, "pass base=0 or base=1")
        target = held.bases[base or 0]
        if not isinstance(param_group["params"], Tensor | set):
            param_group["params"] = list(param_group["params"])  # a generator can be read only once
        _check_group(param_group, held.parts, held.options.distributed)
        target.add_param_group(param_group)
        for part in held.parts:
            part.adopt_group(target.param_groups[-1])

    def _hooked(self, call: Callable[[], Any], closure: Any) -> Any:
        """Run the wrapper's own step hooks around a call."""
        # torch would do this, and fire its global hooks and its profiler's mark too: those are the base's, once
        arguments = () if closure is None else (closure,)
        for before in self._optimizer_step_pre_hooks.values():
            before(self, arguments, {})
        result = call()
        for after in self._optimizer_step_post_hooks.values():
            after(self, arguments, {})
        return result


def checked_bases(base: Base) -> tuple[Optimizer, ...]:
    """Return the bases that are not ours, or refuse them."""
    bases = tuple(base) if isinstance(base, Sequence) else (base,)
    require(bases, "base", "must hold at least one optimizer", base)
    for one in bases:
        if isinstance(one, type):
            raise InputError("base", "must be an optimizer instance, not a class", one, f"pass {one.__name__}(...)")
        kind, advice = type(one).__name__, "give all plain bases to the innermost of ours"
        plain = not isinstance(one, OptimizerViews)
        require(plain, "base", "must not wrap already where there are several", kind, advice)
        require(isinstance(one, Optimizer), "base", "must be a torch.optim.Optimizer", kind)
        require(not isinstance(one, torch.optim.LBFGS), "base", "must step without a closure of its own", kind)
        prompt = not getattr(one, "_overlap_with_ddp", False)  # else it steps inside the backward pass
        require(prompt, "base", "must step when it is told to", kind, "pass overlap_with_ddp=False")
    parameters = [id(p) for one in bases for group in one.param_groups for p in group["params"]]
    once = len(set(parameters)) == len(parameters)
    require(once, "base", "must not hold a parameter twice", f"{len(parameters)} parameters")
    return bases


def check_parts(held: Holder, parts: Sequence[Part], distributed: str) -> None:
    """Refuse parts that do not go around what is there, or groups that they cannot treat."""
    present = max(held.parts, key=lambda part: part.rank, default=None)
    for part in parts:
        if present is not None and part.rank <= present.rank:
            kinds = {0: "a second pass", 1: "slow weights", 2: "an average"}
            advice = f"write {present.name}({part.name}(base))" if part.rank < present.rank else "use one of them"
            rule = f"must not wrap {kinds[present.rank]} already, for {part.name} is {kinds[part.rank]}"
            raise InputError("base", rule, present.name, advice)
        if part.steps_aside and held.switching:
            rule = f"must have one set of weights for {part.name}, which writes or averages them beside its step"
            advice = "it averages already: use it alone, or inside SAM"
            raise InputError("base", rule, type(held.switching[0]).__name__, advice)
        sharded = [base for base in held.bases if hasattr(base, "consolidate_state_dict")]
        if part.reads_state and sharded:
            rule = f"must hold the state of every parameter for {part.name}, which reads it"
            raise InputError("base", rule, type(sharded[0]).__name__, "use the optimizer whose state it shards")
    owners = [part.name for part in [*held.parts, *parts] if part.owns_rate]
    rule = "must leave the learning rate to one of its parts"
    require(len(owners) < 2, "base", rule, owners, "use SWA without rates")
    for group in held.groups():
        _check_group(group, parts, distributed)


def _check_group(group: Mapping[str, Any], parts: Sequence[Part], distributed: str) -> None:
    listed = group["params"]
    for entry in [listed] if isinstance(listed, Tensor) else list(listed):
        parameter = entry[1] if isinstance(entry, tuple) else entry
        if isinstance(parameter, Tensor) and parameter.is_complex():
            raise InputError("params", "must be real", str(parameter.dtype))
        if distributed == "local" and hasattr(parameter, "device_mesh"):
            advice = "no rank holds a whole gradient of its own there"
            raise InputError("distributed", 'must be "synced" for sharded (FSDP2) parameters', "local", advice)
    for part in parts:
        part.check_group(group)


def refuse_ports(name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuse the arguments of the common SAM port, and show the line to write."""
    kind = arguments[1] if len(arguments) > 1 else None
    if isinstance(kind, type) and issubclass(kind, Optimizer):
        line = f"write {name}({kind.__name__}(model.parameters(), lr=...), rho=...)"
        raise InputError("base", "must be an optimizer instance, and not parameters and a class", kind.__name__, line)
    if "adaptive" in options:
        line = 'write ASAM(base, rho=..., eta=0, scaled="all"), or SAM(base, rho=...) without it'
        raise InputError("adaptive", "must be said by the method", options["adaptive"], line)
