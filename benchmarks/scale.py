"""What engines with workers cost and gain: start-up, overhead per point, speed-up, and what that means for a cluster.

``python benchmarks/scale.py`` refuses to report while the machine is busy with something else, before or during the
measurement. ``--try`` runs everything at a tiny size and writes nothing.

overhead    points that compute nothing, through the engine and into a store on disk: seconds per point, in chunks of 1
            and of 16
driver      processor time of the driver per point in the same run: what bounds the number of workers
speed-up    a survey whose points take at least 50 ms, against one process with one thread

All are taken from the fifth part of the points on, when every worker has started; the start is printed by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from lowland import EmpiricalRisk, landscape, results
from lowland.core.provenance import provenance
from lowland.core.schema import new_surface
from lowland.engine import Engine, Processes, Ray, Serial
from lowland.engine.cores import available_cores
from lowland.models import resnet

BUSY = 0.15
"""Share of one core that others may use; the load average would still remember what ended a minute ago."""


def ticks() -> tuple[float, float]:
    """Busy seconds of all processors, and those of this process and its children that have ended."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    busy = (sum(words) - words[3] - words[4]) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy, own.user + own.system + own.children_user + own.children_system


def refuse_if_busy(seconds: float = 3.0) -> None:
    before, own_before = ticks()
    time.sleep(seconds)
    after, own_after = ticks()
    share = (after - before - (own_after - own_before)) / seconds
    if share > BUSY:
        sys.exit(f"refused: other processes use {share:.2f} cores; numbers taken now would say nothing")


def nothing(context: None, items: list[float]) -> list[float]:
    """Compute nothing; at module level, so that it travels by name."""
    return items


def overhead(engine: Engine, points: int, chunk: int, folder: Path) -> dict[str, float]:
    """Seconds per point of everything but the computation, store write included."""
    side = int(points**0.5)
    template = new_surface(np.arange(side), np.arange(side), metrics=["loss"], attrs={"recipe_fingerprint": "none"})
    todo = [float(index) for index in range(side * side)]
    path = folder / f"{engine.name.replace(':', '-')}-{chunk}-{time.monotonic_ns()}.zarr"
    began, start, begun, count, driver = time.perf_counter(), 0.0, 0.0, 0, 0.0
    with results.writer(path, template) as keeper:
        for done, result in enumerate(engine.map(nullcontext, nothing, todo, chunk=chunk), 1):
            start = start or time.perf_counter() - began
            keeper.put(result.index, {"loss": result.value})
            if begun:
                count += 1
            elif done >= len(todo) / 5:
                begun, driver = time.perf_counter(), time.process_time()
        keeper.flush()
        last = time.perf_counter()
    return {
        "start": start, "overhead": (last - begun) / count, "driver": (time.process_time() - driver) / count,
    }  # fmt: skip


def survey_seconds(engine: Engine, side: int, samples: int) -> tuple[float, float]:
    """Seconds per point of a real survey, and seconds to the first row."""
    torch.manual_seed(0)
    model = resnet(8, channels=1)
    x, y = torch.randn(samples, 1, 8, 8), torch.randint(10, (samples,))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])
    stamps: list[tuple[float, int]] = []
    landscape.evaluate(
        risk, landscape.random_plane(model), landscape.grid(side, side, extent=1.0), engine=engine, paired=False,
        on_event=lambda event: stamps.append((event.elapsed, event.done)) if event.kind == "progress" else None,
    )  # fmt: skip
    last, total = stamps[-1]
    begun, before = next(stamp for stamp in stamps if stamp[1] >= total / 5)
    return (last - begun) / (total - before), stamps[0][0]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    workers = min(2, available_cores())
    engines: dict[str, Callable[[], Engine]] = {
        "serial": Serial,
        f"processes:{workers}": lambda: Processes(workers, threads=1),
        f"ray:{workers}": lambda: Ray(workers=workers, threads=1),
    }
    points, side, samples = (400, 5, 64) if options.tiny else (4900, 16, options.samples)
    rows, alone = [], 0.0
    for name, make in engines.items():
        single, many = overhead(make(), points, 1, folder), overhead(make(), points, 16, folder)
        seconds, start = survey_seconds(make(), side, samples)
        alone = alone or seconds
        rows.append({
            "engine": name, "start_s": start, "overhead_ms": 1e3 * single["overhead"],
            "overhead_16_ms": 1e3 * many["overhead"], "driver_ms": 1e3 * single["driver"],
            "driver_16_ms": 1e3 * many["driver"], "point_ms": 1e3 * seconds, "speed_up": alone / seconds,
        })  # fmt: skip
    return {"workers": workers, "rows": rows, "cluster": [extrapolated(row) for row in rows[1:]]}


def extrapolated(row: dict[str, Any]) -> dict[str, Any]:
    """The driver's bound, from its processor time: it is the one part that does not grow with the cluster."""
    return {
        "engine": row["engine"],
        "points_per_second": 1e3 / row["driver_ms"],
        "points_per_second_16": 1e3 / row["driver_16_ms"],
        "shortest_point_for_1000_workers_s": row["driver_ms"],  # milliseconds per point times 1,000 workers
        "shortest_point_for_1000_workers_16_s": row["driver_16_ms"],
    }


def show(found: dict[str, Any]) -> None:
    columns = ["start_s", "overhead_ms", "overhead_16_ms", "driver_ms", "driver_16_ms", "point_ms", "speed_up"]
    print(f"{'engine':14}" + "".join(f"{name:>16}" for name in columns))
    for row in found["rows"]:
        print(f"{row['engine']:14}" + "".join(f"{row[name]:16.2f}" for name in columns))
    for row in found["cluster"]:
        print(
            f"{row['engine']}: one driver hands out {row['points_per_second']:.0f} points/s "
            f"({row['points_per_second_16']:.0f} in chunks of 16); 1,000 workers stay busy where a point takes "
            f"{row['shortest_point_for_1000_workers_s']:.2f} s "
            f"({row['shortest_point_for_1000_workers_16_s']:.2f} s) or more"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="tiny", action="store_true", help="tiny sizes, busy or not; writes nothing")
    parser.add_argument("--samples", type=int, default=4000, help="samples of the survey; enough for 50 ms per point")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tiny:
        refuse_if_busy()
    with tempfile.TemporaryDirectory() as place:
        found = measure(options, Path(place))
    show(found)
    if options.tiny:
        return
    if found["rows"][0]["point_ms"] < 50:
        sys.exit("refused: the survey's points take less than 50 ms here; raise --samples")
    refuse_if_busy()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "scale.json").write_text(json.dumps({**found, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
