"""Surveys on several engines: the same bits, resumed after kills and full disks; convexity maps with warm starts."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine_cases import alive
from torch import nn

from lowland import EmpiricalRisk, curvature, engine, landscape, results
from lowland.core.errors import InputError, StoreError
from lowland.landscape.grid import ordered

ENGINES = {
    "processes:1": lambda: engine.Processes(1, threads=1),
    "processes:2": lambda: engine.Processes(2, threads=1),
    "processes:4": lambda: engine.Processes(4, threads=1),
    "ray:1": lambda: engine.Ray(workers=1, threads=1),
    "ray:2": lambda: engine.Ray(workers=2, threads=1),
    "ray:4": lambda: engine.Ray(workers=4, threads=1),
}
SLOW = [name if name == "processes:2" else pytest.param(name, marks=pytest.mark.slow) for name in ENGINES]


@pytest.fixture(scope="module", autouse=True)
def _one_cluster():
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, images):
        return self.body(images)


def make_risk(batch_norm="running", model=None):
    torch.manual_seed(0)
    model = model or Net()
    images, targets = torch.randn(40, 1, 8, 8), torch.randint(3, (40,))
    batches = [(images[:16], targets[:16]), (images[16:], targets[16:])]
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, batch_norm=batch_norm)


def survey(name, *, shape=(6, 5), batch_norm="running", planes=1, **options):
    risk = make_risk(batch_norm)
    directions = [landscape.random_plane(risk.model, seed=seed) for seed in range(planes)]
    where = ENGINES[name]() if name in ENGINES else name
    return landscape.evaluate(risk, directions, landscape.grid(*shape, extent=1.0), engine=where, **options)


def same(first, second):
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=name)
    return set(first.data_vars) == set(second.data_vars)


@pytest.mark.parametrize("name", SLOW)
def test_the_same_bits_on_every_engine_and_in_an_object_store_and_the_threads_of_its_workers_are_recorded(name):
    store = f"memory://scaled/{name.replace(':', '-')}.zarr"
    found = survey(name, planes=2, chunk=3, store=store)
    assert same(found, survey("serial", planes=2)) and found.attrs["threads"] == 1
    assert same(results.open(store), found)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["batch", "recalibrated"])
def test_the_same_bits_in_every_batch_norm_mode(batch_norm):
    assert same(survey("processes:2", batch_norm=batch_norm), survey("serial", batch_norm=batch_norm))


@pytest.mark.parametrize("name", ["processes:2", pytest.param("ray:2", marks=pytest.mark.slow)])
def test_a_convexity_map_hands_its_warm_starts_on(name):
    probes = [curvature.Convexity(max_products=30)]
    alone = survey("serial", shape=(4, 4), probes=probes)
    assert same(survey(name, shape=(4, 4), probes=probes, chunk=2), alone)
    assert len(set(alone["products"].values.ravel())) > 1  # some were warm and needed fewer


class Chain:
    """Counts the ancestors of a point by what its parent handed on; fails or kills its process where told."""

    names, warm_start = ("ancestors",), True

    def __init__(self, failing=None, kill=False):
        self.failing, self.kill = failing, kill

    def describe(self):
        return {"probe": "chain"}

    def __call__(self, risk, parent):
        if self.failing is not None and abs(risk.model.body[0].weight[0, 0, 0, 0].item() - self.failing) < 1e-6:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no value here")
        count = 0.0 if parent is None else float(parent["count"][0]) + 1
        return {"ancestors": count, "count": np.array([count])}


def ancestors(where, failing):
    """What `Chain` must give: along the grid's parents, from nought again below a point that failed."""
    found = {}
    for index, parent in ordered(where, parents=True):
        found[index] = np.nan if index == failing else found[parent] + 1 if found.get(parent, np.nan) >= 0 else 0.0
    return np.array([found[index] for index in range(where.size)]).reshape(where.shape)


@pytest.mark.parametrize(
    ("name", "chunk"),
    [("serial", 1), ("serial", 4), ("processes:2", 4), pytest.param("processes:2", 1, marks=pytest.mark.slow)],
)
def test_every_child_gets_its_parent_s_arrays_and_none_where_that_failed(name, chunk):
    where = landscape.grid(9, 9, extent=1.0)
    if name == "serial":  # between processes, the convexity map above
        assert (survey(name, shape=(9, 9), probes=[Chain()], chunk=chunk)["ancestors"] == ancestors(where, None)).all()
    parent = 20  # has children, and parents
    risk = make_risk()
    plane = landscape.random_plane(risk.model, seed=0)
    axes = [axis.values["body.0.weight"][0, 0, 0, 0].item() for axis in plane.axes]
    start = risk.model.body[0].weight[0, 0, 0, 0].item()
    there = start + sum(a * x for a, x in zip(axes, where.coordinates(parent), strict=True))
    probes = [Chain(failing=there, kill=name != "serial")]
    found = survey(name, shape=(9, 9), probes=probes, chunk=chunk)
    assert int((found["status"] == 3).sum()) == 1 and found["status"].values.ravel()[parent] == 3
    np.testing.assert_array_equal(found["ancestors"], ancestors(where, parent))


