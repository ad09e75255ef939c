"""Files of the tool of Li et al.: orders of rows and columns, open points, directions; twins written by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lowland import landscape, results
from lowland.core.errors import InputError, MissingExtra, StoreError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_surface

h5py = pytest.importorskip("h5py")


def value(x, y):
    return 10 * x + y


def as_the_tool_does(path, x, y, done=None):
    """Fills the arrays as that tool's scheduler and loop do: flat numbers of the coordinates' own mesh."""
    with h5py.File(path, "w") as file:
        file["dir_file"] = "directions.h5"
        file["xcoordinates"], file["ycoordinates"] = x, y
        losses, hits = -np.ones((len(x), len(y))), -np.ones((len(x), len(y)))
        mesh_x, mesh_y = np.meshgrid(x, y)
        for k, (a, b) in enumerate(zip(mesh_x.ravel(), mesh_y.ravel(), strict=True)):
            if done is None or k in done:
                losses.ravel()[k], hits.ravel()[k] = value(a, b), 50 + a
        file["train_loss"], file["train_acc"] = losses, hits


@pytest.mark.parametrize(("nx", "ny"), [(4, 4), (4, 3), (2, 5)])
def test_every_value_comes_to_its_own_coordinates(nx, ny, tmp_path):
    x, y = np.linspace(-1, 1, nx), np.linspace(0, 3, ny)
    as_the_tool_does(tmp_path / "s.h5", x, y)
    found = results.read_li_hdf5(tmp_path / "s.h5")
    np.testing.assert_allclose(found.loss, value(x[:, None], y[None]))
    np.testing.assert_allclose(found.accuracy, np.broadcast_to((50 + x[:, None]) / 100, (nx, ny)))
    assert (found.status == 1).all() and found.loss.dims == ("x", "y")
    results.write_li_hdf5(found, tmp_path / "t.h5", directions="directions.h5")
    with h5py.File(tmp_path / "s.h5") as first, h5py.File(tmp_path / "t.h5") as second:
        assert set(first) == set(second)
        for name in ("xcoordinates", "ycoordinates", "train_loss", "train_acc"):
            np.testing.assert_allclose(first[name][...], second[name][...])
        assert second["dir_file"][()].decode() == "directions.h5"


def test_open_points_lines_splits_and_broken_values(tmp_path):
    as_the_tool_does(tmp_path / "s.h5", np.arange(3.0), np.arange(2.0), done={0, 4})
    found = results.read_li_hdf5(tmp_path / "s.h5")
    assert int((found.status == 0).sum()) == 4 and np.isnan(found.loss.values[found.status.values == 0]).all()
    assert np.isnan(found.accuracy.values[found.status.values == 0]).all(), "-1 is no accuracy, nor a hundredth of it"
    assert float(found.loss.sel(x=1, y=1)) == 11
    line = new_surface([0.0, 1.0, 2.0], metrics=["loss", "accuracy"], splits=["train", "test"])
    line["loss"].values[...] = [[1, np.nan, np.inf], [4, 5, 6]]
    line["accuracy"].values[...] = 0.25
    line["status"].values[...] = [1, 1, 3]
    results.write_li_hdf5(line, tmp_path / "l.h5")
    with h5py.File(tmp_path / "l.h5") as file:
        np.testing.assert_array_equal(file["train_loss"][...], [1, np.nan, -1])
        np.testing.assert_array_equal(file["test_acc"][...], [25, 25, -1])
    again = results.read_li_hdf5(tmp_path / "l.h5")
    assert again.status.values.tolist() == [1, 1, 0] and float(again.loss.sel(split="test", x=1)) == 5


def test_directions_go_there_and_back_and_give_the_same_surface(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    plane = landscape.random_plane(model)
    names = [name for name, _ in model.named_parameters()]
    weights = [[axis.values[name].numpy() for name in names] for axis in plane.axes]
    states = [
        [axis.values[n].numpy() if n in names else np.zeros(t.shape) for n, t in model.state_dict().items()]
        for axis in plane.axes
    ]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 1, 6, 6, generator=generator)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, torch.randint(3, (9,), generator=generator))])
    expected = landscape.evaluate(risk, plane, landscape.grid(3, 3))
    for kind, directions in (("weights", weights), ("states", states)):
        results.write_directions(tmp_path / f"{kind}.h5", directions)
        found = landscape.hdf5_plane(model, tmp_path / f"{kind}.h5", directions=kind)
        surface = landscape.evaluate(risk, found, landscape.grid(3, 3))
        np.testing.assert_array_equal(surface.loss, expected.loss)
    with pytest.raises(InputError, match="arrays per direction"):
        landscape.hdf5_plane(model, tmp_path / "states.h5")


def test_what_is_no_such_file_is_refused(tmp_path):
    (tmp_path / "text.h5").write_text("no")
    for read in (results.read_li_hdf5, results.read_directions):
        with pytest.raises(StoreError, match="cannot be opened"):
            read(tmp_path / "text.h5")
        with pytest.raises(StoreError, match="cannot be opened"):
            read(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["xcoordinates"] = np.arange(3.0)
    with pytest.raises(StoreError, match="neither"):
        results.read_li_hdf5(tmp_path / "other.h5")
    with pytest.raises(StoreError, match="xdirection"):
        results.read_directions(tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file["train_loss"] = np.arange(4.0)
        file.create_group("xdirection")["7"] = 1.0
    with pytest.raises(StoreError, match="do not fit"):
        results.read_li_hdf5(tmp_path / "other.h5")
    with pytest.raises(StoreError, match="numbered"):
        results.read_directions(tmp_path / "other.h5")
    surface = new_surface([0.0], metrics=["loss"], directions=["0", "1"])
    with pytest.raises(InputError, match="single plane"):
        results.write_li_hdf5(surface, tmp_path / "x.h5")
    with pytest.raises(InputError, match="split"):
        results.write_li_hdf5(new_surface([0.0], metrics=["loss"]), tmp_path / "x.h5", split="validation")
    with pytest.raises(InputError, match="one or two"):
        results.write_directions(tmp_path / "x.h5", [])
    with pytest.raises(StoreError, match="cannot be opened"):
        results.write_directions(tmp_path / "no" / "x.h5", [[np.ones(2)]])
    assert not (tmp_path / "x.h5").exists()


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"lowland\[hdf5\]"):
        results.read_li_hdf5(tmp_path / "s.h5")
    code = "import sys; sys.modules['h5py'] = None; sys.modules['torch'] = None\nimport lowland.results; print('fine')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "fine"
