"""Contexts that change a model for a while and restore it bit for bit, also after an exception or Ctrl-C.

Also here: which pass is running. The two-pass optimizers set it, losses with a memory read it, and count and record in
the clean pass only.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.types import Batch, forward

__all__ = [
    "BatchNormMode",
    "batch_norm_mode",
    "buffers_restored",
    "current_pass",
    "differentiable_kernels",
    "effective_weights",
    "evaluation_mode",
    "forked_rng",
    "gradients_aside",
    "has_running_statistics",
    "held_interrupts",
    "measuring",
    "parameters_kept",
    "perturbed_pass",
    "recalibrate",
    "running_buffers",
    "same_bits",
    "weights_restored",
]

BatchNormMode = Literal["running", "batch", "recalibrated"]

_PASS: ContextVar[Literal["clean", "perturbed"]] = ContextVar("lowland_pass", default="clean")


def current_pass() -> Literal["clean", "perturbed"]:
    """Return which forward pass is running: the clean one, or the one at perturbed weights."""
    return _PASS.get()


@contextmanager
def perturbed_pass() -> Generator[None, None, None]:
    """Mark everything inside as the pass at perturbed weights."""
    token = _PASS.set("perturbed")
    try:
        yield
    finally:
        _PASS.reset(token)


@contextmanager
def held_interrupts() -> Generator[None, None, None]:
    """Hold SIGINT back while weights are being written, and deliver it afterwards."""
    # Only the main thread receives signals, so that elsewhere this does nothing.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    previous = signal.getsignal(signal.SIGINT)
    if previous is None:  # installed by a C library: it cannot be put back from Python
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught and callable(previous):
            previous(*caught[0])


@contextmanager
def weights_restored(space: ParameterSpace) -> Generator[list[Tensor], None, None]:
    """Save the parameters of a space and write the same bits back at the end."""
    base = space.copy()
    try:
        yield base
    finally:
        with held_interrupts():
            space.write(base)


@contextmanager
def measuring() -> Generator[None, None, None]:
    """Make ambient state no input: gradients on, inference mode and autocast off, no weights cached by autocast."""
    # The cache would hand out weights as they were before a move. Precision is an argument of what is measured.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise InputError(
            "risk", "must be measured outside torch.func transforms (grad, vmap, jvp, ...)",
            advice="call Lowland outside, or use lowland.curvature.Hessian for derivatives",
        )  # fmt: skip
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.mps.is_available() else [])]
    active = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    cached = torch.is_autocast_cache_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        for kind in active:
            torch.set_autocast_enabled(kind, False)
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
            for kind in active:
                torch.set_autocast_enabled(kind, True)


@contextmanager
def parameters_kept(model: nn.Module) -> Generator[None, None, None]:
    """Put back the bits of all parameters at the end, for a model whose forward pass may write to them."""
    saved = [(p, p.data, p.detach().clone()) for p in model.parameters()]
    try:
        yield
    finally:
        with held_interrupts():
            for parameter, data, value in saved:
                if data.data_ptr() != parameter.data_ptr():
                    parameter.data = data
                if not torch.equal(_bits(parameter), _bits(value)):
                    parameter.data.copy_(value)


@contextmanager
def buffers_restored(model: nn.Module) -> Generator[None, None, None]:
    """Save what a model holds beside its parameters, and put it back at the end, also where forward rebound it."""
    # Buffers, and plain tensors among a module's attributes (hand-written statistics). What cannot be written in
    # place (expanded, sparse, made in inference mode) can only have been rebound: the object is put back.
    kept = [(module, dict(module._buffers), _plain_tensors(module)) for module in model.modules()]
    tensors = [t for _, buffers, plain in kept for t in (*buffers.values(), *plain.values()) if t is not None]
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors if _writable(tensor)]
    try:
        yield
    finally:
        with held_interrupts(), torch.no_grad():
            for tensor, value in saved:
                tensor.data.copy_(value)
            for module, buffers, plain in kept:
                _put_back(module, buffers, plain)


def _plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    }


def _writable(tensor: Tensor) -> bool:
    if (
        nn.parameter.is_lazy(tensor)
        or tensor.is_inference()
        or tensor.layout != torch.strided
        or tensor.is_meta
        or tensor.is_nested
    ):
        return False
    return all(step > 0 or size < 2 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _put_back(module: nn.Module, buffers: dict[str, Any], plain: dict[str, Tensor]) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # its buffers live in C++ and are written in place alone
        return
    for name in [name for name in module._buffers if name not in buffers]:
        del module._buffers[name]
    module._buffers.update(buffers)
    for name in _plain_tensors(module):
        if name not in plain:
            delattr(module, name)
    module.__dict__.update(plain)


@contextmanager
def gradients_aside(model: nn.Module) -> Generator[None, None, None]:
    """Put every ``.grad`` and all backward hooks aside and restore them, and ``requires_grad``, at the end."""
    # A hook that scales or masks gradients belongs to training; the derivative of the risk knows none.
    saved = [(p, p.grad, p.requires_grad, p._backward_hooks) for p in model.parameters()]
    hooked: list[tuple[Any, dict[int, Any]]] = [
        (hooks, dict(hooks))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for hooks in (module._backward_hooks, module._backward_pre_hooks)
        if hooks
    ]
    for parameter, _, _, hooks in saved:
        parameter.grad = None
        if hooks:
            parameter._backward_hooks = None
    for hooks, _ in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, entries in hooked:
            hooks.update(entries)
        for parameter, gradient, requires, hooks in saved:
            parameter.grad = gradient
            parameter.requires_grad_(requires)
            if hooks:
                parameter._backward_hooks = hooks


@contextmanager
def forked_rng(seed: int | None = None) -> Generator[None, None, None]:
    """Restore the random state of Python, NumPy and torch (all devices) at the end."""
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None, None, None]:
    """Switch all modules to evaluation mode and restore each module's own flag at the end."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _tracking(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    norm = nn.modules.batchnorm._NormBase
    return [m for m in model.modules() if isinstance(m, norm) and m.running_mean is not None]


