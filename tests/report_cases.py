"""Made-up runs with known numbers, for the tests of figures and reports."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lowland.core.schema import new_curvature, new_robustness, new_surface, new_trajectory
from lowland.results import Run


def asymmetric(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A function that no transposition, rotation or flip leaves as it is; shape [nx, ny]."""
    X, Y = np.meshgrid(x, y, indexing="ij")
    return 0.1 + 2.0 * (X - 0.3) ** 2 + 7.0 * (Y + 0.2) ** 2 * (1 + 0.4 * X) + 0.1 * X * Y


def plane(nx: int = 9, ny: int = 6, *, scale: float = 1.0, **attrs: object) -> xr.Dataset:
    x, y = np.linspace(-1.0, 1.5, nx), np.linspace(-0.5, 1.0, ny)
    surface = new_surface(
        x,
        y,
        errors=["loss"],
        attrs={
            "batch_norm": "running",
            "samples": 200,
            "recipe": {
                "planes": [
                    {"kind": "random_plane", "arguments": {"seed": 3, "normalization": "filter"}, "cosine": 0.003}
                ]
            },
            **attrs,
        },
    )
    surface["loss"][:] = scale * asymmetric(x, y)
    surface["loss_se"][:] = 0.01
    surface["status"][:] = 1
    return surface


def film(frames: int = 4, nx: int = 9, ny: int = 7) -> xr.Dataset:
    x, y = np.linspace(-1.0, 1.5, nx), np.linspace(-0.5, 1.0, ny)
    steps = [10 * k for k in range(frames)]
    planes = [{"frame": k, "step": step, "place": [1.2 - 0.3 * k, 0.8 - 0.2 * k]} for k, step in enumerate(steps)]
    planes[0] |= {"kind": "pca", "arguments": {"anchored": True}}
    surface = new_surface(
        x, y, directions=[str(s) for s in steps], attrs={"recipe": {"planes": planes}, "samples": 200}
    )
    for k in range(frames):
        surface["loss"][k] = (2.0 - 0.3 * k) * asymmetric(x, y) + 0.02 * k
    surface["status"][:] = 2
    surface["status"][:, ::2, ::2] = 1
    return surface


def walk(steps: int = 12, seed: int = 0, *, share: tuple[float, float] = (0.7, 0.2)) -> xr.Dataset:
    path = np.random.default_rng(seed).normal(size=(steps, 2)).cumsum(0) / 5
    return new_trajectory(
        path - path[-1],
        steps=10 * np.arange(steps),
        variables={
            "variance_share": ("axis", np.array(share)),
            "null_share": ("axis", np.array([0.6, 0.16])),
            "distance": ("snapshot", np.linspace(0.0, 0.3, steps)),
        },
        attrs={"anchored": True},
    )


def curvature(train_loss: float, *, top: float = 10.0, bottom: float = -0.2, **variables: float) -> xr.Dataset:
    values = {
        "trace": 30.0,
        "trace_se": 1.0,
        "filter_trace": 4.0,
        "filter_trace_se": 0.1,
        "lambda_max": top,
        "lambda_min": bottom,
        "lambda_min_converged": 1.0,
        "sam_sharpness": 0.4,
        "train_loss": train_loss,
        "train_accuracy": 0.98,
        "weight_norm": 12.0,
        **variables,
    }
    return new_curvature(
        [bottom, top],
        [0.01, 0.02],
        variables={name: ((), value) for name, value in values.items()},
        attrs={"batch_norm": "running", "samples": 200, "products": 60, "rho": 0.05},
    )


def spectrum() -> xr.Dataset:
    grid = np.linspace(-1.0, 12.0, 200)
    density = np.exp(-(grid**2)) + 1e-3 * np.exp(-((grid - 10.0) ** 2))
    return new_curvature(
        [-0.2, 10.0],
        [0.01, 0.02],
        variables={
            name: ("grid", values)
            for name, values in (("eigenvalue_grid", grid), ("density", density), ("density_se", 0.1 * density))
        },
        attrs={"scale": "linear", "probes": 4, "products": 200},
    )


def run(
    name: str, *, method: str, seed: int, accuracy: float, train_loss: float = 0.1, passes: int = 100, **parts: object
) -> Run:
    epochs = np.arange(6)
    metrics = tuple(
        {
            "epoch": float(e),
            "step": 10.0 * (e + 1),
            "train_loss": float(train_loss + np.exp(-e)),
            "validation_loss": float(0.3 + np.exp(-e)),
            "train_accuracy": float(1 - 0.5 * np.exp(-e)),
            "validation_accuracy": float(accuracy - 0.5 * np.exp(-e)),
        }
        for e in epochs
    )
    known = {
        "result": {"test_accuracy": accuracy, "passes": passes, "seconds": 0.06 * passes / 100},
        "surfaces": {"random": plane(scale=1.0 + seed)},
        "curvature": {"end": curvature(train_loss)},
        "trajectory": walk(seed=seed),
        "spec": f"method: {method}\nseed: {seed}\n",
    }
    return Run(name=name, method=method, seed=seed, metrics=metrics, **{**known, **parts})


def card(train_loss: float = 0.1) -> xr.Dataset:
    """A robustness card with every part but forgetting and merging."""
    sizes = {"rounding": (8.0, 4.0), "noise": (0.02, 0.05, 0.1), "worst": (0.02, 0.05, 0.1), "inputs": (0.05, 0.1, 0.2)}
    names = {"rounding": ("symmetric", "asymmetric"), "noise": ("filter", "plain"), "inputs": ("noise on inputs",)}
    numbers = ("distance", "loss", "loss_change", "loss_change_se", "accuracy", "accuracy_change", "accuracy_change_se")
    numbers += ("draw_se", "first", "second", "trace", "compared", "other_loss")
    rows = []
    for part in sizes:
        for name in names.get(part, ("worst",)):
            for size in sizes[part]:
                row = dict.fromkeys(numbers, 0.01 + size) | ({"loss_change": np.nan} if part == "inputs" else {})
                quantiles = {"quantiles": (0.0, 0.1, 0.2, 0.3, 0.4), "quantile_se": (0.01,) * 5}
                called = f"INT{size:g} {name}" if part == "rounding" else name
                rows.append({"part": part, "name": called, "size": size, "draws": 5, **row, **quantiles})
    attrs = {"train_loss": train_loss, "filter_trace": 4.0, "filter_trace_se": 0.1, "rounded": ["weight"], "notes": []}
    attrs |= {
        "batch_norm": "running",
        "samples": 300,
        "split": "train",
        "recipe": {"risk": {"loss": "CrossEntropyLoss()"}},
    }
    return new_robustness(rows, (0.05, 0.25, 0.5, 0.75, 0.95), attrs=attrs)
