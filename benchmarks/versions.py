"""Two versions of Lowland side by side: a survey's point, its start, and a Hessian product, ratios of new to old.

Each version lives in a process of its own for the whole run; short blocks of work alternate strictly between the two,
the first of a pair changing, and each pair gives one ratio of processor times on one thread: what else runs on the
machine hits both alike. The median of the ratios is reported with a 95 % interval of the median (order statistics).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTS = {"mlp": 40, "mlp, one batch": 40, "digits resnet8": 4}
"""Points a block, some tenths of a second of work."""


def serve() -> None:
    """Answer requests ``case\\tpart`` by seconds of processor time per unit of work."""
    import torch

    import lowland as ll

    torch.set_num_threads(1)
    cases = {name: prepare(name) for name in POINTS}
    print(json.dumps(ll.__file__), flush=True)
    for request in sys.stdin:
        name, part = request.strip().split("\t")
        print(json.dumps(cases[name][part]()), flush=True)


def prepare(name: str) -> dict[str, Callable[[], float]]:
    """Return the parts of a case, each giving seconds per point, product, or start (in points)."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    import lowland as ll
    from lowland.models import resnet

    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    inputs, target = torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y)
    if name.startswith("mlp"):
        model: nn.Module = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    else:
        model, inputs, target = resnet(8, channels=1), inputs[:400], target[:400]
    size = len(inputs) if name.endswith("one batch") else 128
    data = list(zip(inputs.split(size), target.split(size), strict=True))
    model.eval()
    plane = ll.landscape.random_plane(model, seed=0)
    count = POINTS[name]

    def survey() -> tuple[float, float]:
        """Seconds before the first point is there, and of the others."""
        risk, stamps = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), data), []
        begin = time.process_time()
        ll.landscape.evaluate(
            risk, plane, ll.landscape.grid(count + 1, 1), on_event=lambda _: stamps.append(time.process_time())
        )
        return stamps[1] - begin, stamps[count + 1] - stamps[1]

    def product() -> float:
        risk = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
        with ll.curvature.Hessian(risk, check=False) as hessian:
            vector = torch.ones(hessian.size)
            _ = hessian @ vector
            begin = time.process_time()
            for _ in range(max(2, count // 2)):
                _ = hessian @ vector
            return (time.process_time() - begin) / max(2, count // 2)

    return {"point": lambda: survey()[1] / count, "start": lambda: survey()[0], "product": product}


class Version:
    """A process that runs one source tree."""

    def __init__(self, source: Path) -> None:
        path = {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, str(Path(__file__)), "--serve"]
        self._process = subprocess.Popen(command, env={**os.environ, **path}, stdin=-1, stdout=-1, text=True, bufsize=1)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        found = Path(json.loads(self._answers.readline()))
        if not found.is_relative_to(source.resolve()):
            raise SystemExit(f"{source} must hold lowland; {found} was imported")

    def __call__(self, case: str, part: str) -> float:
        """Do one block of work, and return its seconds per unit."""
        self._requests.write(f"{case}\t{part}\n")
        return float(json.loads(self._answers.readline()))


def compared(old: Version, new: Version, case: str, part: str, pairs: int) -> dict[str, Any]:
    """Return the median ratio of a part with its interval."""
    ratios, times = [], []
    for number in range(-2, pairs):  # the first two warm up
        order = (old, new) if number % 2 else (new, old)
        found = {version: version(case, part) for version in order}
        if number >= 0:
            ratios.append(found[new] / found[old])
            times.append(found[new])
    ratios.sort()
    reach = int(0.98 * pairs**0.5)  # 1.96 standard deviations of a count of heads
    low, high = ratios[max(0, pairs // 2 - reach)], ratios[min(pairs - 1, pairs // 2 + reach)]
    return {
        "ratio": statistics.median(ratios),
        "interval": [low, high],
        "seconds": statistics.median(times),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, help="`src` of the other version")
    parser.add_argument("--after", type=Path, default=Path(__file__).parent.parent / "src")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--only", nargs="*", choices=POINTS, default=list(POINTS))
    parser.add_argument("--parts", nargs="*", default=["point", "start", "product"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.before is None:
        print("give --before, the `src` of another version, such as that of a git worktree")
        return
    old, new = Version(options.before), Version(options.after)
    rows = {}
    for case in options.only:
        for part in options.parts:
            row = rows[f"{case}, {part}"] = compared(old, new, case, part, options.pairs)
            low, high = row["interval"]
            print(
                f"{case:16} {part:8} {row['seconds'] * 1e3:8.3f} ms   {row['ratio']:.3f} [{low:.3f}, {high:.3f}]",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
