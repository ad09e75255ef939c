"""What LLR, SAF and MESA cost beside a plain step, and what SAF's memory takes.

Everything is measured side by side in one run and given as a ratio. LLR and SAF touch the outputs alone, so their added
work is measured alone (the loss and its backward to the outputs, with and without the method, in interleaved pairs) and
divided by the plain step; MESA and SAM are measured as whole steps, interleaved with plain ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowland import losses, models, optim
from lowland.core.provenance import provenance
from lowland.core.types import Batch
from lowland.losses.divergence import tempered_divergence
from lowland.losses.records import RecordFormat

IMAGENET = (1_281_167, 1000)


class SequenceClassifier(nn.Module):
    """A transformer encoder of four layers over sequences of 64 tokens."""

    def __init__(self, classes: int = 100) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(128, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def cases(batch_size: int) -> dict[str, tuple[Callable[[], nn.Module], Batch]]:
    torch.manual_seed(0)
    index = torch.arange(batch_size)
    images = Batch(torch.randn(batch_size, 3, 32, 32), torch.randint(100, (batch_size,)), index)
    tokens = Batch(torch.randint(1000, (batch_size, 64)), torch.randint(100, (batch_size,)), index)
    return {
        "ResNet-20": (lambda: models.create("resnet20", classes=100, seed=0), images),
        "transformer": (SequenceClassifier, tokens),
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def stepper(model: nn.Module, batch: Batch, loss: Any, optimizer: Any) -> Callable[[], None]:
    def backward() -> None:
        ours = isinstance(loss, losses.TrainingLoss)
        loss(model(batch.input), batch if ours else batch.target).backward()

    def step() -> None:
        optimizer.zero_grad()
        backward()
        if getattr(optimizer, "needs_perturbation", bool)():
            with optimizer.perturb():
                backward()
        optimizer.step()
        if isinstance(loss, losses.TrainingLoss):
            loss.after_step()

    return step


def methods(model: nn.Module, batch: Batch) -> dict[str, losses.TrainingLoss]:
    """Return each loss in the middle of its work."""
    made = {
        "LLR": losses.LLR(nn.CrossEntropyLoss(), initial_loss=4.6),
        "SAF": losses.SAF(nn.CrossEntropyLoss(), start=3),
        "SAF int8": losses.SAF(nn.CrossEntropyLoss(), start=3, precision="int8"),
        "MESA": losses.MESA(nn.CrossEntropyLoss(), start=0),
        "MESA bfloat16": losses.MESA(nn.CrossEntropyLoss(), start=0, teacher_precision="bfloat16"),
    }
    output = model(batch.input).detach().requires_grad_()
    for loss in made.values():
        loss.prepare(model=model, epochs=90, steps_per_epoch=100, samples=50_000)
        for epoch in range(4):
            loss.epoch = epoch
            loss(output, batch)
            loss.after_step()
    return made


def added_work(name: str, build: Callable[[], nn.Module], batch: Batch, pairs: int) -> list[dict[str, Any]]:
    """Return the added work of LLR and SAF as shares of a plain step."""
    model = build()
    plain_step = stepper(model, batch, nn.CrossEntropyLoss(), sgd(model))
    plain_step()
    step = statistics.median(seconds(plain_step) for _ in range(max(5, pairs // 20)))
    output, rows = model(batch.input).detach().requires_grad_(), []
    for method, loss in methods(model, batch).items():
        if method.startswith("MESA"):
            continue

        def one(loss: Any = loss) -> None:
            loss(output, batch).backward()
            loss.after_step()

        def plain() -> None:
            nn.functional.cross_entropy(output, batch.target).backward()

        one(), plain()
        differences = [seconds(one) - seconds(plain) for _ in range(pairs)]
        share = statistics.median(differences) / step
        rows.append({"model": name, "method": method, "ratio": 1 + share, "pairs": pairs, "step_ms": 1e3 * step})
    return rows


def whole_steps(name: str, build: Callable[[], nn.Module], batch: Batch, pairs: int) -> list[dict[str, Any]]:
    """Return the time of whole steps of MESA and SAM over plain ones, and what the teacher's precision does."""
    model = build()
    plain = stepper(model, batch, nn.CrossEntropyLoss(), sgd(model))
    made = methods(model, batch)
    steps = {key: stepper(model, batch, made[key], sgd(model)) for key in ("MESA", "MESA bfloat16")}
    steps["SAM"] = stepper(model, batch, nn.CrossEntropyLoss(), optim.SAM(sgd(model), rho=0.05))
    for step in (plain, *steps.values()):
        step()
    ratios: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(pairs):
        for key, step in steps.items():
            ratios[key].append(seconds(step) / seconds(plain))
    rows = [
        {"model": name, "method": key, "ratio": statistics.median(values), "pairs": pairs}
        for key, values in ratios.items()
    ]
    rows[1]["kl_relative_error"] = teacher_error(model, batch, made)
    return rows


