"""The parameter space of a model: names, flat vectors, in-place moves and norms."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, require
from lowland.core.provenance import fingerprint
from lowland.core.units import UnitRule, clean_name, unit_rules

_SHOWN: Final = 12
"""Lines of a table in a message."""

_UNQUANTIZED: Final = "measure the model before it is quantized"

_INNER: Final = {
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_forward_module",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module under DDP, Fabric and `torch.compile` wrappers; known by their types."""
    while type(model).__name__ in _INNER:
        inner = getattr(model, _INNER[type(model).__name__], None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of the user's own module that runs its own weights, whatever a trainer put on the original."""
    model = unwrap(model)
    check_made(model)
    of_model = set(model.modules())
    # the weight that pruning and torch's old norms make in forward has a graph, which cannot be copied: made anew there
    made = [t for m in of_model for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    twin = copy.deepcopy(model, {id(t): t.detach().clone() for t in made})
    for module in twin.modules():
        # trainers (TRL) put forwards on instances; a closure is not copied, and would run the original
        if _reaches(vars(module).get("forward"), of_model):
            del module.forward
    return twin


def _reaches(function: Any, modules: set[nn.Module]) -> bool:
    # whether a function holds one of these modules, bound or in its closure
    waiting, seen = [function], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, nn.Module) and part in modules:
            return True
        if not callable(part) or isinstance(part, type | nn.Module) or id(part) in seen:
            continue
        seen.add(id(part))
        waiting += [getattr(part, name, None) for name in ("__self__", "__func__", "func")]
        for cell in getattr(part, "__closure__", None) or ():
            with suppress(ValueError):  # an empty cell
                waiting.append(cell.cell_contents)
    return False


def check_made(model: nn.Module) -> None:
    """Refuse parameters that have no shape yet, or that no graph can hold."""
    for name, tensor in model.named_parameters():
        if nn.parameter.is_lazy(tensor) or tensor.is_inference():
            _check_kind(model, name, tensor)


def check_parameters(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters that cannot be moved in place, each by its name."""
    spans: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        _check_kind(model, name, tensor)
        storage = getattr(tensor, "untyped_storage", None)
        if storage is None or type(tensor) is not nn.Parameter or tensor.layout != torch.strided:
            continue
        begin = tensor.storage_offset()
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel():
            key = (storage().data_ptr(), tensor.element_size())
            spans.setdefault(key, []).append((int(begin), int(begin + reach), name))
    for found in spans.values():
        found.sort()
        for (_, stop, name), (start, _, other) in itertools.pairwise(found):
            if start <= stop:
                rule = f"must not have two parameters in the same memory ({name!r} and {other!r})"
                advice = "tie them by assigning the parameter itself: a.weight = b.weight"
                raise InputError("model", rule, type(model).__name__, advice)


def _check_unmerged(model: nn.Module) -> None:
    """Refuse adapters (PEFT) that are merged: forward leaves them out, and to move them would change nothing."""
    for name, module in model.named_modules():
        if getattr(module, "merged", False) and callable(getattr(module, "get_delta_weight", None)):
            advice = "call model.unmerge_adapter() first, or measure model.merge_and_unload()"
            raise InputError("model", f"must not have merged adapters (at {name!r})", type(model).__name__, advice)


def _check_kind(model: nn.Module, name: str, tensor: Tensor) -> None:
    problem = _problem(tensor)
    if problem:
        rule = f"must not have {problem[0]} parameters (at {name!r})"
        raise InputError("model", rule, type(model).__name__, problem[1])


def _problem(tensor: Tensor) -> tuple[str, str] | None:
    if nn.parameter.is_lazy(tensor):
        return "lazy", "run the model on one batch first, so that they get their shapes"
    if tensor.is_meta:
        return "meta", "load the weights first: model.to_empty(device=...) and load_state_dict"
    if tensor.is_complex():
        return "complex", "store real and imaginary part as a real parameter and use torch.view_as_complex in forward"
    if tensor.is_inference():
        return "inference-mode", "build or load the model outside torch.inference_mode()"
    if tensor.layout != torch.strided:
        return "sparse", "make them dense"
    if tensor.is_quantized or not tensor.is_floating_point():
        return "quantized", _UNQUANTIZED
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "expanded", "make them of their own memory: nn.Parameter(p.clone())"
    return None


class ParameterSpace:
    """The named parameters of a model as one vector space; tied weights count once."""

    def __init__(
        self,
        model: nn.Module,
        *,
        trainable: bool = True,
        modules: Sequence[str] | None = None,
        rules: Mapping[str, UnitRule] | None = None,
    ) -> None:
        model = unwrap(model)
        named = {clean_name(name): p for name, p in model.named_parameters() if p.requires_grad or not trainable}
        check_parameters(model, named)
        _check_unmerged(model)
        self.frozen = {clean_name(name): p for name, p in model.named_parameters() if clean_name(name) not in named}
        if modules is not None:
            known = {clean_name(name) for name, _ in model.named_modules()}
            for module in modules:
                require(module in known, "modules", "must name submodules of the model", module)
            named = {n: p for n, p in named.items() if any(m == "" or n.startswith(m + ".") for m in modules)}
        if not named:
            quantized = any("quantized" in type(module).__module__ for module in model.modules())
            advice = _UNQUANTIZED if quantized else "unfreeze some, or pass trainable=False"
            raise InputError("model", "must have trainable parameters", type(model).__name__, advice)
        found = unit_rules(model)
        unknown = set(rules or {}) - set(found)
        require(not unknown, "rules", "must name parameters of the model", sorted(unknown))
        self.names: tuple[str, ...] = tuple(named)
        self.tensors: tuple[nn.Parameter, ...] = tuple(named.values())
        self.rules: tuple[UnitRule, ...] = tuple((rules or {}).get(name, found[name]) for name in self.names)
        self.sizes: tuple[int, ...] = tuple(p.numel() for p in self.tensors)
        self.numel: int = sum(self.sizes)
        self.modules, self.trainable = None if modules is None else tuple(modules), trainable

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[tuple[str, nn.Parameter, UnitRule]]:
        return zip(self.names, self.tensors, self.rules, strict=True)

    def zeros(self) -> list[Tensor]:
        """Return new zero tensors, one per parameter."""
        return [torch.zeros_like(p) for p in self.tensors]

    def copy(self) -> list[Tensor]:
        """Return copies of the parameters, keeping their memory layout."""
        return [p.detach().clone(memory_format=torch.preserve_format) for p in self.tensors]

    @torch.no_grad()
    def write(self, values: Sequence[Tensor]) -> None:
        """Copy values into the parameters' own storage, bit for bit."""
        for parameter, value in zip(self.tensors, values, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def move(self, base: Sequence[Tensor], axes: Sequence[Sequence[Tensor]], coordinates: Sequence[float]) -> None:
        """Set the parameters to ``base + sum_k coordinates[k] * axes[k]`` in place."""
        # Always from the base, so that nothing drifts; an axis with coordinate 0 is not added at all, so
        # that the center has the bits of the base.
        targets: list[Tensor] = list(self.tensors)
        torch._foreach_copy_(targets, list(base))
        for axis, coordinate in zip(axes, coordinates, strict=True):
            if coordinate != 0.0:
                torch._foreach_add_(targets, list(axis), alpha=float(coordinate))

    def flatten(self, values: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Join one tensor per parameter into a vector."""
        return torch.cat([value.reshape(-1) for value in self.order(values)])

    def order(self, values: Mapping[str, Tensor] | Sequence[Tensor]) -> list[Tensor]:
        """Check tensors against the parameters and return them in order."""
        if isinstance(values, Mapping):
            if set(values) != set(self.names):
                raise InputError("values", "must have the parameters' names", sorted(set(values) ^ set(self.names)))
            values = [values[name] for name in self.names]
        require(len(values) == len(self.tensors), "values", f"must hold {len(self.tensors)} tensors", len(values))
        for name, parameter, value in zip(self.names, self.tensors, values, strict=True):
            if value.shape != parameter.shape:
                rule = f"must have the shape {tuple(parameter.shape)} at {name!r}"
                raise InputError("values", rule, tuple(value.shape))
        return list(values)

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into one tensor per parameter (views where possible)."""
        require(vector.shape == (self.numel,), "vector", f"must have the shape [{self.numel}]", tuple(vector.shape))
        parts = torch.split(vector, list(self.sizes))
        return [part.view(p.shape) for part, p in zip(parts, self.tensors, strict=True)]

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return tensors by parameter name."""
        return dict(zip(self.names, values, strict=True))

    def norm(self) -> float:
        """Return the Euclidean norm of all parameters."""
        return float(global_norm([p.detach().double() for p in self.tensors]))


def model_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of everything a model holds."""
    return fingerprint({**dict(model.named_parameters()), **dict(model.named_buffers())})


def differing_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """Return a table of the names under which two models hold other tensors, a line each; empty where none do."""
    names = [n for n in {**ours, **theirs} if n not in ours or n not in theirs or ours[n].shape != theirs[n].shape]
    rows = [
        (name, *(str(tuple(part[name].shape)) if name in part else "-" for part in (ours, theirs))) for name in names
    ]
    shown = [("name", "model", "given"), *rows[:_SHOWN]]
    width = [max(len(row[k]) for row in shown) for k in range(3)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip() for row in shown]
    return "\n".join([*lines, *([f"... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else [])]) if rows else ""


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors as a scalar on their device, in at least float32."""
    if not tensors:
        return torch.zeros((), device="cpu")
    if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors):
        parts: Sequence[Tensor] = [torch.linalg.vector_norm(t, dtype=torch.float32) for t in tensors]
    else:
        parts = torch._foreach_norm(list(tensors))
    total = torch.linalg.vector_norm(torch.stack(list(parts)))
    full = getattr(total, "full_tensor", None)
    result: Tensor = total if full is None else full()
    return result


def normalized_scale(norm: Tensor, radius: float | Tensor) -> Tensor:
    """Return ``radius / norm``, and 0 where the norm is 0 or not finite."""
    # No constant is added to the norm, so that a loss scaled by any power of two gives the same bits.
    return torch.nan_to_num(radius / norm, nan=0.0, posinf=0.0, neginf=0.0)
