"""Where weights come from: a run of Lowland, or any model from any checkpoint on any data.

Files are only read, never executed: torch's pickles by its restricted unpickler, safetensors, and the JSON of a Hugging
Face folder. What is called is the user's own code, named as ``module:callable``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from lowland import models
from lowland.core.errors import CheckpointError, InputError
from lowland.core.names import check_options, find
from lowland.core.risk import EmpiricalRisk
from lowland.data import DATASETS, DataSplits, TensorData
from lowland.results.run import Run
from lowland.results.source import BatchNorm, Source
from lowland.training import CheckpointFolder, read_weights
from lowland.workflows.build import build_criterion, build_data, build_metrics, build_model
from lowland.workflows.checks import check_run
from lowland.workflows.parse import from_yaml
from lowland.workflows.specs import FitSpec, LossSpec, SubjectSpec

PARTS: Final = ("train", "validation", "test")
"""Names of the parts of a data set."""

_HEADS: Final = {
    "ForSequenceClassification": "sequence-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForImageClassification": "image-classification",
}
"""End of the name of a Hugging Face architecture -> the task of `lowland.models.huggingface`."""


def open_run(folder: str | Path) -> Run:
    """Return the run in a folder."""
    return Run(check_run(folder), source=TrainedSource)


def subject_run(spec: SubjectSpec) -> Run:
    """Return the run that a spec is about; one of another program's model has its folder for results alone."""
    if spec.run is not None:
        return open_run(spec.run)
    names = ("model", "data", "checkpoint", "loss", "prefix", "model_options", "data_options")
    source = ExternalModel(**{name: getattr(spec, name) for name in names})
    return Run(spec.folder, name=str(spec.checkpoint or spec.model), source=source)


class _ModelSource(Source):
    """What all sources share: risks from a model, a loss and parts of data."""

    def risks(
        self,
        splits: Sequence[str],
        *,
        model: nn.Module | None,
        weights: str,
        split: str,
        samples: int | None,
        seed: int,
        batch_size: int,
        batch_norm: BatchNorm,
        metrics: Sequence[str],
    ) -> dict[str, EmpiricalRisk]:
        """Return the risks of parts of the data, all of one model."""
        data = self.data()
        parts = data if isinstance(data, Mapping) else {name: getattr(data, name) for name in PARTS}
        if not splits or len(set(splits)) < len(splits) or not {*splits, split} <= set(parts):
            named = f"must name parts of the data, each once: {', '.join(parts)}"
            raise InputError("splits", named, list(splits) if {*splits} - set(parts) or not splits else split)
        model = self.model(weights, data) if model is None else model
        batches = {name: _batches(parts[name], batch_size) for name in {*splits, split}}
        options: dict[str, Any] = {"batch_norm": batch_norm, "recalibration": batches[split], "samples": samples}
        options |= {"seed": seed, "metrics": build_metrics(metrics)}
        return {name: EmpiricalRisk(model, self.criterion(), batches[name], **options) for name in splits}


def _batches(part: Any, size: int) -> Any:
    if isinstance(part, TensorData):
        return list(part.batches(size))
    map_style = hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, list | tuple)
    return DataLoader(part, batch_size=size) if map_style and not isinstance(part, DataLoader) else part


class TrainedSource(_ModelSource):
    """What Lowland has trained: network, data and loss from the spec, weights from checkpoints and snapshots."""

    def __init__(self, run: Run) -> None:
        check_run(run.folder)
        self.run = run

    @cached_property
    def spec(self) -> FitSpec:
        """The run's spec, parsed once."""
        return from_yaml(FitSpec, self.run.spec_path)

    def data(self) -> DataSplits:
        """Load the run's data."""
        return build_data(self.spec.data)

    def criterion(self) -> Any:
        """Build the run's plain loss."""
        return build_criterion(self.spec.loss)

    def model(self, weights: str, data: DataSplits | None = None) -> nn.Module:
        """Build the run's network with its initial or trained weights, or those of a snapshot."""
        model = build_model(self.spec.model, self.data() if data is None else data, seed=self.spec.seed)
        self.load(model, weights)
        return model.eval()

    def load(self, model: nn.Module, weights: str) -> None:
        """Put weights of the run into a network of its kind."""
        found = self._snapshot(int(weights)) if weights.isdigit() else self._checkpoint(weights)
        try:
            model.load_state_dict({**model.state_dict(), **found})
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint in {self.run.folder} does not fit the model: {text}") from error

    def other(self, path: str, weights: str) -> nn.Module:
        """Build the network of another run."""
        return TrainedSource(open_run(path)).model(weights)

    def _checkpoint(self, weights: str) -> dict[str, torch.Tensor]:
        if weights not in ("best", "last", "initial"):
            raise InputError("weights", "must be best, last, initial or the step of a snapshot", weights)
        if weights == "initial":
            return {}
        found = CheckpointFolder(self.run.folder).load()
        if found is None:
            raise InputError("run", "must hold a checkpoint", str(self.run.folder), "go on with `lowland fit`")
        last, _, best = found
        return last if weights == "last" or best is None else best

    def _snapshot(self, step: int) -> dict[str, torch.Tensor]:
        reader = self.run.snapshots
        if reader is None or step not in reader.steps:
            known = f"there are {reader.steps}" if reader is not None else "the run kept none"
            raise InputError("risk.weights", "must be the step of a snapshot", step, known)
        return {name: torch.as_tensor(array) for name, array in reader.read(step).items()}


