"""Scripts of at most 15 lines that show a broken rule: filled from what adapter and rule say, run, and shrunk.

An adapter states how its tool is called (`Adapter.source`), a rule what should be true (``*_scripts.py``). A script is
kept as long as it ends with an error for the tool, and with none for Lowland's own tool in its place.
"""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from string import Template
from typing import Any, Final

from lowland.testing import ambient
from lowland.testing.adapters import OptimizerAdapter
from lowland.testing.rulebook import Adapter, Family, Rule

LIMIT: Final = 15
"""Lines that a script may have."""

_PIECES: Final[dict[Family, tuple[str, ...]]] = {
    "optimizer": ("make", "step", "averaged", "scaled_step", "accumulated_step"),
    "landscape": ("plane", "line", "resumed", "stored"),
    "curvature": ("product", "ends", "trace", "density"),
}
"""Functions that scripts of a family call, by the names that `Adapter.source` defines."""

_SIZES: Final = {"inputs": 4, "outputs": 3, "samples": 8, "steps": 10}
"""What scripts start from; each is shrunk to 1 where the fault still shows."""

_VARIANTS: Final = {
    "base": ("torch.optim.SGD, lr=0.1, momentum=0.9", "torch.optim.AdamW, lr=0.01"),
    "around": (
        "torch.no_grad()",
        "torch.autocast('cpu', torch.bfloat16)",
        "torch.device('meta')",
        "torch.inference_mode()",
    ),
    "dtype": ("torch.float32", "torch.float16", "torch.bfloat16"),
    "dimensions": ("1", "2", "3"),
    "odd": ('float("nan")', 'float("inf")'),
    "other": ("loss", "data", "weights"),
}
"""What else a script may be filled with; the first that shows the fault is taken."""

_MODULES: Final = ("contextlib", "copy", "numpy", "pickle", "random", "tempfile")
"""Imported beside torch where a script names them."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A script that shows a broken rule by itself, or why there is none.

    Args:
        source: The script; empty if there is none.
        output: The error it ends with.
        missing: Why there is no script; empty if there is one.
    """

    source: str = ""
    output: str = ""
    missing: str = ""


def reproduce(adapter: Adapter, broken: Rule) -> Reproduction:
    """Write the smallest script that shows how a tool breaks a rule.

    Args:
        adapter: How the tool is driven; it states its calls in `Adapter.source`.
        broken: A rule that the tool breaks.

    Returns:
        The script, of at most 15 lines that need torch and the tool alone, and the error it ends with.

    Example:
        >>> from lowland.testing import own_adapters, rules
        >>> reproduce(own_adapters()[0], rules("optimizer")[0]).missing
        'the script shows no fault'
    """
    template = _templates(broken.family).get(broken.name, "")
    if not adapter.source or not template:
        side = f"the adapter of {adapter.name}" if template else "the rule"
        return Reproduction(missing=f"{side} states no source")
    lacking = [piece for piece in _called(template, broken.family) if piece not in adapter.source and piece != "step"]
    if lacking:
        return Reproduction(missing=f"the adapter's source defines no `{lacking[0]}`")
    if error := run("\n".join([f"import {', '.join([*_MODULES, 'torch'])}", *adapter.source.values()])):
        return Reproduction(missing=f"the adapter's source itself ends with {error}")
    script = _Script(adapter, broken.family, template)
    if script.lines > LIMIT:
        return Reproduction(missing=f"the script would have {script.lines} lines")
    for choice in script.choices():
        if error := choice.error():
            return _shrunk(choice, error)
    return Reproduction(missing="the script shows no fault")