def running_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of one layer by name, of torch's own or a hand-written one."""
    own = isinstance(module, nn.modules.batchnorm._NormBase)
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and (own or "running" in name or "moving" in name)
    }


def _check_own_norms(model: nn.Module, mode: str) -> None:
    """Refuse to change the mode of a layer whose statistics we do not know how to renew."""
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        if running_buffers(module) and (scripted or not isinstance(module, nn.modules.batchnorm._NormBase)):
            raise InputError(
                "batch_norm", f'must be "running" for a model with {"scripted" if scripted else "hand-written"} '
                f"running statistics (at {name!r})", mode, "use torch's own norm layers for the other modes",
            )  # fmt: skip


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Renew the running statistics of all batch norms as the cumulative average over given batches."""
    # Each batch counts equally, as in torch's own cumulative average; no gradient flows through it.
    norms = _tracking(model)
    if not norms:
        return 0
    saved = [(norm, norm.momentum, norm.training) for norm in norms]
    count = 0
    with evaluation_mode(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            for batch in batches:
                forward(model, batch)
                count += 1
        finally:
            for norm, momentum, training in saved:
                norm.momentum, norm.training = momentum, training
    if count == 0:
        raise InputError("batches", "must hold at least one batch to recalibrate on", 0)
    return count


@contextmanager
def batch_norm_mode(model: nn.Module, mode: BatchNormMode) -> Generator[None, None, None]:
    """Evaluate with running or with batch statistics; buffers are restored at the end."""
    # ``"recalibrated"`` is evaluated like ``"running"``: call `recalibrate` inside whenever the weights have
    # moved.
    if mode not in ("running", "batch", "recalibrated"):
        raise InputError("batch_norm", 'must be "running", "batch" or "recalibrated"', mode)
    if mode != "running":
        _check_own_norms(model, mode)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(buffers_restored(model))
        if mode == "batch":
            for norm in _tracking(model):
                norm.training = True
        yield


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


@contextmanager
def differentiable_kernels(model: nn.Module) -> Generator[None, None, None]:
    """Use attention and recurrent kernels that have second derivatives."""
    # Fused attention and the cuDNN and oneDNN recurrent kernels have none; the mathematical ones do. The latter
    # two are switched off only for models with recurrent layers, since convolutions are much slower without
    # them.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel([SDPBackend.MATH]))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def has_running_statistics(model: nn.Module) -> bool:
    """Tell whether any module keeps running statistics."""
    return bool(_tracking(model))


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Tell whether two lists of tensors agree bit for bit (NaN equals NaN of the same bits)."""
    if len(first) != len(second):
        return False
    return all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(_bits(a), _bits(b))
        for a, b in zip(first, second, strict=True)
    )  # fmt: skip


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
