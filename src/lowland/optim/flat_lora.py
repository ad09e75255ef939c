"""Noise on the merged weights while low-rank adapters train (Flat-LoRA).

Deviations from the official code (nblt/Flat-LoRA):

1. The frozen weights come back from a copy; the code subtracts what it has added, and drifts in 16-bit types.
2. The noise has a generator of its own, so that dropout and data order are those of a run without it.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, require
from lowland.core.interrupts import held_interrupts
from lowland.core.params import unwrap
from lowland.core.seeds import torch_seed
from lowland.optim.moves import copy_all
from lowland.optim.options import check_share


@contextmanager
def lora_noise(
    model: nn.Module, *, progress: float, step: int, sigma: float = 0.05, seed: int = 0, adapter: str = "default"
) -> Generator[None, None, None]:
    r"""Add noise to the frozen weights below a model's adapters inside the block: forward and backward of one step.

    .. math:: \epsilon_{ij} \sim \mathcal N\!\left(0,\ \tfrac{\sigma_t^2}{n} \lVert W'_i \rVert^2\right), \quad
        W' = W_0 + s B A, \quad \sigma_t = \tfrac{\sigma}{2} (1 - \cos \pi t / T)

    with n inputs in row i, so that outputs get the relative variance sigma^2. Li, He, Li, Huang and Huang, "Flat-LoRA:
    Low-Rank Adaptation over a Flat Loss Landscape", ICML 2025 (arXiv 2409.14396). All micro-batches of a step belong
    into one block, or into blocks with the same ``step``. It goes with any optimizer.

    Args:
        model: The model with its adapters active, not merged (PEFT's layers, or others with ``base_layer`` and
            ``get_delta_weight(adapter)``).
        progress: t / T, the share of the run done, in [0, 1].
        step: Number of the step: every step has noise of its own, the same on all ranks and after a resume.
        sigma: Size of the noise at the end. Default 0.05 (official README).
        seed: Seed of the noise. Default 0.
        adapter: Name of the adapter.

    Yields:
        Nothing; at the end the frozen weights have the same bits as before.

    Raises:
        InputError: If there are no adapted layers, or their weights are not floating-point matrices.

    Example:
        >>> with lora_noise(nn.Linear(2, 1), progress=0.5, step=0):
        ...     pass
        Traceback (most recent call last):
        ...
        lowland.core.errors.InputError: `model` must have adapted layers (got 'Linear')
    """
    check_share("progress", progress)
    require(0 <= sigma < math.inf, "sigma", "must be finite and not negative", sigma)
    layers = _adapted(model)
    frozen: list[Tensor] = [layer.base_layer.weight for layer in layers]
    copies = [weight.detach().clone() for weight in frozen]
    size = sigma * (1 - math.cos(math.pi * progress)) / 2
    try:
        with held_interrupts(), torch.no_grad():
            for number, (layer, weight) in enumerate(zip(layers, frozen, strict=True)):
                merged = weight + layer.get_delta_weight(adapter).to(weight)
                of_layer = torch_seed(seed, "training", "lora noise", step, number)
                weight.add_(noise_like(merged, size, torch.Generator(weight.device).manual_seed(of_layer)))
            torch.clear_autocast_cache()
        yield
    finally:
        with held_interrupts():
            copy_all(frozen, copies)
            torch.clear_autocast_cache()


def noise_like(merged: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Return noise whose rows have a share of the length of a matrix's rows."""
    lengths = torch.linalg.vector_norm(merged.float(), dim=1, keepdim=True)
    noise = torch.randn(merged.shape, generator=generator, device=merged.device)
    scaled: Tensor = noise * (lengths * (sigma / math.sqrt(merged.shape[1])))
    return scaled.to(merged.dtype)


def _adapted(model: nn.Module) -> list[Any]:
    found: list[Any] = [
        module
        for module in unwrap(model).modules()
        if callable(getattr(module, "get_delta_weight", None))
        and isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    require(found, "model", "must have adapted layers", type(unwrap(model)).__name__)
    for layer in found:
        weight = layer.base_layer.weight
        if weight.ndim != 2 or not weight.is_floating_point():
            rule = "must have floating-point matrices below its adapters"
            raise InputError("model", rule, f"{weight.dtype} of {weight.ndim} dimensions", "do not quantize them")
    return found
