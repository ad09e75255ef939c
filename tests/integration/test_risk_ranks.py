"""A risk whose data are shared by two ranks gives the numbers of one process; they agree or fail together."""

import json
import traceback

import numpy as np
import pytest
import torch
from tests.ranks import together
from torch import nn

from lowland import curvature, landscape
from lowland.core.errors import InputError, LowlandError
from lowland.core.risk import EmpiricalRisk

PARTS = ((0, 7), (7, 12))
"""Samples of the first and of the second rank: unequal shards, in unequal batches."""


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)]
    model = nn.Sequential(*layers).double()
    model(torch.randn(20, 1, 8, 8, dtype=torch.float64))  # statistics of its own
    return model


def batches(start, stop):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (12,), generator=generator)
    return [(x[k : min(k + 3, stop)], y[k : min(k + 3, stop)]) for k in range(start, stop, 3)]


def weighted():
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))


def numbers(risk):
    """Every kind of number, as floats or lists of them."""
    found = {}
    for name, estimate in risk.evaluate().items():
        found |= {name: estimate.value, f"{name} error": estimate.standard_error, f"{name} skew": estimate.skewness}
        found[f"{name} samples"] = estimate.samples
    found["gradient"] = {name: part.tolist() for name, part in risk.gradient().items()}
    for kind in (curvature.Hessian, curvature.GaussNewton):
        operator = kind(risk)
        vector = torch.linspace(-1, 1, operator.size, dtype=torch.float64)
        found[kind.__name__] = (operator @ vector).tolist()
    found["trace"] = curvature.trace(risk, products=12).value
    found["weighted trace"] = curvature.filter_weighted_trace(risk, directions=3).value
    ends = curvature.extreme_eigenvalues(risk)
    found["ends"] = [ends.lambda_min, ends.lambda_max]
    found["norm"] = [curvature.fisher_rao_norm(risk).value, curvature.fisher_rao_norm(risk).standard_error]
    found["critical"] = curvature.critical_sharpness(risk).value
    found["sam"] = curvature.sam_sharpness(risk, rho=0.05).value
    line = landscape.evaluate(risk, landscape.random_line(risk.model), landscape.grid(7))
    found["line"] = {n: line[n].values.tolist() for n in ("loss", "loss_se", "loss_skew", "loss_difference_se")}
    plane = landscape.random_plane(risk.model)
    picture = landscape.evaluate(risk, plane, landscape.grid(15, 15), refined=landscape.Tolerance())
    found["picture"], found["samples"] = picture["loss"].values.tolist(), picture.attrs["samples"]
    return found


def failures(rank, group, folder):
    """What ranks refuse or fail at together, by name: the error of this rank."""

    def told(function):
        try:
            function()
        except LowlandError as error:
            return type(error).__name__, str(error)
        return "", "nothing was raised"

    start, stop = PARTS[rank]
    model = network()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), batches(start, stop), process_group=group)
    line, points = landscape.random_line(model), landscape.grid(5)
    found = {
        "engine": told(lambda: landscape.evaluate(risk, line, points, engine="processes:2")),
        "auto": told(lambda: landscape.evaluate(risk, line, points, batch_size="auto")),
        "per batch": told(lambda: curvature.sam_sharpness(risk, rho=0.05, per_batch=True)),
        "mode": told(
            lambda: EmpiricalRisk(
                model, weighted(), batches(start, stop), batch_norm="recalibrated", process_group=group
            )
        ),
    }
    labels = [(x, y if rank == 0 else y + 5) for x, y in batches(start, stop)]
    wrong = EmpiricalRisk(model, nn.CrossEntropyLoss(), labels, process_group=group)
    found["one rank alone"] = told(wrong.evaluate)
    with torch.no_grad():
        model[0].weight.add_(float(rank))
    found["weights"] = told(lambda: curvature.trace(risk))
    with torch.no_grad():
        model[0].weight.sub_(float(rank))
    store = folder / "line.zarr"
    first = landscape.evaluate(risk, line, points, store=store)
    again = landscape.evaluate(risk, line, points, store=store)
    assert np.array_equal(first["loss"].values, again["loss"].values)
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        group = torch.distributed.group.WORLD
        risk = EmpiricalRisk(network(), weighted(), batches(*PARTS[rank]), process_group=group)
        content = {"numbers": numbers(risk), "failures": failures(rank, group, folder)}
        (folder / f"{rank}.json").write_text(json.dumps(content))
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    together(work, folder)
    assert not list(folder.glob("*.error"))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_ranks_have_the_same_bits(answers):
    assert answers[0]["numbers"] == answers[1]["numbers"]


def test_every_number_is_that_of_one_process(answers):
    one = json.loads(json.dumps(numbers(EmpiricalRisk(network(), weighted(), batches(0, 12)))))
    assert set(one) == set(answers[0]["numbers"])
    for name, expected in one.items():
        found = answers[0]["numbers"][name]
        if isinstance(expected, dict):
            for part, values in expected.items():
                np.testing.assert_allclose(found[part], values, rtol=1e-6, atol=1e-9, err_msg=f"{name} {part}")
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "name, words",
    [
        ("engine", "serial"),
        ("auto", "batch_size"),
        ("per batch", "per_batch"),
        ("mode", "recalibration"),
        ("weights", "same parameters and buffers on all ranks"),
    ],
)
def test_what_could_not_be_done_in_step_is_refused_on_both(answers, name, words):
    for answer in answers:
        kind, text = answer["failures"][name]
        assert kind == "InputError" and words in text


def test_an_error_on_one_rank_is_one_on_all(answers):
    mine, other = (answer["failures"]["one rank alone"] for answer in reversed(answers))
    assert mine[0] == "InputError"
    assert "rank 1 of 2 failed" in other[1]


def test_a_group_is_asked_for_by_name():
    with pytest.raises(InputError, match="process_group"):
        EmpiricalRisk(network(), weighted(), batches(0, 12), process_group="world")
