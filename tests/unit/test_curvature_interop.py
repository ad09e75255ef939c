"""Operators of curvlinops in our estimators, and as an oracle for our own where it is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.test_curvature_trace import small_risk
from torch import nn

from lowland.core.errors import InputError
from lowland.curvature import (
    ForeignOperator,
    GaussNewton,
    Hessian,
    extreme_eigenvalues,
    from_curvlinops,
    layer_traces,
    spectral_density,
    trace,
)

curvlinops = pytest.importorskip("curvlinops")


def foreign(kind: str, risk: Any, **options: Any) -> Any:
    data = [(batch.input, batch.target) for batch in risk.batches()]
    parameters = list(risk.model.parameters())
    options["check_deterministic"] = False
    return getattr(curvlinops, kind)(risk.model, nn.CrossEntropyLoss(), parameters, data, **options)


@pytest.mark.parametrize(("kind", "own"), [("HessianLinearOperator", Hessian), ("GGNLinearOperator", GaussNewton)])
def test_our_operators_agree_with_curvlinops(kind: str, own: Any) -> None:
    risk = small_risk()
    theirs = from_curvlinops(foreign(kind, risk), model=risk.model, columns=True)
    torch.testing.assert_close(theirs.dense(), own(risk).dense(), rtol=1e-10, atol=1e-12)
    assert list(theirs.shapes or ()) == list(own(risk).shapes)


def test_columns_at_once_agree_with_one_by_one() -> None:
    risk = small_risk()
    vectors = torch.randn(risk_size(risk), 3).double()
    one, many = (from_curvlinops(foreign("HessianLinearOperator", risk), columns=c) @ vectors for c in (False, True))
    torch.testing.assert_close(one, many, rtol=1e-10, atol=1e-12)


def test_vectors_go_one_by_one_unless_columns_are_asked_for() -> None:
    class Watched:
        shape, dtype, device = (3, 3), torch.float64, "cpu"
        seen: tuple[int, ...] = ()

        def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
            self.seen += (vectors.ndim,)
            return vectors * 2

    for options, dimensions in (({}, (1, 1)), ({"columns": True}, (2,))):
        theirs = Watched()
        for made in (ForeignOperator(theirs, **options), from_curvlinops(theirs, **options)):  # type: ignore[arg-type]
            theirs.seen = ()
            torch.testing.assert_close(made @ torch.eye(3).double()[:, :2], 2 * torch.eye(3).double()[:, :2])
            assert theirs.seen == dimensions


def risk_size(risk: Any) -> int:
    return sum(p.numel() for p in risk.model.parameters())


@pytest.mark.parametrize("kind", ["GGNLinearOperator", "EFLinearOperator", "KFACLinearOperator", "EKFACLinearOperator"])
def test_fisher_and_its_approximations_are_accepted_by_every_estimator(kind: str) -> None:
    risk = small_risk()
    torch.manual_seed(0)
    operator = from_curvlinops(foreign(kind, risk), model=risk.model, columns=True)
    dense = operator.dense()
    values = torch.linalg.eigvalsh(dense)
    ends = extreme_eigenvalues(operator, max_products=12)
    assert ends.lambda_max == pytest.approx(float(values[-1]), rel=2e-3)
    found = trace(operator, products=24)
    assert abs(found.value - float(values.sum())) <= 5 * found.standard_error + 1e-9
    assert abs(sum(part.value for part in layer_traces(operator, probes=8).values()) / float(values.sum()) - 1) < 0.5
    mean, error = spectral_density(operator, probes=8, steps=3).mean(lambda x: x)
    assert abs(mean * operator.size - float(values.sum())) <= 5 * error * operator.size


def test_what_is_no_operator_is_refused() -> None:
    with pytest.raises(InputError, match="must have"):
        ForeignOperator([[1.0]])
    with pytest.raises(InputError, match="square"):
        ForeignOperator(torch.ones(2, 3))
    with pytest.raises(InputError, match="add up"):
        ForeignOperator(torch.eye(3), shapes={"a": torch.Size([2])})
    with pytest.raises(InputError, match="parameters"):
        from_curvlinops(foreign("HessianLinearOperator", small_risk()), model=nn.Linear(2, 2))
