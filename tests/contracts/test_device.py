"""Every room on a device that is not the processor: its numbers, no tensors of two devices in one operation, and no
waiting for the device inside steps."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests import device_cases

TOLERANCES = {"optimizers": (1e-4, 1e-6), "losses": (1e-4, 1e-6), "measurements": (1e-6, 1e-10)}
"""Room -> relative and absolute: the first two train in float32."""


@pytest.fixture(scope="module")
def found():
    """What a process with another device prints, which is as long in starting as in all that it computes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.other_device"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_other_device_refuses_what_an_accelerator_refuses(found):
    assert found["refused"] == ["MixedDevices", "HostRead"]


@pytest.mark.parametrize("room", device_cases.ROOMS)
def test_a_room_on_another_device(room, found):
    cases = found["rooms"][room]
    errors = {name: case["error"] for name, case in cases.items() if "error" in case}
    assert cases and not errors, "\n\n".join(f"{name}: {error}" for name, error in errors.items())
    relative, absolute = TOLERANCES[room]
    for name, case in cases.items():
        assert case["found"] == pytest.approx(case["expected"], rel=relative, abs=absolute), name
