"""``lowland doctor``: what is installed, what it computes on, and what could be set better."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from typing import Any

import lowland
from lowland.cli.output import Shown
from lowland.workflows.parse import Call

_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LOWLAND_DATA")


def doctor() -> dict[str, Any]:
    """Show versions, devices, settings of threads, which extras are installed, and what could be set better."""
    variables = {name: os.environ.get(name, "") for name in _VARIABLES}
    needed, extras = _requirements()
    found: dict[str, Any] = {
        "lowland": lowland.__version__,
        "python": platform.python_version(),
        "needed": {name: _version(name) for name in needed},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in extras.items()},
        "machine": _machine(),
        "variables": variables,
    }
    found["install"] = {
        extra: f'pip install "lowland[{extra}]"' for extra, names in found["extras"].items() if not all(names.values())
    }
    found["advice"] = _advice(found)
    return found


def show_doctor(found: dict[str, Any], call: Call) -> Shown:
    """Show what was found as a table, and what could be set better."""
    rows = [["what", "value"], ["lowland", lowland.__version__], ["python", f"{found['python']} ({sys.executable})"]]
    rows += [[name, version or "MISSING"] for name, version in found["needed"].items()]
    rows += [[name, str(value)] for name, value in found["machine"].items()]
    rows += [[name, value or "not set"] for name, value in found["variables"].items()]
    for extra, names in found["extras"].items():
        missing = [name for name, version in names.items() if not version]
        rows.append([f"extra {extra}", f"missing {', '.join(missing)}" if missing else "installed"])
    lines = ["", *(f"To get {extra}: {line}" for extra, line in found["install"].items())]
    return Shown(found, [*lines, *(f"Advice: {line}" for line in found["advice"])], rows)


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Return what the package needs, and what each extra adds, as its metadata say."""
    try:
        lines = importlib.metadata.requires("lowland") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources that was never installed
        return ["torch"], {}
    needed, extras = [], dict[str, list[str]]()
    for line in lines:
        name = re.split(r"[\s\[;<>=!~(]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if extra is None:
            needed.append(name)
        elif extra[1] not in ("dev", "docs"):
            extras.setdefault(extra[1], []).append(name)
    return needed, extras


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _machine() -> dict[str, Any]:
    """Return what computes here; without torch only what Python knows."""
    # those this process may use, which a cluster or a container often restricts
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": cores}
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of its own cannot be loaded
        return {**known, "torch": f"cannot be imported ({error})"}
    known["threads of torch"] = torch.get_num_threads()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("Apple GPU (mps)")
    return {**known, "accelerators": ", ".join(devices) or "none"}


def _advice(found: dict[str, Any]) -> list[str]:
    lines = []
    missing = [name for name, version in found["needed"].items() if not version]
    if missing:
        lines.append(f"{', '.join(missing)} missing: results open and draw, nothing trains; pip install lowland")
    if found["variables"]["OMP_WAIT_POLICY"].lower() != "passive":
        lines.append(
            "set OMP_WAIT_POLICY=passive for scripts of your own (the command `lowland` does so by itself): two OpenMP "
            "teams that spin on the same cores slow each other 10 to 80 times"
        )
    threads, cores = found["machine"].get("threads of torch"), found["machine"]["cores"]
    if threads is not None and threads > cores:
        lines.append(f"torch uses {threads} threads on {cores} cores: set OMP_NUM_THREADS={cores}")
    return lines
