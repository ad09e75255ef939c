"""Checks that several commands share; none needs torch, so that bad input is answered at once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lowland.core.errors import InputError, require
from lowland.core.names import SPEC

if TYPE_CHECKING:
    from lowland.results import Run


@contextmanager
def called_as(names: Mapping[str, str], prefix: str = "") -> Generator[None]:
    """Name what is refused as it was given here; an argument without a name of its own has the prefix."""
    try:
        yield
    except InputError as error:
        name = names.get(error.argument, prefix + error.argument)
        raise InputError(name, error.rule, error.got, error.advice) from error


VERSION: Final = 1
"""Version of all specs."""


def check_version(version: Any) -> None:
    """Check the version of a spec."""
    if type(version) is not int or version != VERSION:
        raise InputError("version", f"must be {VERSION}, the version of specs that this Lowland reads", version)


def check_name(name: str) -> None:
    """Check that a name is usable as a file's name in a run folder."""
    require(is_file_name(name), "name", "must be a plain file name", name)


def is_file_name(name: str) -> bool:
    """Tell whether a name can be that of a file or a folder, and of one that is seen."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name


PARTS: Final = ("train", "validation", "test")
"""Names of the parts of a data set."""


def check_parts(splits: Sequence[str], parts: Iterable[str] = PARTS) -> None:
    """Check the names of parts of the data."""
    if not splits or len(set(splits)) < len(splits) or not set(splits) <= set(parts):
        raise InputError("splits", f"must name parts of the data, each once: {', '.join(parts)}", list(splits))


def check_weights(run: Run, weights: str, argument: str = "risk.weights") -> None:
    """Check that a run has the weights of a name."""
    if weights.isdigit():
        steps = () if run.snapshots is None else run.snapshots.steps
        if int(weights) not in steps:
            known = f"there are {', '.join(map(str, steps))}" if steps else "the run kept none"
            raise InputError(argument, "must be the step of a snapshot", int(weights), known)
    elif weights not in ("best", "last", "initial"):
        raise InputError(argument, "must be best, last, initial or the step of a snapshot", weights)
    elif weights != "initial" and not run.checkpoints_path.is_dir():
        raise InputError("run", "must hold a checkpoint", str(run.folder), "go on with `lowland fit`")


def check_only_weights(weights: str) -> None:
    """Check that no other weights are asked for of a model that has those of its checkpoint alone."""
    require(weights == "best", "risk.weights", "is for runs", weights, "give the weights by --checkpoint")


def check_run(run: str | Path) -> Path:
    """Check that a path is the folder of a run."""
    path = Path(run)
    require(path.is_dir(), "run", "must be the folder of a run", str(run), "make one with `lowland fit`")
    advice = "make one with `lowland fit`, or name a model of your own by --model, and this folder by --folder"
    require((path / SPEC).is_file(), "run", "must hold the spec.yaml of a run", str(run), advice)
    return path
