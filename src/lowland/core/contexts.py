"""Contexts that change a model for a while and restore it bit for bit, also after an exception or Ctrl-C.

Also here: which pass is running. The two-pass optimizers set it, losses with a memory read it, and count and record in
the clean pass only.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

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
    "perturbed_pass",
    "recalibrate",
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
def buffers_restored(model: nn.Module) -> Generator[None, None, None]:
    """Save all buffers of a model (batch-norm statistics and counters among them) and write them back at the end."""
    saved = [(owner, name, buffer, buffer.clone()) for owner, name, buffer in _buffers(model)]
    try:
        yield
    finally:
        with held_interrupts(), torch.no_grad():
            for owner, name, buffer, value in saved:
                buffer.copy_(value)
                owner._buffers[name] = buffer  # a forward that rebound the name is undone too


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer


@contextmanager
def gradients_aside(model: nn.Module) -> Generator[None, None, None]:
    """Put every ``.grad`` aside (None inside) and restore it, and ``requires_grad``, at the end."""
    saved = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    for parameter, _, _ in saved:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient, requires in saved:
            parameter.grad = gradient
            parameter.requires_grad_(requires)


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
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(buffers_restored(model))
        if mode == "batch":
            for norm in _tracking(model):
                norm.training = True
        yield


@contextmanager
def effective_weights(model: nn.Module) -> Generator[None, None, None]:
    """Replace parametrized weights (weight norm and the like) by plain ones that hold the effective value."""
    # Inside, moves and derivatives act on the weight that the layer really uses; at the end the parametrization
    # is back with its own tensors, bit for bit.
    undo: list[tuple[nn.Module, type[nn.Module], nn.Module, list[str]]] = []
    for name, module in model.named_modules():
        if any(type(hook).__name__ == "WeightNorm" for hook in module._forward_pre_hooks.values()):
            raise InputError(
                "model", f"must not use the deprecated torch.nn.utils.weight_norm (at {name!r})",
                type(module).__name__, "use torch.nn.utils.parametrizations.weight_norm",
            )  # fmt: skip
    try:
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                undo.append(_materialize(module))
        yield
    finally:
        for module, kind, parametrizations, names in reversed(undo):
            for name in names:
                del module._parameters[name]
            module.__class__ = kind
            module._modules["parametrizations"] = parametrizations


def _materialize(module: nn.Module) -> tuple[nn.Module, type[nn.Module], nn.Module, list[str]]:
    kind = type(module)
    lists: Any = module.parametrizations
    values: dict[str, nn.Parameter] = {}
    for name in lists:
        trainable = any(p.requires_grad for p in lists[name].parameters())
        values[name] = nn.Parameter(getattr(module, name).detach().clone(), requires_grad=trainable)
    del module._modules["parametrizations"]
    module.__class__ = kind.__mro__[1]  # parametrize made a subclass that holds only the properties
    for name, value in values.items():
        module._parameters[name] = value
    return module, kind, lists, list(values)


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