def test_the_model_in_this_process_is_left_alone_and_workers_are_kept_for_a_refinement(monkeypatch):
    started = []
    start = engine.processes._Worker.__init__
    monkeypatch.setattr(
        engine.processes._Worker, "__init__", lambda *words: (started.append(words[1]), start(*words))[1]
    )
    risk = make_risk()
    before = {name: value.clone() for name, value in risk.model.state_dict().items()}
    plane = landscape.random_plane(risk.model, seed=0)
    options = {"refined": landscape.Tolerance(0.05)}
    found = landscape.evaluate(
        risk, plane, landscape.grid(17, 17, extent=1.0), engine=ENGINES["processes:2"](), **options
    )
    assert started == [0, 1] and (found["status"] == 1).sum() < 17 * 17
    assert all(torch.equal(value, before[name]) for name, value in risk.model.state_dict().items())
    assert same(found, survey("serial", shape=(17, 17), **options))


def test_directions_that_are_drawn_again_for_every_point_save_memory_and_change_no_bit():
    """The way to survey a model that fills a device: no worker ever holds a direction."""
    risk = make_risk()
    where = landscape.grid(4, 3, extent=1.0)
    stored = landscape.evaluate(risk, landscape.random_plane(risk.model, seed=0), where)
    drawn = landscape.random_plane(risk.model, seed=0, stored=False)
    assert same(landscape.evaluate(risk, drawn, where, engine=ENGINES["processes:1"]()), stored)


@pytest.mark.slow
def test_the_job_file_runs_as_it_stands(tmp_path):
    script, path = Path("examples/ray_survey.py").resolve(), tmp_path / "s.zarr"
    words = [sys.executable, str(script), str(path), "--points", "5"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "done: 25/25" in done.stdout, done.stderr
    words = [sys.executable, str(script), str(tmp_path / "alone.zarr"), "--points", "5", "--engine", "serial"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=120, env=one_thread())
    np.testing.assert_allclose(results.open(path).loss, results.open(tmp_path / "alone.zarr").loss, rtol=1e-6)


def one_thread():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_model_that_cannot_be_sent_is_named():
    model = Net()
    model.body[2].hook = (value for value in ())
    risk = make_risk(model=model)
    with pytest.raises(InputError, match=r"model\.body\.2\.hook.*generator"):
        landscape.evaluate(
            risk, landscape.random_plane(model), landscape.grid(2, 2, extent=1.0), engine=ENGINES["processes:2"]()
        )


_DRIVER = """
    import sys, time, torch
    sys.path.insert(0, {root!r})
    torch.set_num_threads(1)
    from tests.integration import test_scaled_surveys as tests

    class Slow(tests.Net):
        def forward(self, images):
            time.sleep(0.03)
            return super().forward(images)

    tests.Net = Slow
    tests.survey({engine!r}, shape=(12, 9), store={path!r}, chunk=2)
    print("done", flush=True)
"""


def start_driver(tmp_path, name="processes:2"):
    script = tmp_path / "driver.py"
    text = textwrap.dedent(_DRIVER).format(root=str(Path.cwd()), engine=name, path=str(tmp_path / "s.zarr"))
    script.write_text(text)
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measured(path):
    try:
        return int((results.open(path)["status"] == 1).sum())
    except StoreError:
        return 0


@pytest.mark.slow
def test_the_driver_killed_ten_times_and_the_store_is_the_same(tmp_path):
    rng, path, seen = random.Random(0), tmp_path / "s.zarr", [0]
    for kill in range(10):
        driver = start_driver(tmp_path)
        deadline = time.monotonic() + (60 if kill % 3 else rng.uniform(0.5, 3.0))  # some before the first point
        while measured(path) == seen[-1] and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 0.3))
        assert driver.poll() is None
        driver.kill()
        driver.communicate()
        seen.append(measured(path))
    assert seen == sorted(seen) and 0 < seen[-1] < 108  # what was stored is never lost
    driver = start_driver(tmp_path)
    output, errors = driver.communicate(timeout=120)
    assert "done" in output, errors
    assert same(results.open(path), survey("serial", shape=(12, 9)))


def test_ctrl_c_keeps_what_was_measured_and_ends_all(tmp_path):
    driver = start_driver(tmp_path)
    deadline = time.monotonic() + 60
    while measured(tmp_path / "s.zarr") < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    family = subprocess.run(["ps", "-o", "pid=", "--ppid", str(driver.pid)], capture_output=True, text=True).stdout
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=5)  # the promise: within 5 s
    assert "KeyboardInterrupt" in errors
    assert len(family.split()) >= 2 and not any(alive(int(pid)) for pid in family.split())
    before = measured(tmp_path / "s.zarr")
    assert before >= 5
    events = []
    found = survey("serial", shape=(12, 9), store=tmp_path / "s.zarr", on_event=events.append)
    assert events[0].done == before and same(found, survey("serial", shape=(12, 9)))


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_a_resume_goes_on(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        path = place / "s.zarr"
        with pytest.raises(_Enough):
            survey("serial", shape=(9, 9), store=path, on_event=_stop_after(20))
        before = measured(path)
        ballast = place / "ballast"
        _fill(ballast)
        with pytest.raises(StoreError, match=r"cannot write .*No space left"):
            survey("processes:2", shape=(9, 9), store=path)
        assert measured(path) >= before
        ballast.unlink()
        assert same(survey("processes:2", shape=(9, 9), store=path), survey("serial", shape=(9, 9)))
        assert same(results.open(path), survey("serial", shape=(9, 9)))
    finally:
        subprocess.run(["umount", place], check=True)


def _stop_after(count):
    def tell(event):
        if event.done >= count:
            raise _Enough

    return tell


class _Enough(Exception):
    pass


def _fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    assert os.path.getsize(path) > 0
