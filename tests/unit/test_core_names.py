"""Names are known without what they mean, and every one means something."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from lowland.core import errors, names
from lowland.optim.options import AscentKeywords

REGISTRIES = {name: found for name, found in vars(names).items() if isinstance(found, names.Registry)}


def test_names_need_no_torch():
    code = (
        "import sys; from lowland.core.names import MODELS, find\n"
        "try: find('model', 'resnet21', MODELS)\n"
        "except ValueError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "did you mean 'resnet" in found and found.endswith("False\n")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_means_something_with_a_first_line(kind):
    for found in REGISTRIES[kind].values():
        assert callable(found) and inspect.getdoc(getattr(found, "func", found))


def test_what_names_mean_is_listed_without_what_is_heavy():
    code = (
        "import sys; from lowland.cli.main import main\n"
        "main(['list']); print(*(name for name in ('torch', 'xarray', 'zarr', 'pandas', 'scipy') if name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Step with the gradient found at the worst point nearby." in found and found.endswith("\n\n")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_line_read_from_the_source_is_that_of_the_thing(kind):
    for name, found in REGISTRIES[kind].items():
        thing, about = getattr(found, "func", found), REGISTRIES[kind].about(name)
        place = f"{REGISTRIES[kind].room}.{REGISTRIES[kind].entries[name]}".replace(":", ".")
        assert about == (inspect.getdoc(thing).split("\n")[0] if thing.__module__.startswith("lowland") else place)


@pytest.mark.parametrize("kind", ["MODELS", "DATASETS", "OPTIMIZERS", "LOSSES"])
def test_the_options_read_from_the_source_are_those_that_the_thing_takes(kind):
    for name, built in REGISTRIES[kind].items():
        known, parameters = REGISTRIES[kind].keywords(name), inspect.signature(built).parameters.values()
        more = {one for p in parameters if p.kind is p.VAR_KEYWORD for one in AscentKeywords.__annotations__}
        assert known is not None and len(set(known)) == len(known), name
        assert {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} | more == set(known), name


def test_a_wrong_option_names_the_near_one_and_what_is_no_option_is_not_offered():
    with pytest.raises(
        errors.InputError, match=r"`o.rhoo` must be an option of 'sam' .*did you mean 'rho'\? Known: rho, "
    ):
        names.check_keywords("o", "sam", {"rhoo": 1}, names.OPTIMIZERS)
    with pytest.raises(errors.InputError, match="`o.base`"):
        names.check_keywords("o", "sam", {"base": 1}, names.OPTIMIZERS)
    names.check_keywords("o", "sam", {"rho": 1, "interval": 2, "only": "norms"}, names.OPTIMIZERS)
    names.check_keywords("o", "my_module:Mine", {"anything": 1}, names.OPTIMIZERS)


def test_what_a_name_gives_is_not_an_option():
    with pytest.raises(TypeError, match="depth"):
        names.MODELS["resnet20"](depth=56)
    assert len(names.MODELS["resnet8"](width=4).state_dict()) < len(names.MODELS["resnet20"](width=4).state_dict())


def test_what_a_library_complains_of_is_one_line_of_ours_and_our_own_errors_pass():
    def said(kinds: object, error: Exception) -> Exception:
        with pytest.raises(Exception) as caught, errors.refused(kinds, "folder", "must be whole", "x", "try y"):
            raise error
        return caught.value

    known = (ValueError, OSError)
    assert str(said(known, ValueError("a\n   b"))) == "`folder` must be whole (a b) (got 'x'); try y"
    missing = FileNotFoundError(2, "No such file", "/nowhere")
    assert "whole (No such file) (got" in str(said(known, missing)) and said(known, missing).__cause__ is missing
    assert "whole (KeyError: 'a') (got" in str(said(Exception, KeyError("a")))  # anything: its kind is told
    for kinds, passes in ((Exception, errors.StoreError("ours")), (known, KeyError("a"))):
        assert said(kinds, passes) is passes


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_number_that_is_not_positive_is_refused_and_none_passes(value):
    errors.check_positive(rate=None, size=1e-300)
    with pytest.raises(errors.InputError, match="`rate` must be positive"):
        errors.check_positive(size=1, rate=value)


def test_nested_values_are_told_by_dotted_names():
    assert names.flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
