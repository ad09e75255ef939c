"""Where weights come from: a run of Lowland, or any model from any checkpoint on any data.

Files are only read, never executed: torch's pickles by its restricted unpickler, safetensors, and the JSON of a Hugging
Face folder. What is called is the user's own code, named as ``module:callable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from lowland import models
from lowland.core.errors import DAMAGED, CheckpointError, InputError, refused
from lowland.core.names import check_options, find
from lowland.core.params import copied
from lowland.core.risk import EmpiricalRisk
from lowland.core.settings import RiskSpec
from lowland.data import DATASETS, DataSplits, TensorData
from lowland.results.run import Run
from lowland.results.source import Source
from lowland.training import CheckpointFolder, read_weights
from lowland.workflows.build import build_criterion, build_data, build_metrics, build_model
from lowland.workflows.checks import PARTS, check_only_weights, check_parts, check_run, check_weights
from lowland.workflows.parse import from_yaml
from lowland.workflows.specs import FitSpec, LossSpec

_HEADS: Final = {
    "ForSequenceClassification": "sequence-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForImageClassification": "image-classification",
}
"""End of the name of a Hugging Face architecture -> the task of `lowland.models.huggingface`."""


_WHOLE: Final = "data"
"""Name of a data set that is given by itself, and as no part."""


class _ModelSource(Source):
    """What all sources share: risks from a model, a loss and parts of data."""

    def risks(self, splits: Sequence[str], options: RiskSpec, *, model: nn.Module | None = None) -> dict[str, Any]:
        """Return the risks of parts of the data, all of one model."""
        data = self.data()
        parts = data if isinstance(data, Mapping) else {name: getattr(data, name) for name in PARTS}
        parts = {PARTS[0] if name == _WHOLE else name: part for name, part in parts.items()}
        check_parts(splits, parts)
        check_parts([options.split], parts)
        model = self.model(options.weights, data) if model is None else model
        batches = {name: _batches(parts[name], options.batch_size) for name in {*splits, options.split}}
        same = {name: getattr(options, name) for name in ("batch_norm", "samples", "seed")}
        same |= {"recalibration": batches[options.split], "metrics": build_metrics(options.metrics)}
        return {name: EmpiricalRisk(model, self.criterion(), batches[name], **same) for name in splits}


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
        check_weights(self.run, weights)
        if weights.isdigit() and self.run.snapshots is not None:
            arrays = self.run.snapshots.read(int(weights))
            found = {name: torch.as_tensor(array) for name, array in arrays.items()}
        else:
            found = self._checkpoint(weights)
        try:
            model.load_state_dict({**model.state_dict(), **found})
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint in {self.run.folder} does not fit the model: {text}") from error

    def other(self, path: str, weights: str) -> nn.Module:
        """Build the network of another run."""
        return TrainedSource(Run(check_run(path))).model(weights)

    def _checkpoint(self, weights: str) -> dict[str, torch.Tensor]:
        if weights == "initial":
            return {}
        found = CheckpointFolder(self.run.folder).load()
        if found is None:
            raise InputError("run", "must hold a checkpoint", str(self.run.folder), "go on with `lowland fit`")
        last, _, best = found
        return last if weights == "last" or best is None else best


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
        return {_WHOLE: found}

    def data(self) -> dict[str, Any]:
        """Return samples by the name of their part; a single data set is called data, and measured by default."""
        return self._parts

    def called(self, split: str) -> str:
        """Return what a part is called: nothing says that a data set of the user's is one of training."""
        return _WHOLE if _WHOLE in self._parts else split

    def criterion(self) -> Any:
        """Build the loss."""
        return build_criterion(LossSpec(name=self._loss)) if isinstance(self._loss, str) else self._loss

    def model(self, weights: str, data: Any = None) -> nn.Module:
        """Build the model with its weights; it has no others by name."""
        check_only_weights(weights)
        return self._built(self._checkpoint)

    def load(self, model: nn.Module, weights: str) -> None:
        """Put the checkpoint's weights into a network."""
        check_only_weights(weights)
        model.load_state_dict(self._built(self._checkpoint).state_dict())

    def other(self, path: str, weights: str) -> nn.Module:
        """Build the model with other weights."""
        return self._built(path)

    def _built(self, place: str | Path | None) -> nn.Module:
        if self._model is None:
            return _huggingface(Path(str(place)), self._model_options).eval()
        if isinstance(self._model, nn.Module):
            model = copied(self._model)
        else:
            model = models.create(self._model, seed=0, **self._model_options)
        if place is not None:
            models.load_weights(model, read_weights(place), prefix=self._prefix)
        return model.eval()


def _huggingface(folder: Path, options: Mapping[str, Any]) -> nn.Module:
    # options win over what the folder says
    if not (folder / "config.json").is_file():
        advice = "only a Hugging Face folder says by itself what its model is"
        raise InputError("model", "must be given for this checkpoint", str(folder), advice)
    with refused(DAMAGED, "checkpoint", "must hold a whole config.json", str(folder)):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        head = str((config.get("architectures") or [""])[0])
        classes = len(config["id2label"]) if config.get("id2label") else 2  # what the format leaves out where it is 2
    task = next((task for end, task in _HEADS.items() if head.endswith(end)), None)
    if task is None and "task" not in options:
        advice = f"or say by --model_options.task which of {', '.join(sorted(set(_HEADS.values())))}"
        raise InputError("checkpoint", "must hold a classifier or a language model", head, advice)
    return models.create("huggingface", folder=str(folder), **{"task": task, "classes": classes, **options})
