"""What the optimizer wrappers cost beside their base: operations, fresh memory, synchronizations, passes, time.

Only the wrapper and its base (SGD with momentum and weight decay, foreach) are counted and timed: the closure hands
out ready gradients. Ours and pytorch_optimizer's stand in one run; times are the quickest tenth of rounds interleaved
with the base alone, given with the ratio to it.

    python benchmarks/optimizers.py            # measure, write benchmarks/results/optimizers.json
    python benchmarks/optimizers.py --docs     # write the table of that file into docs/measurements.md
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowland import models, optim
from lowland.core.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "optimizers.json"
PAGE = ROOT / "docs" / "measurements.md"
PERIOD = 5
ZERO = torch.zeros(())


class Watch(TorchDispatchMode):
    """Counts dispatched operations, bytes in new storages, and numbers read by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.fresh = self.reads = 0
        self.paused = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused:
            return function(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        self.operations += 1
        self.reads += "_local_scalar_dense" in str(function)
        results = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)]
        made = {storage._cdata: storage.nbytes() for storage in results}
        self.fresh += sum(size for key, size in made.items() if key not in known)
        return out


@dataclass
class Case:
    """An optimizer over a model with ready gradients."""

    model: nn.Module
    optimizer: Any = None
    watch: Watch | None = None
    passes: int = 0
    away: float = 0.0
    gradients: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.gradients = [torch.randn(p.shape, generator=generator) for p in self.model.parameters()]

    def hand_out(self) -> Tensor:
        """Stand for one forward and backward pass; neither counted nor timed."""
        start = time.perf_counter()
        if self.watch is not None:
            self.watch.paused = True
        self.passes += 1
        self.optimizer.zero_grad()
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.clone()
        if self.watch is not None:
            self.watch.paused = False
        self.away += time.perf_counter() - start
        return ZERO

    def step(self) -> None:
        self.optimizer.step(self.hand_out)


class TheirSAM(Case):
    """Their documented loop with a closure: gradients are there before ``step``."""

    def step(self) -> None:
        self.hand_out()
        self.optimizer.step(self.hand_out)


class TheirLookahead(Case):
    def step(self) -> None:
        self.hand_out()
        self.optimizer.step()


class TheirGSAM(Case):
    def step(self) -> None:
        self.optimizer.forward_backward_func = lambda: (None, self.hand_out())
        self.optimizer.step()


SGD = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4, "foreach": True}


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **SGD)


class Constant:
    """A radius that stays."""

    def step(self) -> float:
        return 0.05


def cases() -> dict[str, tuple[Callable[[nn.Module], Case], int]]:
    """Return how to build every case, with the number of steps of its period."""
    import pytorch_optimizer as theirs

    made: dict[str, tuple[Callable[[nn.Module], Case], int]] = {}

    def add(name: str, make: Callable[[nn.Module], Any], kind: type[Case] = Case, period: int = 1) -> None:
        made[name] = (lambda model: kind(model, make(model)), period)

    add("SGD", sgd)
    add("SAM", lambda m: optim.SAM(sgd(m), model=m))
    fused = {**SGD, "foreach": False, "fused": True}
    add("SGD, fused", lambda m: torch.optim.SGD(m.parameters(), **fused))
    add("SAM of fused SGD", lambda m: optim.SAM(torch.optim.SGD(m.parameters(), **fused), model=m))
    add("ASAM", lambda m: optim.ASAM(sgd(m), model=m))
    add("GSAM", lambda m: optim.GSAM(sgd(m), rho=0.05, rho_min=None, model=m))
    add("LookSAM", lambda m: optim.LookSAM(sgd(m), period=PERIOD, model=m), period=PERIOD)
    add("FSAM", lambda m: optim.FSAM(sgd(m), model=m))
    add("WSAM", lambda m: optim.WSAM(sgd(m), model=m))
    add("LateSAM", lambda m: optim.LateSAM(sgd(m), total=10**6, share=1.0, model=m))
    add("SALA, stage one", lambda m: optim.SALA(sgd(m), rho=1e-12, model=m), period=2)
    add("SALA, stage two", lambda m: optim.SALA(sgd(m), rho=0.2, model=m), period=2)
    add("MSAM", lambda m: optim.MSAM(sgd(m)))
    add("Lookahead", lambda m: optim.Lookahead(sgd(m), period=PERIOD), period=PERIOD)
    add("EMA", lambda m: optim.EMA(sgd(m)))
    add("SWA", lambda m: optim.SWA(sgd(m), start=1, interval=1))
    for label, foreach in (("", None), (" foreach", True)):

        def sam(m: nn.Module, adaptive: bool = False, foreach: bool | None = foreach) -> Any:
            return theirs.SAM(m.parameters(), torch.optim.SGD, adaptive=adaptive, **SGD | {"foreach": foreach})

        add(f"their SAM{label}", sam, TheirSAM)
        add(f"their ASAM{label}", lambda m, sam=sam: sam(m, adaptive=True), TheirSAM)
        add(
            f"their GSAM{label}",
            lambda m, f=foreach: theirs.GSAM(m.parameters(), sgd(m), m, Constant(), foreach=f),
            TheirGSAM,
        )
        add(
            f"their LookSAM{label}",
            lambda m, f=foreach: theirs.LookSAM(
                m.parameters(), torch.optim.SGD, rho=0.05, k=PERIOD, **SGD | {"foreach": f}
            ),
            TheirSAM, PERIOD,
        )  # fmt: skip
    add("their Lookahead", lambda m: theirs.Lookahead(sgd(m), k=PERIOD), TheirLookahead, PERIOD)
    return made