def teacher_error(model: nn.Module, batch: Batch, made: dict[str, losses.TrainingLoss]) -> float:
    """Return how far a bfloat16 teacher's divergence is from a float32 teacher's of the same weights."""
    exact, rough = made["MESA"], made["MESA bfloat16"]
    rough.load_state_dict(exact.state_dict())
    values = []
    for loss in (exact, rough):
        loss.epoch = loss.epoch + 1
        loss(model(batch.input), batch)
        values.append(loss.epoch_log()["mesa_kl"])
    return abs(values[1] - values[0]) / values[0]


def divergence_error(span: float, rows: int) -> float:
    """Return the mean KL at temperature 5 between logits of a range and what int8 keeps of them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, IMAGENET[1], generator=generator, dtype=torch.float64)
    low, high = logits.aminmax(dim=1, keepdim=True)
    logits = (logits - low) / (high - low) * span
    kept = RecordFormat("int8", (IMAGENET[1],))
    return float(tempered_divergence(logits, kept.decode(kept.encode(logits, 0)).double(), 5.0).mean())


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_process(batches: int, folder: str) -> None:
    """Work on a file-backed memory of ImageNet's size for some epochs, and print what it took."""
    before = resident()
    samples, classes = IMAGENET
    memory = losses.OutputMemory(
        look_back=3, precision="int8", placement="file", path=Path(folder) / "outputs", samples=samples
    )
    generator = torch.Generator().manual_seed(0)
    took, largest = [], 0
    for epoch in range(5):
        memory.begin(epoch, recording=True, reading=epoch >= 3)
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))[: batches * 256]
        for ids in order.split(256):
            output = torch.randn(len(ids), classes, generator=generator)
            start = time.perf_counter()
            rows = memory.locate(ids, output)
            if epoch >= 3:
                assert memory.recall(rows, output)[1].all()
            memory.record(rows, output)
            took.append(time.perf_counter() - start)
            largest = max(largest, resident())
    status = Path("/proc/self/status").read_text()  # unlike ru_maxrss, of this address space alone
    peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    size = (Path(folder) / "outputs").stat().st_size
    print(json.dumps({"file_GB": size / 1e9, "resident_GB": (largest - before) / 1e9, "peak_GB": (peak - before) / 1e9,
                      "ms_per_batch_of_256": 1e3 * statistics.median(took), "rows": batches * 256 * 5}))  # fmt: skip


def memory_report(batches: int, folder: str | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, __file__, "--memory-process", str(batches), "--folder", place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200, help="interleaved pairs for the added work")
    parser.add_argument("--steps", type=int, default=30, help="interleaved pairs of whole steps")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--memory-batches", type=int, default=400, help="batches of 256 rows per epoch and slot")
    parser.add_argument("--folder", default=None, help="where the memory's file goes (5.2 GB if it is filled)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "losses.json")
    parser.add_argument("--memory-process", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_process is not None:
        memory_process(options.memory_process, options.folder)
        return
    rows: list[dict[str, Any]] = []
    for name, (build, batch) in cases(options.batch_size).items():
        rows += added_work(name, build, batch, options.pairs)
        rows += whole_steps(name, build, batch, options.steps)
    print(f"{'model':<12} {'method':<14} {'over a plain step':>18} {'pairs':>6}")
    for row in rows:
        note = f"   KL off by {row['kl_relative_error']:.1%}" if "kl_relative_error" in row else ""
        print(f"{row['model']:<12} {row['method']:<14} {row['ratio']:>17.4f}x {row['pairs']:>6}{note}")
    memory = memory_report(options.memory_batches, options.folder)
    memory |= {f"kl_error_range_{span:g}": divergence_error(span, 500) for span in (10.0, 35.0)}
    memory["computed_GB"] = losses.memory_bytes(*IMAGENET, precision="int8") / 1e9
    print("\nmemory for 1,281,167 x 1,000, int8, in a file:")
    for key, value in memory.items():
        print(f"  {key:<22} {value:.3g}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"rows": rows, "memory": memory, "batch_size": options.batch_size, **provenance()}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
