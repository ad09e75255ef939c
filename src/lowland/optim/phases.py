"""Where a step stands, what may be called there, and what lives between its passes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor, nn

from lowland.optim.buffers import BufferKeeper


class Phase(Enum):
    """Where a step stands.

    Example:
        >>> Phase.READY.value
        'after perturb()'
    """

    GATHERING = "gathering gradients"
    """Where every step begins; also after ``zero_grad()`` and after every exception."""

    FIRST = "inside first_pass()"
    MARKED = "after first_pass()"
    PERTURBED = "inside perturb()"
    READY = "after perturb()"
    EVALUATING = "in evaluation mode"


_INSIDE = ("must not be called inside perturb()", "leave the with block first")
_EVALUATING = ("must not be called in evaluation mode", "call optimizer.train() first")

REFUSED: dict[tuple[str, Phase], tuple[str, str]] = {
    **{(f"{call}()", Phase.PERTURBED): _INSIDE for call in ("first_pass", "step", "eval", "state_dict")},
    **{(f"{call}()", Phase.PERTURBED): _INSIDE for call in ("load_state_dict", "add_param_group")},
    **{(f"{call}()", Phase.EVALUATING): _EVALUATING for call in ("perturb", "step")},
    ("first_pass()", Phase.READY): (
        'must come before perturb() under ascent="step"',
        'accumulate all first passes, then all second passes; or pass ascent="micro-batch"',
    ),
    ("perturb()", Phase.PERTURBED): ("must not be entered while it is open", "do not mix it with first_step()"),
    ("perturb()", Phase.READY): (
        "must not be entered twice in a step as it stands",
        'with several micro-batches pass ascent="micro-batch" and run each first pass inside first_pass(); else clear '
        "gradients by optimizer.zero_grad()",
    ),
}
"""What may not be called when, and what to do instead; everything else may. ``Wrapper``'s docstring shows it whole."""


@dataclass(slots=True)
class Scratch:
    """What lives between the passes of one step; never saved, and dropped by copies."""

    phase: Phase = Phase.GATHERING
    aside: dict[Tensor, Tensor] = field(default_factory=dict)  # gradients of earlier micro-batches
    first: dict[Tensor, Tensor] = field(default_factory=dict)  # of the first pass, until the second is done
    kept: dict[Tensor, Tensor] = field(default_factory=dict)  # of all first passes, until step()
    norms: list[Tensor] = field(default_factory=list)  # lengths that the ascent was divided by
    norm: Tensor | None = None  # length of all first gradients, where the ascent has computed it
    length: Tensor | None = None  # of the step's gradients as perturb() left them
    perturbations: int = 0  # of this step, one per micro-batch or one for all
    scaler: Any = None  # the GradScaler, where it was given
    backup: dict[Tensor, Tensor] = field(default_factory=dict)  # persistent, so that no step allocates
    moved: tuple[list[Tensor], list[Tensor]] = ([], [])  # what perturb() moved, and where it was
    random: Any = None  # random state at the start of the first pass
    watched: dict[Tensor, tuple[Tensor, int]] = field(default_factory=dict)  # gradients, and their versions
    zeroings: int = 0
    model: nn.Module | None = None  # as given
    buffers: BufferKeeper = field(default_factory=BufferKeeper)
    # while others are in the model: weights of a base that evaluates its own, buffers that were recalibrated
    trained: dict[Tensor, Tensor] = field(default_factory=dict)
    pending: tuple[Tensor, Any] | None = None  # a number on its way from the device, and when it is there
    opened: ExitStack | None = None  # what first_step() opened
    warned: bool = False
    compared: bool = False  # with the other ranks
    group: Any = None  # the process group of a distributed model that first_pass() was given
    driven: bool = False  # somebody else runs all passes: a closure given to step() is whole as it is

    def forget(self) -> None:
        """Drop everything that belongs to the step in progress; the backup's memory is kept."""
        self.phase = Phase.GATHERING
        self.aside, self.first, self.kept, self.norms = {}, {}, {}, []
        self.norm, self.random, self.watched = None, None, {}
        self.length, self.perturbations = None, 0

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Remember the present gradients and how often they were written to."""
        self.watched = {p: (gradient, gradient._version) for p in parameters if (gradient := p.grad) is not None}

    def untouched(self, parameters: Iterable[Tensor]) -> bool:
        """Tell whether no gradient has come or changed since they were watched."""
        for parameter in parameters:
            seen, version = self.watched.get(parameter, (None, 0))
            now = parameter.grad
            if now is not None and (now is not seen or now._version != version):
                return False
        return True

    def writes(self) -> int | None:
        """Return how often the watched gradients were written to; None if they are gone."""
        alive = [gradient._version - version for p, (gradient, version) in self.watched.items() if p.grad is gradient]
        return max(alive, default=None)
