"""How much memory each public call holds at its peak, beyond the model and what the caller holds already.

    python benchmarks/memory.py

Every tensor that torch makes is followed from its birth to the release of its storage, by a dispatch mode, so that the
numbers are exact and do not depend on an allocator. Two networks: one of weights (activations of two samples vanish
beside them), which gives the peak in sets of weights (P), and one of activations (few weights, many samples), which
gives it in units of what one training pass over a batch holds (A). Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lowland as ll
from lowland.core.provenance import provenance

RESULTS = Path(__file__).parent / "results"
Closure = Callable[[], torch.Tensor]


class Peak(TorchDispatchMode):
    """Bytes of storages that were made since it was entered and are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._follow(leaf.untyped_storage(), before)
        return found

    def _follow(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in before or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def weighty(width: int, depth: int = 48) -> tuple[nn.Module, ll.EmpiricalRisk]:
    """Many square layers and two samples: activations are nothing beside weights, nor is one layer beside all."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(width, 4, bias=False))
    x, y = torch.randn(4, width), torch.arange(4) % 4
    return model, ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x[:2], y[:2]), (x[2:], y[2:])])


def active(samples: int, width: int) -> tuple[nn.Module, ll.EmpiricalRisk]:
    """Six small layers and many samples: weights are nothing beside activations."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(width, 4))
    x, y = torch.randn(2 * samples, width), torch.arange(2 * samples) % 4
    parts = [(x[:samples], y[:samples]), (x[samples:], y[samples:])]
    return model, ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), parts)


def steps(make: Callable[[Any, nn.Module], Any]) -> Callable[[nn.Module, ll.EmpiricalRisk], None]:
    """Six steps of a wrapper around SGD without momentum, which itself holds nothing but gradients."""

    def run(model: nn.Module, risk: ll.EmpiricalRisk) -> None:
        optimizer = make(torch.optim.SGD(model.parameters(), lr=1e-4), model)
        batch = next(iter(risk.batches()))

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch.input), batch.target)
            loss.backward()
            return loss

        for _ in range(6):
            optimizer.step(closure)
        optimizer.zero_grad()

    return run


def around(name: str, **options: Any) -> Callable[[nn.Module, ll.EmpiricalRisk], None]:
    return steps(lambda base, model: getattr(ll.optim, name)(base, model=model, **options))


def momentum(model: nn.Module, risk: ll.EmpiricalRisk) -> None:
    base = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    steps(lambda _, model: ll.optim.MSAM(base, rho=0.3, model=model))(model, risk)


def on(call: Callable[..., Any], **options: Any) -> Callable[[nn.Module, ll.EmpiricalRisk], None]:
    return lambda model, risk: call(risk, **options)


def survey(make: Callable[[nn.Module], Any], *points: int, **options: Any) -> Any:
    def run(model: nn.Module, risk: ll.EmpiricalRisk) -> None:
        ll.landscape.evaluate(risk, make(model), ll.landscape.grid(*points), **options)

    return run


def path(model: nn.Module) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Four snapshots; the caller's, and so outside of what is counted."""
    return [
        (k, {name: weights + 0.01 * k * torch.randn_like(weights) for name, weights in model.state_dict().items()})
        for k in range(4)
    ]


