"""The buffers (batch-norm statistics and counters) of a model that is given, or met when it runs.

An optimizer knows parameters, not modules. Modules that run in a perturbed pass show themselves to a global hook, until
those that were met hold all parameters; what was met once is known in later passes, without a hook. The hook is gone
before the outermost module's own code runs, so that compiled models keep their graphs.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lowland.core.contexts import writable
from lowland.core.interrupts import held_interrupts
from lowland.optim.moves import copy_all, copy_for

Places = list[tuple[nn.Module, str, Tensor]]


class BufferKeeper:
    """Remembers the outermost modules of an optimizer's parameters without keeping them alive, and their buffers."""

    def __init__(self) -> None:
        self._met: weakref.WeakKeyDictionary[nn.Module, None] = weakref.WeakKeyDictionary()
        self._copies: dict[Tensor, Tensor] = {}
        self._covered: tuple[int, int] | None = None  # numbers of modules and parameters for which all were held

    def modules(self, model: nn.Module | None) -> list[nn.Module]:
        """Return the model that was given, or the modules met so far."""
        return list(self._met) if model is None else [model]

    @contextmanager
    def kept(self, model: nn.Module | None, parameters: list[Tensor]) -> Generator[None, None, None]:
        """Save all buffers and write them back at the end, with a few batched copies and no fresh memory."""
        places: Places = []
        old, self._copies = self._copies, {}
        self._save(self.modules(model), places, old)
        try:
            with self.meeting(model, parameters, places):
                yield
        finally:
            with held_interrupts():
                copy_all(list(self._copies), list(self._copies.values()))
                for owner, name, buffer in places:
                    owner._buffers[name] = buffer  # a forward that rebound the name is undone too

    def _save(self, modules: list[nn.Module], places: Places, old: dict[Tensor, Tensor]) -> None:
        found = [place for place in _named_buffers(modules, old) if place[2] not in self._copies]
        fresh = {buffer: copy_for(buffer, old.get(buffer)) for *_, buffer in found}
        copy_all(list(fresh.values()), list(fresh))
        self._copies |= fresh
        places += found

    @contextmanager
    def meeting(
        self, model: nn.Module | None, parameters: list[Tensor], places: Places | None = None
    ) -> Generator[None, None, None]:
        """Get to know the modules that run inside the block, and save their buffers where places are given."""
        if model is not None or self._complete(parameters):
            yield
            return
        seen = {id(inner) for module in self.modules(None) for inner in module.modules()}

        def meet(module: nn.Module, _: Any) -> None:
            if id(module) in seen:
                return
            seen.update(id(inner) for inner in module.modules())
            self._met[module] = None
            if places is not None:
                self._save([module], places, {})
            if self._complete(parameters):
                handle.remove()

        handle = register_module_forward_pre_hook(meet)
        try:
            with warnings.catch_warnings():
                # a compiled module says that the hook fires twice for it: the second time it is known
                warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global")
                yield
        finally:
            handle.remove()

    def _complete(self, parameters: list[Tensor]) -> bool:
        met = self.modules(None)
        now = len(met), len(parameters)
        if self._covered != now:
            held = {id(p) for module in met for p in module.parameters()}
            self._covered = now if met and all(id(p) in held for p in parameters) else None
        return self._covered is not None


def _named_buffers(modules: Iterable[nn.Module], known: Container[Tensor]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    # What cannot be written in place is left alone: no forward pass can have changed it in place either. Known ones
    # can; to ask each in every step would take longer than all the copies.
    stack, seen = list(modules), set[int]()
    while stack:  # a plain walk: nn.Module.modules() takes longer than all the copies
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if module._modules:
            stack += [child for child in module._modules.values() if child is not None]
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen and (buffer in known or writable(buffer)):
                seen.add(id(buffer))
                yield module, name, buffer
