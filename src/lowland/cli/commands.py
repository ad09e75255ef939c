"""The commands: what each does, which function it calls, how its result is shown; nothing is imported early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Command:
    """One command; ``module:name`` is imported when it is needed."""

    about: str
    function: str  # Its arguments are the flags
    example: str
    positional: str = ""  # The option that words before the first flag stand for; several where it ends in s
    label: str = ""  # What its bar says before the option's value
    output: str = "lowland.cli.output:Output"
    prepare: str = ""  # Changes the words before they are read
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # Further flags, which the function does not see

    @property
    def show(self) -> str:
        """``(what the function returned, the call) -> Shown``, beside the function or in `lowland.cli.show`."""
        module, _, name = self.function.partition(":")
        return f"{module if module.startswith('lowland.cli.') else 'lowland.cli.show'}:show_{name}"


COMMANDS: Final = {
    "demo": Command(
        "train six methods on digits, survey them and write a report",
        "lowland.cli.studies:demo",
        "lowland demo --seeds 3 --engine processes:2",
    ),
    "fit": Command(
        "train one network into a run folder",
        "lowland.workflows.fitting:fit",
        "lowland fit runs/sam --epochs 10 --optimizer.method sam --optimizer.options.rho 0.1",
        positional="folder",
        label="training",
        prepare="lowland.workflows.recipe:expand",
        flags={"scale": ("full", "small")},
    ),
    "surface": Command(
        "survey the loss on a plane around the weights of a run",
        "lowland.workflows.surveys:surface",
        "lowland surface runs/sam --points 51x51 --splits train,test",
        positional="run",
        label="surface of",
    ),
    "line": Command(
        "survey the loss on a line, in random directions or to another run",
        "lowland.workflows.surveys:line",
        "lowland line runs/sgd --other runs/sam --start 0 --stop 1",
        positional="run",
        label="line of",
    ),
    "connect": Command(
        "train a curve of low loss from one run to another, beside the straight line",
        "lowland.workflows.connecting:connect",
        "lowland connect runs/sgd --others runs/sam --epochs 20",
        positional="run",
        label="curve from",
    ),
    "trajectory": Command(
        "project the training path of a run",
        "lowland.workflows.surveys:trajectory",
        "lowland trajectory runs/sam --points 25",
        positional="run",
        label="path of",
    ),
    "film": Command(
        "film the landscape along the training of a run",
        "lowland.workflows.filming:film",
        "lowland film runs/sam --output film.gif",
        positional="run",
        label="film of",
    ),
    "curvature": Command(
        "measure the Hessian at the weights of a run",
        "lowland.workflows.surveys:curvature",
        "lowland curvature runs/sam --risk.samples 2000 --top 5",
        positional="run",
        label="curvature of",
    ),
    "robustness": Command(
        "measure what rounding, noise, a fine-tune and merging do to the weights of a run",
        "lowland.workflows.robustness:robustness",
        "lowland robustness runs/sgd --other runs/sam --risk.samples 2000",
        positional="run",
        label="robustness of",
    ),
    "report": Command(
        "write one self-contained page about runs, or a site with a page for each",
        "lowland.cli.report:report",
        "lowland report runs/sgd runs/sam --output page.html",
        positional="runs",
    ),
    "figure": Command(
        "draw stored results in any style, without computing again",
        "lowland.workflows.figures:figure",
        "lowland figure runs/sam/surfaces/plane.zarr --kind contour --output plane.pdf",
        positional="results",
    ),
    "inspect": Command(
        "say what a checkpoint or a series of them is, and measure it",
        "lowland.workflows.inspecting:inspect",
        "lowland inspect outputs --data mydata:test_set",
        positional="path",
    ),
    "topology": Command(
        "count the basins of a stored surface beyond its errors, and compare two surfaces",
        "lowland.workflows.topology:topology",
        "lowland topology runs/sam/surfaces/plane.zarr --other runs/sgd/surfaces/plane.zarr --output tree.pdf",
        positional="surface",
    ),
    "merge": Command(
        "merge checkpoints with the weights that stand for a decay of the learning rate",
        "lowland.workflows.merging:merge",
        "lowland merge runs/constant --last 8 --decay 1-sqrt",
        positional="checkpoints",
    ),
    "list": Command(
        "show the known models, data sets, methods and recipes",
        "lowland.cli.known:known",
        "lowland list methods recipes",
        positional="kinds",
    ),
    "study": Command(
        "compare methods over seeds by a rule declared before",
        "lowland.cli.studies:study",
        "lowland study study.yaml --seeds 8",
        positional="config",
        output="lowland.cli.studies:LiveOutput",
    ),
    "recommend": Command(
        "find out which method helps on your model and data",
        "lowland.cli.studies:recommend",
        "lowland recommend --model.name resnet8 --data.name digits",
        output="lowland.cli.studies:LiveOutput",
    ),
    "doctor": Command(
        "show versions, devices, extras and what could be set better",
        "lowland.cli.doctor:doctor",
        "lowland doctor --json",
    ),
}
"""Every command by name."""
