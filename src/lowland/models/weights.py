"""Weights from files of any common make, read without executing code from them.

The trained networks of Li et al.'s tool are ``.t7`` files that torch's older pickle format hides behind a Lua name;
`tool_model` builds the network that belongs to one of that tool's model names.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lowland.core.errors import DAMAGED, CheckpointError, InputError, reworded
from lowland.core.params import differing_shapes
from lowland.models.imagenet_resnet import imagenet_resnet
from lowland.models.registry import create

_WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
_NESTED = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a model from a file.

    Args:
        path: ``.safetensors``, or torch's pickle under any name (``.pt``, ``.pth``, ``.bin``, ``.ckpt`` of Lightning,
            ``.t7``), holding the tensors by name or under ``state_dict`` or ``model``; or a folder with
            ``model.safetensors``, whole or in parts, as Hugging Face writes it.

    Returns:
        Name -> tensor, on the CPU, names without the prefixes of DDP and compile wrappers.

    Raises:
        CheckpointError: If the file is absent, truncated, foreign, or holds objects that need code to load.
    """
    path = Path(path)
    if path.is_dir():
        return {name: tensor for part in parts_of_folder(path) for name, tensor in read_weights(part).items()}
    data = read_bytes(path)
    if path.suffix == ".safetensors":
        return _unwrapped(decode_safetensors(data, path))
    return weights_in(decode_pickle(data, path), path)


def weights_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights in what torch.save had written to a file."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(entry, Tensor) for entry in content.values())
    ):
        raise CheckpointError(f"the file {path} holds no mapping of names to tensors")
    return _unwrapped(content)


def read_bytes(path: Path) -> bytes:
    """Read a file, or say which cannot be read."""
    # ValueError: a null byte in the name
    with reworded((OSError, ValueError), lambda why: CheckpointError(f"cannot read the weights {path} ({why})")):
        return path.read_bytes()


def parts_of_folder(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder; an index names them where there are several."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise CheckpointError(f"no checkpoint in the folder {folder}: neither of a run nor model.safetensors")
        return [folder / "model.safetensors"]
    with reworded(DAMAGED, lambda why: CheckpointError(f"the index {index} is damaged ({why})")):
        names = sorted(set(json.loads(read_bytes(index))["weight_map"].values()))
    if not names or not all(name == Path(name).name and name.endswith(".safetensors") for name in map(str, names)):
        raise CheckpointError(f"the index {index} must name safetensors files of its folder")
    return [folder / name for name in names]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor] | str | Path, *, prefix: str | None = None) -> None:
    """Put weights into a model, all or none.

    Args:
        model: Its parameters and buffers are written in place.
        weights: Tensors by name, or a file for `read_weights`. Missing counters of batch norm (files of torch before
            0.4.1 have none) are left at their values.
        prefix: Where the model stands in what was saved, such as ``"net."`` for the attribute ``net`` of a
            LightningModule; names elsewhere are left aside. Default: found out, if there is one place that fits.

    Raises:
        CheckpointError: If a name is missing, left over, or has another shape; nothing was loaded then.

    Example:
        >>> model = create("resnet8", width=4, seed=0)
        >>> load_weights(model, {f"module.{name}": t for name, t in model.state_dict().items()})
    """
    found = read_weights(weights) if isinstance(weights, str | Path) else _unwrapped(weights)
    own = {name: entry for name, entry in model.state_dict().items() if isinstance(entry, Tensor)}
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    found = _below(found, needed, prefix)
    missing = sorted(name for name in needed if name not in found)
    extra = sorted(set(found) - set(own))
    shapes = sorted(name for name in own if name in found and own[name].shape != found[name].shape)
    if missing or extra or shapes:
        parts = [
            f"{len(names)} {what} (first {names[0]!r})"
            for what, names in (("missing", missing), ("left over", extra), ("of another shape", shapes))
            if names
        ]
        held = {name: entry for name, entry in own.items() if name in needed or name in found}
        raise CheckpointError(
            f"the weights do not fit the model: {', '.join(parts)}; nothing was loaded\n{differing_shapes(held, found)}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in found:
                tensor.copy_(found[name])


def _below(found: dict[str, Tensor], needed: Sequence[str], prefix: str | None) -> dict[str, Tensor]:
    """Return the weights under a prefix, its own one or the only one under which all the needed names stand."""
    if prefix is None:
        if not needed or any(name in found for name in needed):
            return found
        first = "." + needed[0]
        places = [name[: 1 - len(first)] for name in found if name.endswith(first)]
        places = [place for place in places if all(place + name in found for name in needed)]
        if len(places) > 1:
            raise CheckpointError(f"the weights hold the model under {' and '.join(places)}; say which by `prefix`")
        prefix = places[0] if places else ""
    below = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if not below:
        raise CheckpointError(f"the weights have no names under the prefix {prefix!r} (one is {next(iter(found))!r})")
    return below


def tool_model(name: str, *, classes: int = 10) -> nn.Module:
    """Build a network by its name in the tool of Li et al. 2018, such as ``"resnet56_noshort"`` or ``"wrn56_4"``.

    Args:
        name: ``vgg9``, ``densenet121``, or ``resnetDEPTH`` and ``wrnDEPTH_K``, with or without ``_noshort``.
        classes: Number of outputs.

    Returns:
        The network whose parameters have the names and shapes that the tool stores.

    Raises:
        InputError: If the name is none of these.

    Example:
        >>> tool_model("wrn56_2_noshort").conv1.out_channels
        32
    """
    if name in ("vgg9", "densenet121"):
        return create(name, classes=classes)
    match = re.fullmatch(r"(?:resnet(\d+)(_16)?|wrn(\d+)_(\d+))(_noshort)?", name)
    if match is None:
        raise InputError(
            "name", "must be a model name of Li et al.'s tool", name, "such as resnet56_noshort, wrn56_4 or vgg9"
        )
    depth, skip = int(match[1] or match[3]), match[5] is None
    if match[1] and not match[2] and depth in (18, 34, 50, 101, 152):
        return imagenet_resnet(depth, skip=skip, classes=classes)
    width = 16 * int(match[4] or 1)
    return create("resnet", depth=depth, skip=skip, shortcut="projection", width=width, classes=classes)


def decode_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Decode a safetensors file."""
    kinds = (*DAMAGED, SafetensorError)
    with reworded(kinds, lambda why: CheckpointError(f"truncated or not a safetensors file: {path} ({why})")):
        return safetensors.torch.load(data)


def decode_pickle(data: bytes, path: Path) -> Any:
    """Decode a file of `torch.save`, old or new, by torch's restricted unpickler."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler stumbles over in bytes that it was not made for
        raise CheckpointError(
            f"truncated, foreign, or it holds objects that need code to load: {path} ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    # torch's own advice is to run the code; ours is to save the weights alone
    asked = re.search(r"Unsupported (?:global|class|operand)[^\n]*?(?:GLOBAL )?([\w]+(?:\.[\w]+)+)", str(error))
    if asked:
        return f"it asks for {asked[1]}; save the weights alone, by torch.save(model.state_dict(), ...)"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, tensor in weights.items():
        name = str(key).replace("._orig_mod.", ".")  # inside, only what torch.compile wrote cannot be a user's name
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        result[name] = tensor
    return result
