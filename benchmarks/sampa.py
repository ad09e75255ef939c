"""What a step of SAMPa costs on two processes, beside plain training and SAM, and what bounds it.

Processor time is the process's own (both threads of an exchange included), which other work on the machine hardly
changes; wall time is the median over steps, and stands beside the load. ``pair`` is plain training in two processes
that exchange nothing: what sharing a machine costs by itself.

    python benchmarks/sampa.py                 # measure, write benchmarks/results/sampa.json, print a table
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing import spawn

from lowland import models, optim
from lowland.core.provenance import provenance

RESULT = Path(__file__).parent / "results" / "sampa.json"
KINDS = ("plain", "pair", "SAMPa", "SAM")
loss_of = nn.CrossEntropyLoss()


def step_of(kind: str, batch: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = models.resnet(20)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    base = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    optimizer: Any = {"SAM": optim.SAM, "SAMPa": optim.SAMPa}.get(kind, lambda base, **_: base)(base, model=model)

    def closure() -> None:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()

    return lambda: optimizer.step(closure)


def measure(kind: str, batch: int, steps: int) -> dict[str, float]:
    step = step_of(kind, batch)
    for _ in range(3):
        step()
    wall, busy = [], []
    for _ in range(steps):
        start, before = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - before)
    return {"wall": 1e3 * statistics.median(wall), "quickest": 1e3 * min(wall), "busy": 1e3 * statistics.median(busy)}


def work(rank: int, port: int, kind: str, batch: int, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.distributed.barrier()
    Path(folder, str(rank)).write_text(json.dumps(measure(kind, batch, steps)))
    torch.distributed.destroy_process_group()


def paired(kind: str, batch: int, steps: int) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (port, kind, batch, steps, folder), nprocs=2)
        both = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(2)]
    return {key: max(one[key] for one in both) for key in both[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2, help="of all kinds in turn; the smallest of each is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load, rows = [os.getloadavg()[0]], {}
    for _ in range(options.rounds):
        for kind in KINDS:
            run = paired if kind in ("pair", "SAMPa") else measure
            found = run(kind, options.batch, options.steps)
            rows[kind] = {key: min(value, rows.get(kind, found)[key]) for key, value in found.items()}
        load.append(os.getloadavg()[0])
    print("| | processor ms per step (x plain) | median ms | quickest ms |\n|---|--:|--:|--:|")
    for kind, row in rows.items():
        share = row["busy"] / rows["plain"]["busy"]
        print(f"| {kind} | {row['busy']:.0f} ({share:.2f}) | {row['wall']:.0f} | {row['quickest']:.0f} |")
    result = {"rows": rows, "load": load, **vars(options), **provenance()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
