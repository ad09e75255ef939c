"""The notebooks run from top to bottom, show bars, tables and figures, and hold no outputs in the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))
SHOWN = {
    "first_landscape": ["<progress", "FitResult", "image/png", "points were measured", "SpectrumEnds"],
    "compare_finetunings": ["barrier:", "INT8 per channel", "Answer("],
    "is_my_optimizer_right": ["one_norm_over_groups", "broken", "{'holds'}"],
}
"""What some output of each must hold."""


def test_every_notebook_is_here():
    assert {path.stem for path in NOTEBOOKS} == set(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_stored(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = json.dumps(outputs) + " ".join(map(str, outputs))
    assert not [text for text in SHOWN[path.stem] if text not in shown]
    assert _bytes(outputs) < 2_000_000


def _bytes(outputs: list[Any]) -> int:
    return len(json.dumps(outputs))
