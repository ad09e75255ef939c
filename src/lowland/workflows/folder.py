"""The folder of a run: where things are, and how a finished run becomes objects again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import CheckpointError, InputError
from lowland.results.files import write_atomically
from lowland.results.run_folder import RunPaths, open_run_folder, read_result
from lowland.workflows.checks import check_run
from lowland.workflows.parse import from_yaml, to_yaml
from lowland.workflows.specs import FitSpec, RiskSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowland.core.risk import EmpiricalRisk
    from lowland.data import DataSplits

__all__ = ["RunFolder"]


class RunFolder:
    """A run on disk: ``spec.yaml metrics.csv result.json checkpoints/ snapshots/ surfaces/ curvature/``."""

    def __init__(self, path: str | Path) -> None:
        self.path = check_run(path)
        self.paths = RunPaths(self.path)

    @cached_property
    def spec(self) -> FitSpec:
        """The run's spec, parsed once."""
        return from_yaml(FitSpec, self.paths.spec)

    @classmethod
    def check(cls, spec: FitSpec) -> int | None:
        """Check that a run can have its folder; return the epochs that it had there where it has more now."""
        path = Path(spec.folder)
        if not RunPaths(path).spec.is_file():
            if path.is_dir() and any("spec.yaml" not in entry.name for entry in path.iterdir()):
                raise InputError("folder", "must be new, empty or the folder of this run", str(path))
            return None
        before = cls(path).spec
        differ = _differences(asdict(before), asdict(replace(spec, folder=before.folder)))
        if not differ:  # a folder that was moved is still the same run
            return None
        if list(differ) == ["epochs"] and spec.epochs > before.epochs:
            return before.epochs
        shown = ", ".join(f"{name} is {there!r} there and {here!r} here" for name, (there, here) in differ.items())
        advice = "choose another --folder, or give the same values (of a run in its folder only --epochs may grow)"
        raise InputError("folder", f"holds a run of another spec: {shown}", str(path), advice)

    @classmethod
    def create(cls, spec: FitSpec) -> RunFolder:
        """Make the folder of a run, or open it if it holds the same run, or a shorter one."""
        path = Path(spec.folder)
        file = RunPaths(path).spec
        text = to_yaml(spec)
        if file.is_file():
            if file.read_text(encoding="utf-8") == text:  # parsing takes a tenth of a second
                return cls(path)
            if cls.check(spec) is None:
                return cls(path)
            RunPaths(path).result.unlink(missing_ok=True)  # it is not finished any more
        # torchrun starts several processes at once, which all come here
        write_atomically(RunPaths(open_run_folder(path, new=not file.is_file())).spec, text.encode())
        return cls(path)

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return self.paths.finished

    def result(self) -> dict[str, Any]:
        """Read the outcome of training."""
        return read_result(self.path)

    def data(self) -> DataSplits:
        """Load the run's data."""
        from lowland.workflows.build import build_data

        return build_data(self.spec.data)

    def model(self, splits: DataSplits, weights: str = "best") -> nn.Module:
        """Build the run's network with its initial or trained weights."""
        from lowland.workflows.build import build_model

        model = build_model(self.spec.model, splits, seed=self.spec.seed)
        found = self.snapshot(int(weights)) if weights.isdigit() else self._checkpoint(weights)
        try:
            model.load_state_dict({**model.state_dict(), **found})
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint in {self.path} does not fit the model: {text}") from error
        return model.eval()

    def _checkpoint(self, weights: str) -> dict[str, Tensor]:
        from lowland.training import CheckpointFolder

        if weights == "initial":
            return {}
        found = CheckpointFolder(self.path).load()
        if found is None:
            raise InputError("run", "must hold a checkpoint", str(self.path), "go on with `lowland fit`")
        last, _, best = found
        return last if weights == "last" or best is None else best

    def snapshot(self, step: int) -> dict[str, Tensor]:
        """Read a snapshot of the training path."""
        import torch

        from lowland.results import SnapshotReader

        reader = SnapshotReader(self.paths.snapshots)
        if step not in reader.steps:
            raise InputError("risk.weights", "must be the step of a snapshot", step, f"there are {reader.steps}")
        return {name: torch.as_tensor(array) for name, array in reader.read(step).items()}

    def risk(self, spec: RiskSpec) -> EmpiricalRisk:
        """Make the risk that is measured on this run's weights."""
        return self.risks(spec, [spec.split])[spec.split]

    def risks(self, spec: RiskSpec, splits: Sequence[str], model: nn.Module | None = None) -> dict[str, EmpiricalRisk]:
        """Make the risks of several parts of the data, all of one model."""
        from lowland.workflows.build import build_criterion
        from lowland.workflows.measured import PARTS, risks_of

        data = self.data()
        model = self.model(data, spec.weights) if model is None else model
        parts = {name: getattr(data, name) for name in PARTS}
        return risks_of(model, build_criterion(self.spec.loss), parts, spec, splits)

    def other(self, path: str, weights: str) -> nn.Module:
        """Build the network of another run."""
        run = RunFolder(path)
        return run.model(run.data(), weights)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the values that differ, by dotted name."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*there, *here]):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found[prefix + name] = (old, new)
    return found
