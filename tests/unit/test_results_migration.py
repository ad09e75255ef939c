"""Results of other schema versions: older ones are migrated in memory, others refused with advice, all left as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lowland import results
from lowland.core.errors import StoreError
from lowland.core.schema import KINDS, MIGRATIONS, check, migrated, new_surface


def surface():
    made = new_surface(
        np.arange(3.0), np.arange(2.0), metrics=["loss"], attrs={"recipe_fingerprint": "a", "recipe": {"seed": 1}}
    )
    made["loss"][:] = np.arange(6.0).reshape(3, 2)
    made["status"][:] = 1
    return made


@pytest.fixture
def future(monkeypatch):
    """A Lowland two versions on, in which `loss` was renamed and then got another unit."""
    monkeypatch.setitem(KINDS, "surface", 4)
    monkeypatch.setitem(MIGRATIONS, ("surface", 2), lambda old: old.rename(loss="risk"))
    monkeypatch.setitem(MIGRATIONS, ("surface", 3), lambda old: old.assign(risk=old["risk"] * 1000.0))


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_an_older_store_is_migrated_step_by_step_and_left_as_it_is(tmp_path, request):
    results.save(surface(), tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    request.getfixturevalue("future")
    found = results.open(tmp_path / "s.zarr")
    assert found.attrs["schema"] == "lowland.surface/4" and check(found) == "surface"
    assert np.array_equal(found["risk"], surface()["loss"] * 1000.0) and "loss" not in found
    assert files(tmp_path / "s.zarr") == before


def test_a_survey_does_not_go_on_in_a_store_of_an_older_schema(tmp_path, request):
    results.save(surface(), tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    request.getfixturevalue("future")
    template = migrated(surface().assign_attrs(schema="lowland.surface/2"))
    with (
        pytest.raises(StoreError, match=r"lowland\.surface/2.*choose another store"),
        results.writer(tmp_path / "s.zarr", template),
    ):
        pass
    assert files(tmp_path / "s.zarr") == before


def test_a_version_that_nothing_leads_on_from_is_refused_with_advice(tmp_path, monkeypatch):
    results.save(surface(), tmp_path / "s.zarr")
    monkeypatch.setitem(KINDS, "surface", 3)
    with pytest.raises(StoreError, match="no longer reads; measure it anew"):
        results.open(tmp_path / "s.zarr")


def test_a_migration_of_a_damaged_result_is_one_error(future):
    with pytest.raises(StoreError, match="damaged"):
        migrated(surface().drop_vars("loss").assign_attrs(schema="lowland.surface/2"))


@pytest.mark.parametrize(
    ("stamp", "words"),
    [
        ("lowland.surface/3", "newer"),
        ("lowland.surface/99999999999999999999", "newer"),
        ("lowland.surface/0", "no longer reads"),
        ("lowland.surface/-1", "not a result"),
        ("lowland.surface/", "not a"),
        ("lowland.surface/²", "not a result"),
        ("lowland.map/1", "not a result"),
        ("surface/1", "not a result"),
        ("", "not"),
    ],
)
def test_stamps(stamp, words, tmp_path):
    results.save(surface(), tmp_path / "s.zarr")
    content = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())
    content["attributes"]["schema"] = stamp
    (tmp_path / "s.zarr" / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=words):
        results.open(tmp_path / "s.zarr")


@pytest.fixture
def store_of_0_1_0(tmp_path):
    """A store as 0.1.0 wrote it, by its own words; half of its points are measured."""
    made = surface()
    made["status"][2], made["loss"][2] = 0, np.nan
    for axis in ("x", "y"):
        made[axis].attrs["units"] = "normalised direction"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "surface", 1)
        results.save(made.assign_attrs(schema="lowland.surface/1"), tmp_path / "old.zarr")
    return tmp_path / "old.zarr"


def test_a_store_of_0_1_0_opens_with_the_present_units(store_of_0_1_0):
    before = files(store_of_0_1_0)
    found = results.open(store_of_0_1_0)
    assert found.attrs["schema"] == "lowland.surface/2"
    assert {found[axis].attrs["units"] for axis in ("x", "y")} == {"normalized direction"}
    assert found["loss"][:2].equals(surface()["loss"][:2]) and files(store_of_0_1_0) == before


def test_a_survey_goes_on_in_a_store_of_0_1_0(store_of_0_1_0):
    template = surface()
    template["status"][:], template["loss"][:] = 0, np.nan
    with results.writer(store_of_0_1_0, template) as keeper:
        assert keeper.resumed and list(keeper.status) == [1, 1, 1, 1, 0, 0]
        for point in (4, 5):
            keeper.put(point, {"loss": float(point)})
    assert results.open(store_of_0_1_0).identical(surface())
    written = json.loads((store_of_0_1_0 / "zarr.json").read_text())["attributes"]["schema"]
    assert written == "lowland.surface/2"
    other = template.assign_attrs(recipe_fingerprint="b", recipe='{"seed": 2}')
    with pytest.raises(StoreError, match="another recipe"), results.writer(store_of_0_1_0, other):
        pass


def test_a_refused_survey_leaves_a_store_of_0_1_0_as_it_was(store_of_0_1_0):
    before = files(store_of_0_1_0)
    other = surface().assign_attrs(recipe_fingerprint="b", recipe='{"seed": 2}')
    with pytest.raises(StoreError, match="another recipe"), results.writer(store_of_0_1_0, other):
        pass
    assert files(store_of_0_1_0) == before
