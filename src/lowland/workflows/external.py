"""Whose weights are surveyed: a run's, or those of any model from any checkpoint on any data.

Files are only read, never executed: torch's pickles by its restricted unpickler, safetensors, and the JSON of a Hugging
Face folder. What is called is the user's own code, named as ``module:callable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import InputError
from lowland.core.names import check_options, find
from lowland.results.run_folder import RunPaths, open_run_folder
from lowland.workflows.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from lowland.core.risk import EmpiricalRisk
    from lowland.workflows.specs import RiskSpec, SubjectSpec

__all__ = ["ExternalModel", "subject_of"]

_HEADS = {
    "ForSequenceClassification": "sequence-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForImageClassification": "image-classification",
}
"""End of the name of a Hugging Face architecture -> the task of `lowland.models.huggingface`."""


def subject_of(spec: SubjectSpec) -> RunFolder | ExternalModel:
    """Return whose weights a spec is about."""
    return RunFolder(spec.run) if spec.run is not None else ExternalModel(spec)


class ExternalModel:
    """A model that Lowland has not trained."""

    def __init__(self, spec: SubjectSpec) -> None:
        self.spec = spec
        self.path = Path(spec.folder)
        self.paths = RunPaths(self.path)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Samples by the name of their part; data of a single part are called train."""
        from lowland import data

        name, options = str(self.spec.data), self.spec.data_options
        build = find("data", name, data.DATASETS)
        check_options("data set", name, build, options)
        found = build(**options)
        if isinstance(found, data.DataSplits):
            return {"train": found.train, "validation": found.validation, "test": found.test}
        if isinstance(found, Mapping) and found and set(found) <= {"train", "validation", "test"}:
            return dict(found)
        if isinstance(found, Mapping | str) or not (isinstance(found, Iterable) or hasattr(found, "__getitem__")):
            rule = (
                "must return a data set, a loader, lowland.data.DataSplits, or these by name: train, validation, test"
            )
            raise InputError("data", rule, type(found).__name__)
        return {"train": found}

    def model(self, checkpoint: str | None = None) -> nn.Module:
        """Build the model with its weights."""
        from lowland import models
        from lowland.training import read_weights

        place = checkpoint or self.spec.checkpoint
        if self.spec.model is None:
            return _huggingface(Path(str(place)), self.spec.model_options).eval()
        model = models.create(self.spec.model, seed=0, **self.spec.model_options)
        if place is not None:
            models.load_weights(model, read_weights(place), prefix=self.spec.prefix)
        return model.eval()

    def other(self, path: str, weights: str) -> nn.Module:
        """Build the model with other weights."""
        return self.model(path)

    def risk(self, spec: RiskSpec) -> EmpiricalRisk:
        """Make the risk that is measured."""
        return self.risks(spec, [spec.split])[spec.split]

    def risks(self, spec: RiskSpec, splits: list[str]) -> dict[str, EmpiricalRisk]:
        """Make the risks of several parts of the data."""
        from lowland.workflows.build import build_criterion
        from lowland.workflows.measured import risks_of
        from lowland.workflows.specs import LossSpec

        if spec.weights != "best":
            raise InputError("risk.weights", "is for runs", spec.weights, "give the weights by --checkpoint")
        criterion = build_criterion(LossSpec(name=self.spec.loss))
        found = risks_of(self.model(), criterion, self.parts, spec, splits)
        open_run_folder(self.path)
        return found


def _huggingface(folder: Path, options: Mapping[str, Any]) -> nn.Module:
    # options win over what the folder says
    from lowland import models

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
