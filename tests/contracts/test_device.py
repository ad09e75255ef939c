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

REFUSES = """
import torch
from tests.other_device import HostRead, MixedDevices, no_reads, other_device

with other_device() as device:
    there = torch.ones(3).to(device)
    assert there.device == device and (there * 2.0).sum().item() == 6.0
    for call, error in ((lambda: there + torch.ones(3), MixedDevices), (lambda: float(there.sum()), HostRead)):
        try:
            with no_reads():
                call()
        except error:
            continue
        raise SystemExit(f"{error.__name__} is not raised")
"""


def test_the_other_device_refuses_what_an_accelerator_refuses():
    done = subprocess.run([sys.executable, "-c", REFUSES], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("room", device_cases.ROOMS)
def test_a_room_on_another_device(room):
    done = subprocess.run(
        [sys.executable, "-m", "tests.other_device", room], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    errors = {name: case["error"] for name, case in found.items() if "error" in case}
    assert not errors, "\n\n".join(f"{name}: {error}" for name, error in errors.items())
    relative, absolute = TOLERANCES[room]
    for name, case in found.items():
        assert case["found"] == pytest.approx(case["expected"], rel=relative, abs=absolute), name
