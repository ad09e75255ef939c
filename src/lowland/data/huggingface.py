"""Data sets of Hugging Face from a local folder; the network is never asked and no script of the data set is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lowland.core.errors import InputError, optional_import, refused, require, reworded
from lowland.data.indexed import Indexed
from lowland.data.splits import DataSplits, stratified_split


def huggingface(
    *,
    folder: str | Path,
    tokenizer: str | Path | Callable[..., Mapping[str, Any]],
    text: str = "text",
    label: str = "label",
    context: int = 128,
    batch_size: int = 32,
    split_seed: int = 0,
) -> DataSplits:
    """Load a text classification data set that ``save_to_disk`` wrote, as dicts for a Hugging Face encoder.

    Parts are taken as they are stored; a missing ``validation`` or ``test`` part is cut out of ``train`` (a tenth each,
    stratified).

    Args:
        folder: A local folder written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``.
        tokenizer: A local folder of a tokenizer, or a callable ``(texts, truncation, padding, max_length,
            return_tensors) -> dict of tensors``.
        text: Column with the text.
        label: Column with the class.
        context: Longest input in tokens; longer texts are cut.
        batch_size: Samples per batch.
        split_seed: Seed of parts that are cut out.

    Returns:
        Splits of loaders that yield dicts with ``input_ids``, ``attention_mask``, ``labels`` and ``index``.

    Raises:
        InputError: If the folder, a column or the tokenizer cannot be used.
        MissingExtra: If datasets (or transformers, for a folder of a tokenizer) is not installed.
    """
    datasets = optional_import("datasets", extra="hf", needed_for="a Hugging Face data set")
    with refused((OSError, ValueError, KeyError), "folder", "must be written by save_to_disk", str(folder)):
        stored = datasets.load_from_disk(str(folder))
    parts = dict(stored) if isinstance(stored, Mapping) else {"train": stored}
    require("train" in parts, "folder", "must hold a part named train", sorted(parts))
    for column in (text, label):
        if column not in parts["train"].column_names:
            known = ", ".join(parts["train"].column_names)
            raise InputError("text, label", "must name columns", column, f"Known: {known}")
    parts = _with_missing_parts(parts, label, split_seed)
    encode = _tokenizer(tokenizer)

    def collate(rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row[text] for row in rows]
        made = encode(texts, truncation=True, padding=True, max_length=context, return_tensors="pt")
        labels, index = [int(row[label]) for row in rows], [row["index"] for row in rows]
        return {**made, "labels": torch.tensor(labels), "index": torch.tensor(index)}

    train, validation, test = [
        DataLoader(Indexed(parts[name]), batch_size, shuffle=name == "train", collate_fn=collate)
        for name in ("train", "validation", "test")
    ]
    labels = {int(value) for part in parts.values() for value in part[label]}
    require(min(labels) >= 0, "label", "must hold classes from 0", min(labels))
    told = {"context": context, "batch_size": batch_size, "split_seed": split_seed}
    marks = {name: str(getattr(part, "_fingerprint", len(part))) for name, part in sorted(parts.items())}
    recipe = {"name": "huggingface", **told, "parts": marks}
    classes = max(labels) + 1
    return DataSplits("huggingface", train, validation, test, classes=classes, shape=(context,), recipe=recipe)


def _with_missing_parts(parts: dict[str, Any], label: str, seed: int) -> dict[str, Any]:
    missing = [name for name in ("validation", "test") if name not in parts]
    kept: dict[str, Any] = {name: parts[name] for name in ("train", "validation", "test") if name in parts}
    if missing:
        target = torch.tensor([int(value) for value in parts["train"][label]])
        tenth = max(1, len(target) // 10)
        sizes = [len(target) - tenth * len(missing)] + [tenth] * len(missing)
        for name, rows in zip(["train", *missing], stratified_split(target, sizes, seed=seed), strict=True):
            kept[name] = parts["train"].select(rows)
    return kept


def _tokenizer(tokenizer: str | Path | Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    transformers = optional_import("transformers", extra="hf", needed_for="a Hugging Face tokenizer")
    with reworded(
        (OSError, ValueError),
        lambda _: InputError("tokenizer", "must be a local folder of a tokenizer", str(tokenizer)),
    ):
        read = transformers.AutoTokenizer.from_pretrained
        return read(str(tokenizer), local_files_only=True, trust_remote_code=False)  # type: ignore[no-any-return]
