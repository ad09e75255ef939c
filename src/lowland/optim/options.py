"""What constructors share: the base, one set of keywords for every method with an ascent, and checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from typing import Any, Literal, TypeAlias, TypedDict, cast, get_args, get_origin, get_type_hints

from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core.errors import InputError, require
from lowland.core.names import suggestion

Base: TypeAlias = Optimizer | Sequence[Optimizer]
"""An optimizer instance, several that share a step (say Muon for matrices and AdamW for the rest), or one of ours."""


class AscentFields(TypedDict, total=False):
    """The fields of `AscentOptions`."""

    ascent: Literal["step", "micro-batch"]
    distributed: Literal["synced", "local"]
    batch_norm: Literal["first", "both"]
    rng: Literal["fresh", "replay"]
    norm: Literal["global", "group", "tensor"]
    weight_decay: Literal["excluded", "included"]
    start: int
    stop: int | None
    interval: int
    schedule: Callable[[int], float] | None
    allow_plain: bool
    only: Iterable[Tensor] | None


class AscentKeywords(AscentFields, total=False):
    """What every method with an ascent takes by keyword beside settings of its own."""

    model: nn.Module | None


@cache
def _choices() -> list[tuple[str, Any]]:
    """Return the fields that are one of a few words; to read the hints takes longer than the rest of a constructor."""
    return [(name, kind) for name, kind in get_type_hints(AscentFields).items() if get_origin(kind) is Literal]


def _arguments(kind: type) -> Iterable[inspect.Parameter]:
    return inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]


def takes_ascent(kind: type) -> bool:
    """Tell whether a method hands further keywords on to its ascent."""
    return any(p.kind is p.VAR_KEYWORD for p in _arguments(kind))


def check_keywords(kind: type, options: Mapping[str, Any]) -> None:
    """Refuse a keyword that neither a method nor its ascent, where it has one, knows, and name the near one."""
    known = [p.name for p in _arguments(kind) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][2:]
    if takes_ascent(kind):
        known += [name for name in AscentKeywords.__annotations__ if name not in known]
    for name in options.keys() - {*known, "base"}:
        raise InputError(name, f"is no argument of {kind.__name__}", options[name], suggestion(name, known))


@dataclass(frozen=True, slots=True, kw_only=True)
class AscentOptions:
    """How the two-pass step behaves; the same keywords on every method with an ascent.

    Args:
        ascent: ``"step"``: one ascent for all micro-batches of a step. ``"micro-batch"``: each micro-batch has its own
            (m-sharpness, Foret et al. 2021, section 3). Two different algorithms; default ``"step"``.
        distributed: ``"synced"``: the same ascent on all ranks. ``"local"``: each rank ascends along its own gradient,
            with the first pass inside ``first_pass(model)``; not under FSDP2. Default ``"synced"``.
        batch_norm: ``"first"``: buffers after the step are those of the first pass, as in plain training.
            ``"both"``: both passes update them, as in ports without protection. Default ``"first"``.
        rng: ``"fresh"``: the passes draw different dropout masks. ``"replay"``: the second pass repeats the first's
            random numbers; a hand-written loop marks the first pass by ``first_pass()``. Default ``"fresh"``.
        norm: Over what the gradient is normalized: ``"global"`` (Foret et al., equation 2), ``"group"`` (official
            SALA), ``"tensor"`` (some ports). Default ``"global"``.
        weight_decay: ``"excluded"`` from the ascent, or ``"included"`` (the official JAX code has it in the loss).
        start: First step with an ascent, counted from 0; steps before it are plain. Default 0.
        stop: First step without one again; None: never.
        interval: An ascent every so many steps. Default 1.
        schedule: Factor on every group's ``rho`` as a function of the step; None: 1.
        allow_plain: Let ``step()`` without the wanted second pass be a plain step. Default False: it raises.
        only: The parameters that are moved, such as ``norm_parameters(model)``; None: all. The others' gradients in the
            first pass do not count for the norm; all take part in the step.
    """

    ascent: str = "step"
    distributed: str = "synced"
    batch_norm: str = "first"
    rng: str = "fresh"
    norm: str = "global"
    weight_decay: str = "excluded"
    start: int = 0
    stop: int | None = None
    interval: int = 1
    schedule: Callable[[int], float] | None = None
    allow_plain: bool = False
    only: Iterable[Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, kind in _choices():
            check_choice(name, getattr(self, name), kind)
        check_count("start", self.start)
        require(self.stop is None or self.stop >= self.start, "stop", "must not come before `start`", self.stop)
        check_count("interval", self.interval, 1)
        if self.only is not None:
            chosen = frozenset(self.only)
            fit = chosen and all(isinstance(entry, Tensor) for entry in chosen)
            require(fit, "only", "must hold parameters", list(chosen), "pass norm_parameters(model)")
            object.__setattr__(self, "only", chosen)

    def moves(self, parameter: Tensor) -> bool:
        """Tell whether an ascent may move a parameter."""
        return self.only is None or parameter in cast("frozenset[Tensor]", self.only)

    def factor(self, step: int) -> float:
        """Return the schedule's factor; 1 without one."""
        return 1.0 if self.schedule is None else float(self.schedule(step))

    def covers(self, step: int) -> bool:
        """Tell whether a step may have an ascent at all."""
        late = self.stop is not None and step >= self.stop
        return step >= self.start and not late and (step - self.start) % self.interval == 0


def check_rho(rho: Any) -> float:
    """Return a radius, or refuse it."""
    require(isinstance(rho, Real | Tensor), "rho", "must be a number", rho)
    rule, advice = "must be finite and not negative", "use rho=0 to leave a group out"
    require(0.0 <= float(rho) < float("inf"), "rho", rule, rho, advice)
    return float(rho)


def check_choice(name: str, value: str, kind: Any) -> None:
    """Refuse what is not one of the words of a `Literal`."""
    words = get_args(kind)
    require(value in words, name, f"must be one of {', '.join(map(repr, words))}", value)


def check_count(name: str, value: Any, least: Literal[0, 1] = 0) -> None:
    """Refuse what is no whole number, or one below 0 or 1."""
    require(isinstance(value, Real) and float(value).is_integer(), name, "must be a whole number", value)
    require(value >= least, name, "must be at least 1" if least else "must not be negative", value)


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1]."""
    require(isinstance(value, Real) and 0 <= float(value) <= 1, name, "must lie in [0, 1]", value)
