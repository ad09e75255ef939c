"""MESA: keep the model's outputs near those of an average of its own weights.

Du, Zhou, Feng, Tan and Zhou, "Sharpness-Aware Training for Free", NeurIPS 2022, eq. 9 and 12: SAF without its memory.
The past outputs come from an exponential moving average of the weights, at the price of one forward pass.

The loss is ``criterion + weight T^2 / n sum_i KL(softmax(teacher_i / T) || softmax(now_i / T))``. Of several positions
(tokens, pixels) in a sample, those count whose label is not ignored, as in SAF.

Deviations:
1. The average's decay is given as a half-life in epochs, with the warm-up ``min(decay, (1 + t) / (10 + t))`` at its
   t-th update. The code's fixed 0.9998 makes a teacher of mostly initial weights on a short run.
2. The average is renewed after the optimizer's step, as in the code; the paper's algorithm 1 does it before.
3. The teacher's pass is skipped where the loss is plain (the code runs it in every step), and in the perturbed pass of
   a two-pass optimizer, whose teacher has not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowland.core.contexts import current_pass
from lowland.core.errors import CheckpointError, InputError
from lowland.core.params import copied, unwrap
from lowland.core.types import Batch, forward
from lowland.losses.base import Criterion, TrainingLoss
from lowland.losses.divergence import check_class_axis, labeled_divergence
from lowland.losses.heads import Unanswered
from lowland.losses.reshapers import check_number
from lowland.losses.schedule import ActiveEpochs

_PRECISIONS: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class MESA(TrainingLoss):
    """Add the divergence from the outputs of averaged weights to a criterion.

    Call `prepare` with the model after its initial weights are set, call the loss with the whole batch, and call
    `after_step` after every optimizer step.

    Args:
        criterion: A criterion, or another loss of this room.
        weight: Weight of the divergence. Default 0.8 (paper, all experiments).
        temperature: T > 0. Default 5 (paper).
        start: First epoch with the added loss, or a fraction of the run. Default 5 (paper).
        stop: First epoch that is plain again, or a fraction of the run. Default None: never.
        half_life: Epochs after which old weights count half. Default 2.8: what the code's decay 0.9998 amounts to at
            1,251 steps an epoch (ImageNet in batches of 1,024).
        decay: Decay per step instead of a half-life; None takes the half-life. Default None.
        warm_up: Whether the decay is at most (1 + t) / (10 + t) at the t-th update. Default True.
        temperature_squared: Multiply by T^2, as the code does. Default True; see `SAF`.
        teacher_precision: ``"bfloat16"`` or ``"float16"`` runs the teacher's pass in that autocast; None as the loss is
            called. Default None.
        class_axis: Axis of the classes in the output. Default 1.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> loss = MESA(nn.CrossEntropyLoss(), start=0)
        >>> loss.prepare(model=model, steps_per_epoch=10)
        >>> batch = Batch(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
        >>> bool(loss(model(batch.input), batch) == loss.plain_value)  # the teacher still equals the model
        True
    """

    def __init__(
        self,
        criterion: Criterion | TrainingLoss,
        *,
        weight: float = 0.8,
        temperature: float = 5.0,
        start: int | float = 5,
        stop: int | float | None = None,
        half_life: float = 2.8,
        decay: float | None = None,
        warm_up: bool = True,
        temperature_squared: bool = True,
        teacher_precision: Literal["bfloat16", "float16"] | None = None,
        class_axis: int = 1,
    ) -> None:
        super().__init__(criterion)
        check_number("weight", weight, low=0.0)
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_number("half_life", half_life, low=0.0, open_low=True)
        if decay is not None:
            check_number("decay", decay, low=0.0, high=1.0)
        if teacher_precision is not None and teacher_precision not in _PRECISIONS:
            raise InputError("teacher_precision", f"must be one of {', '.join(_PRECISIONS)} or None", teacher_precision)
        self.weight, self.temperature, self.temperature_squared = weight, temperature, temperature_squared
        self.active, self.half_life, self.decay, self.warm_up = ActiveEpochs(start, stop), half_life, decay, warm_up
        self.teacher_precision, self.class_axis = teacher_precision, class_axis
        self.average: Average | None = None
        self._epochs: int | None = None
        self._steps: int | None = None
        self._seen: tuple[Any, tuple[Any, ...], Tensor] | None = None
        self._pending = Unanswered()  # output before its gradient, with the mark of its input
        self._passed = self._stepped = False
        self._teacher_passes = 0

    @property
    def needs_input(self) -> bool:
        """Whether the loss must be called with the whole batch: it must, the teacher takes the input."""
        return True

    @property
    def extra_forward_passes(self) -> int:
        """Passes of the teacher in this run."""
        return self._teacher_passes + super().extra_forward_passes

    @property
    def effective_weight(self) -> float:
        """What the mean divergence is multiplied by: ``weight T^2``, or ``weight`` without the factor."""
        return self.weight * (self.temperature**2 if self.temperature_squared else 1.0)

    @property
    def teacher(self) -> nn.Module:
        """The averaged model, in evaluation mode, without gradients."""
        return self._ready().model

    def decay_at(self, update: int) -> float:
        """Return the share of the old average that stays at an update (from 0)."""
        if self.decay is not None:
            decay = self.decay
        elif self._steps is None:
            rule = "is counted in epochs, whose number of steps is unknown"
            advice = "call loss.prepare(model=..., steps_per_epoch=...), or pass decay=... per step"
            raise InputError("half_life", rule, self.half_life, advice)
        else:
            decay = 0.5 ** (1 / (self.half_life * self._steps))
        return min(decay, (1 + update) / (10 + update)) if self.warm_up else decay

    def _settings(self) -> dict[str, Any]:
        names = ("weight", "temperature", "active", "half_life", "decay", "warm_up", "temperature_squared")
        return {name: getattr(self, name) for name in (*names, "teacher_precision", "class_axis")}

    def _training(self, output: Any, batch: Batch) -> Tensor:
        average = self._ready()
        clean = current_pass() == "clean"
        if batch.input is None:
            raise InputError("batch", "must be the whole Batch", "a target alone", "call loss(output, batch)")
        self._passed = self._passed or clean
        loss = self._inner(output, batch)
        if not self.active.contains(self._epoch, self._epochs):
            return loss
        check_class_axis(output, batch.target, self.class_axis)
        if clean:
            self._must_be_one_head(output, batch)
        past = self._teach(average, batch, clean=clean)
        if past.shape != output.shape:
            raise InputError("output", f"must have the shape of the teacher's, {list(past.shape)}", list(output.shape))
        each = labeled_divergence(
            self.plain_criterion, batch.target, past, output, self.temperature, class_axis=self.class_axis
        )
        mean = each.mean()
        added = mean * self.effective_weight
        if clean:
            self._totals.add("mesa_kl", mean, len(each))
            self._totals.add("mesa_loss", added, len(each))
        return loss + added

    def _must_be_one_head(self, output: Tensor, batch: Batch) -> None:
        # before its gradient a second output of the same input is another head's; the teacher has one
        mark, before = _mark(batch.input), self._pending.take()
        if before is not None and before[0] is not output and before[1] == mark:
            rule = "must be one per input and step: the teacher gives one to compare with"
            got = "a second output of the same input before the backward pass of the first"
            raise InputError("output", rule, got, "give other heads the plain criterion, and add their losses")
        self._pending.keep(output, mark)

    @torch.no_grad()
    def _teach(self, average: Average, batch: Batch, *, clean: bool) -> Tensor:
        mark = _mark(batch.input)
        if not clean and self._seen is not None and self._seen[0] is batch.input and self._seen[1] == mark:
            return self._seen[2]
        device = average.to_student()
        wanted = None if self.teacher_precision is None else _PRECISIONS[self.teacher_precision]
        with nullcontext() if wanted is None else torch.autocast(device.type, dtype=wanted):
            logits = forward(average.model, batch)
        if not isinstance(logits, Tensor):
            advice = "let it return its main output alone in evaluation mode"
            raise InputError("model", "must give its teacher one tensor to compare with", type(logits).__name__, advice)
        self._teacher_passes += 1
        self._seen = (batch.input, mark, logits)
        return logits

    def _ready(self) -> Average:
        if self.average is None:
            advice = "call loss.prepare(model=model, steps_per_epoch=...) once its initial weights are set"
            raise InputError("model", "must be known before the first loss", None, advice)
        return self.average

    def _prepare(self, **run: Any) -> None:
        self._epochs, self._steps = run["epochs"], run["steps_per_epoch"]
        self.active.contains(0, self._epochs)  # fractions need the length of the run
        self.decay_at(0)
        self._seen, self._passed, self._stepped, self._teacher_passes = None, False, False, 0
        if run["model"] is not None:
            self.average = Average(run["model"])

    def _after_step(self) -> None:
        self._seen, self._stepped = None, True
        self._pending.forget()  # a step may be taken without a backward pass
        stop = self.active.stop
        if stop is None or self._epoch < ActiveEpochs(start=stop).first(self._epochs):  # nobody asks it afterwards
            average = self._ready()
            average.update(self.decay_at(average.updates))

    def _end_epoch(self) -> None:
        super()._end_epoch()
        silent = self._passed and not self._stepped
        self._passed = self._stepped = False
        if silent:
            rule = "must be called after every optimizer step, or the teacher stays where it began"
            raise InputError("after_step", rule, "no call in an epoch")

    def _state(self) -> dict[str, Any]:
        average = None if self.average is None else self.average.state_dict()
        flags = {"passed": self._passed, "stepped": self._stepped, "teacher_passes": self._teacher_passes}
        return {"average": average, **flags}

    def _check_own(self, state: Mapping[str, Any]) -> None:
        super()._check_own(state)
        if state["average"] is None:
            return
        if self.average is None:
            raise CheckpointError("the state of MESA needs loss.prepare(model=...) first; nothing was loaded")
        self.average.check_state(state["average"])

    def _load(self, state: Mapping[str, Any]) -> None:
        if state["average"] is not None:
            self._ready().load_state_dict(state["average"])
        self._passed, self._stepped, self._seen = state["passed"], state["stepped"], None
        self._teacher_passes = int(state["teacher_passes"])


class Average:
    """An exponential moving average of a model's parameters and floating-point buffers."""

    def __init__(self, model: nn.Module) -> None:
        self.student = unwrap(model)
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.student.modules()):
            raise InputError("model", "must not be scripted", "gradients stay on in its copy", "pass the original")
        self.model = copied(self.student).requires_grad_(False).eval()
        self.updates = 0
        self._wide: dict[str, Tensor] = {}  # of what is kept in too few bits to be averaged

    def to_student(self) -> torch.device:
        """Move the average to the device of the model, and return it."""
        device = next((p.device for p in self.student.parameters()), torch.device("cpu"))
        if any(p.device != device for p in self.model.parameters()):
            self.model.to(device)
        return device

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the model: ``v = decay v + (1 - decay) w``; counters are copied."""
        self.to_student()
        mine, theirs = _tensors(self.model), _tensors(self.student)
        if mine.keys() != theirs.keys():
            advice = "call loss.prepare(model=...) again after pruning and other changes of the model"
            raise InputError("model", "must have the tensors it was prepared with", sorted(theirs)[:3], advice)
        averaged: list[Tensor] = []
        for name, tensor in mine.items():
            if not tensor.is_floating_point():
                tensor.copy_(theirs[name])
            elif tensor.dtype in (torch.float16, torch.bfloat16):
                self._wide[name] = self._wide.get(name, tensor.float()).to(tensor.device)
                averaged.append(self._wide[name])
            else:
                averaged.append(tensor)
        floating = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        sources = [theirs[name].detach().to(a.dtype) for name, a in zip(floating, averaged, strict=True)]
        torch._foreach_lerp_(averaged, sources, 1 - decay)
        for name, wide in self._wide.items():
            mine[name].copy_(wide)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"tensors": {**_tensors(self.model)}, "wide": dict(self._wide), "updates": self.updates}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise unless a state fits the model."""
        own = {name: tuple(tensor.shape) for name, tensor in _tensors(self.model).items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in state["tensors"].items()}
        if own != theirs:
            wrong = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
            said = f"the teacher of the checkpoint is another model (at {wrong[:3]})"
            raise CheckpointError(f"{said}; nothing was loaded")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `check_state` accepted."""
        for name, tensor in _tensors(self.model).items():
            tensor.copy_(state["tensors"][name])
        self._wide = {name: tensor.clone() for name, tensor in state["wide"].items()}
        self.updates = int(state["updates"])


def _mark(given: Any) -> tuple[tuple[int, int], ...]:
    # a batch may have been overwritten in place since (static input buffers)
    return tuple((id(leaf), leaf._version) for leaf in tree_leaves(given) if isinstance(leaf, Tensor))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return parameters | {name: buffer for name, buffer in model.named_buffers() if buffer is not None}
