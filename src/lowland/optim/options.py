"""How the two-pass step behaves: one set of keywords for every method with an ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypedDict, cast

from torch import Tensor

from lowland.core.errors import InputError

__all__ = ["AscentKeywords", "AscentOptions", "check_rho"]


class AscentKeywords(TypedDict, total=False):
    """The fields of `AscentOptions`, as the methods take them by keyword."""

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

    Raises:
        InputError: If an option is not one of its values.
    """

    ascent: Literal["step", "micro-batch"] = "step"
    distributed: Literal["synced", "local"] = "synced"
    batch_norm: Literal["first", "both"] = "first"
    rng: Literal["fresh", "replay"] = "fresh"
    norm: Literal["global", "group", "tensor"] = "global"
    weight_decay: Literal["excluded", "included"] = "excluded"
    start: int = 0
    stop: int | None = None
    interval: int = 1
    schedule: Callable[[int], float] | None = None
    allow_plain: bool = False
    only: Iterable[Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "ascent": ("step", "micro-batch"),
            "distributed": ("synced", "local"),
            "batch_norm": ("first", "both"),
            "rng": ("fresh", "replay"),
            "norm": ("global", "group", "tensor"),
            "weight_decay": ("excluded", "included"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(name, f"must be one of {', '.join(map(repr, allowed))}", getattr(self, name))
        if self.start < 0:
            raise InputError("start", "must not be negative", self.start)
        if self.stop is not None and self.stop < self.start:
            raise InputError("stop", "must not come before `start`", self.stop)
        if self.interval < 1:
            raise InputError("interval", "must be at least 1", self.interval)
        if self.only is not None:
            chosen = frozenset(self.only)
            if not chosen or not all(isinstance(entry, Tensor) for entry in chosen):
                raise InputError("only", "must hold parameters", list(chosen), "pass norm_parameters(model)")
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


def check_rho(rho: float) -> float:
    """Return a radius, or refuse it."""
    if not 0.0 <= float(rho) < float("inf"):
        raise InputError("rho", "must be finite and not negative", rho, "use rho=0 to leave a group out")
    return float(rho)
