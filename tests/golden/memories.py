"""Memories of past outputs and states of losses that a version leaves: `write` keeps them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests.golden import methods, parts

import lowland as ll

FORMS = list(itertools.product(("float64", "float32", "float16", "int8"), (False, True)))
"""Precision, and whether pairs are kept."""
LOSSES = ("llr_sech", "llr_first_epoch", "saf", "saf_int8", "mesa", "saf_on_mesa", "llr_on_saf")
STOPPED = 10
"""Steps before the stop: the fourth epoch has begun."""
SAMPLES, LOOK_BACK = 6, 2


def new_memory(precision: Any, pairs: bool, path: Path | None, *, samples: int | None = SAMPLES) -> Any:
    place: Any = "device" if path is None else "file"
    options: dict[str, Any] = {"placement": place, "path": path, "samples": samples}
    return ll.losses.OutputMemory(look_back=LOOK_BACK, precision=precision, pairs=pairs, **options)


def filled(precision: str, pairs: bool, path: Path | None = None, *, samples: int | None = SAMPLES) -> Any:
    """Return a memory after three epochs, the last of them half done."""
    memory = new_memory(precision, pairs, path, samples=samples)
    for epoch in range(3):
        memory.begin(epoch, recording=True, reading=True)
        ids = torch.tensor([4, 1, 0, 5, 2])[: 3 if epoch == 2 else 5]
        outputs = 3 * parts.drawn(epoch, len(ids), 2, 3)
        mixed = {"partner": ids.flip(0), "share": torch.full((len(ids),), 0.75)} if pairs else {}
        memory.record(memory.locate(ids, outputs), outputs, **mixed)
    return memory


def recalled(memory: Any, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a memory finds of all samples."""
    memory.begin(epoch, recording=True, reading=True)
    ids = torch.tensor([4, 1, 0, 5, 2, 3])
    like = torch.zeros(len(ids), 2, 3, dtype=torch.float64)
    mixed = {"partner": torch.tensor([2, 5, 0, 1, 4, -1]), "share": torch.full((len(ids),), 0.75)}
    values, hit = memory.recall(memory.locate(ids, like), like, **(mixed if memory.pairs else {}))
    return values, hit


def batches() -> Iterator[tuple[int, ll.Batch]]:
    for epoch in range(5):
        yield from ((epoch, batch) for batch in parts.batches(torch.float64, epoch))


def gone_on(name: str, *, state: dict[str, Any] | None = None, stop: int | None = None) -> dict[str, Any]:
    """Train 15 steps with a loss, or from a stop, or until one, and return the values and the states."""
    model, loss = parts.seeded(0, torch.float64), methods.LOSSES[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    loss.prepare(model=model, epochs=5, steps_per_epoch=3, samples=48)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loss.load_state_dict(state["loss"])
    values = []
    for epoch, batch in list(batches())[0 if state is None else STOPPED : stop]:
        loss.epoch = epoch
        optimizer.zero_grad()
        value = loss(model(batch.input), batch)
        value.backward()
        optimizer.step()
        loss.after_step()
        values.append(value.item())
    return {
        "values": values,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loss": loss.state_dict(),
    }


def write(kept: Path) -> None:
    path, made = Path("memory.tmp"), {}
    for precision, pairs in FORMS:
        of_memory, of_file = filled(precision, pairs), filled(precision, pairs, path)
        state, file_state, written = of_memory.state_dict(), of_file.state_dict(), path.read_bytes()
        found = recalled(of_memory, 2), recalled(of_memory, 3)
        assert all(torch.equal(a, b) for a, b in zip(found[0], recalled(of_file, 2), strict=True))
        made[f"{precision}{'-pairs' * pairs}"] = {
            "memory": state,
            "file": file_state,
            "written": written,
            "found": found,
        }
    path.unlink()
    met = filled("float32", False, samples=None)
    losses = {name: gone_on(name, stop=STOPPED) | {"later": gone_on(name)["values"][STOPPED:]} for name in LOSSES}
    torch.save({"memories": made, "met": met.state_dict(), "losses": losses}, kept)
