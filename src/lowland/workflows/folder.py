"""The folder of a run: where things are, and how a finished run becomes objects again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import CheckpointError, InputError
from lowland.results.files import write_atomically
from lowland.results.run_folder import RunPaths, open_run_folder, read_result
from lowland.workflows.parse import from_yaml, to_yaml
from lowland.workflows.specs import FitSpec
from lowland.workflows.surveys import RiskSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowland.core.risk import EmpiricalRisk
    from lowland.data import DataSplits

__all__ = ["RunFolder"]


class RunFolder:
    """A run on disk: ``spec.yaml metrics.csv result.json checkpoints/ snapshots/ surfaces/ curvature/``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.paths = RunPaths(self.path)
        if not self.path.is_dir():
            raise InputError("run", "must be the folder of a run", str(path), "make one with `lowland fit`")
        if not self.paths.spec.is_file():
            raise InputError("run", "must hold the spec.yaml of a run", str(path), "make one with `lowland fit`")

    @cached_property
    def spec(self) -> FitSpec:
        """The run's spec, parsed once."""
        return from_yaml(FitSpec, self.paths.spec)

    @classmethod
    def create(cls, spec: FitSpec) -> RunFolder:
        """Make the folder of a run, or open it if it holds the same run."""
        path = Path(spec.folder)
        text = to_yaml(spec)
        file = RunPaths(path).spec
        if file.is_file():
            run = cls(path)
            if file.read_text(encoding="utf-8") == text:  # parsing takes a tenth of a second
                return run
            if replace(run.spec, folder=spec.folder) != spec:  # a folder that was moved is still the same run
                raise InputError("folder", "holds a run of another spec", str(path), "choose another --folder")
            return run
        # torchrun starts several processes at once, which all come here
        write_atomically(RunPaths(open_run_folder(path, new=True)).spec, text.encode())
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
