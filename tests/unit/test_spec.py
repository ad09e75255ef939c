"""Specs: flags and YAML give the same values, every wrong one becomes one clear line."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lowland.core.errors import InputError
from lowland.workflows import CurvatureSpec, DemoSpec, FitSpec, ReportSpec, SurfaceSpec, TrajectorySpec, parse, to_yaml
from lowland.workflows.parse import from_yaml, parser_of

SPECS = {
    FitSpec: [], SurfaceSpec: ["--run", "r"], TrajectorySpec: ["--run", "r"], CurvatureSpec: ["--run", "r"],
    ReportSpec: ["--runs", '["a", "b"]'], DemoSpec: [],
}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.__name__)
def test_yaml_round_trip(spec, tmp_path):
    made, _ = parse(spec, SPECS[spec])
    (tmp_path / "spec.yaml").write_text(to_yaml(made))
    assert from_yaml(spec, tmp_path / "spec.yaml") == made


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.__name__)
def test_help_shows_every_field_with_its_meaning(spec):
    text = "".join(parser_of(spec, "lowland").format_help().split())  # help wraps lines, also at hyphens
    for field in fields(spec):
        assert f"--{field.name}" in text
    assert "default" in text
    nested = {field.name for field in fields(spec) if str(field.type).endswith("Spec")}  # shown by their own docs
    for line in (spec.__doc__ or "").split("Args:")[1].strip().splitlines():
        if ":" in line and line.split(":")[0].strip() not in nested:
            assert "".join(line.split(":", 1)[1].split()) in text


def test_flags_win_over_the_file_before_them(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 7\nseed: 3\noptimizer: {method: sam, options: {rho: 0.1}}\n")
    made, flags = parse(
        FitSpec, ["--config", str(tmp_path / "a.yaml"), "--epochs", "9", "--quiet"], quiet=False, json=False
    )
    assert (made.epochs, made.seed, made.optimizer.options) == (9, 3, {"rho": 0.1})
    assert flags == {"quiet": True, "json": False}


WRONG = [
    (FitSpec, ["--epochs", "many"], "`epochs` must be of the type int (got 'many')"),
    (FitSpec, ["--epochs", "-1"], "`epochs` must be positive (got -1)"),
    (FitSpec, ["--batch_size", "0"], "`batch_size` must be positive"),
    (FitSpec, ["--optimizer.learning_rate", "-0.1"], "must be positive (got -0.1)"),
    (FitSpec, ["--optimizer.momentum", "1"], "`optimizer.momentum` must be in [0, 1)"),
    (FitSpec, ["--optimizer.name", "lion"], "`optimizer.name`"),
    (FitSpec, ["--version", "2"], "`version` must be 1"),
    (FitSpec, ["--no_such_flag", "2"], "--no_such_flag"),
    (FitSpec, ["--config", "no/such/file.yaml"], "`config`"),
    (FitSpec, ["stray"], "stray"),
    (SurfaceSpec, [], "`run` must be given"),
    (SurfaceSpec, ["--run", "r", "--points", "[0, 3]"], "`points` must be positive"),
    (SurfaceSpec, ["--run", "r", "--extent", "0"], "`extent` must be positive"),
    (SurfaceSpec, ["--run", "r", "--name", "../x"], "`name` must be a plain file name"),
    (SurfaceSpec, ["--run", "r", "--risk.samples", "-5"], "must be positive (got -5)"),
    (CurvatureSpec, ["--run", "r", "--rho", "-1"], "`rho` must be positive"),
    (DemoSpec, ["--seeds", "1"], "`seeds` must be at least 2"),
]


@pytest.mark.parametrize(("spec", "arguments", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_flags(spec, arguments, message):
    with pytest.raises(InputError) as caught:
        parse(spec, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["epochs: [1\n", "- 3\n", "nonsense: 1\n", "epochs: null\n", "model: 3\n"])
def test_wrong_files(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        parse(FitSpec, ["--config", str(tmp_path / "a.yaml")])
    assert "\n" not in str(caught.value)
