"""Where a number comes from: versions, machine, and fingerprints of models, data and directions."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lowland

_PACKAGES = ("torch", "numpy", "scipy", "xarray", "zarr")


def fingerprint(tensors: Iterable[Any] | Mapping[str, Any]) -> str:
    """Return a fingerprint of tensors or arrays: names, types, shapes and bits."""
    digest = hashlib.sha256()
    items = tensors.items() if isinstance(tensors, Mapping) else ((str(i), t) for i, t in enumerate(tensors))
    for name, tensor in items:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()[:16]


def _raw(tensor: Any) -> bytes:
    if hasattr(tensor, "detach"):  # a torch tensor, told apart without importing torch
        import torch

        dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
        flat = dense.cpu().contiguous().reshape(-1)
        return bytes(flat.view(torch.uint8).numpy().tobytes())
    return bytes(tensor.tobytes())


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Lowland and of what its numbers depend on."""
    found = {"lowland": lowland.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def processor() -> str:
    """Return the name of the processor, whose kernels decide the last bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


@functools.cache
def revision() -> str:
    """Return the git commit of Lowland's source if it runs from a checkout."""
    root = Path(lowland.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def provenance() -> dict[str, Any]:
    """Return what every stored result carries: versions, revision, processor, time."""
    return {
        "versions": versions(),
        "revision": revision(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