class ExternalModel(_ModelSource):
    """A model that Lowland has not trained, as the source of a `lowland.Run`.

    Args:
        model: The network itself (it is copied, never changed), a known name, or ``module:callable`` that returns one;
            None for a Hugging Face folder as checkpoint, which says what it is.
        data: A data set, a loader or batches, `lowland.data.DataSplits`, these by the names train, validation and test;
            a known name, or ``module:callable`` that returns one of these.
        checkpoint: A state dict (.pt, .pth, .bin, .t7), safetensors, a Lightning checkpoint (.ckpt), a Hugging Face
            folder, or a run's folder; None takes the weights that the network has.
        loss: The criterion itself, ``"cross_entropy"``, ``"mse"``, or ``module:callable``.
        prefix: Where the model stands in the checkpoint, such as ``"net."``; None finds it out.
        model_options: Keyword arguments of the model's callable.
        data_options: Keyword arguments of the data's callable.

    Example:
        >>> import torch
        >>> batches = [(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))]
        >>> run = Run(name="mine", source=ExternalModel(torch.nn.Linear(2, 2), batches))
        >>> run.risk().evaluate()["loss"].samples
        4
    """

    def __init__(
        self,
        model: nn.Module | str | None,
        data: Any,
        *,
        checkpoint: str | Path | None = None,
        loss: Any = "cross_entropy",
        prefix: str | None = None,
        model_options: Mapping[str, Any] | None = None,
        data_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._data, self._checkpoint, self._loss, self._prefix = model, data, checkpoint, loss, prefix
        self._model_options, self._data_options = dict(model_options or {}), dict(data_options or {})

    @cached_property
    def _parts(self) -> dict[str, Any]:
        found = self._data
        if isinstance(found, str):
            build = find("data", found, DATASETS)
            check_options("data set", found, build, self._data_options)
            found = build(**self._data_options)
        if isinstance(found, DataSplits):
            return {name: getattr(found, name) for name in PARTS}
        if isinstance(found, Mapping) and found and set(found) <= set(PARTS):
            return dict(found)
        if isinstance(found, Mapping | str) or not (isinstance(found, Iterable) or hasattr(found, "__getitem__")):
            rule = f"must return a data set, a loader, lowland.data.DataSplits, or these by name: {', '.join(PARTS)}"
            raise InputError("data", rule, type(found).__name__)
        return {"train": found}

    def data(self) -> dict[str, Any]:
        """Return samples by the name of their part; data of a single part are called train."""
        return self._parts

    def criterion(self) -> Any:
        """Build the loss."""
        return build_criterion(LossSpec(name=self._loss)) if isinstance(self._loss, str) else self._loss

    def model(self, weights: str, data: Any = None) -> nn.Module:
        """Build the model with its weights; it has no others by name."""
        _only_best(weights)
        return self._built(self._checkpoint)

    def load(self, model: nn.Module, weights: str) -> None:
        """Put the checkpoint's weights into a network."""
        _only_best(weights)
        model.load_state_dict(self._built(self._checkpoint).state_dict())

    def other(self, path: str, weights: str) -> nn.Module:
        """Build the model with other weights."""
        return self._built(path)

    def _built(self, place: str | Path | None) -> nn.Module:
        if self._model is None:
            return _huggingface(Path(str(place)), self._model_options).eval()
        if isinstance(self._model, nn.Module):
            model = copy.deepcopy(self._model)
        else:
            model = models.create(self._model, seed=0, **self._model_options)
        if place is not None:
            models.load_weights(model, read_weights(place), prefix=self._prefix)
        return model.eval()


def _only_best(weights: str) -> None:
    if weights != "best":
        raise InputError("risk.weights", "is for runs", weights, "give the weights by --checkpoint")


def _huggingface(folder: Path, options: Mapping[str, Any]) -> nn.Module:
    # options win over what the folder says
    if not (folder / "config.json").is_file():
        advice = "only a Hugging Face folder says by itself what its model is"
        raise InputError("model", "must be given for this checkpoint", str(folder), advice)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        head = str((config.get("architectures") or [""])[0])
        classes = len(config["id2label"]) if config.get("id2label") else 2  # what the format leaves out where it is 2
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError("checkpoint", f"must hold a whole config.json ({error})", str(folder)) from error
    task = next((task for end, task in _HEADS.items() if head.endswith(end)), None)
    if task is None and "task" not in options:
        advice = f"or say by --model_options.task which of {', '.join(sorted(set(_HEADS.values())))}"
        raise InputError("checkpoint", "must hold a classifier or a language model", head, advice)
    return models.create("huggingface", folder=str(folder), **{"task": task, "classes": classes, **options})
