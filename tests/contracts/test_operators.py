"""What every operator of a risk must do; a new one joins by a line in OPERATORS."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.contracts.curvature_cases import CASES, Case, make, reference_mode
from tests.reference.dense_curvature import dense_gauss_newton, dense_hessian, dense_hessian_by_func
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, LowlandWarning, NotDeterministic
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import GaussNewton, Hessian

OPERATORS: dict[str, tuple[Any, Any]] = {
    "hessian": (Hessian, dense_hessian),
    "gauss_newton": (GaussNewton, dense_gauss_newton),
}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Any:
    return OPERATORS[request.param][0]


def risk_of(case: Case) -> EmpiricalRisk:
    return EmpiricalRisk(case.model, case.loss, case.batches, batch_norm=case.batch_norm)  # type: ignore[arg-type]


def snapshot(model: nn.Module) -> Any:
    tensors = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    return (
        tensors,
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        torch.get_rng_state(),
    )


def assert_untouched(model: nn.Module, before: Any) -> None:
    now = snapshot(model)
    assert same_bits(now[0], before[0])
    assert now[1] == before[1] and now[2] == before[2]
    assert torch.equal(now[3], before[3])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("name", CASES)
def test_equals_its_dense_twin(kind: str, name: str) -> None:
    make_operator, twin = OPERATORS[kind]
    case = make(name)
    before = snapshot(case.model)
    dense = make_operator(risk_of(case)).dense()
    assert_untouched(case.model, before)
    reference_mode(case)
    expected = twin(case.model, case.reference_loss, case.batches)
    assert dense.shape == expected.shape
    torch.testing.assert_close(dense, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_the_hessian_twin_agrees_with_torch_func() -> None:
    case = make("mlp")
    case.model.eval()
    first = dense_hessian(case.model, case.loss, case.batches)
    torch.testing.assert_close(
        first, dense_hessian_by_func(case.model, case.loss, case.batches), rtol=1e-12, atol=1e-14
    )


def test_vectors_matrices_and_dictionaries_agree(operator: Any) -> None:
    made = operator(risk_of(make("tied_and_unused")))
    matrix = torch.randn(made.size, 3, dtype=torch.float64)
    product = made @ matrix
    assert product.shape == matrix.shape
    torch.testing.assert_close(product[:, 1], made @ matrix[:, 1], rtol=0, atol=0)
    named = made @ made.split(matrix[:, 2])
    torch.testing.assert_close(made.join(named), product[:, 2], rtol=0, atol=0)
    assert named["spare"].abs().sum() == 0
    assert made.products == 5


def test_kept_and_rebuilt_graphs_give_the_same_bits(operator: Any) -> None:
    case = make("convolution_batch")
    vector = torch.randn(operator(risk_of(case)).size, dtype=torch.float64)
    fresh = operator(risk_of(case), memory=0) @ vector
    with operator(risk_of(case)) as kept:
        _ = kept @ torch.randn_like(vector)
        assert torch.equal(kept @ vector, fresh)
        assert torch.equal(kept @ vector, fresh)


def test_a_kept_graph_is_really_kept_and_dropped_when_weights_move(operator: Any) -> None:
    case = make("convolution_running")
    risk, calls = risk_of(case), []
    risk.gradient()  # what is looked at once, at the first batch, is no part of the count
    case.model.register_forward_hook(lambda *_: calls.append(1))
    made = operator(risk, check=False)
    vector = torch.ones(made.size, dtype=torch.float64)
    with made:
        _ = made @ vector, made @ vector
        assert len(calls) == len(case.batches)
        with torch.no_grad():
            next(case.model.parameters()).add_(0.1)
        moved = made @ vector
        assert len(calls) == 2 * len(case.batches)
    torch.testing.assert_close(moved, operator(risk) @ vector, rtol=0, atol=0)


def test_blocks_of_modules(operator: Any) -> None:
    case = make("mlp")
    dense = operator(risk_of(case)).dense()
    block = operator(risk_of(case), modules=["2"])
    torch.testing.assert_close(block.dense(), dense[25:, 25:], rtol=1e-12, atol=1e-14)
    assert list(block.shapes) == ["2.weight", "2.bias"]


def test_frozen_parameters_are_left_out_or_give_zeros(operator: Any) -> None:
    case = make("mlp")
    full = operator(risk_of(case)).dense()
    case.model[0].requires_grad_(False)
    torch.testing.assert_close(operator(risk_of(case)).dense(), full[25:, 25:], rtol=1e-12, atol=1e-14)
    padded = operator(risk_of(case), trainable=False).dense()
    assert padded.shape == full.shape and padded[:25].abs().sum() == 0
    torch.testing.assert_close(padded[25:, 25:], full[25:, 25:], rtol=1e-12, atol=1e-14)
    assert [p.requires_grad for p in case.model.parameters()] == [False, False, True, True]


def test_recalibrated_statistics_follow_the_weights(operator: Any) -> None:
    case = make("convolution_running")
    x, y = (torch.cat(parts) for parts in zip(*case.batches, strict=True))
    made = operator(EmpiricalRisk(case.model, case.loss, [(x, y)], batch_norm="recalibrated"))
    first = made.dense()
    case.model[1].running_mean.add_(5.0)
    torch.testing.assert_close(made.dense(), first, rtol=0, atol=0)


def test_float64_sums_of_float32_products(operator: Any) -> None:
    case = make("mlp")
    exact = operator(risk_of(case)).dense()
    case.model.float()
    single = [(x.float()[i : i + 1], y[i : i + 1]) for x, y in case.batches for i in range(len(y))]
    wide = operator(EmpiricalRisk(case.model, case.loss, single), dtype=torch.float64)
    assert wide.dense().dtype == torch.float64
    torch.testing.assert_close(wide.dense(), exact, rtol=1e-5, atol=1e-6)


def test_bfloat16_weights_use_float32_vectors(operator: Any) -> None:
    case = make("mlp")
    case.model.bfloat16()
    made = operator(EmpiricalRisk(case.model, case.loss, [(x.bfloat16(), y) for x, y in case.batches]))
    assert (made @ torch.ones(made.size)).dtype == torch.float32


def test_a_compiled_model_is_used_through_its_own_module(operator: Any) -> None:
    case = make("mlp")
    plain = operator(risk_of(case)).dense()
    compiled = EmpiricalRisk(torch.compile(case.model), case.loss, case.batches)
    assert torch.equal(operator(compiled).dense(), plain)


def test_float32_recurrent_and_attention_kernels_are_switched_and_put_back(operator: Any) -> None:
    for name in ("recurrent", "transformer"):
        case = make(name)
        expected = operator(risk_of(case)).dense()
        case.model.float()
        state = (
            torch.backends.mkldnn.enabled,
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
        )
        made = operator(EmpiricalRisk(case.model, case.loss, [(x.float(), y) for x, y in case.batches]))
        torch.testing.assert_close(made.dense(), expected.float(), rtol=1e-3, atol=1e-5)
        assert state == (
            torch.backends.mkldnn.enabled,
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
        )


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_out_of_memory_halves_the_batch_and_says_so(
    operator: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make("mlp")
    x, y = (torch.cat(parts) for parts in zip(*case.batches, strict=True))
    expected = operator(EmpiricalRisk(case.model, case.loss, [(x, y)])).dense()
    made, build = operator(EmpiricalRisk(case.model, case.loss, [(x, y)])), operator.build

    def limited(self: Any, batch: Any, space: Any) -> Any:
        if batch.size > 3:
            raise error
        return build(self, batch, space)

    monkeypatch.setattr(operator, "build", limited)
    with pytest.warns(LowlandWarning, match="out of memory"):
        torch.testing.assert_close(made.dense(), expected, rtol=1e-12, atol=1e-14)


def test_out_of_memory_on_one_sample_or_with_batch_statistics_is_an_error(
    operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any, batch: Any, space: Any) -> Any:
        raise MemoryError

    batch_mode, plain = operator(risk_of(make("convolution_batch"))), operator(risk_of(make("mlp")))
    monkeypatch.setattr(operator, "build", never)
    with pytest.raises(InputError, match="batch statistics"):
        _ = batch_mode @ torch.ones(batch_mode.size)
    with pytest.raises(InputError, match="one sample"), pytest.warns(LowlandWarning):
        _ = plain @ torch.ones(plain.size)


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (torch.ones(3), "shape"),
        (torch.ones(43, dtype=torch.int64), "floating"),
        (torch.full((43,), torch.nan), "finite"),
        ([1.0] * 43, "shape"),
        ({"0.weight": torch.ones(5, 4)}, "names"),
    ],
)
def test_a_wrong_vector_is_refused(operator: Any, vector: Any, words: str) -> None:
    made = operator(risk_of(make("mlp")))
    assert made.size == 43
    with pytest.raises(InputError, match=words):
        _ = made @ vector


def test_a_gradient_that_is_not_finite_is_refused_and_the_model_restored(operator: Any) -> None:
    case = make("mlp")
    with torch.no_grad():
        case.model[2].weight.fill_(torch.inf)
    before = snapshot(case.model)
    made = operator(risk_of(case), check=False)
    with pytest.raises(InputError, match="finite"):
        _ = made @ torch.ones(43)
    assert_untouched(case.model, before)


def test_a_loss_without_second_derivative_is_refused(operator: Any) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
            context.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return 2 * gradient * context.saved_tensors[0]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return Once.apply(output).sum(1)

    case = make("mlp")
    made = operator(EmpiricalRisk(case.model, loss, case.batches))
    with pytest.raises(InputError, match="second derivative"):
        _ = made @ torch.ones(43)


def test_a_risk_that_is_not_deterministic_is_refused(operator: Any) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(nn.functional.dropout(x, 0.5, training=True))

    with pytest.raises(NotDeterministic):
        operator(EmpiricalRisk(Noisy(), nn.CrossEntropyLoss(), [(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))]))


def test_parametrized_weights_are_differentiated_by_their_effective_value(operator: Any) -> None:
    plain, case = operator(risk_of(make("mlp"))), make("mlp")
    nn.utils.parametrizations.weight_norm(case.model[0])
    vector = torch.randn(plain.size, dtype=torch.float64)
    before = snapshot(case.model)
    made = operator(risk_of(case))
    assert set(made.shapes) == set(plain.shapes)
    expected, found = plain.split(plain @ vector), made @ plain.split(vector)
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part, rtol=1e-9, atol=1e-12)
    assert_untouched(case.model, before)
