"""Short forms: the numbers that matter, escaped HTML, nothing computed, nothing raised, however odd the content."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import lowland as ll
from lowland import curvature, data, losses, optim, training
from lowland.core.facts import ShowsFacts, form_of, with_error
from lowland.core.moments import Estimate
from lowland.curvature.operator import MatrixOperator


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.21359, 0.00249, "0.2136 +- 0.0025"),
        (0.21359, math.nan, "0.2136"),
        (0.21359, 0.0, "0.2136"),
        (3.0, 1e-16, "3"),
        (math.nan, 0.1, "nan"),
        (123.456, 2.5, "123.5 +- 2.5"),
        (1234.5, 120.0, "1234 +- 1.2e+02"),
        (3e-9, 1.23e-9, "3e-09 +- 1.2e-09"),
        (1.5e9, 0.5, "1.5e+09 +- 0.5"),
        (999999.5, 0.25, "999999.50 +- 0.25"),
        (1e6, 0.25, "1e+06 +- 0.25"),
        (math.inf, math.inf, "inf"),
    ],
)
def test_errors_have_two_digits(value, error, text):
    assert with_error(value, error) == text


def test_forms_of_parts():
    assert form_of(torch.zeros(2, 3)) == "float32 [2, 3]" and form_of(np.zeros(2, "int64")) == "int64 [2]"
    assert form_of({"ids": torch.zeros(1), "n": None}) == "{ids: float32 [1], n: }"
    assert form_of((torch.zeros(1), "text")) == "(float32 [1], str)" and form_of([0] * 99) == "list"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def risk() -> ll.EmpiricalRisk:
    return ll.EmpiricalRisk(network(), nn.CrossEntropyLoss(), [(torch.randn(30, 4), torch.arange(30) % 3)])


def tensors() -> data.TensorData:
    return data.TensorData(torch.zeros(6, 4), torch.arange(6) % 3, torch.arange(6))


def splits() -> data.DataSplits:
    return data.DataSplits("<zeros>", tensors(), [(torch.zeros(2, 4), torch.zeros(2))], tensors(), 3, (4,))


def trained() -> training.FitResult:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return training.fit(model, optimizer, nn.CrossEntropyLoss(), splits_of_tensors(), epochs=1)


def splits_of_tensors() -> data.DataSplits:
    return data.DataSplits("zeros", tensors(), tensors(), tensors(), 3, (4,))


def sam() -> optim.Wrapper:
    return optim.EMA(optim.SAM(torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9), rho=0.2), decay=0.9)


MATRIX = torch.diag(torch.tensor([3.0, 1.0, -0.5, 0.25], dtype=torch.float64))
SHOWN = {
    "estimate": (lambda: Estimate(0.21359, 0.00249, 480, 480.0, 0.1), "Estimate(0.2136 +- 0.0025, n=480)"),
    "skewed": (lambda: Estimate(0.21359, 0.00249, 48, 48.0, 3.0), "Estimate(0.2136 +- 0.0025, n=48, skewness 3)"),
    "risk": (risk, "EmpiricalRisk(Sequential, CrossEntropyLoss, 30 samples, batch norm running)"),
    "batch": (
        lambda: ll.Batch(torch.zeros(2, 3), torch.tensor([0, 1])),
        "Batch(n=2, input float32 [2, 3], target int64 [2])",
    ),
    "data": (tensors, "TensorData(n=6, input float32 [6, 4], target int64 [6])"),
    "batches": (
        lambda: tensors().batches(4, shuffle=True),
        "TensorBatches(n=2, batches of 4 of 6 samples, shuffled, rank 0 of 1)",
    ),
    "loader": (lambda: data.LoaderBatches([1, 2]), "LoaderBatches(n=2, of list, seed 0)"),
    "splits": (splits, "DataSplits(<zeros>, train 6, validation list, test 6, classes 3, shape [4])"),
    "ends": (
        lambda: curvature.extreme_eigenvalues(MatrixOperator(MATRIX)),
        "SpectrumEnds(lambda_max 3, lambda_min -0.5, products 4)",
    ),
    "top": (
        lambda: curvature.top_eigenvalues(MatrixOperator(MATRIX), 2),
        "TopEigenvalues(3, 1, converged all, checked yes, products 6)",
    ),
    "trace": (
        lambda: curvature.trace(MatrixOperator(MATRIX), products=6),
        "ProbeEstimate(3.865, n=2, products 6, by hutch++)",
    ),
    "diagonal": (lambda: curvature.diagonal(MatrixOperator(MATRIX)), "DiagonalEstimate(4 entries, probes 32)"),
    "density": (lambda: curvature.spectral_density(MatrixOperator(MATRIX)), "SpectralDensity(eigenvalues 4, "),
    "sharpness": (lambda: curvature.sam_sharpness(risk()), "Sharpness("),
    "worst": (lambda: curvature.worst_case_sharpness(risk()), "WorstCase("),
    "critical": (lambda: curvature.critical_sharpness(risk()), "CriticalSharpness("),
    "picture": (lambda: curvature.picture_curvature(risk(), directions=4), "PictureCurvature("),
    "fit": (trained, "FitResult(epoch 1 of 1, steps 1, passes 1, test accuracy "),
    "optimizer": (sam, "EMA(SAM(SGD)): decay=0.9"),
    "loss": (lambda: losses.SAF(nn.CrossEntropyLoss(), start=2), "SAF(CrossEntropyLoss(), "),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_numbers_that_matter_in_a_line_and_in_a_table(name):
    make, text = SHOWN[name]
    thing = make()
    assert repr(thing).startswith(text) and (repr(thing) == text or not text.endswith(")"))
    assert len(repr(thing)) < 250 and "\n" not in repr(thing) and "tensor(" not in repr(thing)
    table = thing._repr_html_()
    assert (table.startswith("<table>") and table.endswith("</table>") and "&lt;zeros&gt;" in table) or name != "splits"
    assert type(thing).__name__ in table or name == "optimizer"


def test_an_optimizer_names_its_parts_and_its_bases():
    shown, table = repr(sam()), sam()._repr_html_()
    for part in ("rho=0.2", "SGD lr=0.1 momentum=0.9", "4 tensors"):
        assert part in shown
    assert table.count("<tr>") == 4 and "<td>SAM</td>" in table and "lr=0.1 momentum=0.9" in table
    groups = [{"params": [parameter]} for parameter in network().parameters()]
    assert repr(optim.SAM(torch.optim.SGD(groups, lr=0.1))).endswith("; 1 more groups")


class Broken(ShowsFacts):
    def _facts(self):
        raise RuntimeError("no")


def test_a_representation_never_fails():
    assert repr(Broken()) == "Broken()" and "<table>" in Broken()._repr_html_()
    odd = Estimate("text", None, object(), 1.0, 2.0)
    assert repr(odd) == "Estimate()"
    assert repr(ll.Batch(object(), [torch.zeros(1)])).startswith("Batch(")


def test_nothing_is_read_or_computed_for_it():
    class Loader:
        def __iter__(self):
            return self.batches()

        def batches(self):
            raise AssertionError("read")
            yield

        def __len__(self):
            return 3

    model = network()
    calls = []
    model.register_forward_hook(lambda *given: calls.append(1))
    shown = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), Loader())
    assert "data of unknown size" in repr(shown) + shown._repr_html_() and calls == []
    assert "n=3" in repr(data.LoaderBatches(Loader()))


def test_they_travel_as_before():
    batch = ll.Batch(torch.zeros(2, 3), torch.tensor([0, 1]))
    for again in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert repr(again) == repr(batch) and torch.equal(again.target, batch.target)
    with pytest.raises((AttributeError, TypeError)):
        batch.more = 1  # frozen, with slots
