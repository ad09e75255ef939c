"""Surveys: values at their coordinates, restored models, resumed stores, refused arguments."""

import inspect
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from lowland import landscape, results
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, NotDeterministic, StoreError
from lowland.core.moments import Estimate
from lowland.core.risk import EmpiricalRisk
from lowland.landscape import evaluate, grid, random_line, random_plane


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def data(sizes=(7, 7, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def make_risk(model=None, **options):
    return EmpiricalRisk(model or network(), nn.CrossEntropyLoss(), data(), **options)


def naive(model, batches, plane, x, y):
    """The loss at one point, written without anything of ours but the stored directions."""
    moved = network()
    moved.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += x * plane.axes[0].values[name] + y * plane.axes[1].values[name]
        inputs, targets = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        output = moved(inputs)
        return nn.CrossEntropyLoss()(output, targets).item(), (output.argmax(1) == targets).float().mean().item()


def test_every_value_belongs_to_its_coordinates_on_a_non_square_grid():
    risk = make_risk()
    plane = random_plane(risk.model, seed=2)
    surface = evaluate(risk, plane, grid(5, 4, extent=((-1, 1), (-0.5, 2))))
    assert surface.loss.dims == ("x", "y") and (surface.status == 1).all()
    for x in surface.x.values:
        for y in surface.y.values:
            loss, hits = naive(risk.model, data(), plane, float(x), float(y))
            assert float(surface.loss.sel(x=x, y=y)) == pytest.approx(loss, rel=1e-5)
            assert float(surface.accuracy.sel(x=x, y=y)) == pytest.approx(hits, abs=1e-6)


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrated"])
def test_the_center_is_the_risk_to_the_last_bit(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    risk = make_risk(model, batch_norm=mode)
    surface = evaluate(risk, random_plane(model), grid(3, 3))
    direct = risk.evaluate()
    center = surface.sel(x=0.0, y=0.0)
    for name in ("loss", "accuracy"):
        assert float(center[name]) == direct[name].value
        assert float(center[f"{name}_se"]) == direct[name].standard_error
    assert float(center.loss_difference_se) == 0.0 and surface.attrs["batch_norm"] == mode


def test_paired_errors_are_those_of_the_per_sample_differences():
    risk = make_risk()
    plane = random_line(risk.model)
    surface = evaluate(risk, plane, grid(3, extent=0.3))
    per_sample = []
    for x in (0.0, 0.3):
        moved = network()
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter += x * plane.axes[0].values[name]
            parts = [nn.functional.cross_entropy(moved(a), b, reduction="none") for a, b in data()]
        per_sample.append(torch.cat(parts).double())
    difference = per_sample[1] - per_sample[0]
    expected = difference.std() / np.sqrt(len(difference))
    found = surface.sel(x=0.3)
    assert float(found.loss_difference_se) == pytest.approx(expected.item(), rel=1e-5)
    assert float(found.loss_se) == pytest.approx((per_sample[1].std() / np.sqrt(17)).item(), rel=1e-5)
    assert float(found.loss_difference_se) < float(found.loss_se)


class Snoop:
    """Raises or interrupts at the n-th call."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, output, batch):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return output.detach().abs().mean(1)


def full_state(model):
    return (
        [p.detach().clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        torch.get_rng_state(),
    )


def assert_same_state(model, before):
    after = full_state(model)
    assert same_bits(before[0], after[0]) and same_bits(before[1], after[1])
    assert before[2:4] == after[2:4] and torch.equal(before[5], after[5])
    for a, b in zip(before[4], after[4], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def busy_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    return model


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrated"])
@pytest.mark.parametrize(
    "error", [None, ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=["none", "value", "interrupt", "exit"]
)
def test_the_model_is_restored_bit_for_bit(mode, error):
    model = busy_model()
    metric = Snoop(20, error) if error else Snoop(-1, None)
    risk = make_risk(model, batch_norm=mode, metrics={"snoop": metric})
    before = full_state(model)
    plane = random_plane(model)
    if error is None or isinstance(error, Exception):
        surface = evaluate(risk, plane, grid(3, 3))
        assert int((surface.status == 3).sum()) == (0 if error is None else 1)
    else:
        with pytest.raises(type(error)):
            evaluate(risk, plane, grid(3, 3))
    assert_same_state(model, before)


def test_a_failed_point_is_named_and_tried_again(tmp_path):
    model = network()
    metric = Snoop(22, ValueError("no value\nhere"))
    risk = make_risk(model, metrics={"snoop": metric})
    plane = random_plane(model)
    events = []
    first = evaluate(risk, plane, grid(3, 3), store=tmp_path / "s.zarr", on_event=events.append)
    assert [e.message for e in events if e.kind == "failed"] == ["ValueError: no value"]
    failed = first.status.values == 3
    assert failed.sum() == 1 and first.error.values[failed].tolist() == ["ValueError: no value"]
    assert np.isnan(first.loss.values[failed]).all() and not np.isnan(first.loss.values[~failed]).any()
    again = evaluate(risk, plane, grid(3, 3), store=tmp_path / "s.zarr")
    assert (again.status == 1).all() and (again.error == "").all()
    np.testing.assert_array_equal(again.loss.values[~failed], first.loss.values[~failed])


class Wild(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.log(x @ self.weight)


def test_nan_and_infinity_are_kept_and_not_measured_again(tmp_path):
    model = Wild()
    direction = {"weight": torch.ones(2, 2)}
    line = landscape.user_plane(model, [direction])
    risk = EmpiricalRisk(model, nn.MSELoss(), [(torch.ones(3, 2), torch.zeros(3, 2))])
    surface = evaluate(risk, line, grid(5, extent=2.0), store=tmp_path / "s.zarr")
    assert (
        np.isnan(surface.loss[0]) and np.isinf(surface.loss[1]) and float(surface.loss[2]) == pytest.approx(0.4804530)
    )
    assert (surface.status == 1).all()
    events = []
    model.calls = 0
    again = evaluate(risk, line, grid(5, extent=2.0), store=tmp_path / "s.zarr", on_event=events.append)
    xr.testing.assert_identical(again, surface)
    assert (
        events[0].done == events[0].total == 5 and model.calls <= 6
    )  # the checks of the data, the origin, two points again


@pytest.mark.parametrize("resident", ["auto", False])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_streams_and_regenerated_directions_give_the_same_bits(resident, chunk):
    model = network()
    plain = evaluate(make_risk(model), random_plane(model, seed=1), grid(4, 3))
    plane = random_plane(model, seed=1, stored=False)
    other = evaluate(make_risk(model, resident=resident), plane, grid(4, 3), chunk=chunk)
    for name in plain.data_vars:
        np.testing.assert_array_equal(plain[name].values, other[name].values)
    assert plain.attrs["recipe_fingerprint"] == other.attrs["recipe_fingerprint"]


def bytes_held(plane):
    """What a worker holds beyond the model and the plane's own tensors."""
    model = network()
    known = {t.data_ptr() for t in model.parameters()}
    known |= {t.data_ptr() for axis in plane.axes for t in getattr(axis, "values", {}).values()}
    survey = landscape.surface_task.SurfaceTask({"": make_risk(model)}, (plane,), paired=False)
    with survey.setup() as place:
        kept = inspect.getclosurevars(place.movers[0]).nonlocals["stored"]
        held = [*place.base, *(t for axis in kept for t in axis)]
        return sum(t.untyped_storage().nbytes() for t in held if t.data_ptr() not in known)


def test_the_extra_memory_is_one_copy_of_the_parameters_beside_stored_directions():
    model = network()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    stored, again = random_plane(model), random_plane(model, stored=False)
    assert sum(v.numel() * 4 for axis in stored.axes for v in axis.values.values()) == 2 * size
    assert not any(isinstance(v, torch.Tensor) for axis in again.axes for v in vars(axis).values())
    for plane in (stored, again):
        assert bytes_held(plane) == size  # the base; stored directions are used where they are


def test_other_threads_change_nothing_beyond_rounding_and_are_recorded(tmp_path):
    model = network()
    metric = Snoop(22, KeyboardInterrupt())
    plane = random_plane(model)
    one = evaluate(make_risk(model), plane, grid(3, 3))
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_risk(model, metrics={"snoop": metric}), plane, grid(3, 3), store=tmp_path / "s.zarr")
    torch.set_num_threads(2)
    try:
        two = evaluate(make_risk(model), plane, grid(3, 3))
        mixed = evaluate(make_risk(model, metrics={"snoop": metric}), plane, grid(3, 3), store=tmp_path / "s.zarr")
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-6)
    assert mixed.attrs["threads"] == 1 and mixed.attrs["resumed_with_threads"] == 2
    assert one.attrs["threads"] == 1 and two.attrs["threads"] == 2


def test_streaming_data_are_read_once_per_chunk():
    class Counting(list):
        reads = 0

        def __iter__(self):
            type(self).reads += 1
            return super().__iter__()

    model = network()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), Counting(data()), resident=False)
    plane = random_plane(model)
    risk.data_fingerprint()  # read once and kept
    passes = []
    for chunk in (1, 12):
        before = Counting.reads
        evaluate(risk, plane, grid(4, 3), chunk=chunk)
        passes.append(Counting.reads - before)
    assert passes[0] - passes[1] == 11


