"""The one object that holds everything mutable of an optimizer: bases, parts, own tensors, the state of a step."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.interrupts import held_interrupts
from lowland.optim.moves import copy_all, copy_for, is_dense, joint_norm, swap
from lowland.optim.options import AscentOptions
from lowland.optim.parts import Method, Part, rate_of
from lowland.optim.phases import REFUSED, Phase, Scratch
from lowland.optim.ranks import average_over_ranks, check_ranks_agree, world_size

PREFIX = "lowland"
"""Key of our part of a checkpoint, and prefix of our tensors' names in ``state``."""


class Holder:
    """Everything mutable of an optimizer; mutated, never rebound, so that proxies of the optimizer share it."""

    def __init__(self, bases: tuple[torch.optim.Optimizer, ...], options: AscentOptions) -> None:
        self.bases, self.options = bases, options
        self.parts: list[Part] = []
        self.numbers: dict[str, int | float | bool] = {"steps": 0}
        self.tensors: dict[str, dict[Tensor, Tensor]] = {}  # own name -> parameter -> tensor
        self.evaluating = False
        self.stepped = False  # in this process
        self.scratch = Scratch()

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {key: value for key, value in vars(self).items() if key != "scratch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.scratch = Scratch()

    # What it holds.

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return int(self.numbers["steps"])

    @property
    def method(self) -> Method | None:
        """The part with a second pass."""
        return next((part for part in self.parts if isinstance(part, Method)), None)

    @property
    def evaluation(self) -> str | None:
        """Name of the own tensors that are evaluated: those of the outermost part that has some."""
        return next((part.evaluation for part in reversed(self.parts) if part.evaluation), None)

    @property
    def switching(self) -> list[Any]:
        """The bases with two sets of weights of their own (Schedule-Free)."""
        return [base for base in self.bases if callable(getattr(base, "train", None)) and hasattr(base, "eval")]

    def groups(self) -> list[dict[str, Any]]:
        """Return all groups in order."""
        return [group for base in self.bases for group in base.param_groups]

    def parameters(self) -> Iterator[Tensor]:
        """Return every optimized parameter in the order of the groups."""
        return chain.from_iterable(group["params"] for group in self.groups())

    def gradients(self) -> dict[Tensor, Tensor]:
        """Return the present gradients by parameter, without sparse ones: what can be normed, kept and combined."""
        return {p: g for p in self.parameters() if (g := p.grad) is not None and is_dense(g)}

    def has_gradients(self) -> bool:
        """Tell whether any parameter has a gradient."""
        return any(p.grad is not None for p in self.parameters())

    # Own tensors.

    def adopt(self, parts: Sequence[Part], options: AscentOptions) -> None:
        """Put parts around those that are there."""
        if not self.parts:  # an earlier wrapper of ours, or a checkpoint of one, may have left marks in the bases
            for entry in (entry for base in self.bases for entry in base.state.values()):
                for key in [key for key in entry if str(key).startswith(PREFIX + ".")]:
                    del entry[key]
        for part in parts:
            if isinstance(part, Method):
                part.options = options
            self.parts.append(part)
            self.numbers.update(part.numbers())
            self.tensors.update({name: {} for name in part.own})
        for group in self.groups():
            for part in parts:
                part.adopt_group(group)
            group.pop(PREFIX, None)
        self.groups()[0][PREFIX] = self.numbers

    def begin(self) -> None:
        """Give parameters the own tensors that they lack; at the first step all of them, so that they begin there."""
        first = self.steps == 0
        for part in self.parts:
            for name, parameter in product(part.own, list(self.parameters())):
                if (first or parameter not in self.tensors[name]) and parameter.is_floating_point():
                    self.tensors[name][parameter] = part.fresh(name, parameter)

    def own(self, name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return parameters and their own tensors, in the same order, where the parameters are by now."""
        owned = self.tensors[name]
        for parameter, tensor in owned.items():
            if tensor.device != parameter.device or tensor.dtype != parameter.dtype:  # the model was moved
                with torch.inference_mode(False):
                    owned[parameter] = tensor.to(parameter.device, parameter.dtype)
        return list(owned), list(owned.values())

    def below(self, part: Part) -> tuple[list[Tensor], list[Tensor]]:
        """Return parameters, and what is evaluated without a part and those around it: the weights it looks at."""
        inside = self.parts[: self.parts.index(part)]
        name = next((other.evaluation for other in reversed(inside) if other.evaluation), None)
        if name is not None:
            return self.own(name)
        weights = [p for p in self.parameters() if p.is_floating_point()]
        return weights, weights

    def backup(self, parameter: Tensor) -> Tensor:
        """Return memory for a copy of a parameter, the same in every step."""
        copies = self.scratch.backup
        copy = copies[parameter] = copy_for(parameter, copies.get(parameter))
        return copy

    def readable(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a parameter's own tensors under the names that a checkpoint has them by, whatever the mode."""
        found = {name: values[parameter] for name, values in self.tensors.items() if parameter in values}
        if self.switching:
            found["trained"] = self.scratch.trained.get(parameter, parameter.detach())
        elif self.evaluation in found:
            found["trained"] = parameter.detach()
            if self.evaluating:
                found[self.evaluation], found["trained"] = found["trained"], found[self.evaluation]
        return found

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over the ranks of the distributed model."""
        average_over_ranks(tensors, self.process_group())

    def average_kept(self) -> None:
        """Replace what is kept of first passes that ranks made by themselves by the mean; what a rank lacks is 0."""
        kept = self.scratch.kept
        if kept and self.options.distributed == "local" and world_size() > 1:
            reached = [p for p in self.parameters() if p in kept or (p.grad is not None and is_dense(p.grad))]
            self.scratch.kept = {p: kept[p] if p in kept else torch.zeros_like(p) for p in reached}
            self.average(list(self.scratch.kept.values()))

    def process_group(self) -> Any:
        """Return the ranks of the distributed model; None where none is known."""
        groups = [getattr(m, "process_group", None) for m in self.scratch.buffers.modules(self.scratch.model)]
        return next((group for group in groups if group is not None), self.scratch.group)

    def rescaling(self) -> Tensor:
        """Return what the step's gradients were multiplied by since the second pass: by a scaler, by clipping."""
        length = self.scratch.length
        assert length is not None
        return torch.nan_to_num(self.length() / length, nan=1.0, posinf=1.0)  # 0 / 0 where there is no slope at all

    def length(self) -> Tensor:
        """Return the length of the present gradients, without sparse ones."""
        return joint_norm(list(self.gradients().values()))

    def settle(self) -> None:
        """Bring the parts' numbers up to date."""
        for part in self.parts:
            part.settle(self)

    # Where the step stands.

    @property
    def phase(self) -> Phase:
        """Where the step stands."""
        return Phase.EVALUATING if self.evaluating else self.scratch.phase

    def require(self, call: str) -> None:
        """Refuse a call that the table of phases does not allow; nothing is changed."""
        cell = REFUSED.get((call, self.phase))
        if cell is not None:
            raise InputError(call, cell[0], advice=cell[1])

    def wants_pass(self) -> bool:
        """Tell whether the coming step wants a second pass."""
        method, step = self.method, self.steps
        if not (self.stepped or self.scratch.compared) and world_size() > 1:
            self.scratch.compared = True
            self._compare_ranks()
        if method is None or not self.options.covers(step):
            return False
        return any(method.radius(group, step) > 0 for group in self.groups()) and method.wants(self)

    def _compare_ranks(self) -> None:
        # Only where ranks are known to train together is a collective safe: they may also train models of their own.
        group, weights = self.process_group(), [p for p in self.parameters() if p.is_floating_point()]
        sharded, exchanging = hasattr(weights[0], "device_mesh"), any(part.exchanges for part in self.parts)
        if not (group or sharded or exchanging or self.options.distributed == "local"):
            return
        own = [tensor for values in self.tensors.values() for tensor in values.values()]
        # a run that goes on may stand where it takes its gradient
        tensors = own if exchanging and own else [*weights, *own]
        settings = [*map(vars, self.parts), self.numbers, *self.groups()]
        check_ranks_agree([] if sharded else tensors, settings, weights[0].device, group)

    def is_initializing(self) -> bool:
        """Recognize the step by which torch's distributed checkpoint makes a base create its state."""
        # It has no state yet, every rate is 0 and every gradient is 0; it is not a step of the method.
        if any(len(base.state) for base in self.bases) or any(rate_of(group, 1.0) != 0.0 for group in self.groups()):
            return False
        return not any(bool(p.grad.any()) for p in self.parameters() if p.grad is not None)

    def clear(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and begin the step anew; inside ``first_pass()`` the pass stays marked."""
        scratch = self.scratch
        first, random = scratch.phase is Phase.FIRST, scratch.random
        scratch.forget()
        if first:
            scratch.phase, scratch.random = Phase.FIRST, random
        scratch.zeroings += 1
        for base in self.bases:
            base.zero_grad(set_to_none=set_to_none)
        if not set_to_none:
            scratch.watch(self.parameters())

    # Evaluation weights.

    def switch(self, *, evaluating: bool) -> None:
        """Put the evaluation weights into the model, or the trained ones back."""
        scratch = self.scratch
        with held_interrupts(), torch.no_grad():
            if self.evaluating != evaluating and self.evaluation is not None:
                swap(*self.own(self.evaluation))
            if self.switching and evaluating and not self.evaluating:
                scratch.trained = {p: p.detach().clone() for p in self.parameters()}
            for base in self.switching:
                base.eval() if evaluating else base.train()
            if not evaluating:
                # the base's way back is not exact: the weights come from a copy, as they do after an ascent
                copy_all(list(scratch.trained), list(scratch.trained.values()))
                scratch.trained = {}
            self.evaluating = evaluating
            torch.clear_autocast_cache()


class JointState(MutableMapping[Tensor, Any]):
    """The per-parameter state of the bases as one mapping, with ours beside it under prefixed names."""

    # What is written goes to the owner of the parameter; ours is there to be read, by checkpoints that ask by name.

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def _owner(self, parameter: Tensor) -> Any:
        bases = self._holder.bases
        held = (b.state for b in bases[1:] if any(parameter is p for g in b.param_groups for p in g["params"]))
        return next(held, bases[0].state)

    def __getitem__(self, parameter: Tensor) -> Any:
        ours = {f"{PREFIX}.{name}": value for name, value in self._holder.readable(parameter).items()}
        return ChainMap(self._owner(parameter)[parameter], ours)

    def __setitem__(self, parameter: Tensor, value: Any) -> None:
        self._owner(parameter)[parameter] = value

    def __delitem__(self, parameter: Tensor) -> None:
        del self._owner(parameter)[parameter]

    def __contains__(self, parameter: object) -> bool:
        return any(parameter in base.state for base in self._holder.bases)

    def __iter__(self) -> Iterator[Tensor]:
        return chain.from_iterable(base.state for base in self._holder.bases)

    def __len__(self) -> int:
        return sum(len(base.state) for base in self._holder.bases)
