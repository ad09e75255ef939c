"""Which parameters an ascent on norm layers alone moves (SAM-ON)."""

from __future__ import annotations

from torch import nn

from lowland.core.units import class_of


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the scales and shifts of a model's normalization layers, for ``only=`` of any method with an ascent.

    Mueller, Vlaar, Rolnick and Hein, "Normalization Layers Are All That Sharpness-Aware Minimization Needs", NeurIPS
    2023: the ascent moves these alone, with a larger ``rho``; all parameters take part in the step.

    Args:
        model: The model. A layer is one of normalization if the name of its class says so (``BatchNorm2d``,
            ``LayerNorm``, ``LlamaRMSNorm``); its own parameters count, those of layers inside it do not.

    Example:
        >>> import torch
        >>> from lowland.optim import SAM
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> len(SAM(sgd, rho=0.5, only=norm_parameters(model)).options.only)
        2
    """
    layers = (module for module in model.modules() if "norm" in class_of(module).__name__.lower())
    return list(dict.fromkeys(p for layer in layers for p in layer.parameters(recurse=False)))
