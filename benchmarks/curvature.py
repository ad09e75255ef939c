"""Hessian products, ends of the spectrum, traces and densities: what they cost, beside other tools in the same run.

Times are medians of processor time on one thread, interleaved, and given as ratios to a fresh bare double backward over
the same batches. Products are counted by the operators. Peak memory is that of a fresh process per tool, less what the
process held before its first product. Tools that are not installed are left out (PyHessian, hessian-eigenthings,
curvlinops). The convexity map is measured against long cold runs at a few of its points.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lowland import data, landscape
from lowland.core.contexts import weights_restored
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import (
    Convexity,
    Hessian,
    MatrixOperator,
    convexity_summary,
    extreme_eigenvalues,
    spectral_density,
    trace,
)
from lowland.curvature.operator import AbstractOperator
from lowland.models import resnet, text_transformer
from lowland.training import CurvatureCurve, fit

Data = list[tuple[Tensor, Tensor]]
PARTS = ("times", "memory", "curve", "ends", "map", "estimators", "starts")
NETWORKS = ("resnet8", "transformer")
TOOLS = ("lowland", "bare double backward", "pyhessian", "hessian_eigenthings", "curvlinops")


def network(kind: str, samples: int, epochs: int) -> tuple[nn.Module, Data]:
    """Train a ResNet-8 on digit images, or a small transformer on the same digits as sequences of 17 gray values."""
    raw, y = load_digits(return_X_y=True)
    y = torch.tensor(y)[:samples]
    torch.manual_seed(0)
    if kind == "resnet8":
        x, net = torch.tensor(raw / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)[:samples], resnet(8, channels=1)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    else:
        x = torch.tensor(raw, dtype=torch.int64)[:samples]
        net = text_transformer(classes=10, vocabulary=17, context=64, width=32)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    for _ in range(epochs):
        for index in torch.randperm(samples).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    half = samples // 2
    return net.eval(), [(x[:half], y[:half]), (x[half:], y[half:])]


def bare(net: nn.Module, data: Data) -> Callable[[list[Tensor]], object]:
    parameters = list(net.parameters())

    def run(vectors: list[Tensor]) -> object:
        for vector in vectors:
            parts = [
                v.view_as(p) for v, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)
            ]
            for x, y in data:
                with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
                    loss = nn.functional.cross_entropy(net(x), y)
                gradients = torch.autograd.grad(loss, parameters, create_graph=True)
                torch.autograd.grad(gradients, parameters, parts)
        return None

    return run


def tool(name: str, net: nn.Module, data: Data) -> Callable[[list[Tensor]], object]:
    """Return how a tool multiplies a list of vectors; everything that depends on the weights alone is built inside."""
    if name == "bare double backward":
        return bare(net, data)
    if name == "lowland":
        ours = Hessian(EmpiricalRisk(net, nn.CrossEntropyLoss(), data), check=False)
        return lambda vectors: ours @ (vectors[0] if len(vectors) == 1 else torch.stack(vectors, 1))
    math_kernels = partial(torch.nn.attention.sdpa_kernel, [torch.nn.attention.SDPBackend.MATH])
    if name == "pyhessian":
        from pyhessian import hessian

        peer = hessian(net, nn.CrossEntropyLoss(), dataloader=data, cuda=False)
        shapes = [p.shape for p in peer.params]

        def by_pyhessian(vectors: list[Tensor]) -> object:
            for vector in vectors:
                with math_kernels():
                    parts = [v.view(s) for v, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)]
                    peer.dataloader_hv_product(parts)
            return None

        return by_pyhessian
    if name == "hessian_eigenthings":
        from hessian_eigenthings import HessianOperator

        operator = HessianOperator(
            net, data, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        )

        def by_eigenthings(vectors: list[Tensor]) -> object:
            with math_kernels():
                return [operator.matvec(vector) for vector in vectors]

        return by_eigenthings
    import curvlinops

    made = curvlinops.HessianLinearOperator(
        net, nn.CrossEntropyLoss(), list(net.parameters()), data, check_deterministic=False,
        num_data=sum(len(y) for _, y in data),
    )  # fmt: skip

    def by_curvlinops(vectors: list[Tensor]) -> object:
        with math_kernels():
            return made @ torch.stack(vectors, 1)

    return by_curvlinops


def available() -> list[str]:
    import importlib.util

    return [name for name in TOOLS if " " in name or importlib.util.find_spec(name) is not None]


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def product_times(net: nn.Module, data: Data, repeats: int) -> dict[str, Any]:
    """Time one and eight vectors, ours also with the graph already there, all interleaved."""
    vectors = [torch.randn(sum(p.numel() for p in net.parameters())) for _ in range(8)]
    calls: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for name in available():
        try:
            multiply = tool(name, net, data)
            multiply(vectors[:1])
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:120]
            continue
        calls[f"{name}, 1"] = lambda multiply=multiply: multiply(vectors[:1])
        calls[f"{name}, 8"] = lambda multiply=multiply: multiply(vectors)
    times: dict[str, list[float]] = {name: [] for name in calls} | {
        "lowland, graph there, 1": [],
        "second backward, 1": [],
    }
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
        with Hessian(EmpiricalRisk(net, nn.CrossEntropyLoss(), data), check=False) as kept:
            _ = kept @ vectors[0]
            times["lowland, graph there, 1"].append(seconds(lambda: kept @ vectors[0]))
            times["second backward, 1"].append(seconds(_second_backward(kept, vectors[0])))
    medians = {name: statistics.median(found) for name, found in times.items()}
    one = medians["bare double backward, 1"]
    ratios = {name: value / one for name, value in medians.items()}
    build = medians["lowland, 1"] - medians["lowland, graph there, 1"]
    floor = build + 8 * medians["second backward, 1"]
    return {"ratio_to_bare": ratios, "eight_to_floor": medians["lowland, 8"] / floor, "failed": failed}


def _second_backward(kept: Hessian, vector: Tensor) -> Callable[[], object]:
    graphs = list(kept._graphs.values())
    parts = kept._cut(vector)
    return lambda: [graph.product(parts, keep=True) for graph in graphs]


def memory(name: str, kind: str, samples: int, count: int) -> float:
    """Return MiB above what the process held before, for one call in this process."""
    net, data = network(kind, samples, epochs=0)  # training would leave its own peak behind
    vectors = [torch.randn(sum(p.numel() for p in net.parameters())) for _ in range(count)]
    multiply = tool(name, net, data)
    before = _peak()
    multiply(vectors)
    return (_peak() - before) / 1024


def _peak() -> int:
    """Return the largest memory this process has held, in KiB (of its own address space, unlike ``ru_maxrss``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def peak_memory(kind: str, samples: int) -> dict[str, float]:
    found = {}
    for name in available():
        for count in (1, 8):
            words = [sys.executable, __file__, "--memory", name, kind, str(samples), str(count)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            found[f"{name}, {count}"] = float(done.stdout) if done.returncode == 0 else math.nan
    return found


def ends(net: nn.Module, data: Data, seeds: int) -> dict[str, Any]:
    """Count products of cold runs at the trained weights, and of two ARPACK runs as the reference does."""
    with Hessian(EmpiricalRisk(net, nn.CrossEntropyLoss(), data)) as hessian:
        exact = extreme_eigenvalues(hessian, min_products=120, max_products=120, seed=100)
        runs = [extreme_eigenvalues(hessian, seed=seed) for seed in range(seeds)]
        hessian.products = 0
        wrapped = LinearOperator(hessian.shape, matvec=lambda v: (hessian @ torch.as_tensor(v).float()).numpy())
        start = np.random.default_rng(0).standard_normal(hessian.size)
        tops = (
            eigsh(wrapped, k=1, which="LA", tol=1e-2, v0=start)[0],
            eigsh(wrapped, k=1, which="SA", tol=1e-2, v0=start)[0],
        )
        return {
            "products": [run.products for run in runs],
            "lambda_min_error": [run.lambda_min / exact.lambda_min - 1 for run in runs],
            "lambda_max_error": [run.lambda_max / exact.lambda_max - 1 for run in runs],
            "residual_max_to_scale": max(run.residual_max / run.scale for run in runs),
            "converged": all(run.converged_max and run.converged_min for run in runs),
            "arpack_products": hessian.products,
            "arpack_lambda_min_error": float(tops[1][0]) / exact.lambda_min - 1,
        }


def convexity_map(net: nn.Module, data: Data, points: int, extent: float, checks: int) -> dict[str, Any]:
    """Measure a map and compare it with long cold runs at a few points."""
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), data)
    plane = landscape.random_plane(net, seed=0)
    surface = landscape.evaluate(risk, plane, landscape.grid(points, points, extent=extent), probes=[Convexity()])
    cold_map = Convexity(cold_generations=10**6)
    errors, cold = [], []
    chosen = np.random.default_rng(0).choice(points * points, min(checks, points * points), replace=False)
    with risk.prepared():
        space = plane.space(net)
        with weights_restored(space) as base:
            axes = [axis.tensors(space, base) for axis in plane.axes]
            for number in chosen:
                place = surface.isel(x=int(number) // points, y=int(number) % points)
                space.move(base, axes, [float(place.x), float(place.y)])
                with Hessian(risk, check=False) as hessian:
                    exact = extreme_eigenvalues(hessian, min_products=100, max_products=100, seed=100)
                cold.append(float(cold_map(risk, None)["products"]))
                errors.append((float(place.lambda_min) / exact.lambda_min - 1, float(place.negative_curvature)))
    scale = np.maximum(abs(surface.lambda_max), abs(surface.lambda_min))
    decided = [abs(error) for error, answer in errors if answer == 1.0]
    return {
        **convexity_summary(surface),
        "points": points,
        "extent": extent,
        "cold_products_per_point": statistics.mean(cold),
        "checked_points": len(errors),
        "decided_points": len(decided),
        "largest_lambda_min_error_where_decided": max(decided, default=math.nan),
        "residual_max_to_scale": float((surface.residual_max / scale).max()),
    }


def planted(size: int) -> tuple[Tensor, Tensor]:
    """Return a matrix with the spectrum of a trained net: ten outliers, a decaying bulk, few negative values."""
    values = torch.cat(
        [torch.logspace(1, 0, 10), torch.logspace(-1, -5, size - 30), -torch.logspace(-2, -4, 20)]
    ).double()
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    return basis @ torch.diag(values) @ basis.T, values


def estimators(size: int, seeds: int) -> dict[str, Any]:
    """Return root-mean-square relative errors of traces, and L1 errors of densities, by number of products."""
    matrix, values = planted(size)
    truth = float(values.sum())
    found: dict[str, Any] = {"trace": {}, "density": {}}
    peer = "curvlinops" in available()
    for products in (15, 30, 60, 120):
        ours = [trace(MatrixOperator(matrix), products=products, seed=s).value / truth - 1 for s in range(seeds)]
        row = {"lowland": math.sqrt(np.mean(np.square(ours)))}
        if peer:
            from curvlinops import hutchpp_trace

            torch.manual_seed(0)
            theirs = [float(hutchpp_trace(matrix, products)) / truth - 1 for _ in range(seeds)]
            row["curvlinops"] = math.sqrt(np.mean(np.square(theirs)))
        found["trace"][products] = row
    for probes, steps in ((2, 16), (4, 32), (8, 32)):
        found["density"][f"{probes} x {steps}"] = densities(matrix, values, probes, steps, seeds, peer=peer)
    return found


class Diagonal(AbstractOperator):
    """A matrix whose eigenvectors are the axes, which a random start does not know."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(len(values), dtype=values.dtype, device=values.device)
        self.values = values

    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        return [self.values * vector for vector in vectors]


def starts(seeds: int) -> dict[str, Any]:
    """Cold starts on planted spectra whose lowest value has a close neighbor, or none below it at all."""
    few = -torch.logspace(-0.7, -2.5, 30)
    lows = {
        "even": few,
        "neighbor 5.5% above": torch.cat([torch.tensor([-0.2, -0.189, -0.17]), few[3:]]),
        "neighbor 4.8% above": torch.cat([torch.tensor([-0.2, -0.1905, -0.12]), few[3:]]),
        "convex": torch.logspace(-3, -8, 30),
    }
    bulk = torch.randn(4960, generator=torch.Generator().manual_seed(0)).abs() ** 3 * 0.02
    found = {}
    for name, low in lows.items():
        values = torch.cat([torch.logspace(1.3, 0.3, 10), bulk, low]).double()
        true, scale = float(values.min()), float(values.max())
        found[name] = {}
        for missed in (math.inf, 0.05, 0.02):
            runs = [extreme_eigenvalues(Diagonal(values), missed=missed, seed=seed) for seed in range(seeds)]
            # off: 2 % of the value, or 1e-4 of the scale
            errors = [abs(run.lambda_min - true) / max(abs(true), 5e-3 * scale) for run in runs]
            found[name]["none" if missed == math.inf else str(missed)] = {
                "starts": seeds, "products": statistics.mean(run.products for run in runs),
                "off": sum(error > 0.02 for error in errors), "worst": max(errors),
                "inside": sum(abs(true) <= run.bound_min * (1 + 1e-9) for run in runs),
                "bound": statistics.median(run.bound_min / abs(run.lambda_min) for run in runs) if true < 0 else None,
            }  # fmt: skip
    return found


def densities(matrix: Tensor, values: Tensor, probes: int, steps: int, seeds: int, *, peer: bool) -> dict[str, float]:
    # bells as wide as curvlinops makes them: it adds a margin of 0.05 on either side of the spectrum
    width = 1.1 * float(np.ptp(values.numpy())) / (steps - 1) / math.sqrt(8 * math.log(3))

    def error(grid: Any, density: Any, sigma: float) -> float:
        bells = np.exp(-0.5 * ((grid[:, None] - values.numpy()) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        return float(np.trapezoid(np.abs(density - bells.mean(1)), grid))

    made = [
        spectral_density(MatrixOperator(matrix), probes=probes, steps=steps, width=width, seed=s) for s in range(seeds)
    ]
    row = {"lowland": float(np.mean([error(f.grid, f.density, width) for f in made]))}
    if peer:
        from curvlinops.papyan2020traces.spectrum import fast_lanczos, lanczos_approximate_spectrum_from_iter

        torch.manual_seed(0)
        low, high = float(values.min()), float(values.max())
        parts = []
        for _ in range(seeds):
            # its own boundaries would cost further products: it is given the true ones
            runs = [fast_lanczos(matrix, steps) for _ in range(probes)]
            curves = [lanczos_approximate_spectrum_from_iter(run, (low, high), 512, 3.0, 0.05) for run in runs]
            grid = np.asarray(curves[0][0])
            density = np.mean([np.asarray(curve[1]) for curve in curves], 0)
            parts.append(error(grid, density / np.trapezoid(density, grid), width))
        row["curvlinops"] = float(np.mean(parts))
    return row


def curve_share() -> dict[str, Any]:
    """Train with the curve of curvature at its default share, and say what it really took."""
    splits = data.load("digits")
    model = resnet(8, channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    curve = CurvatureCurve(samples=64)
    result = fit(model, optimizer, nn.CrossEntropyLoss(), splits, epochs=400, hooks=[curve])
    took = [row["seconds"] for row in curve.rows]
    residuals = [row["lambda_max_residual"] / abs(row["lambda_max"]) for row in curve.rows]
    return {
        "steps": result.steps, "measurements": len(took), "training_s": result.seconds, "curve_s": sum(took),
        "share": sum(took) / result.seconds, "largest_residual_to_lambda_max": max(residuals),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--map", type=int, default=31, help="points per axis of the convexity map")
    parser.add_argument("--extent", type=float, default=1.0, help="half width of the map in normalized directions")
    parser.add_argument("--map-samples", type=int, default=100)
    parser.add_argument("--checks", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--size", type=int, default=1000, help="dimension of the planted matrix")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "curvature.json")
    parser.add_argument("--memory", nargs=4, metavar=("TOOL", "NETWORK", "SAMPLES", "VECTORS"), help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="others keep their stored numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        name, kind, samples, count = options.memory
        print(memory(name, kind, int(samples), int(count)))
        return
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for part in options.parts:
        for kind in (None,) if part in {"estimators", "curve", "starts"} else options.networks:
            place = result.setdefault("whole" if kind is None else kind, {})
            place[part] = {**measured(part, kind, options), "made": provenance()}
            print(kind or "", part, json.dumps(place[part], indent=1), flush=True)
            options.output.parent.mkdir(exist_ok=True)
            options.output.write_text(json.dumps(result, indent=1) + "\n")


def measured(part: str, kind: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part on one network."""
    if part == "estimators":
        return estimators(options.size, options.seeds)
    if part == "starts":
        return starts(200)
    if part == "curve" or kind is None:
        return curve_share()
    if part == "memory":
        return {"mib": peak_memory(kind, options.samples)}
    net, data = network(kind, options.samples, options.epochs)
    if part == "times":
        return product_times(net, data, options.repeats)
    if part == "ends":
        return ends(net, data, options.seeds)
    few = [(x[: options.map_samples // 2], y[: options.map_samples // 2]) for x, y in data]
    return convexity_map(net, few, options.map, options.extent, options.checks)


if __name__ == "__main__":
    main()