@dataclass(frozen=True)
class _Script:
    """A template with what it is filled with."""

    adapter: Adapter
    family: Family
    template: str
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def names(self) -> set[str]:
        return set(re.findall(r"\$(\w+)", self.template))

    @property
    def lines(self) -> int:
        return len(self.choices()[0].text(self.adapter).splitlines())

    def choices(self) -> list[_Script]:
        """Return the script with each combination of variants, all sizes at their start."""
        sizes = {name: size for name, size in _SIZES.items() if name in self.names}
        variants = {name: values for name, values in _VARIANTS.items() if name in self.names}
        return [
            self.with_values(**sizes, **dict(zip(variants, one, strict=True))) for one in product(*variants.values())
        ]

    def with_values(self, **values: Any) -> _Script:
        return replace(self, values=tuple((dict(self.values) | values).items()))

    def text(self, adapter: Adapter) -> str:
        """Return the script for one tool."""
        values = dict(self.values)
        if isinstance(adapter, OptimizerAdapter):
            values |= {"rho": adapter.rho, "passes": adapter.passes(values.get("steps", 0))}
        body = Template(self.template).substitute(values)
        if "step" not in adapter.source:
            body = re.sub(r"(?<![\w.])step\(optimizer, ", "optimizer.step(", body)
        needed = _needed(adapter, body, self.family)
        modules = [name for name in _MODULES if re.search(rf"\b{name}\.", "\n".join([body, *needed]))]
        head = f"import {', '.join([*modules, 'torch'])}; torch.manual_seed(0)"
        return "\n".join([head, *needed, body.strip("\n")]) + "\n"

    def error(self) -> str:
        """Return the error that the tool ends with and our own does not; empty if there is none."""
        found = run(self.text(self.adapter))
        return found if found and not run(self.text(_sound(self.family))) else ""


def _shrunk(script: _Script, error: str) -> Reproduction:
    """Make one size after the other as small as shows the same error, numbers aside."""
    for name, size in dict(script.values).items():
        for smaller in sorted({1, 2, 3, size // 2}) if name in _SIZES else ():
            tried = script.with_values(**{name: smaller})
            found = tried.error() if smaller < size else ""
            if found and _kind(found) == _kind(error):
                script, error = tried, found
                break
    return Reproduction(script.text(script.adapter), error)


def _kind(error: str) -> str:
    return re.sub(r"[-+.\de]+|nan|inf", "#", error)


def _called(text: str, family: Family) -> list[str]:
    return [piece for piece in _PIECES[family] if re.search(rf"(?<![.\w]){piece}\(", text)]


def _needed(adapter: Adapter, body: str, family: Family) -> list[str]:
    """Return the parts of an adapter's source that a script calls, and those that they call."""
    wanted = set(_called(body, family))
    for name in reversed(list(adapter.source)):  # what is called stands before
        if any(re.search(rf"\b{name}\(", adapter.source[other]) for other in wanted & adapter.source.keys()):
            wanted.add(name)
    return [text.strip("\n") for name, text in adapter.source.items() if name == "import" or name in wanted]


def _templates(family: Family) -> dict[str, str]:
    """Return what the rules of a family state, by their names."""
    homes = ["optimizer_scripts", "surroundings_scripts"] if family == "optimizer" else [f"{family}_scripts"]
    found: dict[str, str] = {}
    for home in homes:
        found |= importlib.import_module(f"lowland.testing.{home}").SCRIPTS
    return found


@cache
def _sound(family: Family) -> Adapter:
    from lowland.testing.own import own_adapters

    return next(adapter for adapter in own_adapters() if adapter.family == family and adapter.source)


def run(source: str) -> str:
    """Run a script in a namespace of its own, and return the first line of the error it ends with; empty for none."""
    with ambient.guarded(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            exec(compile(source, "reproduction", "exec"), {"__name__": "__main__"})
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    return ""


_LAUNCHER: Final = """
import os, runpy, sys, traceback, torch
for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        try: runpy.run_path(path, run_name="__main__")
        except BaseException as error: open(path + ".error", "w").write(traceback.format_exception_only(error)[-1])
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Runs files in a process each; torch takes seconds to import, so that an interpreter which did is copied for each."""


def run_alone(*sources: str) -> list[str]:
    """Run scripts in a process of their own each, in an empty folder, and return as `run` does; not on Windows."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.py" for number in range(len(sources))]
        for path, source in zip(paths, sources, strict=True):
            path.write_text(source, encoding="utf-8")
        command = [sys.executable, "-c", _LAUNCHER, *map(str, paths)]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        errors = [path.with_suffix(".py.error") for path in paths]
        return [path.read_text().strip().splitlines()[0][:180] if path.exists() else "" for path in errors]
