"""Versions of results: every older one leads to the present one, and the present one is handed through."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lowland.core.errors import StoreError
from lowland.core.schema import KINDS, MIGRATIONS, migrated, new_curvature, new_surface, new_trajectory


def test_measures_of_0_1_0_have_the_present_names():
    old = new_curvature(
        [],
        [],
        variables={"measure": ("measure", ["worst l2 plain rho=0.5, normalised"]), "sharpness": ("measure", [1.0])},
    )
    found = migrated(old.assign_attrs(schema="lowland.curvature/1"))
    assert (
        found["measure"].values.tolist() == ["worst l2 plain rho=0.5, normalized"] and float(found["sharpness"][0]) == 1
    )


def test_current_results_are_handed_through():
    for made in (new_surface(np.arange(3.0), metrics=["loss"]), new_trajectory([[0.0, 1.0]], steps=[0], variables={})):
        assert migrated(made) is made
    with pytest.raises(StoreError):
        migrated(xr.Dataset())


def test_every_version_below_the_current_one_has_a_migration():
    """Whoever raises a version writes the step that leads to it."""
    assert {key for kind, version in KINDS.items() for key in ((kind, v) for v in range(1, version))} == set(MIGRATIONS)