def test_batch_size_changes_nothing_beyond_rounding():
    model = network()
    plane = random_plane(model)
    plain = evaluate(make_risk(model), plane, grid(3, 3))
    for size in (1, 5, 100):
        other = evaluate(make_risk(model), plane, grid(3, 3), batch_size=size)
        np.testing.assert_allclose(other.loss, plain.loss, rtol=1e-6)
        np.testing.assert_allclose(other.loss_se, plain.loss_se, rtol=1e-5)
        assert json.loads(other.attrs["kernel"])["batch_size"] == size


def test_splits_share_one_pass_and_keep_apart():
    model = network()
    risks = {
        "train": make_risk(model),
        "test": EmpiricalRisk(model, nn.CrossEntropyLoss(), data((4, 9), seed=5)),
    }
    plane = random_plane(model)
    surface = evaluate(risks, plane, grid(3, 3), probes=[landscape.GradientNorm()])
    assert surface.loss.dims == ("split", "x", "y") and surface.status.dims == ("x", "y")
    for split, risk in risks.items():
        alone = evaluate(risk, plane, grid(3, 3), probes=[landscape.GradientNorm()])
        for name in ("loss", "loss_se", "accuracy", "gradient_norm", "loss_difference_se"):
            np.testing.assert_array_equal(surface[name].sel(split=split).values, alone[name].values)


