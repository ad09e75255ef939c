"""Surfaces and curvature of a trained net, as nested mappings of datasets and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.golden import parts
from torch import nn

import lowland as ll

Make = Callable[[torch.dtype], Any]
curvature, landscape = ll.curvature, ll.landscape


def risk_of(model: nn.Module, dtype: torch.dtype, *, batch_norm: Any = "running", part: str = "train") -> Any:
    data = getattr(parts.tiny_data(), part)
    rows = torch.arange(len(data)).split(parts.BATCH)
    batches = [ll.Batch(data.input[r].to(dtype), data.target[r], data.index[r]) for r in rows]
    return ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, batch_norm=batch_norm)


def start(dtype: torch.dtype, **options: Any) -> tuple[nn.Module, Any]:
    model = parts.trained(dtype)
    return model, risk_of(model, dtype, **options)


def random_plane(dtype: torch.dtype, batch_norm: str = "running", **options: Any) -> Any:
    model, risk = start(dtype, batch_norm=batch_norm)
    plane = landscape.random_plane(model, 3, **options)
    return landscape.evaluate(risk, plane, landscape.grid(5, 4), probes=[landscape.GradientNorm()])


def convexity(dtype: torch.dtype) -> Any:
    model, risk = start(dtype)
    # which points are checked cold hangs on the last bits of the weights: none here, all on the line below
    probes = [curvature.Convexity(max_products=60, check_share=0.0)]
    return landscape.evaluate(risk, landscape.random_plane(model, 0), landscape.grid(5, 3), probes=probes)


def convexity_line(dtype: torch.dtype) -> Any:
    model, risk = start(dtype)
    probes = [curvature.Convexity(max_products=60, check_share=1.0), landscape.GradientNorm()]
    return landscape.evaluate(risk, landscape.random_line(model, 1), landscape.grid(7), probes=probes)


def band(dtype: torch.dtype) -> Any:
    model = parts.trained(dtype)
    risks = {name: risk_of(model, dtype, part=name) for name in ("train", "test")}
    lines = [landscape.random_line(model, seed) for seed in range(3)]
    return landscape.evaluate(risks, lines, landscape.grid(5, extent=0.5))


def between(dtype: torch.dtype, *, match: bool = False, batch_norm: str = "running") -> Any:
    model, risk = start(dtype, batch_norm=batch_norm)
    other: nn.Module = parts.trained(dtype, seed=1)
    if match:
        other = landscape.match_weights(model, other, next(iter(risk.batches())), seed=0).model
    line = landscape.line_between(model, other, move_statistics=batch_norm == "running")
    return landscape.evaluate(risk, line, landscape.grid(7, extent=(-0.25, 1.25)))


def through(dtype: torch.dtype) -> Any:
    model, risk = start(dtype)
    plane = landscape.plane_through(model, parts.trained(dtype, seed=1), parts.trained(dtype, seed=2))
    return landscape.evaluate(risk, plane, landscape.grid(4, 3, extent=((-0.2, 1.2), (-0.2, 1.2))))


def path_of(dtype: torch.dtype) -> tuple[Any, list[Any], Any]:
    snapshots: list[Any] = []
    model = parts.trained(dtype, snapshots=snapshots)
    return model, snapshots, risk_of(model, dtype, batch_norm="recalibrated")


def trajectory(dtype: torch.dtype, *, anchored: bool = True) -> Any:
    model, snapshots, risk = path_of(dtype)
    return landscape.project_trajectory(model, snapshots, anchored=anchored, risk=risk)


def pca(dtype: torch.dtype) -> Any:
    model, snapshots, risk = path_of(dtype)
    plane = landscape.pca_plane(model, snapshots)
    grid = landscape.grid_around(landscape.project_trajectory(model, snapshots, plane), 4, 5)
    return landscape.evaluate(risk, plane, grid)


def refined(dtype: torch.dtype) -> Any:
    model, risk = start(dtype)
    plane = landscape.random_plane(model, 3)
    return landscape.evaluate(risk, plane, landscape.grid(25, 21), refined=landscape.Tolerance(checks=20))


def eigenvectors(dtype: torch.dtype) -> Any:
    risk = start(dtype)[1]
    return landscape.evaluate(risk, landscape.eigenvector_plane(risk), landscape.grid(3, 3, extent=0.2))


SURFACES: dict[str, Make] = {
    "plane_running": random_plane,
    "plane_batch": lambda dtype: random_plane(dtype, "batch"),
    "plane_recalibrated": lambda dtype: random_plane(dtype, "recalibrated"),
    "plane_by_layer": lambda dtype: random_plane(dtype, normalization="layer"),
    "plane_everything": lambda dtype: random_plane(dtype, normalization="weight", move_fixed=True),
    "convexity": convexity,
    "convexity_line": convexity_line,
    "band": band,
    "between": between,
    "between_recalibrated": lambda dtype: between(dtype, batch_norm="recalibrated"),
    "between_matched": lambda dtype: between(dtype, match=True),
    "through": through,
    "trajectory": trajectory,
    "trajectory_mean": lambda dtype: trajectory(dtype, anchored=False),
    "pca": pca,
    "refined": refined,
    "eigenvectors": eigenvectors,
}


def numbers(dtype: torch.dtype) -> Any:
    line = convexity_line(dtype)
    pair = between(dtype)
    x, loss = pair["x"].values, pair["loss"].values
    return {"convexity": curvature.convexity_summary(line), "barrier": landscape.barrier(x, loss)}


def ends(dtype: torch.dtype, batch_norm: str = "running") -> Any:
    return curvature.extreme_eigenvalues(start(dtype, batch_norm=batch_norm)[1], pairs=2)


def gauss_newton(dtype: torch.dtype) -> Any:
    return curvature.extreme_eigenvalues(curvature.GaussNewton(start(dtype)[1]), max_products=100)


def stable(dtype: torch.dtype) -> Any:
    model, risk = start(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    interval = curvature.measurement_interval(steps=50_000, batch_size=16, samples=48)
    return {"stability": curvature.stability(risk, optimizer), "interval": interval}


def on(function: Callable[..., Any], **options: Any) -> Make:
    return lambda dtype: function(start(dtype)[1], **options)


CURVATURE: dict[str, Make] = {
    "ends": ends,
    "ends_batch": lambda dtype: ends(dtype, "batch"),
    "ends_recalibrated": lambda dtype: ends(dtype, "recalibrated"),
    "ends_gauss_newton": gauss_newton,
    "top": on(curvature.top_eigenvalues, k=3),
    "bottom": on(curvature.top_eigenvalues, k=2, which="smallest"),
    "trace": on(curvature.trace, products=24),
    "trace_hutchinson": on(curvature.trace, method="hutchinson", products=10, seed=4),
    "filter_weighted_trace": on(curvature.filter_weighted_trace, directions=10),
    "layer_traces": on(curvature.layer_traces, probes=6),
    "diagonal": on(curvature.diagonal, probes=6),
    "density": on(curvature.spectral_density, probes=3, steps=20),
    "density_log": on(curvature.spectral_density, probes=3, steps=20, scale="log"),
    "sam_sharpness": on(curvature.sam_sharpness, rho=0.1),
    "sam_sharpness_adaptive": on(curvature.sam_sharpness, rho=0.1, adaptive=True, per_batch=True),
    "average_case": on(curvature.average_case_sharpness, draws=5),
    "worst_case": on(curvature.worst_case_sharpness, rho=0.1, steps=6),
    "worst_case_box": on(curvature.worst_case_sharpness, rho=0.01, steps=6, norm="linf", kind="keskar"),
    "table": on(curvature.sharpness_table, steps=4, draws=3, samples=32, batch_size=16),
    "normalized": lambda dtype: curvature.sam_sharpness(curvature.logits_normalized(start(dtype)[1])),
    "summary": on(
        curvature.summarize,
        options=curvature.SummaryOptions(
            trace_products=12, directions=6, top=2, density_probes=2, layer_probes=2, sharpness=True
        ),
    ),
    "stability": stable,
    "numbers": numbers,
}
