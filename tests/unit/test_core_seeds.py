"""Seed streams, fingerprints, schema, errors, names, lazy imports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

from lowland.core import schema
from lowland.core.errors import InputError, MissingExtra, StoreError, optional_import
from lowland.core.provenance import fingerprint, provenance
from lowland.core.seeds import PURPOSES, generator, normal, rademacher, torch_seed
from lowland.core.types import Batch, as_batch


def test_direction_numbers_are_pinned():
    """Stored results are recomputed from seeds: a NumPy that draws others must be noticed."""
    numbers = generator(0, "direction", 0, "conv.weight").standard_normal(3)
    assert numbers.tolist() == pytest.approx(PINNED, rel=1e-15)


PINNED = [0.1478031304287538, -1.281922520340965, 0.9558467192596188]


def test_streams_are_independent_of_order_device_layout_and_type():
    like = torch.zeros(4, 3, 2, 2)
    first = normal(like, 1, "direction", 0, "a")
    generator(1, "direction", 1, "a").standard_normal(5)
    assert torch.equal(first, normal(like.to(memory_format=torch.channels_last), 1, "direction", 0, "a"))
    assert torch.allclose(first.double(), normal(like.double(), 1, "direction", 0, "a"), rtol=1e-7)
    assert not torch.equal(first, normal(like, 1, "direction", 1, "a"))
    assert len({torch_seed(0, purpose) for purpose in PURPOSES}) == len(PURPOSES)
    assert set(rademacher(like, 0, "probe").unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0"])
def test_bad_seeds(seed):
    with pytest.raises(InputError, match="`seed`"):
        generator(seed, "order")


def test_unknown_purpose():
    with pytest.raises(InputError, match="`purpose` must be one of"):
        generator(0, "directions")


def test_fingerprint_sees_bits_shape_type_and_name_but_not_layout():
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    base = fingerprint({"x": x})
    assert base == fingerprint({"x": x.to(memory_format=torch.channels_last)})
    assert base != fingerprint({"y": x})
    assert base != fingerprint({"x": x.double()})
    assert base != fingerprint({"x": x.reshape(24)})
    assert base != fingerprint({"x": x + 1e-6})
    assert fingerprint([torch.zeros(2, dtype=torch.bfloat16)])


def test_provenance_is_plain():
    assert schema.plain(provenance())["machine"]


def test_surface_schema():
    surface = schema.new_surface(
        [-1, 0, 1], [0, 1], metrics=["loss", "mine"], errors=["loss"], splits=["train", "test"]
    )
    assert surface["loss"].dims == ("split", "x", "y")
    assert surface["status"].dims == ("x", "y")
    assert int(surface["status"].max()) == schema.STATUS_OPEN
    assert np.isnan(surface["loss_se"]).all()
    assert "mine_se" not in surface
    assert schema.check(surface, "surface") == "surface"
    line = schema.new_surface([0.0, 1.0], directions=["0", "1"])
    assert line["loss"].dims == ("direction", "x")


@pytest.mark.parametrize(
    ("x", "options"),
    [([], {}), ([0, 0], {}), ([0, np.nan], {}), ([0, 1], {"metrics": ["status"]}), ([0], {"attrs": {"a": object()}})],
)
def test_bad_surfaces(x, options):
    with pytest.raises(InputError):
        schema.new_surface(x, **options)


def test_foreign_newer_and_damaged_results_are_refused():
    surface = schema.new_surface([0.0, 1.0])
    with pytest.raises(StoreError, match="not a result of Lowland"):
        schema.check(xr.Dataset())
    with pytest.raises(StoreError, match="newer"):
        schema.check(surface.assign_attrs(schema="lowland.surface/99"))
    with pytest.raises(StoreError, match="damaged"):
        schema.check(surface.drop_vars("status"))
    with pytest.raises(StoreError, match="expected a trajectory"):
        schema.check(surface, "trajectory")


def test_missing_extra_names_the_install_line():
    with pytest.raises(MissingExtra, match=r'pip install "lowland\[vtk\]"'):
        optional_import("no_such_package_at_all", extra="vtk", needed_for="a VTK file")


def test_input_error_shortens_what_it_shows():
    assert len(str(InputError("x", "must be short", "a" * 1000))) < 300


def test_batches_of_nested_inputs():
    batch = as_batch({"input_ids": torch.zeros(3, 2), "labels": torch.zeros(3), "sample_id": torch.arange(3)})
    assert batch.size == 3
    assert set(batch.input) == {"input_ids", "labels"}
    assert batch.to("cpu").index.tolist() == [0, 1, 2]
    assert Batch((torch.zeros(5, 1), torch.zeros(5))).size == 5


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "lightning_fabric"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import lowland, lowland.core.schema, lowland.core.errors, lowland.core.provenance, lowland.core.names
for room in ("results", "viz", "report"):
    __import__(f"lowland.{room}")
lowland.core.provenance.provenance()
assert "torch" not in sys.modules
"""


def test_results_rooms_import_without_torch():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, lowland; print([m for m in ('torch', 'numpy', 'xarray', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