def test_several_planes_at_once():
    model = network()
    planes = [random_line(model, seed=seed) for seed in range(3)]
    surface = evaluate(make_risk(model), planes, grid(5))
    assert surface.loss.dims == ("direction", "x")
    for number, plane in enumerate(planes):
        alone = evaluate(make_risk(model), plane, grid(5))
        np.testing.assert_array_equal(surface.loss.isel(direction=number).values, alone.loss.values)
    assert len(set(surface.loss.sel(x=1.0).values.tolist())) == 3


def test_gradient_norm_is_that_of_the_exact_gradient():
    model = network()
    surface = evaluate(make_risk(model), random_line(model), grid(3), probes=[landscape.GradientNorm()])
    inputs, targets = torch.cat([b[0] for b in data()]), torch.cat([b[1] for b in data()])
    grads = torch.autograd.grad(nn.CrossEntropyLoss()(model(inputs), targets), list(model.parameters()))
    expected = torch.cat([g.reshape(-1) for g in grads]).norm().item()
    assert float(surface.gradient_norm.sel(x=0.0)) == pytest.approx(expected, rel=1e-5)


def test_the_recipe_computes_any_point_again():
    model = network()
    surface = evaluate(make_risk(model), random_plane(model, seed=7), grid(4, 3))
    recipe = json.loads(surface.attrs["recipe"])
    arguments = recipe["planes"][0]["arguments"]
    fresh = network()
    plane = random_plane(fresh, **arguments)
    i, j = 2, 1
    place = landscape.Grid(np.array([recipe["grid"]["x"][i]]), np.array([recipe["grid"]["y"][j]]))
    again = evaluate(make_risk(fresh), plane, place)
    assert float(again.loss[0, 0]) == float(surface.loss[i, j])
    assert {"seed", "normalization"} <= set(arguments)
    for name in ("precision", "batch_norm", "threads", "samples", "created", "revision"):
        assert name in surface.attrs
    assert surface.attrs["samples"] == 17 and surface.x.attrs["units"] == "norm of the weights, per filter"
    assert recipe["planes"][0]["rules"]["0.weight"] == "filter axis 0" and abs(recipe["planes"][0]["cosine"]) < 1


def test_planes_and_surfaces_show_themselves_briefly():
    model = network()
    plane = random_plane(model)
    assert len(repr(plane)) < 700 and "cosine" in repr(plane) and "tensor(" not in repr(plane) + repr(plane.axes)
    assert "loss" in evaluate(make_risk(model), plane, grid(3, 3))._repr_html_()


def test_events_estimate_the_time():
    model = network()
    events = []
    evaluate(make_risk(model), random_plane(model), grid(3, 3), on_event=events.append)
    assert events[0].kind == "started" and events[0].remaining > 0 and events[0].total == 9
    assert events[-1].kind == "done" and events[-1].rate > 0
    assert [e.done for e in events if e.kind == "progress"] == list(range(1, 10))


