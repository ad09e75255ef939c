"""What the commands that measure share: whose weights, the risk on them, the record of a call, torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import InputError, StoreError
from lowland.workflows.checks import VERSION, check_run
from lowland.workflows.options import HOOKS
from lowland.workflows.parse import from_text, to_yaml
from lowland.workflows.specs import RiskSpec, SubjectSpec

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from lowland.core.risk import EmpiricalRisk
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


def opened(subject: SubjectSpec | str | Path) -> Run:
    """Return whose weights are measured."""
    spec = SubjectSpec.of(subject)
    if spec.run is not None:
        check_run(spec.run)  # before anything is imported
    from lowland.workflows.sources import subject_run

    return subject_run(spec)


def risk_of(place: Run, risk: RiskSpec) -> EmpiricalRisk:
    """Return the risk of one part of the data."""
    measured: EmpiricalRisk = place.risk(**asdict(risk))
    _open_folder(place)
    return measured


def _open_folder(place: Run) -> None:
    if not place.spec_path.is_file():  # a model of another program; only now, so that bad input leaves no trace
        from lowland.results.folders import open_run_folder

        open_run_folder(place.folder)


def measured_risk(place: Run, risk: RiskSpec, splits: list[str] | None) -> EmpiricalRisk | dict[str, EmpiricalRisk]:
    """Return the risk, or one of each part of the data."""
    if splits is None:
        return risk_of(place, risk)
    measured = dict(place.risks(splits, **asdict(risk)))
    _open_folder(place)
    return measured


def model_of(risk: EmpiricalRisk | dict[str, EmpiricalRisk]) -> nn.Module:
    """Return the network that is measured."""
    return (next(iter(risk.values())) if isinstance(risk, dict) else risk).model


def record_of(arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a call as a result keeps them: the YAML that makes it again."""
    kept: dict[str, Any] = {"version": VERSION}
    for name, value in arguments.items():
        if name == "subject":
            kept |= asdict(SubjectSpec.of(value))
        elif name not in HOOKS:
            kept[name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return to_yaml(kept)


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
    # a run that was moved is still the same run
    return {name: value for name, value in from_text(command, record).values.items() if name not in ("run", "folder")}
