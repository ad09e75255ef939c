"""A convexity map on disk: killed midway it goes on to the same bits, warm starts included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.test_curvature_probe import trained_risk

from lowland import landscape
from lowland.curvature import Convexity


def test_a_broken_map_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    risk = trained_risk()
    plane, grid = landscape.random_plane(risk.model, seed=2), landscape.grid(5, 5, extent=0.5)
    probes = [Convexity(check_share=0.2)]
    whole = landscape.evaluate(risk, plane, grid, probes=probes)
    assert (whole.products > 0).all() and whole.products.std() > 0

    def stop(event: Any) -> None:
        if event.kind == "progress" and event.done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        landscape.evaluate(risk, plane, grid, probes=probes, store=tmp_path / "map.zarr", on_event=stop)
    resumed = landscape.evaluate(risk, plane, grid, probes=probes, store=tmp_path / "map.zarr")
    for name in (*Convexity.names, "loss"):
        np.testing.assert_array_equal(whole[name].values, resumed[name].values, err_msg=name)
