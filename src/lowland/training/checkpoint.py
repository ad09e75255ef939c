"""Checkpoints of a run: weights as safetensors, everything else in a state file read without executing code.

``checkpoints/index.json`` names the files of the last and the best checkpoint and their SHA-256; replacing it is the
moment a checkpoint begins to exist, so that a kill leaves the one before. Files that it does not name are deleted
afterwards.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from lowland import models
from lowland.core.errors import CheckpointError
from lowland.models.weights import decode_pickle, decode_safetensors
from lowland.results.files import write_atomically
from lowland.results.run import Run

_SCHEMA = "lowland.checkpoint/1"


class CheckpointFolder:
    """The last and the best checkpoint of a run.

    Args:
        folder: The run's folder; checkpoints are in ``folder/checkpoints``.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Run(folder).checkpoints_path

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        best: tuple[int, Mapping[str, Tensor]] | None,
    ) -> None:
        """Write a checkpoint and forget the one before.

        Args:
            step: Optimizer steps done.
            weights: The model's tensors.
            state: Everything else; tensors, numbers, strings and containers of them.
            best: Step and weights of the best epoch so far; written once per step.
        """
        weights_data, state_data = to_safetensors(weights), _to_state({"schema": _SCHEMA, **state})
        files = {} if best is None else {"best": self._write_best(*best)}
        files["weights"] = self._write(f"step-{step:08d}.safetensors", weights_data)
        files["state"] = self._write(f"step-{step:08d}.state", state_data)
        index = {"schema": _SCHEMA, "step": step, "files": files}
        write_atomically(self.path / "index.json", (json.dumps(index, indent=2) + "\n").encode())
        self._forget(index)

    def _write_best(self, step: int, weights: Mapping[str, Tensor]) -> dict[str, str]:
        name = f"best-{step:08d}.safetensors"
        known = self._index() if (self.path / "index.json").exists() else {"files": {}}
        entry: dict[str, str] = known["files"].get("best", {})
        if entry.get("name") == name and (self.path / name).exists():
            return entry
        return self._write(name, to_safetensors(weights))

    def _write(self, name: str, data: bytes) -> dict[str, str]:
        write_atomically(self.path / name, data)
        return {"name": name, "sha256": _checksum(data)}

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None] | None:
        """Read the last checkpoint, verified.

        Returns:
            Weights, state, and the best weights if there are any; None if no checkpoint was ever completed.

        Raises:
            CheckpointError: If a file is missing, truncated, changed or foreign.
        """
        if not (self.path / "index.json").exists():
            return None
        files = self._index()["files"]
        weights = decode_safetensors(self._verified(files, "weights"), self.path)
        state = _from_state(self._verified(files, "state"), self.path)
        best = decode_safetensors(self._verified(files, "best"), self.path) if "best" in files else None
        return weights, state, best

    def _index(self) -> dict[str, Any]:
        path = self.path / "index.json"
        try:
            index = json.loads(path.read_text())
            if index["schema"] != _SCHEMA or not {"weights", "state"} <= set(index["files"]):
                raise ValueError(f"its schema is {index['schema']!r}")
            for entry in index["files"].values():
                if Path(entry["name"]).name != entry["name"] or not isinstance(entry["sha256"], str):
                    raise ValueError(f"it names {entry['name']!r}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"not an index of checkpoints of Lowland: {path} ({error})") from error
        return dict(index)

    def _verified(self, files: Mapping[str, Mapping[str, str]], role: str) -> bytes:
        path = self.path / files[role]["name"]
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"a file of the checkpoint is missing: {path} ({error})") from error
        if _checksum(data) != files[role]["sha256"]:
            raise CheckpointError(f"the checkpoint was truncated or changed since it was written: {path}")
        return data

    def _forget(self, index: Mapping[str, Any]) -> None:
        keep = {entry["name"] for entry in index["files"].values()}
        for pattern in ("step-*", "best-*", ".*.part"):
            for path in self.path.glob(pattern):
                if path.name not in keep:
                    path.unlink(missing_ok=True)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a model from a file, or those that a run found best.

    Args:
        path: A file or folder for `lowland.models.read_weights`, or the folder of a run.

    Returns:
        Name -> tensor, on the CPU.

    Raises:
        CheckpointError: If there are none, or they are truncated, foreign, or need code to load.
    """
    path = Path(path)
    if not Run(path).checkpoints_path.is_dir():
        return models.read_weights(path)
    loaded = CheckpointFolder(path).load()
    if loaded is None:
        raise CheckpointError(f"no checkpoint in the run's folder {path}")
    return loaded[2] or loaded[0]


def split_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return copies of a model's tensors on the CPU, and what else its state holds."""
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    for name, entry in model.state_dict().items():
        if isinstance(entry, Tensor):
            tensors[name] = entry.detach().to("cpu", copy=True).contiguous()
        else:
            extra[name] = entry
    return tensors, extra


def check_recipe(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with another run's checkpoint; the number of processes is `check_processes`' business."""
    for name in sorted({*found, *expected} - {"devices"}):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"`folder` {folder} holds a run with another {name} "
                f"({_short(found.get(name))} there, {_short(expected.get(name))} here); choose another folder"
            )


def random_state() -> dict[str, Any]:
    """Return the state of every random generator as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(kind), torch.as_tensor(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put every random generator back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def to_safetensors(weights: Mapping[str, Tensor]) -> bytes:
    """Encode tensors as a safetensors file."""
    apart = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    seen: set[int] = set()
    for name, tensor in apart.items():
        if tensor.data_ptr() in seen:
            apart[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return safetensors.torch.save(apart, metadata={"format": "pt"})


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _to_state(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _from_state(data: bytes, path: Path) -> dict[str, Any]:
    state = decode_pickle(data, path)
    if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
        raise CheckpointError(f"not the state of a checkpoint of Lowland: {path}")
    return state


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
