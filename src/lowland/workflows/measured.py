"""What the commands that measure share: whose weights, the risk on them, the record of a call, torch's threads."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lowland.core.errors import InputError, StoreError, require
from lowland.core.names import check_modules
from lowland.core.settings import RiskSpec
from lowland.workflows.checks import VERSION, called_as, check_only_weights, check_run, check_weights
from lowland.workflows.options import HOOKS
from lowland.workflows.parse import from_text, to_yaml, values_of
from lowland.workflows.specs import SubjectSpec, SurveyOptions

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from lowland.core.risk import EmpiricalRisk
    from lowland.landscape import Plane
    from lowland.results import Run


@contextmanager
def threads_of_torch(count: int | None) -> Generator[None, None, None]:
    """Let torch use a number of threads, and restore its own at the end."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_run(folder: str | Path) -> Run:
    """Return the run in a folder, which has a spec; nothing needs torch until its weights are asked for."""
    path = check_run(folder)
    from lowland import opening  # half a second of xarray and zarr

    return opening.open_run(path)


def opened(subject: SubjectSpec | str | PathLike[str], weights: str, argument: str = "risk.weights") -> Run:
    """Return whose weights are measured; what can be wrong without torch is met before it is imported."""
    spec = SubjectSpec.of(subject)
    if spec.run is not None:
        run = open_run(spec.run)
        check_weights(run, weights, argument)
        return run
    check_only_weights(weights)
    check_modules({"model": spec.model, "data": spec.data, "loss": spec.loss})
    require(spec.checkpoint is None or Path(spec.checkpoint).exists(), "checkpoint", "must exist", spec.checkpoint)
    from lowland.results import Run
    from lowland.workflows.sources import ExternalModel

    names = ("model", "data", "checkpoint", "loss", "prefix", "model_options", "data_options")
    source = ExternalModel(**{name: getattr(spec, name) for name in names})
    return Run(spec.folder, name=str(spec.checkpoint or spec.model), source=source)


def check_other(argument: str, other: str, weights: str, named_weights: str = "risk.weights") -> None:
    """Check that another run is there and has the weights; what is wrong is blamed on the option that names it."""
    with called_as({"run": argument}):
        opened(other, weights, named_weights)


def risks_of(place: Run, risk: RiskSpec, splits: Sequence[str]) -> dict[str, EmpiricalRisk]:
    """Return the risks of parts of the data, all of one model."""
    measured = dict(place.risks(splits, risk))
    if not place.spec_path.is_file():  # a model of another program; only now, so that bad input leaves no trace
        from lowland.results.folders import open_run_folder

        open_run_folder(place.folder)
    return measured


def risk_of(place: Run, risk: RiskSpec) -> EmpiricalRisk:
    """Return the risk of the part of the data that is measured."""
    return risks_of(place, risk, [risk.split])[risk.split]


def labeled(result: xr.Dataset, place: Run, risk: RiskSpec, path: Path | None = None, weights: str = "") -> xr.Dataset:
    """Say in a result, and in its store, which weights it is of and on which part of the data."""
    said = {"weights": weights or risk.weights}
    if "split" not in result.dims:
        said["split"] = place.source.called(risk.split)
    new = {name: value for name, value in said.items() if name not in result.attrs}
    result.attrs.update(new)
    if new and path is not None:
        from lowland.results import zarr

        with suppress(StoreError):  # of before this was said, on a disk that can only be read
            zarr.renew_attributes(path, result)
    return result


def surveyed(place: Run, survey: SurveyOptions) -> tuple[EmpiricalRisk | dict[str, EmpiricalRisk], nn.Module]:
    """Return the risk, or one of each part of the data, and the network that is measured."""
    found = risks_of(place, survey.risk, survey.splits or [survey.risk.split])
    first = next(iter(found.values()))
    return found if survey.splits else first, first.model


def surface_path(place: Run, survey: SurveyOptions, base: str, plane: Plane, model: nn.Module, other: str = "") -> Path:
    """Return where a survey is stored; without a name, that of these weights (at both ends), or a free place."""
    if survey.name is not None:
        return place.surface_path(survey.name)
    from lowland import results
    from lowland.core.params import model_fingerprint

    ours = model_fingerprint(model), plane.recipe["arguments"].get("other")

    def same(path: Path) -> bool:
        recipe = json.loads(str(results.open(path).attrs.get("recipe", "{}")))
        first: dict[str, Any] = next(iter(recipe.get("planes", ())), {})
        return (recipe.get("model"), first.get("arguments", {}).get("other")) == ours

    return _free_place(place, place.surface_path, base, survey.risk.weights, same, Path(other).stem)


def own_place(
    place: Run,
    path_of: Callable[[str], Path],
    base: str,
    name: str | None,
    weights: str,
    command: Callable[..., Any],
    record: str,
) -> Path:
    """Return where a result of a command is stored; without a name, that of these weights, or a free place."""
    if name is not None:
        return path_of(name)

    def same(path: Path) -> bool:
        from lowland import results

        try:
            whose = [_what(command, text) for text in (str(results.open(path).attrs.get("spec", "")), record)]
        except InputError:  # of no command: refused where it is read
            return True
        old, new = ([*(values.get(part) for part in _WHOSE), values["risk"]["weights"]] for values in whose)
        return old == new

    return _free_place(place, path_of, base, weights, same)


_WHOSE: Final = ("model", "model_options", "checkpoint", "prefix")
"""Which options say whose weights, beside the run and its weights' name."""


def _free_place(
    place: Run, path_of: Callable[[str], Path], base: str, weights: str, same: Callable[[Path], bool], label: str = ""
) -> Path:
    """Return the first place that holds results of these weights, or nothing; the plain name is the best weights'."""
    trained = place.spec_path.is_file()
    label = re.sub(r"[^\w.-]+", "-", label or (weights if trained else Path(place.name).stem))
    names = itertools.chain([base, f"{base}-{label}"], (f"{base}-{label}-{n}" for n in itertools.count(2)))
    paths = (path_of(name) for name in names)
    return next(
        path
        for path in paths
        if (same(path) if path.exists() else not trained or weights == "best" or path != path_of(base))
    )


def record_of(command: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a call as a result keeps them: the YAML that makes it again."""
    given = {name: value for name, value in arguments.items() if name not in HOOKS}
    if "subject" in given:
        given["subject"] = SubjectSpec.of(given["subject"])
    for name in given.keys() & {"other", "others"}:  # a run as its folder
        paths = given[name]
        given[name] = [*map(fspath, paths)] if isinstance(paths, list) else paths and fspath(paths)
    return to_yaml({"version": VERSION, **values_of(command, given)})


def stored_result(path: Path, command: Callable[..., Any], record: str) -> xr.Dataset | None:
    """Return the result of the same call; refuse to overwrite one of another."""
    if not path.exists():
        return None
    from lowland import results

    found = results.open(path)
    try:  # a record of before some argument was added is of the same call
        same = _what(command, str(found.attrs.get("spec", ""))) == _what(command, record)
    except InputError:
        same = False
    if not same:
        raise StoreError(
            f"{path} holds a result of another spec; remove it, or choose another --name where there is one"
        )
    return found


def _what(command: Callable[..., Any], record: str) -> dict[str, Any]:
    # a run that was moved is still the same run; the name is where the result lies
    return {
        name: value
        for name, value in from_text(command, record).values.items()
        if name not in ("run", "folder", "name")
    }