def test_a_store_of_anything_else_is_refused(tmp_path):
    model = network()
    plane = random_plane(model)
    path = tmp_path / "s.zarr"
    evaluate(make_risk(model), plane, grid(3, 3), store=path)
    before = results.open(path)
    other = network(1)
    changes = [
        (make_risk(model), random_plane(model, seed=1), grid(3, 3)),
        (make_risk(model), random_plane(model, normalization="layer"), grid(3, 3)),
        (make_risk(model), plane, grid(3, 3, extent=0.5)),
        (make_risk(model), plane, grid(5, 3)),
        (make_risk(other), random_plane(other), grid(3, 3)),
        (EmpiricalRisk(model, nn.CrossEntropyLoss(), data(seed=1)), plane, grid(3, 3)),
        (EmpiricalRisk(model, nn.CrossEntropyLoss(label_smoothing=0.1), data()), plane, grid(3, 3)),
        (make_risk(model, batch_norm="batch"), plane, grid(3, 3)),
    ]
    for arguments in changes:
        with pytest.raises(StoreError, match="another recipe"):
            evaluate(*arguments, store=path)
    xr.testing.assert_identical(results.open(path), before)


RUN = """
import sys, torch
torch.set_num_threads(1)
from tests.unit import test_landscape_evaluate as t
from lowland.results import dataset
dataset._SECONDS = 0.0
model = t.network()
told = lambda output, batch: (print("call", flush=True), output.detach().abs().mean(1))[1]
t.evaluate(t.make_risk(model, metrics={"told": told}), t.random_plane(model), t.grid(7, 6), store=sys.argv[1])
"""


@pytest.mark.parametrize("kills", [(41,), pytest.param((41, 57), marks=pytest.mark.slow)])
def test_killed_at_any_moment_a_survey_goes_on_to_the_same_bits(kills, tmp_path):
    path = tmp_path / "s.zarr"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.getcwd(), *sys.path]))
    counts = []
    for calls in (*kills, None):  # 126 calls measure all points, some more the center and the determinism
        process = subprocess.Popen([sys.executable, "-c", RUN, str(path)], stdout=subprocess.PIPE, env=environment)
        if calls is None:
            process.communicate()
        else:
            for _ in range(calls):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        counts.append(int((results.open(path).status == 1).sum()))
    assert counts[0] > 0 and counts == sorted(set(counts)) and counts[-1] == 42 and process.returncode == 0
    model = network()
    whole = evaluate(make_risk(model), random_plane(model), grid(7, 6))
    np.testing.assert_array_equal(results.open(path).loss.values, whole.loss.values)


def test_ctrl_c_keeps_finished_points(tmp_path):
    model = network()
    metric = Snoop(23, KeyboardInterrupt())
    risk = make_risk(model, metrics={"snoop": metric})
    plane = random_plane(model)
    with pytest.raises(KeyboardInterrupt):
        evaluate(risk, plane, grid(3, 3), store=tmp_path / "s.zarr")
    done = int((results.open(tmp_path / "s.zarr").status == 1).sum())
    assert 1 <= done <= 4
    assert (evaluate(risk, plane, grid(3, 3), store=tmp_path / "s.zarr").status == 1).all()


def test_arguments_that_do_not_fit_are_refused():
    model, other = network(), network(1)
    risk, plane = make_risk(model), random_plane(model)
    with pytest.raises(InputError, match="`grid` must have 2 axes"):
        evaluate(risk, plane, grid(3))
    with pytest.raises(InputError, match="made at the weights"):
        evaluate(make_risk(other), plane, grid(3, 3))
    with pytest.raises(InputError, match="architecture"):
        evaluate(make_risk(nn.Sequential(nn.Linear(5, 3))), plane, grid(3, 3))
    with pytest.raises(InputError, match="one model"):
        evaluate({"a": risk, "b": make_risk(other)}, plane, grid(3, 3))
    with pytest.raises(InputError, match="one batch-norm mode"):
        evaluate({"a": risk, "b": make_risk(model, batch_norm="batch")}, plane, grid(3, 3))
    with pytest.raises(InputError, match="`batch_size`"):
        evaluate(risk, plane, grid(3, 3), batch_size=0)
    with pytest.raises(InputError, match="`batch_size`"):
        evaluate(make_risk(model, batch_norm="batch"), plane, grid(3, 3), batch_size=2)
    with pytest.raises(InputError, match="`probes`"):
        evaluate(risk, plane, grid(3, 3), probes=[len])
    clash = landscape.GradientNorm()
    clash.names = ("loss",)
    with pytest.raises(InputError, match="the risk's own metrics"):
        evaluate(risk, plane, grid(3, 3), probes=[clash])
    with pytest.raises(InputError, match="every number once"):
        evaluate(risk, plane, grid(3, 3), probes=[landscape.GradientNorm(), landscape.GradientNorm()])
    with pytest.raises(InputError, match="`engine`"):
        evaluate(risk, plane, grid(3, 3), engine="seriall")
    with pytest.raises(InputError, match="`risk`"):
        evaluate({}, plane, grid(3, 3))
    with pytest.raises(InputError, match="trainable"):
        random_plane(nn.ReLU())
    with pytest.raises(InputError, match="norms above 0"):
        random_plane(nn.BatchNorm1d(3))


