"""Where the ledger's runs are trained: kept under a hash of their spec and of the code that they depend on.

Rows share runs (every row has a plain SGD arm), a changed line of a method's code makes its runs new ones, and a killed
run goes on from its last epoch. Comments and docstrings are no code.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import hashlib
import itertools
import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import lowland
from lowland import models
from lowland.core.seeds import generator
from lowland.spec import DataSpec, FitSpec, to_yaml
from lowland.spec.runs import fit_run
from lowland.spec.study import Changes
from lowland.study.endpoints import read_endpoint
from lowland.study.plan import apply
from lowland.study.search import WITHOUT_TEST, Trial, best

__all__ = ["Arm", "Bench", "code_of", "fingerprint_of"]

SOURCE: Final = Path(lowland.__file__).resolve().parent

TRAINING: Final = (
    "training/fit.py", "training/schedule.py", "training/evaluation.py", "data/resident.py", "data/splits.py",
    "data/noise.py", "core/seeds.py", "core/exact.py", "spec/build.py",
)  # fmt: skip
"""Code that every run depends on."""

TRIALS: Final = 6
"""Settings tried for every arm that is tuned; the plain optimizer's learning rate and weight decay are among them."""

GRID: Final[dict[str, list[Any]]] = {
    "optimizer.learning_rate": [0.02, 0.05, 0.1, 0.2],
    "optimizer.weight_decay": [5e-4, 2e-3],
}
SEARCH_SEED: Final = 10_000


@dataclass(frozen=True)
class Arm:
    """One arm of a row.

    Args:
        run: The run, without folder and seed.
        changes: What the method changes in it.
        grid: What is searched for it besides learning rate and weight decay.
        tuned: Whether its settings are searched.
    """

    run: FitSpec
    changes: Changes = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    tuned: bool = False

    @functools.cached_property
    def spec(self) -> FitSpec:
        """The run with the method's changes."""
        return apply(self.run, dict(self.changes), "arm")


class Bench:
    """Trains runs and keeps them.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def place(self, spec: FitSpec) -> Path:
        """Return where a run lies: the name is a hash of its spec and code.

        Args:
            spec: The run, with its seed.

        Returns:
            A folder.
        """
        text = to_yaml(replace(spec, folder="")) + fingerprint_of(code_of(spec))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def train(self, spec: FitSpec, seed: int) -> Path:
        """Train a run, or return it where it is trained already.

        Args:
            spec: The run.
            seed: Its seed.

        Returns:
            Its folder.
        """
        seeded = replace(spec, seed=seed)
        path = self.place(seeded)
        with self.alone(path):
            if not (path / "result.json").is_file():
                fit_run(replace(seeded, folder=str(path)))
        return path

    @contextmanager
    def alone(self, path: Path) -> Generator[None, None, None]:
        """Wait until no other row works on a run: rows share runs, and may run in several processes.

        Args:
            path: The run's folder.

        Yields:
            Nothing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def settled(self, arm: Arm) -> FitSpec:
        """Return the run of an arm with the settings that a small search chose on validation data.

        Args:
            arm: The arm.

        Returns:
            Its run; as it stands where it is not tuned.
        """
        if not arm.tuned:
            return arm.spec
        hidden = DataSpec(name=WITHOUT_TEST, options={"dataset": arm.run.data.name, "settings": arm.run.data.options})
        tried = []
        for number, settings in enumerate(settings_of(arm)):
            path = self.train(replace(apply(arm.spec, settings, "grid"), data=hidden), SEARCH_SEED)
            accuracy, loss = (read_endpoint(path, f"validation_{name}") for name in ("accuracy", "loss"))
            tried.append(Trial(number, settings, accuracy if math.isfinite(accuracy) else -loss))
        return apply(arm.spec, best(tried).settings, "grid")


def settings_of(arm: Arm) -> list[Changes]:
    """Return the settings that are tried for an arm: a fixed random subset of its grid.

    Args:
        arm: The arm.

    Returns:
        `TRIALS` settings, the same number for every arm.
    """
    grid = {**GRID, **arm.grid}
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    order = generator(SEARCH_SEED, "subsample", "grid", len(every)).permutation(len(every))
    return [every[place] for place in sorted(order[:TRIALS])]


def code_of(spec: FitSpec) -> tuple[str, ...]:
    """Return the files that a run depends on.

    Args:
        spec: The run.

    Returns:
        Paths below Lowland's source, sorted; of data sets and models that are not Lowland's own none.
    """
    files = set(TRAINING)
    if spec.optimizer.method != "none":
        files |= {"optim/ascent.py", "optim/wrapper.py", "optim/moves.py", f"optim/{spec.optimizer.method}.py"}
    if spec.loss.method != "none":
        files |= {"losses/base.py", f"losses/{spec.loss.method}.py"}
        files |= {"losses/reshapers.py"} if spec.loss.method == "llr" else {"losses/divergence.py"}
    name = spec.data.options["dataset"] if spec.data.name == WITHOUT_TEST else spec.data.name
    files.add(f"data/{name}.py")
    build = models.MODELS.get(spec.model.name)
    module = getattr(getattr(build, "func", build), "__module__", "")
    files.add(module.removeprefix("lowland.").replace(".", "/") + ".py" if module else "")
    return tuple(sorted(file for file in files if file and (SOURCE / file).is_file()))


def fingerprint_of(files: Iterable[str]) -> str:
    """Return a fingerprint of code that comments, docstrings and layout leave alone.

    Args:
        files: Paths below Lowland's source.

    Returns:
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        path = SOURCE / file
        digest.update(f"{file}|{_bare(path, path.stat().st_mtime_ns)}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _bare(path: Path, changed: int) -> str:
    del changed  # part of the key: a file that changes is read again
    return bare_code(path.read_text(encoding="utf-8"))


def bare_code(text: str) -> str:
    """Return a program without comments, docstrings and layout.

    Args:
        text: Python source.

    Returns:
        A dump of its syntax tree.

    Example:
        >>> bare_code("x = 1  # one") == bare_code("x=1")
        True
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [child for child in body if not _is_text(child)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
