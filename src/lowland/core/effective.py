"""Weights that are made of others in forward, replaced by plain ones for a while.

Covered are parametrizations, pruning, torch's old norm hooks, rows that an embedding shortens, and compiled parts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowland.core.contexts import buffers_restored, evaluation_mode, measuring
from lowland.core.interrupts import held_interrupts


@contextmanager
def effective_weights(model: nn.Module) -> Generator[None, None, None]:
    """Replace weights that are made of others (parametrizations, pruning, old norm hooks) by the ones that are used."""
    # Inside, moves and derivatives act on the weight that the layer really uses; at the end the parametrization
    # is back with its own tensors, bit for bit. Rows that `max_norm` would shorten in forward are shorter, and
    # embeddings give dense gradients. Compiled parts run eagerly: compiled backward passes have no derivative.
    undo: list[Callable[[], None]] = []
    with ExitStack() as stack:
        stack.enter_context(measuring())
        if any(_is_compiled(module) for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            with evaluation_mode(model), torch.no_grad():
                for module in list(model.modules()):
                    if parametrize.is_parametrized(module):
                        undo.append(_materialize(module))
                    if not isinstance(module, torch.jit.ScriptModule):
                        undo += [_unhooked(module, key, hook) for key, hook in _weight_hooks(module)]
                    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                        undo.append(_plain_embedding(module))
            yield
        finally:
            with held_interrupts():
                for step in reversed(undo):
                    step()


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _materialize(module: nn.Module) -> Callable[[], None]:
    kind = type(module)
    lists: Any = module.parametrizations
    values: dict[str, nn.Parameter] = {}
    with buffers_restored(lists):
        for name in lists:
            trainable = any(p.requires_grad for p in lists[name].parameters())
            values[name] = nn.Parameter(getattr(module, name).detach().clone(), requires_grad=trainable)
    del module._modules["parametrizations"]
    module.__class__ = kind.__mro__[1]  # parametrize made a subclass that holds only the properties
    for name, value in values.items():
        module._parameters[name] = value

    def undo() -> None:
        for name in values:
            del module._parameters[name]
        module.__class__ = kind
        module._modules["parametrizations"] = lists

    return undo


def _weight_hooks(module: nn.Module) -> list[tuple[int, Any]]:
    """Return the hooks of torch that make a weight before each forward pass: old norms and pruning."""
    kinds = (WeightNorm, SpectralNorm, BasePruningMethod)
    return [(key, hook) for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kinds)]


def _unhooked(module: nn.Module, key: int, hook: Any) -> Callable[[], None]:
    name = getattr(hook, "_tensor_name", None) or hook.name
    parameters, hooks, made = dict(module._parameters), dict(module._forward_pre_hooks), vars(module).get(name)
    hook(module, None)
    value: Tensor = getattr(module, name)
    sources = [part for part in parameters if part.startswith(f"{name}_")]
    trainable = any(made_of.requires_grad for part in sources if (made_of := parameters[part]) is not None)
    del module._forward_pre_hooks[key]
    vars(module).pop(name, None)
    for part in sources:
        del module._parameters[part]
    setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=trainable))

    def undo() -> None:
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks.update(hooks)
        module._parameters.clear()
        module._parameters.update(parameters)
        if made is not None:
            setattr(module, name, made)

    return undo


def _plain_embedding(module: nn.Embedding | nn.EmbeddingBag) -> Callable[[], None]:
    limit, sparse, data = module.max_norm, module.sparse, module.weight.data
    module.max_norm, module.sparse = None, False
    if limit is not None:
        module.weight.data = data.clone()
        rows = torch.arange(data.shape[0], device=data.device)
        torch.embedding_renorm_(module.weight.data, rows, limit, module.norm_type)

    def undo() -> None:
        module.max_norm, module.sparse = limit, sparse
        if limit is not None:
            module.weight.data = data

    return undo
