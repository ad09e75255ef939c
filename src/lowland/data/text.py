"""Text that is there offline: the documentation that every Python carries, or any local file; bytes are the tokens."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import refused, require
from lowland.data.resident import numbered
from lowland.data.splits import DataSplits, Selection, with_subsample


def text(
    *, path: str | Path | None = None, context: int = 64, train_size: int | None = None, seed: int = 0
) -> DataSplits:
    """Cut a text into windows for language modelling: the target is the next byte at every place.

    The first 80 % of the text are for training, the next 10 % for validation, the last 10 % for testing; windows do not
    overlap.

    Args:
        path: A local file; None takes the language reference in ``pydoc_data.topics`` (about 0.4 MB of English;
            it differs between versions of Python, which the recipe names).
        context: Bytes per window.
        train_size: Keep that many training windows, drawn at random; None keeps all.
        seed: Seed of that draw.

    Returns:
        Resident splits; inputs and targets [context], int64 in [0, 256).

    Raises:
        InputError: If the file cannot be read or is too short, or an argument is out of range.

    Example:
        >>> text(context=32).train.input.shape[1]
        32
    """
    require(context >= 1, "context", "must be at least 1", context)
    if path is None:
        data = "\n".join(body for _, body in _topics()).encode()
    else:
        with refused(OSError, "path", "must be a readable file", str(path)):
            data = Path(path).read_bytes()
    stops = [0, len(data) * 8 // 10, len(data) * 9 // 10, len(data)]
    pairs: list[tuple[Tensor, Tensor]] = []
    for start, stop in pairwise(stops):
        count = (stop - start - 1) // context
        require(count >= 1, "path", f"must hold at least {10 * (context + 2)} bytes for this context", len(data))
        stream = torch.from_numpy(np.frombuffer(data[start:stop], np.uint8).astype(np.int64))
        end = count * context
        pairs.append((stream[:end].view(count, -1), stream[1 : end + 1].view(count, -1)))
    recipe = {"name": "text", "context": context, "sha256": hashlib.sha256(data).hexdigest()[:16]}
    train, validation, test = numbered(pairs)
    splits = DataSplits("text", train, validation, test, classes=256, shape=(context,), recipe=recipe)
    return with_subsample(splits, train_size, seed=seed)


def topics(
    *, classes: int = 10, context: int = 64, train_size: int | None = None, label_noise: float = 0.0, seed: int = 0
) -> DataSplits:
    """Make a text classification task: from which chapter of Python's documentation does a snippet come?

    The longest chapters are the classes; each is cut into snippets that do not overlap, the first 70 % for training,
    the next 10 % for validation and the last 20 % for testing.

    Args:
        classes: Number of chapters.
        context: Bytes per snippet.
        train_size: Keep that many training snippets; None keeps all.
        label_noise: Probability that a training or validation label is replaced by one drawn from all classes.
        seed: Seed of subsampling and label noise.

    Returns:
        Resident splits; inputs [context], int64 in [0, 256).

    Raises:
        InputError: If there are not so many chapters, or an argument is out of range.
    """
    chapters = sorted(_topics(), key=lambda item: (-len(item[1]), item[0]))
    require(2 <= classes <= len(chapters), "classes", f"must be in [2, {len(chapters)}]", classes)
    rows: list[list[Tensor]] = [[], [], []]
    labels: list[list[int]] = [[], [], []]
    for label, (_, body) in enumerate(chapters[:classes]):
        stream = torch.from_numpy(np.frombuffer(body.encode(), np.uint8).astype(np.int64))
        count = len(stream) // context if context > 0 else 0
        require(count >= 10, "context", "must leave ten snippets of every chapter", context)
        snippets = stream[: count * context].view(count, context)
        stops = [0, count * 7 // 10, count * 8 // 10, count]
        for part, (start, stop) in enumerate(pairwise(stops)):
            rows[part].append(snippets[start:stop])
            labels[part] += [label] * (stop - start)
    pairs = ((torch.cat(part), torch.tensor(of_part)) for part, of_part in zip(rows, labels, strict=True))
    train, validation, test = numbered(pairs)
    recipe = {"name": "topics", "classes": classes, "context": context}
    splits = DataSplits("topics", train, validation, test, classes=classes, shape=(context,), recipe=recipe)
    return Selection(train_size, label_noise, seed).of(splits)


def _topics() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics as chapters

    return sorted(chapters.items())