def test_data_or_outputs_that_change_are_found_before_anything_is_written(tmp_path):
    class Restless(list):
        def __iter__(self):
            return iter([(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))])

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(())

    model = network()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), Restless())
    with pytest.raises(NotDeterministic, match="batches"):
        evaluate(risk, random_plane(model), grid(3, 3), store=tmp_path / "s.zarr")
    noisy = Noisy(5, 3)
    with pytest.raises(NotDeterministic, match="model"):
        evaluate(make_risk(noisy), random_plane(noisy), grid(3, 3), store=tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_the_estimate_class_is_the_one_that_is_stored():
    model = network()
    surface = evaluate(make_risk(model), random_line(model), grid(1, extent=(-1, 1)))
    assert isinstance(make_risk(model).evaluate()["loss"], Estimate)
    assert float(surface.loss_skew[0]) == make_risk(model).evaluate()["loss"].skewness


@pytest.mark.parametrize(
    ("normalization", "unit"),
    [
        ("filter", "norm of the weights, per filter"),
        ("layer", "norm of the weights, per layer"),
        ("weight", "norm of the weights, per weight"),
    ],
)
def test_the_unit_is_that_of_the_normalization(normalization, unit):
    model = nn.Linear(3, 2)
    directions = [[torch.ones_like(p) for p in model.parameters()]]
    given = landscape.user_plane(model, directions, normalization=normalization)
    assert given.units == landscape.random_plane(model, normalization=normalization).units == unit


class Counting(nn.Module):
    """A network that counts the samples it has seen."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), 0

    def forward(self, x):
        self.seen += len(x)
        return self.inner(x)


@pytest.mark.parametrize("mode", ["running", "recalibrated"])
@pytest.mark.parametrize("size", [5000, 500])
@pytest.mark.parametrize("paired", [False, True])
def test_checks_at_the_start_take_no_more_than_two_points(mode, size, paired):
    """What a paired survey measures at the origin comes on top, as its documentation says."""
    model = Counting().eval()
    x, y = torch.randn(5000, 4), torch.randint(3, (5000,))
    risk = EmpiricalRisk(
        model, nn.CrossEntropyLoss(), list(zip(x.split(size), y.split(size), strict=True)), batch_norm=mode
    )
    seen = []
    landscape.evaluate(
        risk,
        landscape.random_line(model),
        landscape.grid(5),
        paired=paired,
        on_event=lambda event: seen.append(model.seen),
    )
    point = seen[3] - seen[2]
    assert (seen[1] - point) / point <= 2.1 + paired


class RowByRow(nn.Linear):
    """A linear model without matrix products, whose last bits belong to the processor and the size of the batch."""

    def forward(self, x):
        return sum(x[:, k] * self.weight[0, k] for k in range(x.shape[1])).unsqueeze(1) + self.bias


@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_errors_have_the_same_bits_for_every_batching_where_the_outputs_have(threads):
    """Beyond one block of sums, and beyond where torch shares a sum among threads."""
    x, y = torch.randn(40001, 3).round(decimals=1), torch.randn(40001, 1)
    model = RowByRow(3, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = set()
        for size in (40001, 16384, 777):
            risk = EmpiricalRisk(model, nn.MSELoss(), list(zip(x.split(size), y.split(size), strict=True)))
            estimate = risk.evaluate()["loss"]
            line = landscape.evaluate(risk, landscape.random_line(model), landscape.grid(3))
            assert float(line.loss[1]) == estimate.value and float(line.loss_se[1]) == estimate.standard_error
            found.add((estimate.value, estimate.standard_error, estimate.skewness))
        assert len(found) == 1
    finally:
        torch.set_num_threads(before)