def count(case: Case, period: int) -> dict[str, Any]:
    """Count one period in the middle of training; the largest step stands for the operations."""
    for _ in range(2 * period):
        case.step()
    size = 4 * sum(p.numel() for p in case.model.parameters())
    operations, fresh, reads = [], [], 0
    for _ in range(period):
        case.watch = Watch()
        with case.watch:
            case.step()
        operations.append(case.watch.operations)
        fresh.append(case.watch.fresh / size)
        reads += case.watch.reads
    case.watch = None
    return {
        "operations": max(operations), "operations_mean": statistics.mean(operations), "fresh": max(fresh),
        "fresh_mean": statistics.mean(fresh), "reads_per_period": reads, "period": period,
    }  # fmt: skip


def passes_per_100(case: Case) -> int:
    before = case.passes
    for _ in range(100):
        case.step()
    return case.passes - before


def milliseconds(case: Case, period: int) -> float:
    """Return the time of a step in the mean over one period, passes left out."""
    case.away, start = 0.0, time.perf_counter()
    for _ in range(period):
        case.step()
    return 1e3 * (time.perf_counter() - start - case.away) / period


def quick(values: list[float]) -> float:
    """Return the quickest tenth's upper end: whatever else runs on the machine only adds."""
    return statistics.quantiles(values, n=10)[0]


def measure(rounds: int, *, small: bool = False) -> dict[str, Any]:
    networks: dict[str, Callable[[], nn.Module]] = {"ResNet-20": lambda: models.resnet(20)}
    if not small:
        networks["ResNet-50 (25.6 M)"] = lambda: models.imagenet_resnet(50, classes=1000)
    rows: list[dict[str, Any]] = []
    for network, build in networks.items():
        enough = rounds if network == "ResNet-20" else max(5, rounds // 10)
        model = build()
        plain = Case(model, sgd(model))
        for name, (make, period) in cases().items():
            case = make(build())
            row = {"network": network, "optimizer": name, **count(case, period)}
            if network == "ResNet-20":
                row["passes_per_100"] = passes_per_100(case)
            pairs = [(milliseconds(case, period), milliseconds(plain, 1)) for _ in range(enough)]
            row["milliseconds"] = quick([mine for mine, _ in pairs])
            row["ratio"] = row["milliseconds"] / quick([base for _, base in pairs])
            rows.append(row)
    return {"rows": rows, "rounds": rounds, "threads": torch.get_num_threads(), **provenance()}


def table(result: dict[str, Any]) -> str:
    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    cells = {(row["network"], row["optimizer"]): row for row in result["rows"]}
    times = " | ".join(f"{network}: ms per step (x SGD)" for network in networks)
    lines = [
        f"| optimizer | operations, largest step | mean step | fresh memory, largest step | host reads in steps "
        f"| passes per 100 steps | {times} |",
        "|---|--:|--:|--:|--:|--:|" + "--:|" * len(networks),
    ]
    for name in dict.fromkeys(row["optimizer"] for row in result["rows"]):
        row = cells[networks[0], name]
        took = " | ".join(f"{cells[n, name]['milliseconds']:.2f} ({cells[n, name]['ratio']:.2f})" for n in networks)
        lines.append(
            f"| {name.replace('their', 'pytorch_optimizer')} | {row['operations']} | {row['operations_mean']:.1f} "
            f"| {row['fresh']:.1f} P | {row['reads_per_period']} in {row['period']} | {row['passes_per_100']} "
            f"| {took} |"
        )
    versions = result["versions"]
    lines += [
        "",
        f"Measured {result['created'][:10]} in one run on {result['machine']}, torch {versions['torch']}, "
        f"{result['threads']} thread, revision {result['revision']}; `python benchmarks/optimizers.py`.",
    ]
    return "\n".join(lines)


def write_docs(text: str) -> None:
    page = PAGE.read_text()
    new = re.sub(
        r"(<!-- costs -->\n).*?(<!-- /costs -->)",
        lambda found: found[1] + text + "\n" + found[2],
        page,
        flags=re.DOTALL,
    )
    PAGE.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="ResNet-20 only, and write nothing")
    parser.add_argument("--docs", action="store_true", help="write the table of the stored result into the docs")
    arguments = parser.parse_args()
    if arguments.docs:
        write_docs(table(json.loads(RESULT.read_text())))
        return
    torch.set_num_threads(1)
    result = measure(arguments.rounds, small=arguments.small)
    print(table(result))
    if not arguments.small:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
