"""Options from any YAML and any flags: the arguments of a command, or one line that says what is wrong."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowland.core.errors import InputError
from lowland.workflows import SubjectSpec, fit, surface, to_yaml
from lowland.workflows.parse import call, from_text

FEW = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

KEYS = st.sampled_from(
    [
        "model",
        "data",
        "optimizer",
        "loss",
        "name",
        "options",
        "epochs",
        "seed",
        "version",
        "run",
        "points",
        "risk",
        "samples",
        "method",
        "config",
        "splits",
        "checkpoint",
    ]
) | st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", [fit, surface], ids=lambda kind: kind.__name__)
@FEW
@given(content=st.dictionaries(KEYS, VALUES, max_size=4))
def test_specs_of_any_values(kind, content):
    try:
        made = from_text(kind, yaml.safe_dump(content))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert from_text(kind, to_yaml(made.values)).values == made.values


@FEW
@given(text=st.text(max_size=40) | st.text(alphabet="{}[]:,-!&*#?|>'\"%@ \n\tab1", max_size=40))
def test_specs_of_any_text(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    for read in (
        lambda: from_text(fit, text),
        lambda: call(fit, ["--config", str(tmp_path / "a.yaml")]),
    ):
        try:
            read()
        except InputError as error:
            assert "\n" not in str(error)


@FEW
@given(
    flag=st.sampled_from(
        ["run", "points", "risk.samples", "extent", "splits", "version", "model_options", "risk", "x"]
    ),
    value=st.text(max_size=8) | VALUES.map(lambda value: json.dumps(value, default=str)),
)
def test_flags_of_any_values(flag, value):
    try:
        made = call(surface, ["--run", "r", f"--{flag}={value}"])
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(made.spec, SubjectSpec)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{place}]", "!!python/name:os.system ''"])
def test_yaml_makes_no_objects(tag, tmp_path):
    place = tmp_path / "made"
    (tmp_path / "a.yaml").write_text(f"model: {tag.format(place=place)}\n")
    for kind in (fit, surface):
        with pytest.raises(InputError):
            call(kind, ["--config", str(tmp_path / "a.yaml")])
    assert not place.exists()
