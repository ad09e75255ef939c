"""One driver and a cluster that is simulated: real hand-out, packing and store, workers that only wait.

Every worker computes a chunk for a lognormal time and dies at some share of them, half way; the next takes a while to
start. Time is real: the driver's own processor time is what the workers wait for. Printed beside what no driver could
do better: the work that is there over the workers that live.

    python benchmarks/cluster.py            # 1,000 workers, then 10,000; writes benchmarks/results/cluster.json
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import pickle
import resource
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lowland import results
from lowland.core.provenance import provenance
from lowland.core.schema import new_surface
from lowland.engine.base import Result
from lowland.engine.pool import Pool


class Waiting:
    """A worker that only waits."""

    def __init__(self, cluster: Cluster, now: float) -> None:
        self.cluster, self.ready, self.chunks, self.free = cluster, False, deque[list[int]](), now + cluster.start_s
        cluster.note(self.free, self, "ready", None)

    def give(self, function: Any, items: bytes) -> None:
        """Note when the chunk will be done, or how far the worker comes with it."""
        cluster, content = self.cluster, pickle.loads(items)
        taken = sum(cluster.times[index] for index, _ in content)
        self.free = max(self.free, time.perf_counter())
        if cluster.random.random() < cluster.deaths:
            self.free += taken / 2
            cluster.lost_s += taken / 2
            cluster.note(self.free, self, "died", None)
        else:
            self.free += taken
            answers = pickle.dumps([Result(index, value={"loss": value}) for index, value in content])
            cluster.note(self.free, self, "results", answers)


class Cluster(Pool[Waiting]):
    """Workers that wait in the driver's own process; what is measured is the driver."""

    def __init__(self, size: int, times: np.ndarray, deaths: float, start_s: float) -> None:
        super().__init__()
        self.size, self.times, self.deaths, self.start_s = size, times, deaths, start_s
        self.random = np.random.default_rng(1)
        self.events: list[tuple[float, int, Waiting, str, Any]] = []
        self.lost_s, self.noted, self.late_s = 0.0, 0, 0.0
        self.gone: set[Waiting] = set()

    def note(self, when: float, worker: Waiting, kind: str, content: Any) -> None:
        """Keep what a worker will report."""
        self.noted += 1
        heapq.heappush(self.events, (when, self.noted, worker, kind, content))

    def begin(self) -> None:
        """Nothing is to be prepared."""

    def start(self) -> None:
        """Start a worker; it is ready after a while."""
        self.members.append(Waiting(self, time.perf_counter()))

    def reports(self) -> Iterator[tuple[Waiting, str, Any]]:
        """Wait for the next report, and yield all that are due."""
        time.sleep(max(0.0, min(1.0, self.events[0][0] - time.perf_counter())))
        now = time.perf_counter()
        while self.events and self.events[0][0] <= now:
            when, _, worker, kind, content = heapq.heappop(self.events)
            if worker in self.gone:
                continue
            self.late_s += now - when
            yield worker, kind, content

    def post_mortem(self, member: Waiting, content: Any) -> tuple[str, str]:
        """Say that it died."""
        self.gone.add(member)
        return "died", ""

    def stop(self, *, at_once: bool) -> None:
        """Nothing runs."""


def nothing(context: None, items: list[float]) -> list[float]:
    """Stand for the function of the items."""
    return items


def measured(workers: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One survey by so many workers, whose points take `seconds` in the mean."""
    side = math.isqrt(workers * options.rounds)
    count, sigma = side * side, options.spread
    times = np.random.default_rng(0).lognormal(math.log(options.seconds) - sigma**2 / 2, sigma, count)
    cluster = Cluster(workers, times, options.deaths, options.start)
    template = new_surface(np.arange(side), np.arange(side), metrics=["loss"], attrs={"recipe_fingerprint": "none"})
    began, driver, stamps = time.perf_counter(), time.process_time(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with cluster, results.writer(folder / f"{workers}.zarr", template) as keeper:
        for found in cluster.results(nothing, [float(k) for k in range(count)], options.chunk):
            for result in found:
                keeper.put(result.index, result.value)
            stamps.append((time.perf_counter(), sum(times[result.index] for result in found)))
        keeper.flush()
    wall = time.perf_counter() - began
    edges = stamps[0][0], stamps[-1][0]
    low, high = (edges[0] + share * (edges[1] - edges[0]) for share in (0.1, 0.6))
    useful = sum(taken for when, taken in stamps if low <= when < high) / (high - low)
    return {
        "workers": workers, "points": count, "seconds": wall, "work_s": float(times.sum()),
        "busy_in_the_middle": useful / workers,
        "limit_in_the_middle": limit(options), "died": len(cluster.gone), "lost": cluster.lost_s / float(times.sum()),
        "driver_ms": 1e3 * (time.process_time() - driver) / count, "late_ms": 1e3 * cluster.late_s / cluster.noted,
        "memory_MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }  # fmt: skip


def limit(options: argparse.Namespace) -> float:
    """The share of time that workers of this kind can compute: the rest is restarts, and work that died with them."""
    taken = options.seconds * options.chunk
    useful = (1 - options.deaths) * taken
    return useful / (useful + options.deaths * (taken / 2 + options.start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--seconds", type=float, default=1.0, help="of a point, in the mean")
    parser.add_argument("--spread", type=float, default=0.5, help="of its logarithm")
    parser.add_argument("--deaths", type=float, default=0.01, help="share of the chunks that kill their worker")
    parser.add_argument("--start", type=float, default=3.0, help="seconds until a new worker is ready")
    parser.add_argument("--rounds", type=int, default=20, help="points for each worker")
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cluster.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workers in options.workers:
            rows.append(measured(workers, options, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    settings = {name: getattr(options, name) for name in ("seconds", "spread", "deaths", "start", "rounds", "chunk")}
    options.output.write_text(json.dumps({"rows": rows, "settings": settings, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
