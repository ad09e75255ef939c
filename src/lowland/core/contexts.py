"""Contexts that change a model for a while and restore it bit for bit, also after an exception or Ctrl-C.

Also here: which pass is running. The two-pass optimizers set it, losses with a memory read it, and count and record in
the clean pass only.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointFunction

from lowland.core.errors import InputError, require
from lowland.core.interrupts import held_interrupts
from lowland.core.params import ParameterSpace
from lowland.core.types import Batch, fitting, forward

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
        advice = "call Lowland outside, or use lowland.curvature.Hessian for derivatives"
        raise InputError("risk", "must be measured outside torch.func transforms (grad, vmap, ...)", advice=advice)
    active = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
    cached = torch.is_autocast_cache_enabled()
    if torch.is_grad_enabled() and not (torch.is_inference_mode_enabled() or active or cached):
        yield  # inside another measurement, once per product: it must cost nothing
        return
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
def checkpoints_kept() -> Generator[None, None, None]:
    """Keep what reentrant checkpoints would compute again: they have no derivative by chosen tensors, or none."""
    kind: Any = CheckpointFunction
    if "apply" in vars(kind):  # inside another measurement
        yield
        return
    kind.apply = staticmethod(lambda function, preserve, *inputs: function(*inputs))
    try:
        yield
    finally:
        del kind.apply


@contextmanager
def parameters_kept(model: nn.Module) -> Generator[list[Tensor], None, None]:
    """Put back the bits of all parameters at the end, for a model whose forward pass may write to them."""
    saved = [(p, p.data, p.detach().clone()) for p in model.parameters()]
    try:
        yield [value for *_, value in saved]
    finally:
        with held_interrupts():
            for parameter, data, value in saved:
                if data.data_ptr() != parameter.data_ptr():
                    parameter.data = data
                if not torch.equal(_bits(parameter), _bits(value)):
                    parameter.data.copy_(value)


@contextmanager
def buffers_restored(model: nn.Module, *, attributes: bool = True) -> Generator[None, None, None]:
    """Save what a model holds beside its parameters, and put it back at the end, also where forward rebound it."""
    # Buffers, and a module's own attributes: hand-written statistics, the state of a recurrent cell, counters. What
    # cannot be written in place (expanded, sparse, made in inference mode) can only have been rebound: the object is
    # put back.
    kept = [(module, dict(module._buffers), _own(module) if attributes else {}) for module in model.modules()]
    tensors = [t for _, buffers, own in kept for t in (*buffers.values(), *_tensors(list(own.values())))]
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors if tensor is not None and writable(tensor)]
    filled = [(value, copy.copy(value)) for _, _, own in kept for value in own.values() if type(value) in (list, dict)]
    try:
        yield
    finally:
        with held_interrupts(), torch.no_grad():
            for tensor, value in saved:
                tensor.data.copy_(value)
            for held, entries in filled:
                held.clear()
                held.extend(entries) if isinstance(held, list) else held.update(entries)
            for module, buffers, own in kept:
                _put_back(module, buffers, own if attributes else None)


_OF_TORCH: Final = frozenset(vars(nn.Module()))
"""Where torch keeps what belongs to a module; the rest are its own attributes."""


def _own(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes; those of scripted ones live in C++."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return {} if scripted else {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _tensors(value: Any, depth: int = 4) -> list[Tensor]:
    """Return the tensors in plain containers, which may hold themselves."""
    if isinstance(value, dict | list | tuple):
        entries = value.values() if isinstance(value, dict) else value
        return [tensor for entry in entries for tensor in _tensors(entry, depth - 1)] if depth else []
    return [value] if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else []


def writable(tensor: Tensor) -> bool:
    """Tell whether a tensor can be written in place; what cannot can only be bound anew."""
    if (
        nn.parameter.is_lazy(tensor)
        or tensor.is_inference()
        or tensor.layout != torch.strided
        or tensor.is_meta
        or tensor.is_nested
    ):
        return False
    return all(step > 0 or size < 2 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _put_back(module: nn.Module, buffers: dict[str, Any], own: dict[str, Any] | None) -> None:
    if isinstance(module, torch.jit.ScriptModule):  # its buffers live in C++ and are written in place alone
        return
    for name in [name for name in module._buffers if name not in buffers]:
        del module._buffers[name]
    module._buffers.update(buffers)
    if own is not None:
        for name in _own(module).keys() - own.keys():
            del module.__dict__[name]
        module.__dict__.update(own)


_HOOKS: Final = ("_backward_hooks", "_backward_pre_hooks")
"""Where torch keeps backward hooks; it has no public way to list or to set them aside, hence read here."""


@contextmanager
def gradients_aside(model: nn.Module) -> Generator[None, None, None]:
    """Put every ``.grad`` and all backward hooks aside and restore them, and ``requires_grad``, at the end."""
    # A hook that scales or masks gradients belongs to training; the derivative of the risk knows none.
    saved = [(p, p.grad, p.requires_grad, getattr(p, _HOOKS[0])) for p in model.parameters()]
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    tables: list[dict[int, Any]] = [getattr(module, name) for module in modules for name in _HOOKS]
    hooked = [(table, dict(table)) for table in tables if table]
    try:
        for parameter, _, _, hooks in saved:
            parameter.grad = None
            if hooks:
                setattr(parameter, _HOOKS[0], None)
        for table, _ in hooked:
            table.clear()
        yield
    finally:
        with held_interrupts():
            for table, entries in hooked:
                table.update(entries)
            for parameter, gradient, requires, hooks in saved:
                parameter.grad = gradient
                parameter.requires_grad_(requires)
                if hooks:
                    setattr(parameter, _HOOKS[0], hooks)


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
    try:
        try:
            model.eval()
        except NotImplementedError as error:  # what torch.export made
            rule, advice = "must have an evaluation mode", "pass the original"
            raise InputError("model", rule, type(model).__name__, advice) from error
        yield
    finally:
        with held_interrupts():
            for module, training in flags:
                if module.training != training:
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
            kind = "scripted" if scripted else "hand-written"
            rule = f'must be "running" for a model with {kind} running statistics (at {name!r})'
            raise InputError("batch_norm", rule, mode, "use torch's own norm layers for the other modes")


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
                with nullcontext() if count else fitting("model", batch.input):
                    forward(model, batch)
                count += 1
        finally:
            for norm, momentum, training in saved:
                norm.momentum, norm.training = momentum, training
    require(count != 0, "batches", "must hold at least one batch to recalibrate on", 0)
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
    return len(first) == len(second) and all(
        a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)))
        for a, b in zip(first, second, strict=True)
    )


_WHOLE: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an entry -> the integers that hold the same bits."""


def _bits(tensor: Tensor) -> Tensor:
    kind = _WHOLE.get(tensor.itemsize)
    if kind is None:  # complex numbers of 16 bytes
        return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tensor.detach().cpu().view(kind)
