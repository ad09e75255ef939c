"""Models of transformers, from a configuration or a local folder; the network is never asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lowland.core.errors import InputError, optional_import
from lowland.core.names import unknown

Task = Literal["sequence-classification", "causal-lm", "image-classification"]

_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
}
_MAIN_INPUT = {"image-classification": "pixel_values"}


class HuggingFaceModel(nn.Module):
    """A model of transformers that returns its logits as a tensor with classes in axis 1.

    Args:
        model: Of transformers, with an output that has `logits`.
        main_input: Name of the argument that a bare tensor becomes.
    """

    def __init__(self, model: nn.Module, main_input: str = "input_ids") -> None:
        super().__init__()
        self.model, self.main_input = model, main_input

    def forward(self, input: Tensor | None = None, **inputs: Any) -> Tensor:
        """Return logits [n, classes], or [n, vocabulary, length] of a language model; labels among inputs are left out.

        Token numbers [n, length] or images [n, channels, h, w] come first, or the model's own arguments by their names.
        """
        if input is not None:
            inputs[self.main_input] = input
        inputs = {name: value for name, value in inputs.items() if name not in ("label", "labels")}
        logits: Tensor = self.model(**inputs).logits
        return logits.transpose(1, 2) if logits.ndim == 3 else logits


def huggingface(
    *,
    task: Task = "sequence-classification",
    folder: str | Path | None = None,
    model_type: str | None = None,
    config: Mapping[str, Any] | None = None,
    classes: int = 2,
) -> HuggingFaceModel:
    """Build a model of transformers.

    Args:
        task: Which head.
        folder: A local folder written by ``save_pretrained`` (safetensors only, no code of its own is run).
        model_type: Without a folder: the architecture, such as ``"bert"``; weights are drawn at random.
        config: Entries of the configuration, such as ``{"hidden_size": 64}``.
        classes: Number of classes; for language models the vocabulary comes from the configuration.

    Returns:
        The model, in training mode.

    Raises:
        InputError: If neither or both of folder and architecture are given, or one cannot be used.
        MissingExtra: If transformers is not installed.
    """
    transformers = optional_import("transformers", extra="hf", needed_for="a Hugging Face model")
    if task not in _CLASSES:
        raise unknown("task", task, _CLASSES)
    if (folder is None) == (model_type is None):
        raise InputError("folder", "must be given, or `model_type` instead of it", (folder, model_type))
    auto = getattr(transformers, _CLASSES[task])
    entries = dict(config or {}) if task == "causal-lm" else {**(config or {}), "num_labels": classes}
    try:
        if folder is not None:
            if not (Path(folder) / "config.json").is_file():
                raise InputError(
                    "folder", "must hold a config.json", str(folder), "save a model there by save_pretrained"
                )
            model = auto.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, **entries
            )
        else:
            model = auto.from_config(transformers.AutoConfig.for_model(model_type, **entries))
    except (ValueError, OSError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).splitlines()[0]
        raise InputError(
            "model_type, folder, config", f"must make a model ({first})", model_type or str(folder)
        ) from error
    return HuggingFaceModel(model.train(), _MAIN_INPUT.get(task, "input_ids"))
