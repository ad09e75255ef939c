"""``lowland figure``: draw stored results in any style, without computing anything again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from lowland.cli.output import Output, command_arguments
from lowland.core.errors import InputError
from lowland.workflows import FigureSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words = command_arguments(arguments, "results")
    spec, flags = parse(FigureSpec, words, "lowland figure", quiet=False, json=False)
    from lowland import results as stored
    from lowland.viz import FigureOptions, export

    named = {field.name: getattr(spec, field.name) for field in fields(FigureOptions) if hasattr(spec, field.name)}
    results = {name: stored.open(path) for name, path in _names(spec.results).items()}
    paths = {name: stored.open(path) for name, path in _names(spec.trajectories).items()}
    made = export(results, spec.output, spec.kind, trajectories=paths, options=FigureOptions(**named))
    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    output.result({"figure": str(made), "results": len(results)}, [f"Figure: {made}"])
    return 0


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Name results by their run where they lie in one, so that panels can be told apart."""
    from lowland.results.run import Run

    names = []
    for path in paths:
        run = Run.of_store(path)
        names.append(run.name if run.spec_path.is_file() else Path(path).absolute().stem)
    if len(set(names)) < len(names):
        names = [f"{name} {Path(path).stem}" for name, path in zip(names, paths, strict=True)]
    if len(set(names)) < len(names):
        raise InputError("results", "must have different names", names)
    return dict(zip(names, paths, strict=True))
