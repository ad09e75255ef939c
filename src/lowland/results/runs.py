"""Several runs together: named apart, and which of them are seeds of one method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

from lowland.core.errors import InputError, require
from lowland.core.facts import line_of, table_of
from lowland.results.frames import frame_of_rows, scalars
from lowland.results.run import Run

if TYPE_CHECKING:
    import pandas as pd

_OUTCOME: Final = (
    "test_accuracy",
    "test_loss",
    "train_loss",
    "epoch",
    "steps",
    "passes",
    "evaluation_passes",
    "seconds",
)
"""What a row of several runs holds of their outcomes."""


class Runs(Sequence[Run]):
    """Several runs, in order, with different names.

    Runs whose specs differ in nothing but seed, folder and threads are seeds of one method. Methods are named after
    optimizer and loss, with the folder's name where that is not enough to tell them apart.

    Args:
        runs: In the order in which tables and figures show them.

    Example:
        >>> runs = Runs([Run(name="a", result={"test_accuracy": 0.9}), Run(name="b")])
        >>> runs["a"].number("test_accuracy"), [run.name for run in runs[:1]]
        (0.9, ['a'])
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = tuple(runs)

    @classmethod
    def read(cls, folders: Sequence[str | Path], make: Callable[[Path], Run] = Run) -> Runs:
        """Open run folders, in the order given."""
        paths = [Path(folder) for folder in folders]
        if len({path.resolve() for path in paths}) < len(paths):
            raise InputError("runs", "must name each folder once", [str(path) for path in paths])
        named = [make(path).labeled(name) for path, name in zip(paths, _distinct_names(paths), strict=True)]
        return cls([run.labeled(method=method) for run, method in zip(named, _methods(named), strict=True)])

    @overload
    def __getitem__(self, place: int | str) -> Run: ...

    @overload
    def __getitem__(self, place: slice) -> Runs: ...

    def __getitem__(self, place: int | str | slice) -> Run | Runs:
        if isinstance(place, slice):
            return Runs(self._runs[place])
        if isinstance(place, int):
            return self._runs[place]
        found = next((run for run in self._runs if run.name == place), None)
        if found is None:
            raise KeyError(f"no run {place!r}; there are: {', '.join(run.name for run in self._runs)}")
        return found

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def report(self, path: str | Path | None = None) -> Any:
        """Return the report that compares the runs, and write it if a path is given; see `Run.report`."""
        require(self._runs, "runs", "must name at least one run")
        return self._runs[0].report(path, beside=self._runs[1:])

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas frame with one row per run: outcome, cost, and curvature at the end; with units."""
        return frame_of_rows(map(_row, self))

    def __repr__(self) -> str:
        return f"{len(self)} runs" + "".join(f"\n  {line_of(run.facts())}" for run in self)

    def _repr_html_(self) -> str:
        return table_of([run.facts() for run in self])


def _methods(runs: Sequence[Run]) -> list[str]:
    """Return the method of each run; runs of different specs never share one."""
    keys = [run.spec.without_seed or run.name for run in runs]
    first = dict(reversed(list(zip(keys, runs, strict=True))))
    plain = {key: run.spec.method or run.name for key, run in first.items()}
    labels = list(plain.values())
    named = {k: f"{label} ({first[k].name})" if labels.count(label) > 1 else label for k, label in plain.items()}
    return [named[key] for key in keys]


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that are all different."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(len(part) for part in parts) + 1 if parts else 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _row(run: Run) -> dict[str, Any]:
    curvature = run.final_curvature
    return (
        {"name": run.name, "method": run.method, "seed": run.seed}
        | {name: value for name in _OUTCOME if (value := run.number(name)) is not None}
        | ({} if curvature is None else {f"curvature_{k}": v for k, v in scalars(curvature).items()})
    )
