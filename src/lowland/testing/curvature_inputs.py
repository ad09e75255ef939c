"""Rules of curvature tools: what comes in at the door, ambient state, storage, and whose product is returned."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn

from lowland.testing import ambient
from lowland.testing.adapters import CurvatureAdapter
from lowland.testing.curvature_products import compare, data_of, vector_of
from lowland.testing.networks import flat, mlp
from lowland.testing.rulebook import NotOffered, demand, rule


@rule("Small eigenvalues, and differences of products, drown in float32.")
def product_keeps_precision(adapter: CurvatureAdapter) -> None:
    """A model in float64 has a product in float64."""
    compare(adapter, mlp(), tolerance=1e-11)
    found = adapter.product(mlp().eval(), nn.CrossEntropyLoss(), [data_of()], vector_of(mlp()))
    demand(found.dtype == torch.float64, f"the product of a model in float64 is {found.dtype}")


def _refused(adapter: CurvatureAdapter, batches: list[tuple[Tensor, Tensor]], vector: Tensor, what: str) -> None:
    try:
        found = adapter.product(mlp().eval(), nn.CrossEntropyLoss(), batches, vector)
    except NotOffered:
        raise
    except Exception:
        return  # which error is the tool's choice
    demand(False, f"{what} gives a product of {found.numel()} entries with norm {float(found.double().norm()):.3g}")


@rule("A vector of another model is cut or repeated without a word, and the eigenvalue is of neither.")
def wrong_length_is_refused(adapter: CurvatureAdapter) -> None:
    """A vector with one entry too many, or too few, is an error."""
    vector = vector_of(mlp())
    for one in (torch.cat([vector, vector[:1]]), vector[:-1]):
        _refused(adapter, [data_of()], one, f"a vector of {len(one)} entries for {len(vector)} weights")


@rule("A loader that is used up has the curvature 0, which looks like the flattest minimum of all.")
def no_data_is_refused(adapter: CurvatureAdapter) -> None:
    """A product without batches is an error."""
    _refused(adapter, [], vector_of(mlp()), "no data")


@rule("Under ``no_grad`` a product may come out as 0, and under autocast with three digits.")
def product_ignores_surroundings(adapter: CurvatureAdapter) -> None:
    """Under ``no_grad``, autocast, deterministic algorithms and other defaults a product is the same."""
    model, batches, loss = mlp(torch.float32).eval(), [(data_of()[0].float(), data_of()[1])], nn.CrossEntropyLoss()
    vector = vector_of(model).float()
    plain = adapter.product(model, loss, batches, vector)
    for name, around in ({"inference mode": torch.inference_mode} | ambient.SURROUNDINGS).items():
        with around():
            try:
                found = adapter.product(model, loss, batches, vector)
            except RuntimeError:
                if name == "inference mode":
                    continue  # torch has no derivatives there: a refusal is right
                raise
        gap = float((found - plain).norm() / plain.norm())
        demand(gap < 1e-6, f"under {name} the product is {gap:.1%} away")


class _Failing(nn.CrossEntropyLoss):
    """A loss that fails."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Fail."""
        raise ArithmeticError("in the middle")


@rule("Gradients that stay off after a measurement, or random numbers it draws, change the training around it.")
def product_leaves_surroundings(adapter: CurvatureAdapter) -> None:
    """After a product, and after one that failed, modes, defaults, flags and random states are as before."""
    model, batches, vector = mlp().eval(), [data_of()], vector_of(mlp())
    for name, around in ({"gradients": torch.enable_grad} | ambient.SURROUNDINGS).items():
        for loss in (nn.CrossEntropyLoss(), _Failing()):
            with around():
                before = ambient.read()
                with suppress(ArithmeticError):
                    adapter.product(model, loss, batches, vector)
                changed = ambient.changed(before)
            demand(not changed, f"a product under {name} changes {changed}")


@rule("Lanczos keeps the vectors it multiplies; the batches are those of the training.")
def vector_and_data_are_left_alone(adapter: CurvatureAdapter) -> None:
    """A product does not write to the vector or to the batches."""
    model, (x, y) = mlp().eval(), data_of()
    vector = vector_of(model)
    before = vector.clone(), x.clone(), y.clone()
    adapter.product(model, nn.CrossEntropyLoss(), [(x, y)], vector)
    for name, now, old in zip(("the vector", "inputs", "targets"), (vector, x, y), before, strict=True):
        demand(torch.equal(now, old), f"a product changes {name}")


@rule("Vectors of a Krylov space that share memory are one vector.")
def products_are_their_own(adapter: CurvatureAdapter) -> None:
    """A product that was returned shares no memory with the vector, the weights or the next product."""
    model, batches, loss = mlp().eval(), [data_of()], nn.CrossEntropyLoss()
    vector, weights = vector_of(model), flat(model)
    first = adapter.product(model, loss, batches, vector)
    kept = first.clone()
    adapter.product(model, loss, batches, -vector)
    demand(torch.equal(first, kept), "the next product changes the one before")
    with torch.no_grad():
        first.fill_(7.0)
    demand(torch.equal(vector, vector_of(model)), "what is written to the product is in the vector")
    demand(torch.equal(flat(model), weights), "what is written to the product is in the weights")
    gap = float((adapter.product(model, loss, batches, vector) - kept).norm() / kept.norm())
    demand(gap < 1e-9, "what is written to one product is in the next")


@rule("An operator that is kept by the model's name multiplies by the Hessian of weights that are gone.")
def product_follows_its_inputs(adapter: CurvatureAdapter) -> None:
    """A product after the loss, the data or the weights changed, in place, is of those."""
    for what in ("loss", "data", "weights"):
        model, (x, y), loss = mlp().eval(), data_of(), nn.CrossEntropyLoss()
        vector = vector_of(model)
        adapter.product(model, loss, [(x, y)], vector)
        with torch.no_grad():
            if what == "loss":
                loss = nn.CrossEntropyLoss(label_smoothing=0.5)
            elif what == "data":
                x.add_(1)
            else:
                next(model.parameters()).add_(0.3)
        found = adapter.product(model, loss, [(x, y)], vector).double()
        exact = adapter.product(copy.deepcopy(model), copy.deepcopy(loss), [(x.clone(), y)], vector).double()
        gap = float((found - exact).norm() / exact.norm())
        demand(gap < 1e-6, f"with other {what} the product is {gap:.1%} away from that of a copy")
