"""Progress that users switch on: bars in a terminal, HTML in a notebook, lines elsewhere, and nothing left behind."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from lowland import curvature, landscape, robustness, training
from lowland.core import bars, pace
from lowland.core.pace import Event
from lowland.core.risk import EmpiricalRisk
from lowland.core.settings import RobustnessOptions, SummaryOptions
from lowland.data import DataSplits, TensorData


class Seen:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {}
        self.open = 0

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *error):
        self.open -= 1

    def progress(self, label):
        return self.events.setdefault(label, []).append


@pytest.fixture
def seen(monkeypatch) -> Seen:
    found = Seen()
    monkeypatch.setattr(bars, "display", lambda: found)
    return found


def risk_of_a_layer() -> EmpiricalRisk:
    return EmpiricalRisk(nn.Linear(4, 4), nn.CrossEntropyLoss(), [(torch.eye(4), torch.arange(4))])


CALLS = {
    "ends of the spectrum": lambda risk: curvature.extreme_eigenvalues(risk, progress=True),
    "top eigenvalues": lambda risk: curvature.top_eigenvalues(risk, 2, progress=True),
    "trace": lambda risk: curvature.trace(risk, products=9, progress=True),
    "filter trace": lambda risk: curvature.filter_weighted_trace(risk, directions=4, progress=True),
    "spectral density": lambda risk: curvature.spectral_density(risk, probes=2, steps=4, progress=True),
    "diagonal": lambda risk: curvature.diagonal(risk, probes=4, progress=True),
    "traces of layers": lambda risk: curvature.layer_traces(risk, probes=4, progress=True),
    "curvature by part": lambda risk: curvature.curvature_by_part(risk, "layer", draws=0, progress=True),
    "curvature": lambda risk: curvature.summarize(risk, SummaryOptions(directions=4), progress=True),
    "survey": lambda risk: landscape.evaluate(
        risk, landscape.random_plane(risk.model), landscape.grid(3, 3), progress=True
    ),
    "robustness": lambda risk: robustness.card(risk, RobustnessOptions(parts=["rounding"], bits=[8]), progress=True),
}


@pytest.mark.parametrize("label", CALLS)
def test_every_measurement_shows_its_progress(label, seen):
    CALLS[label](risk_of_a_layer())
    (events,) = seen.events.values()
    assert [*seen.events] == [label] and seen.open == 0
    kinds, done = [event.kind for event in events], [event.done for event in events]
    assert kinds == ["started", *["progress"] * (len(events) - 2), "done"] and len(events) > 2
    assert done == sorted(done) and events[-1].done == events[-1].total == max(done)


def test_without_being_asked_nothing_is_shown_or_hung_on_the_operator(seen):
    hessian = curvature.Hessian(risk_of_a_layer())
    curvature.trace(hessian, products=9)
    risk = risk_of_a_layer()
    landscape.evaluate(risk, landscape.random_plane(risk.model), landscape.grid(3, 3))
    assert seen.events == {} and hessian.on_product is None
    told = []
    hessian.on_product = told.append
    curvature.trace(hessian, products=9, progress=True)
    assert len(seen.events["trace"]) == 2 + len(told) and hessian.on_product == told.append


def test_a_bar_ends_with_the_block_also_after_an_exception(seen):
    hessian = curvature.Hessian(risk_of_a_layer())

    def breaks(vectors):
        raise RuntimeError("broken")

    hessian.multiply = breaks
    with pytest.raises(RuntimeError, match="broken"):
        curvature.trace(hessian, products=9, progress=True)
    assert seen.open == 0 and hessian.on_product is None and seen.events["trace"][-1].kind == "started"


def test_training_tells_every_step_to_both(seen):
    part = TensorData(torch.eye(4), torch.arange(4), torch.arange(4))
    data = DataSplits("four", part, part, part, classes=4, shape=(4,))
    model, told = nn.Linear(4, 4), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training.fit(
        model, optimizer, nn.CrossEntropyLoss(), data, epochs=2, batch_size=2, on_event=told.append, progress=True
    )
    assert told == seen.events["training"]
    assert [event.done for event in told] == [0, 1, 2, 2, 3, 4, 4, 4] and told[-1].total == 4


def test_labels_are_given_made_or_none(seen):
    given = lambda label: lambda event: None
    with pace.labels(given) as same, pace.labels(None) as none, pace.labels(False) as no, pace.labels(True) as made:
        made("one")(Event("done", 1, 1))
    assert same is given and none is None and no is None and len(seen.events["one"]) == 1


def test_bars_in_a_terminal():
    screen = io.StringIO()
    shown = bars.Bars(Console(file=screen, force_terminal=True, width=100))
    with shown:
        tell = shown.progress("survey")
        tell(Event("started", 0, 9))
        tell(Event("failed", 1, 9, message="[bold]no[/bold]"))
        tell(Event("progress", 4, 9, remaining=65.2))
    text = screen.getvalue()
    assert "survey" in text and "4/9" in text and "1:05 left" in text and "[bold]no[/bold]" in text
    assert text.endswith("\x1b[?25h") and shown.drawn is None  # the cursor is there again


def test_lines_where_there_is_no_terminal():
    screen = io.StringIO()
    with bars.Bars(Console(file=screen, width=100)) as shown:
        tell = shown.progress("survey")
        for event in (Event("progress", 4, 9, remaining=65.2), Event("progress", 5, 9), Event("done", 9, 9)):
            tell(event)
    assert screen.getvalue().splitlines() == ["survey: 4/9, 1:05 left", "survey: 9/9"]


def test_a_notebook_shows_one_line_per_label_in_place():
    cells = []
    with bars.CellBars(cells.append) as shown:
        shown.progress("<b>")(Event("started", 0, 9))
        shown.progress("two")(Event("progress", 4, 9, remaining=65.2))
        shown.progress("<b>")(Event("done", 9, 9, remaining=0.0))
    assert "&lt;b&gt;" in cells[-1] and "<b>" not in cells[-1] and 'max="9" value="4"' in cells[-1]
    assert "4/9 1:05 left" in cells[-1] and cells[-1].count("<progress") == 2 and "9/9 <" in cells[-1]


def test_a_notebook_says_why_points_failed_as_a_terminal_does():
    cells, screen = [], io.StringIO()
    with bars.CellBars(cells.append) as shown, bars.Bars(Console(file=screen, width=100)) as plain:
        for place in (shown, plain):
            tell = place.progress("survey")
            for number in range(20):
                tell(Event("failed", number, 20, message=f"ValueError: <{number}>"))
    lines = screen.getvalue().splitlines()
    assert "survey: a point failed: ValueError: <7>" in lines and "survey: a point failed: ValueError: <19>" in lines
    assert "<div>survey: a point failed: ValueError: &lt;7&gt;</div><div>and 12 more</div>" in cells[-1]
    assert "ValueError: <" not in cells[-1] and len(cells) < 20  # not drawn anew for each


def test_where_we_are(monkeypatch):
    shown = []
    for name in ("marimo", "IPython"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert bars.notebook_cell() is None and isinstance(bars.display(), bars.Bars)
    shell = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert bars.notebook_cell() is None  # a terminal's IPython
    marimo = SimpleNamespace(running_in_notebook=lambda: True, output=SimpleNamespace(replace=shown.append), Html=str)
    monkeypatch.setitem(sys.modules, "marimo", marimo)
    bars.notebook_cell()("text")
    assert shown == ["text"] and isinstance(bars.display(), bars.CellBars)
