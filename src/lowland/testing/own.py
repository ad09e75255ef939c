"""Adapters of Lowland's own tools; they also show how one is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, extreme_eigenvalues, spectral_density, trace
from lowland.landscape import evaluate, grid, line_between, random_plane
from lowland.optim import ASAM, GSAM, MSAM, SALA, SAM, LookSAM, Wrapper
from lowland.testing.adapters import Adapter, CurvatureAdapter, LandscapeAdapter, OptimizerAdapter, Surface

__all__ = ["own_adapters"]

Batches = Sequence[tuple[Tensor, Tensor]]


class _Own(OptimizerAdapter):
    def build(self, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper:
        return SAM(base, self.rho, model=model)

    def make(
        self, model: nn.Module, groups: list[dict[str, Any]], base: type[torch.optim.Optimizer], options: dict[str, Any]
    ) -> Wrapper:
        return self.build(base(groups, **options), model)

    def scaled_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, loss: Callable[[], Tensor]
    ) -> None:
        assert isinstance(optimizer, Wrapper)
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                scaler.scale(loss()).backward()
        scaler.step(optimizer)

    def accumulated_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[Callable[[], Tensor]]
    ) -> None:
        assert isinstance(optimizer, Wrapper)
        optimizer.zero_grad()
        for loss in losses:
            loss().backward()  # type: ignore[no-untyped-call]
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                for loss in losses:
                    loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class _Sam(_Own):
    name = "lowland SAM"
    formula = "sam"


class _Asam(_Own):
    name, moves = "lowland ASAM", "other"

    def build(self, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper:
        return ASAM(base, model=model)


class _Gsam(_Own):
    name = "lowland GSAM"

    def build(self, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper:
        return GSAM(base, rho=self.rho, rho_min=None, alpha=0.3, model=model)


class _LookSam(_Own):
    name = "lowland LookSAM"
    period: ClassVar[int] = 5

    def build(self, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper:
        return LookSAM(base, rho=self.rho, period=self.period, model=model)

    def passes(self, steps: int) -> int:
        return steps + -(-steps // self.period)


class _Sala(_Own):
    name, moves = "lowland SALA", "other"

    def build(self, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper:
        return SALA(base, rho=5.0, period=2, model=model)  # so large a radius that every cycle ends in stage two

    def passes(self, steps: int) -> int:
        return steps + steps // 2


class _Msam(_Own):
    name, moves, bases = "lowland MSAM", "never", ("sgd",)  # it moves along the momentum

    def build(self, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper:
        return MSAM(base, rho=0.3, model=model)

    def trained(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        assert isinstance(optimizer, Wrapper)
        with optimizer.averaged():
            return super().trained(model, optimizer)

    def passes(self, steps: int) -> int:
        return steps


class _Landscape(LandscapeAdapter):
    name = "lowland landscape"

    def plane(
        self,
        model: nn.Module,
        loss: Any,
        batches: Batches,
        *,
        shape: tuple[int, int] = (5, 5),
        extent: float = 1.0,
        seed: int = 0,
    ) -> Surface:
        return self._survey(model, loss, batches, shape=shape, extent=extent, seed=seed, store=None)

    def line(self, start: nn.Module, end: nn.Module, loss: Any, batches: Batches, *, points: int) -> NDArray[Any]:
        risk = EmpiricalRisk(start, loss, batches)
        found: NDArray[Any] = evaluate(risk, line_between(start, end), grid(points, extent=(0, 1))).loss.values
        return found

    def resumed(self, model: nn.Module, loss: Any, batches: Batches, *, stop: Callable[[], None]) -> Surface:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "surface.zarr"
            try:
                self._survey(model, loss, batches, shape=(5, 5), extent=1.0, seed=0, store=store)
            except KeyboardInterrupt:
                stop()
            return self._survey(model, loss, batches, shape=(5, 5), extent=1.0, seed=0, store=store)

    @staticmethod
    def _survey(
        model: nn.Module,
        loss: Any,
        batches: Batches,
        *,
        shape: tuple[int, int],
        extent: float,
        seed: int,
        store: Path | None,
    ) -> Surface:
        risk = EmpiricalRisk(model, loss, batches)
        found = evaluate(risk, random_plane(model, seed=seed), grid(*shape, extent=extent), store=store)
        return Surface(found.loss.values, found.x.values, found.y.values)


class _Curvature(CurvatureAdapter):
    name = "lowland curvature"

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
    return [_Sam(), _Asam(), _Gsam(), _LookSam(), _Sala(), _Msam(), _Landscape(), _Curvature()]
