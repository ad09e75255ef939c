"""Adapters of Lowland's own tools; they also show how one is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, extreme_eigenvalues, spectral_density, trace
from lowland.landscape import evaluate, grid, line_between, random_plane
from lowland.optim import ASAM, FSAM, GSAM, MSAM, SALA, SAM, WSAM, LateSAM, LookSAM, Wrapper
from lowland.testing.adapters import Batches, CurvatureAdapter, LandscapeAdapter, OptimizerAdapter, Surface
from lowland.testing.rulebook import Adapter

Build = Callable[[torch.optim.Optimizer, nn.Module], Wrapper]

_BY_HAND: Final = {
    "averaged": "def averaged(model, optimizer): return optimizer.averaged()",
    "scaled_step": """
def scaled_step(optimizer, scaler, loss):
    optimizer.use_scaler(scaler); optimizer.zero_grad(); scaler.scale(loss()).backward()
    with optimizer.perturb(): scaler.scale(loss()).backward()
    scaler.step(optimizer)
""",
    "accumulated_step": """
def accumulated_step(optimizer, losses):
    optimizer.zero_grad(); sum(loss() for loss in losses).backward()
    with optimizer.perturb(): sum(loss() for loss in losses).backward()
    optimizer.step()
""",
}
"""What the scripts of the rules call beside the constructor."""


class OwnOptimizer(OptimizerAdapter):
    """Drives one of Lowland's optimizers."""

    def __init__(
        self, name: str, build: Build, passes: Callable[[int], int] = lambda steps: 2 * steps, **claims: Any
    ) -> None:
        self.name, self._build, self._passes = name, build, passes  # type: ignore[misc]
        for claim, value in claims.items():  # attributes of `OptimizerAdapter` where they are not the defaults
            setattr(self, claim, value)

    def make(
        self, model: nn.Module, groups: list[dict[str, Any]], base: type[torch.optim.Optimizer], options: dict[str, Any]
    ) -> Wrapper:
        """Build it, with its model."""
        return self._build(base(groups, **options), model)

    def passes(self, steps: int) -> int:
        """Return the passes stated."""
        return self._passes(steps)

    def trained(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return the model's weights, or those evaluated where a method of one pass moves away from them."""
        assert isinstance(optimizer, Wrapper)
        with optimizer.averaged() if self.moves == "never" else nullcontext():
            return super().trained(model, optimizer)

    def averaged(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return the block in which the model holds them."""
        assert isinstance(optimizer, Wrapper)
        return optimizer.averaged()

    def scaled_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, loss: Callable[[], Tensor]
    ) -> None:
        """Name the scaler, and take a step of two passes by hand."""
        assert isinstance(optimizer, Wrapper)
        optimizer.use_scaler(scaler)
        self._passed(optimizer, [lambda: scaler.scale(loss())])
        scaler.step(optimizer)

    def accumulated_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[Callable[[], Tensor]]
    ) -> None:
        """Take a step whose passes are several micro-batches each."""
        self._passed(optimizer, losses)
        optimizer.step()

    @staticmethod
    def _passed(optimizer: torch.optim.Optimizer, losses: Sequence[Callable[[], Tensor]]) -> None:
        """Run both passes by hand."""
        assert isinstance(optimizer, Wrapper)
        optimizer.zero_grad()
        for loss in losses:
            loss().backward()  # type: ignore[no-untyped-call]
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                for loss in losses:
                    loss().backward()  # type: ignore[no-untyped-call]


def _optimizers() -> list[Adapter]:
    def own(
        kind: Callable[..., Wrapper],
        options: dict[str, Any],
        passes: Callable[[int], int] = lambda n: 2 * n,
        **claims: Any,
    ) -> Adapter:
        name = kind.__name__
        said = "".join(f", {option}={value!r}" for option, value in options.items())
        source = {
            "import": f"from lowland.optim import {name}",
            "make": f"make = lambda model, groups, base, **options: {name}(base(groups, **options){said}, model=model)",
        }
        return OwnOptimizer(
            f"lowland {name}",
            lambda base, model: kind(base, **options, model=model),
            passes,
            source=source | _BY_HAND,
            **claims,
        )

    return [
        own(SAM, {"rho": 0.05}, formula="sam"),
        own(ASAM, {}, moves="other"),
        own(GSAM, {"rho": 0.05, "rho_min": None, "alpha": 0.3}),
        own(LookSAM, {"rho": 0.05, "period": 5}, lambda n: n + -(-n // 5)),
        own(FSAM, {"rho": 0.05}, moves="other"),
        own(WSAM, {}),
        own(LateSAM, {"total": 100, "share": 0.99}, lambda n: n + max(0, n - 1)),
        own(SALA, {"rho": 5.0, "period": 2}, lambda n: n + n // 2, moves="other"),  # every cycle ends in stage two
        own(MSAM, {"rho": 0.3}, lambda n: n, moves="never", bases=("sgd",)),  # it moves along the momentum
    ]


class OwnLandscape(LandscapeAdapter):
    """Drives Lowland's surfaces and lines."""

    name = "lowland landscape"
    source: ClassVar = {
        "import": """
from lowland import EmpiricalRisk
from lowland.landscape import evaluate, grid, line_between, random_plane
""",
        "plane": """
def plane(model, loss, batches, shape=(5, 5), extent=1.0, seed=0, store=None):
    risk, axes = EmpiricalRisk(model, loss, batches), grid(*shape, extent=extent)
    found = evaluate(risk, random_plane(model, seed=seed), axes, store=store)
    return found.loss.values, found.x.values, found.y.values
""",
        "line": """
def line(start, end, loss, batches, points):
    risk, axes = EmpiricalRisk(start, loss, batches), grid(points, extent=(0, 1))
    return evaluate(risk, line_between(start, end), axes).loss.values
""",
        "stored": "stored = lambda model, loss, batches, folder: plane(model, loss, batches, store=f'{folder}/s.zarr')",
        "resumed": """
def resumed(model, loss, batches, stop, folder=tempfile.mkdtemp()):
    try: plane(model, loss, batches, store=f"{folder}/s.zarr")
    except KeyboardInterrupt: stop()
    return plane(model, loss, batches, store=f"{folder}/s.zarr")
""",
    }

    def plane(
        self,
        model: nn.Module,
        loss: Any,
        batches: Batches,
        *,
        shape: tuple[int, int] = (5, 5),
        extent: float = 1.0,
        seed: int = 0,
        store: Path | None = None,
    ) -> Surface:
        """Evaluate a random plane, into a store if one is given."""
        risk = EmpiricalRisk(model, loss, batches)
        found = evaluate(risk, random_plane(model, seed=seed), grid(*shape, extent=extent), store=store)
        return Surface(found.loss.values, found.x.values, found.y.values)

    def line(self, start: nn.Module, end: nn.Module, loss: Any, batches: Batches, *, points: int) -> NDArray[Any]:
        """Evaluate the line between."""
        risk = EmpiricalRisk(start, loss, batches)
        found: NDArray[Any] = evaluate(risk, line_between(start, end), grid(points, extent=(0, 1))).loss.values
        return found

    def resumed(self, model: nn.Module, loss: Any, batches: Batches, *, stop: Callable[[], None]) -> Surface:
        """Evaluate into a store, twice."""
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "surface.zarr"
            try:
                self.plane(model, loss, batches, store=store)
            except KeyboardInterrupt:
                stop()
            return self.plane(model, loss, batches, store=store)

    def stored(self, model: nn.Module, loss: Any, batches: Batches, folder: str) -> Surface:
        """Evaluate with the folder as the store."""
        return self.plane(model, loss, batches, store=Path(folder) / "surface.zarr")


class _Curvature(CurvatureAdapter):
    name = "lowland curvature"
    source: ClassVar = {
        "import": """
from lowland import EmpiricalRisk
from lowland.curvature import Hessian, extreme_eigenvalues, spectral_density, trace as estimate
""",
        "product": "product = lambda model, loss, batches, v: Hessian(EmpiricalRisk(model, loss, batches)) @ v",
        "ends": """
def ends(model, loss, batches):
    found = extreme_eigenvalues(EmpiricalRisk(model, loss, batches)); return found.lambda_min, found.lambda_max
""",
        "trace": """
def trace(model, loss, batches, seed):
    found = estimate(EmpiricalRisk(model, loss, batches), seed=seed); return found.value, found.standard_error
""",
        "density": """
def density(model, loss, batches, seed):
    return [(run.values, run.weights) for run in spectral_density(EmpiricalRisk(model, loss, batches), seed=seed).runs]
""",
    }

    def product(self, model: nn.Module, loss: Any, batches: Batches, vector: Tensor) -> Tensor:
        return Hessian(EmpiricalRisk(model, loss, batches)) @ vector

    def ends(self, model: nn.Module, loss: Any, batches: Batches) -> tuple[float | None, float | None]:
        found = extreme_eigenvalues(EmpiricalRisk(model, loss, batches))
        return found.lambda_min, found.lambda_max

    def trace(self, model: nn.Module, loss: Any, batches: Batches, *, seed: int) -> tuple[float, float | None]:
        found = trace(EmpiricalRisk(model, loss, batches), seed=seed)
        return found.value, found.standard_error

    def density(
        self, model: nn.Module, loss: Any, batches: Batches, *, seed: int
    ) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        found = spectral_density(EmpiricalRisk(model, loss, batches), seed=seed)
        return [(run.values, run.weights) for run in found.runs]


def own_adapters() -> list[Adapter]:
    """Return adapters of Lowland's optimizers, landscapes and curvature.

    Returns:
        One per tool.

    Example:
        >>> [adapter.name for adapter in own_adapters() if adapter.family != "optimizer"]
        ['lowland landscape', 'lowland curvature']
    """
    return [*_optimizers(), OwnLandscape(), _Curvature()]
