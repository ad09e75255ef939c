"""Operators apart from any risk, and the pieces they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.unit.test_curvature_trace import small_risk
from torch import nn

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.curvature import GaussNewton, Hessian, MatrixOperator, ScaledOperator
from lowland.curvature.graph import graph_bytes
from lowland.curvature.memory import halves, out_of_memory


def test_products_are_counted_and_told_one_by_one() -> None:
    seen: list[int] = []
    operator = MatrixOperator(torch.eye(3), on_product=seen.append)
    _ = operator @ torch.ones(3), operator @ torch.ones(3, 4)
    assert operator.products == 5 and seen == [1, 2, 3, 4, 5]
    assert (operator @ torch.ones(3, 0)).shape == (3, 0) and operator.products == 5


def test_what_is_switched_off_outside_is_no_input_of_a_product() -> None:
    class Watched(MatrixOperator):
        seen: tuple[bool, ...] = ()

        def multiply(self, vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            self.seen = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
            return super().multiply(vectors)

    operator = Watched(torch.eye(3))
    for outside in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with outside:
            _ = operator @ torch.ones(3)
        assert operator.seen == (True, False, False)


def test_parameters_that_are_not_asked_for_have_no_part_in_the_graph() -> None:
    risk = small_risk()
    with Hessian(risk, modules=["2"]) as hessian:
        assert [name for name, p in risk.model.named_parameters() if p.requires_grad] == list(hessian.shapes)
    assert all(p.requires_grad for p in risk.model.parameters())


def test_rounding_is_a_unit_times_the_mean_square_of_the_slopes() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 4.0]]).double()
    model = nn.Linear(2, 1, bias=False).double()
    data = [(x[k : k + 1], torch.ones(1, 1).double()) for k in range(3)]  # alone, a sample's random sign falls out
    expected = torch.finfo(torch.float64).eps * float(x.square().sum()) / 3
    assert Hessian(EmpiricalRisk(model, nn.MSELoss(), data)).rounding() == pytest.approx(expected, rel=1e-12)


def test_matrices_and_scales_of_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match="square"):
        MatrixOperator(torch.ones(2, 3))
    with pytest.raises(InputError, match="scale"):
        ScaledOperator(MatrixOperator(torch.eye(3)), torch.ones(2))
    with pytest.raises(InputError, match="without parameter names"):
        _ = MatrixOperator(torch.eye(3)) @ {"w": torch.ones(3)}


def test_a_scaled_hessian_by_names_shares_the_graph_and_closes_it() -> None:
    risk = small_risk()
    hessian = Hessian(risk)
    dense = hessian.dense()
    scale = torch.rand(hessian.size).double()
    scaled = ScaledOperator(hessian, hessian.split(scale))
    torch.testing.assert_close(scaled.dense(), scale[:, None] * dense * scale, rtol=1e-12, atol=1e-14)
    before = hessian.built
    with scaled:
        _ = scaled @ torch.ones(hessian.size), scaled @ torch.ones(hessian.size)
    assert hessian.built - before == 2
    assert not hessian._graphs


def test_measuring_inside_a_block_is_allowed_and_the_block_closes_after_an_error() -> None:
    risk = small_risk()
    vector = torch.ones(57).double()
    with Hessian(risk) as hessian:
        first = hessian @ vector
        risk.evaluate()
        assert torch.equal(hessian @ vector, first)
    risk.model.train()
    with pytest.raises(KeyError), Hessian(risk) as hessian:
        _ = hessian @ vector
        raise KeyError("user")
    assert risk.model.training and all(p.grad is None and p.requires_grad for p in risk.model.parameters())


def test_gauss_newton_needs_a_loss_and_one_output() -> None:
    layer = nn.Linear(2, 2)
    data = [(torch.ones(3, 2), torch.zeros(3, 2))]
    custom = EmpiricalRisk(
        layer, evaluate=lambda model, batch: {"loss": model(batch.input).square().sum(1)}, batches=data
    )
    with pytest.raises(InputError, match="evaluate"):
        _ = GaussNewton(custom) @ torch.ones(6)
    assert torch.isfinite(Hessian(custom) @ torch.ones(6)).all()

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), x

    def first_squared(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        return (output[0] - target).square().sum(1)

    with pytest.raises(InputError, match="one tensor"):
        _ = GaussNewton(EmpiricalRisk(Pair(), first_squared, data)) @ torch.ones(6)


def test_a_loss_that_is_linear_in_the_weights_has_a_zero_hessian() -> None:
    risk = EmpiricalRisk(nn.Linear(2, 1), lambda output, target: output.sum(1), [(torch.ones(3, 2), torch.zeros(3))])
    assert Hessian(risk).dense().abs().sum() == 0 and GaussNewton(risk).dense().abs().sum() == 0


def test_graph_bytes_counts_every_storage_once_and_no_parameters() -> None:
    w = torch.ones(100, requires_grad=True)
    x = torch.ones(100)
    assert graph_bytes([(w * x).sum(), (w * x).sum()], [w, x]) <= 16
    assert graph_bytes([(w * x).exp().sum()], [w, x]) >= 400


def test_batches_of_every_form_are_halved() -> None:
    batch = Batch({"ids": torch.arange(5), "scale": torch.tensor(2.0)}, (torch.arange(5), "name"), torch.arange(5))
    parts = list(halves(batch, 1))
    assert [part.input["ids"].tolist() for part in parts] == [[0, 1, 2], [3, 4]]
    assert parts[1].target[1] == "name" and float(parts[1].input["scale"]) == 2.0
    assert [part.size for part in halves(batch, 4)] == [1] * 5
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and not out_of_memory(
        ValueError("out of memory")
    )
