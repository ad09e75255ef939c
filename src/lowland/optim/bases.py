"""A real ``torch.optim.Optimizer`` whose groups, state and defaults are those of the optimizers it stands around."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from lowland.core.errors import InputError
from lowland.optim.holder import PREFIX, Holder, JointState

__all__ = ["Base", "OptimizerViews"]

Base: TypeAlias = Optimizer | Sequence[Optimizer]
"""One optimizer instance, or several that share one step (say Muon for matrices and AdamW for the rest)."""


class OptimizerViews(Optimizer):
    """What torch keeps as attributes, read through to the bases: sharing them would end at a base's first load.

    Args:
        base: An optimizer instance, or several with disjoint parameters.

    Raises:
        InputError: If a base is a class, wraps already, needs a closure, or holds complex parameters.
    """

    evaluation: ClassVar[str | None] = None
    """Name of the own tensors that are the weights to evaluate and deploy; None: the trained ones."""

    def __init__(self, base: Base) -> None:
        bases = _checked_bases(base)
        for one in bases:
            for group in one.param_groups:
                self._check_group(group)
        super().__init__([{"params": []}], {})
        self._held = Holder(bases, self.evaluation)
        for parameter in self._held.parameters():
            entry: dict[Any, Any] = next((base.state[parameter] for base in bases if parameter in base.state), {})
            for key in [key for key in entry if str(key).startswith(PREFIX + ".")]:
                del entry[key]
        for group in self.param_groups:
            group.pop(PREFIX, None)
            self._adopt_group(group)
        self.param_groups[0][PREFIX] = self._held.numbers

    @property
    def base(self) -> Optimizer | tuple[Optimizer, ...]:
        """The wrapped optimizer, or the tuple of them."""
        bases = self._held.bases
        return bases[0] if len(bases) == 1 else bases

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base; of several bases, all groups in order."""
        held = getattr(self, "_held", None)
        if held is None:
            return []
        if len(held.bases) == 1:
            groups: list[dict[str, Any]] = held.bases[0].param_groups
            return groups
        return [group for base in held.bases for group in base.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        held = getattr(self, "_held", None)
        if held is None:
            return
        start = 0
        for base in held.bases:
            count = len(groups) if len(held.bases) == 1 else len(base.param_groups)
            base.param_groups = groups[start : start + count]
            start += count

    @property
    def state(self) -> Any:
        """The per-parameter state of the base; a view where there are several, or own tensors beside it."""
        held = getattr(self, "_held", None)
        if held is None:
            return {}
        return held.bases[0].state if len(held.bases) == 1 and not held.tensors else JointState(held)

    @state.setter
    def state(self, state: Any) -> None:
        held = getattr(self, "_held", None)
        if held is None:
            return
        for base in held.bases:
            mine = {id(p) for group in base.param_groups for p in group["params"]}
            chosen = {k: v for k, v in state.items() if len(held.bases) == 1 or id(k) in mine}
            base.state.clear()
            base.state.update(chosen)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the first base."""
        held = getattr(self, "_held", None)
        return {} if held is None else held.bases[0].defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        held = getattr(self, "_held", None)
        if held is not None:
            held.bases[0].defaults = defaults

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return int(self._held.numbers["steps"])

    def add_param_group(self, param_group: dict[str, Any], *, base: int | None = None) -> None:
        """Add a group to the base, at any time.

        Args:
            param_group: As torch's optimizers take it; may hold this wrapper's own options, such as ``rho``.
            base: Which of several bases gets it.

        Raises:
            InputError: If there are several bases and none is named, or the group cannot be treated.
        """
        held: Holder | None = getattr(self, "_held", None)
        if held is None:  # torch's constructor brings its own, empty group
            return
        if base is None and len(held.bases) > 1:
            raise InputError("base", "must say which of several bases gets the group", None, "pass base=0 or base=1")
        target = held.bases[base or 0]
        if not isinstance(param_group["params"], Tensor | set):
            param_group["params"] = list(param_group["params"])  # a generator can be read only once
        self._check_group(param_group)
        target.add_param_group(param_group)
        self._adopt_group(target.param_groups[-1])

    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse what the method cannot treat; methods with options per group check these too."""
        listed = group["params"]
        for entry in [listed] if isinstance(listed, Tensor) else list(listed):
            parameter = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(parameter, Tensor) and parameter.is_complex():
                raise InputError("params", "must be real", str(parameter.dtype))

    def _adopt_group(self, group: dict[str, Any]) -> None:
        """Give a new group its own options and tensors."""

    def _base_step(self) -> None:
        with _global_hooks_suspended():
            for base in self._held.bases:
                base.step()
        self._held.stepped = True


def _checked_bases(base: Base) -> tuple[Optimizer, ...]:
    bases = tuple(base) if isinstance(base, Sequence) else (base,)
    if not bases:
        raise InputError("base", "must hold at least one optimizer", base)
    for one in bases:
        if isinstance(one, type):
            raise InputError("base", "must be an optimizer instance, not a class", one, f"pass {one.__name__}(...)")
        if isinstance(one, OptimizerViews):
            raise InputError("base", "must not wrap already", type(one).__name__, "wrap the innermost optimizer once")
        if not isinstance(one, Optimizer):
            raise InputError("base", "must be a torch.optim.Optimizer", type(one).__name__)
        if isinstance(one, torch.optim.LBFGS):
            raise InputError("base", "must step without a closure of its own", type(one).__name__)
    parameters = [id(p) for one in bases for group in one.param_groups for p in group["params"]]
    if len(set(parameters)) < len(parameters):
        raise InputError("base", "must not hold a parameter twice", f"{len(parameters)} parameters")
    return bases


@contextmanager
def _global_hooks_suspended() -> Generator[None, None, None]:
    """Keep global step hooks from firing for the bases too: they have fired for the wrapper."""
    tables: list[dict[int, Any]] = [
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    ]
    if not any(tables):
        yield
        return
    saved = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, entries in zip(tables, saved, strict=True):
            table.update(entries)
