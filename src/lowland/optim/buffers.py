"""The buffers (batch-norm statistics and counters) of the modules that own given parameters.

An optimizer knows parameters, not modules. The modules are looked up once, among the live objects of the process, by
the parameters they hold: no forward hook is needed, so that compiled models keep their graphs.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lowland.core.contexts import held_interrupts
from lowland.optim.moves import copy_all, empty_twin

__all__ = ["ModelFinder", "buffers_kept", "owners"]


def owners(parameters: Iterable[Tensor]) -> list[nn.Module]:
    """Return the outermost live modules that hold any of the parameters.

    Args:
        parameters: The parameters.

    Returns:
        Modules in the order of their creation; wrappers such as DDP or a compiled module come in place of what they
        wrap.
    """
    wanted = {id(p) for p in parameters}
    kinds = _subclasses(nn.Module)
    live = [found for found in gc.get_objects() if type(found) in kinds]
    parents: dict[int, list[nn.Module]] = {}
    for module in live:
        for child in module.__dict__.get("_modules", {}).values():
            if child is not None:
                parents.setdefault(id(child), []).append(module)
    held = (m for m in live if any(id(p) in wanted for p in m.__dict__.get("_parameters", {}).values()))
    stack, seen, outermost = list(held), set[int](), list[nn.Module]()
    while stack:
        module = stack.pop(0)
        if id(module) in seen:
            continue
        seen.add(id(module))
        above = parents.get(id(module), [])
        stack += above
        if not above:
            outermost.append(module)
    return outermost


def _subclasses(kind: type) -> set[type]:
    found, stack = {kind}, [kind]
    while stack:
        fresh: set[type] = set(stack.pop().__subclasses__()) - found
        found |= fresh
        stack += fresh
    return found


class ModelFinder:
    """Remembers the outermost modules of an optimizer's parameters without keeping them alive.

    Args:
        model: The model if it is known; nothing is searched then.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._found: list[weakref.ref[nn.Module]] = []
        self._count = -1

    def modules(self, parameters: list[Tensor]) -> list[nn.Module]:
        """Return the outermost modules; searched again when parameters were added or a module is gone.

        Args:
            parameters: All parameters of the optimizer.

        Returns:
            The modules; empty for parameters that no module holds.
        """
        if self._model is not None:
            return [self._model]
        found = [reference() for reference in self._found]
        if self._count != len(parameters) or any(module is None for module in found):
            self._found = [weakref.ref(module) for module in owners(parameters)]
            self._count = len(parameters)
            found = [reference() for reference in self._found]
        return [module for module in found if module is not None]


def _named_buffers(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    stack, seen = list(modules), set[int]()
    while stack:  # a plain walk: nn.Module.modules() takes longer than all the copies
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        stack += [child for child in module._modules.values() if child is not None]
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield module, name, buffer


@contextmanager
def buffers_kept(modules: Iterable[nn.Module], copies: list[tuple[Tensor, Tensor]]) -> Generator[None, None, None]:
    """Save all buffers and write them back at the end, with a few batched copies and no fresh memory.

    Args:
        modules: The outermost modules.
        copies: Buffers and their copies, kept from step to step; filled here.

    Yields:
        Nothing.
    """
    places = list(_named_buffers(modules))
    buffers = [buffer for _, _, buffer in places]
    if len(copies) != len(buffers) or any(old is not b for (old, _), b in zip(copies, buffers, strict=True)):
        copies[:] = [(buffer, empty_twin(buffer)) for buffer in buffers]
    saved = [copy for _, copy in copies]
    copy_all(saved, buffers)
    try:
        yield
    finally:
        with held_interrupts():
            copy_all(buffers, saved)
            for owner, name, buffer in places:
                owner._buffers[name] = buffer  # a forward that rebound the name is undone too
