"""What lies in a checkpoint or a series of them, told from names, headers and tensors; no file is executed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lowland.core.errors import DAMAGED, InputError, require, reworded
from lowland.core.names import SPEC

_ENDINGS: Final = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".t7")
_NO_WEIGHTS: Final = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|random_states)\w*")
"""Names of the files that trainers write beside weights."""
_WHOLE: Final = ("config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json")
"""One of these makes a folder a checkpoint."""
_BUFFERS: Final = ("running_mean", "running_var", "num_batches_tracked", "position_ids")
"""Ends of the names of tensors that are no parameters."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint is."""

    path: str  # The file or folder
    kind: str  # Such as "Hugging Face folder" or "Lightning checkpoint"
    tensors: int  # How many it holds
    parameters: int  # Numbers in them, without those of buffers
    types: dict[str, int]  # Type of numbers -> how many parameters have it
    step: int | None = None  # Of the optimizer as it was written, or the number in its name; None: nothing says so
    about: dict[str, str] = field(default_factory=dict)  # Further words by name, such as the architecture


def series_of(path: Path) -> list[Path]:
    """Return the checkpoint at a path, or those of a folder with several, by the numbers in their names."""
    require(path.exists(), "path", "must exist", str(path))
    folders = [entry for entry in _entries(path) if entry.is_dir() and _is_whole(entry) and _numbers(entry.name)]
    if path.is_file() or (path / SPEC).is_file() or (_is_whole(path) and not folders):
        return [path]
    files = [f for f in _entries(path) if f.suffix in _ENDINGS and not _NO_WEIGHTS.fullmatch(f.stem)]
    found = folders or files
    if not found and (path / "checkpoints").is_dir():  # of Lightning
        return series_of(path / "checkpoints")
    if not found:
        advice = f"a file *{', *'.join(_ENDINGS)}, a Hugging Face folder, or a folder with a series of these"
        raise InputError("path", "must hold a checkpoint", str(path), advice)
    numbered = [entry for entry in found if _numbers(entry.name)] or found
    if len(numbered) > 1 and not _numbers(numbered[0].name):
        names = ", ".join(entry.name for entry in numbered[:3])
        raise InputError("path", f"must be one of its files, whose order no number tells: {names}", str(path))
    return sorted(numbered, key=lambda entry: by_numbers(entry.name))


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Return what sorts names as people count: 9 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def step_of(path: Path) -> int | None:
    """Return the step at which a checkpoint was written, as its trainer's state or the last number of its name says."""
    state = path / "trainer_state.json"
    if state.is_file():
        step = _json(state).get("global_step")
        return step if isinstance(step, int) else None
    numbers = _numbers(path.stem if path.is_file() else path.name)
    return numbers[-1] if numbers else None


def facts_of(path: Path) -> CheckpointFacts:
    """Read what a checkpoint is; a `CheckpointError` where it is damaged, foreign, or needs code to be read."""
    if path.is_dir():
        return _of_folder(path)
    if path.suffix == ".safetensors":
        return _facts(path, "safetensors file", _headers([path]))
    from lowland.models.weights import decode_pickle, read_bytes, weights_in

    content = decode_pickle(read_bytes(path), path)
    weights = weights_in(content, path)
    tensors = {name: (tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in weights.items()}
    lightning = "pytorch-lightning_version" in content
    kind = "Lightning checkpoint" if lightning else "file of torch.save"
    said = {n: v for n in ("epoch", "global_step", "step") if isinstance(v := content.get(n), int)}
    beside = [str(name) for name, value in content.items() if not _is_tensors(value) and name not in said]
    about = {name: str(value) for name, value in said.items()} | {"also holds": ", ".join(beside)}
    return _facts(path, kind, tensors, about=about, step=said.get("global_step", said.get("step")))


def _of_folder(path: Path) -> CheckpointFacts:
    if (path / "adapter_config.json").is_file():
        base = str(_json(path / "adapter_config.json").get("base_model_name_or_path", ""))
        files = sorted(path.glob("adapter_model*.safetensors"))
        return _facts(path, "PEFT adapter", _headers(files), about={"of": base})
    from lowland.models.weights import parts_of_folder

    config = _json(path / "config.json") if (path / "config.json").is_file() else {}
    architectures = config.get("architectures") or [config.get("model_type", "")]
    about = {"architecture": str(architectures[0]) if isinstance(architectures, list) else ""}
    return _facts(path, "Hugging Face folder", _headers(parts_of_folder(path)), about=about)


def _facts(
    path: Path,
    kind: str,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    *,
    about: Mapping[str, str] | None = None,
    step: int | None = None,
) -> CheckpointFacts:
    types: dict[str, int] = {}
    for name, (shape, dtype) in tensors.items():
        if not name.endswith(_BUFFERS):
            types[dtype] = types.get(dtype, 0) + math.prod(shape)
    kept = {name: text for name, text in (about or {}).items() if text}
    return CheckpointFacts(
        str(path), kind, len(tensors), sum(types.values()), types, step_of(path) if step is None else step, kept
    )


def _headers(files: list[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of every tensor of safetensors files; their numbers are not read."""
    from safetensors import SafetensorError, safe_open

    from lowland.core.errors import CheckpointError

    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # ruff: ignore[in-dict-keys] it is no mapping
                    part = opened.get_slice(name)
                    found[name] = tuple(part.get_shape()), _TYPES.get(part.get_dtype(), part.get_dtype())
        except (*DAMAGED, OSError, SafetensorError) as why:
            raise CheckpointError(f"not a whole safetensors file: {file} ({why})") from why
    return found


_TYPES: Final = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
    "U8": "uint8",
}
"""Types of safetensors by torch's names."""


def _json(path: Path) -> dict[str, Any]:
    from lowland.core.errors import CheckpointError

    with reworded((*DAMAGED, OSError), lambda why: CheckpointError(f"the file {path} is damaged ({why})")):
        found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _entries(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def _is_whole(path: Path) -> bool:
    return any((path / name).is_file() for name in _WHOLE)


def _is_tensors(value: object) -> bool:
    return hasattr(value, "shape") or (isinstance(value, Mapping) and any(hasattr(v, "shape") for v in value.values()))


def _numbers(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]