LANDSCAPE: dict[str, Any] = {
    "evaluate, random line": survey(lambda model: ll.landscape.random_line(model, 0), 5),
    "evaluate, random plane": survey(lambda model: ll.landscape.random_plane(model, 0), 3, 3),
    "evaluate, random plane, stored=False": survey(
        lambda model: ll.landscape.random_plane(model, 0, stored=False), 3, 3
    ),
    "evaluate, with GradientNorm": survey(
        lambda model: ll.landscape.random_plane(model, 0), 3, 3, probes=[ll.landscape.GradientNorm()]
    ),
    "evaluate, with Convexity": survey(
        lambda model: ll.landscape.random_plane(model, 0), 2, 2, probes=[ll.curvature.Convexity(max_products=40)]
    ),
}
PATHS: dict[str, Any] = {
    "pca_plane": lambda model, risk, snapshots: ll.landscape.pca_plane(model, snapshots),
    "project_trajectory": lambda model, risk, snapshots: ll.landscape.project_trajectory(model, snapshots),
    "film": lambda model, risk, snapshots: ll.landscape.film(risk, snapshots, ll.landscape.grid(5, 4)),
}
CURVATURE: dict[str, Any] = {
    "one product": lambda model, risk: (
        ll.curvature.Hessian(risk) @ torch.ones(sum(map(torch.numel, model.parameters())))
    ),
    "extreme_eigenvalues, at most 40 products": on(ll.curvature.extreme_eigenvalues, max_products=40),
    "top_eigenvalues, k=5, at most 60": on(ll.curvature.top_eigenvalues, k=5, max_products=60),
    "trace, 12 products": on(ll.curvature.trace, products=12),
    "filter_weighted_trace, 4 directions": on(ll.curvature.filter_weighted_trace, directions=4),
    "layer_traces, 4 probes": on(ll.curvature.layer_traces, probes=4),
    "diagonal, 4 probes": on(ll.curvature.diagonal, probes=4),
    "spectral_density, 20 steps": on(ll.curvature.spectral_density, probes=2, steps=20),
    "sam_sharpness": on(ll.curvature.sam_sharpness, rho=0.1),
    "average_case_sharpness": on(ll.curvature.average_case_sharpness, draws=3),
    "worst_case_sharpness": on(ll.curvature.worst_case_sharpness, rho=0.1, steps=4),
    "fisher_rao_norm": on(ll.curvature.fisher_rao_norm),
}
ROBUSTNESS: dict[str, Any] = {
    f"card, {part}": on(ll.robustness.card, options=ll.robustness.RobustnessOptions(
        parts=[part], radii=[0.05], directions=2, worst_steps=3, curvature_samples=None))
    for part in ("rounding", "noise", "worst")
}  # fmt: skip
OPTIM: dict[str, Any] = {
    "SGD, alone": steps(lambda base, model: base),
    "SAM": around("SAM"),
    "ASAM": around("ASAM", rho=0.5),
    "GSAM": around("GSAM", rho=0.1),
    "LookSAM": around("LookSAM", period=3),
    "FSAM": around("FSAM"),
    "WSAM": around("WSAM"),
    "MSAM, with the momentum it needs": momentum,
    "Lookahead": around("Lookahead", period=3),
    "SALA": around("SALA", period=3),
    "EMA": around("EMA"),
    "SWA": around("SWA", start=2, interval=2),
}
GROUPS = {"optim": OPTIM, "landscape": LANDSCAPE, "paths": PATHS, "curvature": CURVATURE, "robustness": ROBUSTNESS}


def peak(call: Callable[..., Any], network: Callable[[], tuple[nn.Module, ll.EmpiricalRisk]], *, paths: bool) -> int:
    model, risk = network()
    given = (model, risk, path(copy.deepcopy(model))) if paths else (model, risk)
    with Peak() as seen:
        call(*given)
    return seen.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128, help="of the network of weights")
    parser.add_argument("--samples", type=int, default=4096, help="of the network of activations, a batch")
    parser.add_argument("--only", choices=[*GROUPS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = {"weights": lambda: weighty(options.width), "activations": lambda: active(options.samples, 32)}
    weights = sum(p.numel() * p.element_size() for p in networks["weights"]()[0].parameters())
    one = peak(OPTIM["SGD, alone"], networks["activations"], paths=False)  # forward and backward over a batch
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for group, calls in GROUPS.items():
        for name, call in calls.items() if options.only in (None, group) else ():
            sizes = [peak(call, network, paths=group == "paths") for network in networks.values()]
            rows.setdefault(group, {})[name] = {"weights": sizes[0] / weights, "activations": sizes[1] / one}
            print(f"{group:<12}{name:<40}{sizes[0] / weights:6.2f} P {sizes[1] / one:6.2f} A", flush=True)
    result = {"rows": rows, "load": os.getloadavg()[0], **provenance()}
    if options.only is None:
        (RESULTS / "memory.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
