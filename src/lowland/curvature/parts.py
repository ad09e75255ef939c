"""Where in a network curvature sits: trace, both ends and noise tolerance of each layer, block or kind of layer.

A part is a set of parameters; its numbers are those of the diagonal block of the Hessian that belongs to it. One random
probe of the whole network serves the traces of all parts; ends take a Krylov run each on products of the whole, cut to
the part, so that every part shares the graphs of the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import override

from lowland.core.errors import InputError, require
from lowland.core.risk import EmpiricalRisk
from lowland.core.units import clean_name
from lowland.curvature.counted import counted
from lowland.curvature.diagonal import layer_traces
from lowland.curvature.eigenvalues import extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.operator import AbstractOperator
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk
from lowland.curvature.risk_operator import AbstractRiskOperator
from lowland.curvature.trace import estimate, filter_direction

if TYPE_CHECKING:
    import xarray as xr

By: TypeAlias = "Literal['layer', 'block', 'kind'] | Mapping[str, Sequence[str]]"
"""How parameters are put together: by name of a way, or name of a part -> parameters or modules."""

_NORMS: Final = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ATTENTION: Final = re.compile(r"attention|attn", re.IGNORECASE)
_EMBEDDING: Final = re.compile(r"embed|position|cls_token|class_token|\bw[tp]e\b", re.IGNORECASE)


def parts(model: nn.Module, by: By = "block", *, names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Put the parameters of a model together.

    Args:
        model: Whose parameters are sorted into parts.
        by: ``"layer"``: by the module that holds them. ``"block"`` (default): by the first module on their path that
            is one of several of its class (``layer1.0``, ``encoder.layers.3``), else by the first numbered or the first
            of all; in networks with attention each block by kind. ``"kind"``: ``attention``, ``MLP``, ``convolution``,
            ``linear``, ``embedding``, ``norm`` and ``head`` over all blocks. Or a mapping from names of parts to
            parameters or modules.
        names: Parameters that count; default all that are trained.

    Returns:
        Part -> names of its parameters, in the order of the model.

    Raises:
        InputError: If ``by`` is none of these, or names nothing, or puts a parameter in two parts.

    Example:
        >>> parts(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), "layer")
        {'0': ['0.weight', '0.bias'], '2': ['2.weight', '2.bias']}
    """
    held = [clean_name(name) for name, p in model.named_parameters() if p.requires_grad]
    chosen = held if names is None else list(names)
    if isinstance(by, Mapping):
        return _given(by, chosen)
    require(by in ("layer", "block", "kind"), "by", 'must be "layer", "block", "kind" or a mapping', by)
    modules = {clean_name(name): module for name, module in model.named_modules()}
    kinds = _kinds(modules, chosen)
    split = by == "block" and "attention" in kinds.values()
    found: dict[str, list[str]] = {}
    for name in chosen:
        block = _repeated(modules, name) or _first(name)
        both = f"{block} {kinds[name]}" if split and block != kinds[name] else block
        key = {"layer": name.rpartition(".")[0] or name, "block": both, "kind": kinds[name]}[by]
        found.setdefault(key, []).append(name)
    return found


