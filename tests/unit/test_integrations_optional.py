"""Without an optional package its integration says what to install, and everything else works."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import lowland.integrations as integrations
from lowland.core.errors import MissingExtra
loaded = [name for name in ("lightning", "transformers", "accelerate") if "lowland.integrations." + name in sys.modules]
assert not loaded, "trainers are imported when they are asked for"
for name in ("lightning", "lightning.pytorch", "transformers", "accelerate"):
    sys.modules[name] = None  # what an import of a missing package meets
integrations.SharpnessLog(), integrations.LogTo, integrations.SurfaceAtEnd(points=3)
wanted = {"LightningCallback": "lightning", "LightningMixin": "lightning", "TrainerMixin": "hf", "AcceleratePasses": "hf"}
for name, extra in wanted.items():
    try:
        getattr(integrations, name)
    except MissingExtra as error:
        assert 'pip install "lowland[' + extra + ']"' in str(error), error
    else:
        raise SystemExit(name + " was found")
import lowland.training, lowland.landscape, lowland.optim, lowland.losses
"""


def test_without_trainers_there_is_the_install_line_and_everything_else():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    import lowland.integrations as integrations

    with pytest.raises(AttributeError, match="Keras"):
        integrations.Keras  # ruff: ignore[useless-expression]
