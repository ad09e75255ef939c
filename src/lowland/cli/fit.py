"""``lowland fit``: train one network into a run folder."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.cli.output import Output, command_arguments
from lowland.workflows import FitSpec, parse
from lowland.workflows.recipe import expand

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words = expand(command_arguments(arguments, "folder"))
    spec, flags = parse(FitSpec, words, "lowland fit", quiet=False, json=False, scale=("full", "small"))
    from lowland.workflows.measure import fit_run, leave_processes

    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    with output:
        run = fit_run(spec, on_event=output.progress(f"training {spec.folder}"))
        leave_processes()
    result = run.result
    test, chosen = result["test"], result["chosen"]
    table = [["epoch", "train loss", "validation accuracy", "test accuracy", "test loss", "passes", "seconds"]]
    table.append(
        [
            f"{result['epoch']}", f"{chosen['train_loss']:.4f}", _share(chosen.get("validation_accuracy")),
            _share(test.get("accuracy")), f"{test['loss']:.4f}", f"{result['passes']}", f"{result['seconds']:.1f}",
        ]
    )  # fmt: skip
    output.result({"folder": spec.folder, **result}, [f"Run: {spec.folder}"], table)
    return 0


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