def _given(by: Mapping[str, Sequence[str]], chosen: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for part, members in by.items():
        listed = [members] if isinstance(members, str) else list(members)
        found[part] = [n for n in chosen if any(n == m or n.startswith(f"{m}.") for m in listed)]
        for member in listed:
            known = any(n == member or n.startswith(f"{member}.") for n in chosen)
            require(known, "by", "must name parameters or modules that are trained", member)
        for name in found[part]:
            require(taken.setdefault(name, part) == part, "by", f"must put {name!r} in one part", [taken[name], part])
    require(found and all(found.values()), "by", "must hold parts with parameters", by)
    return found


def _repeated(modules: Mapping[str, nn.Module], name: str) -> str:
    """Return the first module around a parameter that is one of a list of its class; "" if there is none."""
    path = name.split(".")[:-1]
    for place, word in enumerate(path):
        siblings = modules.get(".".join(path[:place]))
        if word.isdigit() and siblings is not None and len({type(child) for child in siblings.children()}) == 1:
            return ".".join(path[: place + 1])
    return ""


def _first(name: str) -> str:
    path = name.split(".")[:-1]
    numbered = next((place for place, word in enumerate(path) if word.isdigit()), 0)
    return ".".join(path[: numbered + 1]) or name


def _kinds(modules: Mapping[str, nn.Module], names: Sequence[str]) -> dict[str, str]:
    """Return the kind of every parameter: by what holds it, and in transformers by where it stands."""
    attends = any(_attends(modules, name) for name in names)
    found = {}
    for name in names:
        owner = modules.get(name.rpartition(".")[0])
        if isinstance(owner, _NORMS) or "norm" in type(owner).__name__.lower():
            found[name] = "norm"
        elif isinstance(owner, nn.Embedding) or _EMBEDDING.search(name):
            found[name] = "embedding"
        elif attends and _attends(modules, name):
            found[name] = "attention"
        elif attends:
            outside = "embedding" if isinstance(owner, nn.modules.conv._ConvNd) else "head"  # patches of images
            found[name] = "MLP" if _repeated(modules, name) else outside
        elif isinstance(owner, nn.modules.conv._ConvNd):
            found[name] = "convolution"
        else:
            found[name] = "linear" if isinstance(owner, nn.Linear) else type(owner).__name__
    return found


def _attends(modules: Mapping[str, nn.Module], name: str) -> bool:
    path = name.split(".")[:-1]
    around = ((path[k], modules.get(".".join(path[: k + 1]))) for k in range(len(path)))
    return any(_ATTENTION.search(word) or _ATTENTION.search(type(module).__name__) for word, module in around)


def curvature_by_part(
    risk: EmpiricalRisk,
    by: By = "block",
    *,
    probes: int = 16,
    max_products: int = 60,
    rho: float = 0.1,
    draws: int = 8,
    seed: int = 0,
    hessian: AbstractRiskOperator | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Measure where in a network curvature sits.

    Args:
        risk: What is measured; use training data.
        by: How parameters are put together, see `parts`. Default ``"block"``.
        probes: Products for the traces of all parts, at least 2. Default 16.
        max_products: Most products for both ends of each part; 0 leaves them out. Default 60.
        rho: Noise on one part at a time, as a share of the norm of each filter (Li et al. 2018); biases and norm layers
            stay. Default 0.1.
        draws: Draws of that noise, one pass each for each part; 0 leaves it out. Default 8.
        seed: Seed of all random numbers.
        hessian: An open operator whose graphs are shared; default one of its own.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Returns:
        A Dataset over ``part``: ``part_parameters``, ``part_trace`` and, unless left out, ``part_lambda_max``,
        ``part_lambda_min`` (``_se``: norms of their residuals) and ``part_rise`` of the loss under noise; ``_se`` are
        standard errors over probes and draws. A rise is NaN where nothing moves.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> risk = EmpiricalRisk(layer, nn.MSELoss(), [(torch.eye(2), torch.ones(2, 1))])
        >>> [round(float(v), 4) for v in curvature_by_part(risk, "layer", draws=0).part_trace]
        [2.0]
    """
    import xarray as xr

    for name, value, least in (("probes", probes, 2), ("max_products", max_products, 0), ("draws", draws, 0)):
        require(value >= least and (name != "draws" or value != 1), name, f"must be at least {least}", value)
    require(0 < rho < math.inf, "rho", "must be positive", rho)
    operator = Hessian(risk) if hessian is None else hessian
    with operator:
        groups = parts(risk.model, by, names=operator.space.names)
        most = probes + max_products * len(groups)
        with counted(operator, progress, "curvature by part", most, bound=True):
            variables = _traces(operator, groups, probes, seed)
            if max_products:
                variables |= _ends(operator, groups, max_products, seed)
    if draws:
        variables |= _rises(risk, groups, rho, draws, seed)
    sizes = {name: shape.numel() for name, shape in (operator.shapes or {}).items()}
    variables["part_parameters"] = [sum(sizes[name] for name in members) for members in groups.values()]
    attrs = {"by": by if isinstance(by, str) else "given", "probes": probes, "rho": rho, "draws": draws, "seed": seed}
    return xr.Dataset({k: ("part", v) for k, v in variables.items()}, coords={"part": list(groups)}, attrs=attrs)


def _traces(operator: AbstractRiskOperator, groups: Mapping[str, list[str]], probes: int, seed: int) -> dict[str, Any]:
    tensors = layer_traces(operator, probes=probes, seed=seed)
    found = []
    for members in groups.values():
        samples: NDArray[np.float64] = np.sum([tensors[name].samples for name in members], axis=0)
        found.append(estimate(samples, probes, "hutchinson", seed))
    return {"part_trace": [t.value for t in found], "part_trace_se": [t.standard_error for t in found]}


def _ends(operator: AbstractRiskOperator, groups: Mapping[str, list[str]], most: int, seed: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for members in groups.values():
        block = Block(operator, members)
        ends = extreme_eigenvalues(block, max_products=most, min_products=min(6, most), seed=seed)
        row = {"max": ends.lambda_max, "max_se": ends.residual_max, "min": ends.lambda_min, "min_se": ends.residual_min}
        for name, value in row.items():
            found.setdefault(f"part_lambda_{name}", []).append(value)
    return found


def _rises(
    risk: EmpiricalRisk, groups: Mapping[str, list[str]], rho: float, draws: int, seed: int
) -> dict[str, list[float]]:
    values, errors = [], []
    with perturbed_risk(risk) as here:
        loss = here.loss()
        for members in groups.values():
            rises = [here.loss(step) - loss for step in _noise(here, set(members), rho, draws, seed)]
            found = estimate(np.asarray(rises), 0, "noise", seed) if rises else None
            values.append(math.nan if found is None else found.value)
            errors.append(math.nan if found is None else found.standard_error)
    return {"part_rise": values, "part_rise_se": errors}


def _noise(here: PerturbedRisk, members: set[str], rho: float, draws: int, seed: int) -> Iterator[list[Tensor]]:
    """Yield steps of the parameters of a part alone; none where all of them stay."""
    for index in range(draws):
        drawn = filter_direction(here.space, here.base, seed, index)
        step = [
            rho * part if name in members else torch.zeros_like(part)
            for name, part in zip(here.space.names, drawn, strict=True)
        ]
        if not any(bool(part.any()) for part in step):
            return
        yield step


class Block(AbstractOperator):
    """The diagonal block of an operator with names that belongs to some of its tensors, named in any order."""

    def __init__(self, operator: AbstractOperator, names: Sequence[str]) -> None:
        shapes = operator.shapes
        if shapes is None or not set(names) <= set(shapes) or not names:
            raise InputError("names", "must be among the operator's", sorted(set(names) - set(shapes or {})))
        kept = {name: shape for name, shape in shapes.items() if name in names}
        size = sum(shape.numel() for shape in kept.values())
        super().__init__(size, dtype=operator.dtype, device=operator.device, shapes=kept)
        self.operator = operator
        inside = [torch.full((shape.numel(),), name in kept, device="cpu") for name, shape in shapes.items()]
        self._places = torch.cat(inside).nonzero()[:, 0].to(operator.device)

    @override
    def open(self) -> None:
        self.operator.__enter__()

    @override
    def close(self) -> None:
        self.operator.__exit__(None, None, None)

    @override
    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        whole = [torch.zeros(self.operator.size, dtype=self.dtype, device=self.device) for _ in vectors]
        for full, vector in zip(whole, vectors, strict=True):
            full[self._places] = vector
        return [product[self._places] for product in self.operator.apply(whole)]

    @override
    def rounding(self) -> float:
        return self.operator.rounding()
