"""SAF: keep the model's outputs near those of some epochs ago.

Du, Zhou, Feng, Tan and Zhou, "Sharpness-Aware Training for Free", NeurIPS 2022. A sharp step changes the outputs of the
samples it was taken on; so the divergence between past and present outputs, along the trajectory, stands for the
sharpness that SAM pays a second pass for.

The loss is ``criterion + weight T^2 / n sum_i KL(softmax(past_i / T) || softmax(now_i / T))`` over a batch of n
samples, with the output of `look_back` epochs ago, detached. A sample without one adds 0, and n stays. The factor T^2
is in the code that produced the published results and not in the paper (`temperature_squared`). Where a sample has
several positions (tokens, pixels), its divergence is the mean over those whose label is not ignored (-100, or the
criterion's `ignore_index`).

Deviations: see `lowland.losses.memory` for how outputs are kept. The first epoch with the added loss is `start`,
counted from 0 (the paper's "from the sixth epoch"; the code waits one epoch more).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from lowland.core.contexts import current_pass
from lowland.core.errors import CheckpointError, InputError, LowlandWarning, require
from lowland.core.types import Batch
from lowland.losses.base import Criterion, TrainingLoss
from lowland.losses.divergence import check_class_axis, labeled_divergence, mixes_two
from lowland.losses.heads import Unanswered
from lowland.losses.memory import OutputMemory, Placement
from lowland.losses.records import Precision
from lowland.losses.reshapers import check_number
from lowland.losses.schedule import ActiveEpochs, as_epochs

_MANY: Final = 3
_TOO_MANY: Final = 50
"""How often the samples of an epoch may be met before a user is warned, and before it cannot be one epoch."""
_ONE_TARGET: Final = "must be one for an output: what a mixed image gives is compared with the same mixture alone"
_PARTNERS: Final = "mix by lowland.data, or hand over partner=ids and share=own shares in the Batch"


class SAF(TrainingLoss):
    """Add the divergence from the outputs of some epochs ago to a criterion.

    Batches must carry sample ids. With several processes all must set the epoch together; the hit rate in the log says
    what share of samples found their past output.

    Args:
        criterion: A criterion, or another loss of this room.
        weight: Weight of the divergence. Default 0.3 (paper, all experiments).
        temperature: T > 0. Default 5 (paper).
        look_back: Epochs between an output and its use, or a fraction of the run. Default 3 (paper).
        start: First epoch with the added loss, or a fraction of the run. Default 5 (paper); on short runs the code's
            manual advises 0.3.
        stop: First epoch that is plain again, or a fraction of the run. Default None: never.
        temperature_squared: Multiply by T^2, as the code does: the weight then has the scale of an untempered
            divergence. False takes the paper's formula literally, which is 25 times weaker at T = 5. Default True.
        mixed: What to do with samples mixed by mixup or cutmix: ``"skip"`` leaves them out; ``"match"`` keeps them and
            compares where the same pair with the same share (to within 0.05) comes again. Default ``"skip"``.
        precision: How outputs are kept: ``"float32"`` (default), ``"float16"``, ``"int8"``, ``"float64"``.
        placement: ``"device"`` (default), ``"host"`` or ``"file"``.
        path: The file, for ``placement="file"``.
        samples: Number of samples or all their ids; None takes them from `prepare`, or numbers ids as they are met.
        class_axis: Axis of the classes in the output. Default 1.

    Example:
        >>> loss = SAF(torch.nn.CrossEntropyLoss(), start=1, look_back=1)
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> batch = Batch(None, torch.tensor([0, 1]), torch.tensor([7, 8]))
        >>> for epoch in range(2):
        ...     loss.epoch = epoch
        ...     value = loss(logits, batch)
        >>> loss.epoch_log()["saf_hit_rate"]
        1.0
    """

    def __init__(
        self,
        criterion: Criterion | TrainingLoss,
        *,
        weight: float = 0.3,
        temperature: float = 5.0,
        look_back: int | float = 3,
        start: int | float = 5,
        stop: int | float | None = None,
        temperature_squared: bool = True,
        mixed: Literal["skip", "match"] = "skip",
        precision: Precision = "float32",
        placement: Placement = "device",
        path: str | Path | None = None,
        samples: int | Tensor | None = None,
        class_axis: int = 1,
    ) -> None:
        super().__init__(criterion)
        check_number("weight", weight, low=0.0)
        check_number("temperature", temperature, low=0.0, open_low=True)
        require(mixed in ("skip", "match"), "mixed", 'must be "skip" or "match"', mixed)
        require(as_epochs("look_back", look_back, 1) >= 1, "look_back", "must be at least one epoch", look_back)
        self.weight, self.temperature, self.temperature_squared = weight, temperature, temperature_squared
        self.look_back, self.active = look_back, ActiveEpochs(start, stop)
        self.mixed, self.class_axis = mixed, class_axis
        known = look_back if isinstance(look_back, int) else 1  # a fraction is resolved by `prepare`
        self.memory = OutputMemory(
            look_back=known,
            precision=precision,
            placement=placement,
            path=path,
            samples=samples,
            pairs=mixed == "match",
        )
        self._epochs: int | None = None
        self._samples: int | None = None
        self._begun = self._prepared = False
        self._met = 0  # samples of this epoch
        self._pending = Unanswered()  # output before its gradient, with ids and target
        self._mixes: Tensor | None = None  # whether targets of the first batch look mixed by hand

    @property
    def needs_index(self) -> bool:
        """Whether batches must carry sample ids: they must."""
        return True

    @property
    def bound_to_processes(self) -> str:
        """Why a run cannot go on with another number of processes: past outputs are dealt out over them."""
        return "SAF's past outputs are dealt out over the processes"

    @property
    def effective_weight(self) -> float:
        """What the mean divergence is multiplied by: ``weight T^2``, or ``weight`` without the factor."""
        return self.weight * (self.temperature**2 if self.temperature_squared else 1.0)

    def _settings(self) -> dict[str, Any]:
        names = ("weight", "temperature", "look_back", "active", "temperature_squared", "mixed", "class_axis")
        kept = {"precision": self.memory.precision, "placement": self.memory.placement}
        return {name: getattr(self, name) for name in names} | kept

    def _training(self, output: Any, batch: Batch) -> Tensor:
        clean = current_pass() == "clean"
        self._must_be_told(output.shape[0] if clean else 0)
        recording, reading = self._recording(), self._reading()
        if not (recording or reading):
            return self._inner(output, batch)
        check_class_axis(output, batch.target, self.class_axis)
        rows = self.memory.locate(batch.index, output)
        if clean:
            self._must_be_one_head(output, batch)
        partner, share, usable = self._pairs(batch, rows)
        loss = self._inner(output, batch)
        if reading:
            past, hit = self.memory.recall(rows, output, partner, share)
            loss = loss + self._added(output, batch, past, hit, usable, clean=clean)
        if recording and clean:
            with torch.no_grad():
                self.memory.record(torch.where(usable, rows, -1), output, partner, share)
        return loss

    def _must_be_told(self, rows: int) -> None:
        # a loop that never sets the epoch would train with the plain criterion for ever, and not notice
        if not self._begun and not self._prepared:
            rule = "must be set before each epoch, and prepare(...) called before the first"
            raise InputError("epoch", rule, None, "see the loop in lowland.losses.base")
        if not self._begun:
            self._begin_epoch()
        before, self._met = self._met, self._met + rows
        if self._samples is None or self._met <= _MANY * self._samples:
            return
        met = f"{self._met} samples in epoch {self._epoch} of {self._samples}"
        require(self._met <= _TOO_MANY * self._samples, "epoch", "must be set before each epoch", met)
        if before <= _MANY * self._samples:
            advice = "right where a sampler draws them so often; if epochs have passed, set loss.epoch before each"
            warnings.warn(f"SAF met {met}: {advice}", LowlandWarning, stacklevel=4)

    def _must_be_one_head(self, output: Tensor, batch: Batch) -> None:
        # before its gradient a second output of the same samples is another head's, and would be compared with the
        # first's past; the same output under other labels is a mixture, whose partner must be known
        given, before = (batch.index, batch.target), self._pending.take()
        if before is not None and before[0] is output:
            if not all(map(_same, given, before[1])):
                raise InputError("batch", _ONE_TARGET, "another target or id for the same output", _PARTNERS)
        elif before is not None and _same(given[0], before[1][0]):
            rule = "must be one per sample and step: a memory holds the outputs of one head"
            got = "a second output of the same samples before the backward pass of the first"
            raise InputError("output", rule, got, "give every head a SAF of its own, and add their losses")
        self._pending.keep(output, given)
        if self._mixes is None and batch.partner is None:
            self._mixes = mixes_two(batch.target, output, self.class_axis)

    def _added(self, output: Tensor, batch: Batch, past: Tensor, hit: Tensor, usable: Tensor, *, clean: bool) -> Tensor:
        usable = usable.to(output.device)
        hit = hit & usable
        each = labeled_divergence(
            self.plain_criterion, batch.target, past, output, self.temperature, class_axis=self.class_axis
        )
        each = torch.where(hit, each, torch.zeros_like(each))
        total = each.sum()
        added = total * (self.effective_weight / len(each))
        if clean:
            hits, counted = hit.sum(), usable.sum()
            self._totals.add("saf_kl", total / hits, hits)
            self._totals.add("saf_loss", added, len(each))
            self._totals.add("saf_hit_rate", hits / counted, counted)
        return added

    def _pairs(self, batch: Batch, rows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return partners, own shares, and which samples take part."""
        every = torch.ones_like(rows, dtype=torch.bool)
        if batch.partner is None:
            return None, None, every
        share = every.float() if batch.share is None else batch.share.to(rows.device)
        whole = share >= 1
        if self.mixed == "skip":
            return None, None, whole
        return torch.where(whole, -1, batch.partner.to(rows.device)), share, every

    def _reading(self) -> bool:
        return self.active.contains(self._epoch, self._epochs)

    def _recording(self) -> bool:
        use = self._epoch + self.memory.look_back
        return self.active.contains(use, self._epochs) and (self._epochs is None or use < self._epochs)

    def _prepare(self, **run: Any) -> None:
        self._epochs, samples = run["epochs"], run["samples"]
        self._samples = len(samples) if isinstance(samples, Tensor) else samples
        self._begun, self._prepared, self._met, self._mixes = False, True, 0, None
        self.memory.configure(run["samples"], run["plan"])
        self.memory.look_back = self._resolved()

    def _resolved(self) -> int:
        self.active.contains(0, self._epochs)  # fractions need the length of the run
        return as_epochs("look_back", self.look_back, self._epochs)

    def _begin_epoch(self) -> None:
        self._resolved()
        self.memory.begin(self._epoch, recording=self._recording(), reading=self._reading())
        self._begun, self._met = True, 0
        self._pending.forget()

    def _after_step(self) -> None:
        self._pending.forget()  # a step without a backward pass; the next one's outputs are no second head's

    def _check(self) -> None:
        self.memory.raise_noticed()
        if self._mixes is not None and bool(self._mixes):
            self._mixes = torch.tensor(False)  # said once
            met = "SAF met targets that mix two classes each. If inputs are mixed by hand, it compares other mixtures"
            warnings.warn(f"{met}: {_PARTNERS}; labels by several people are fine", LowlandWarning, stacklevel=4)

    def _state(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def _check_own(self, state: Mapping[str, Any]) -> None:
        if "memory" not in state:
            raise CheckpointError("the state of SAF lacks its memory; nothing was loaded")
        self.memory.check_state(state["memory"])

    def _load(self, state: Mapping[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self._begun = False


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other))
