"""Which weights a part of a report shows and how clean its labels are: said once per section, marked on the curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowland.report.sections import Paragraph
from lowland.results.run import Run
from lowland.results.spec import Spec

if TYPE_CHECKING:
    import xarray as xr

_MOST = 8  # runs that are named one by one

_GIVEN = "given"  # no training is known, so that no epoch was chosen
_KINDS = {
    _GIVEN: "as they were given",
    "best": "the epoch chosen on validation",
    "last": "the last epoch",
    "initial": "before training",
    "path": "every snapshot",
}


def weights_of(result: xr.Dataset) -> str:
    """Return which weights a result is of: best, last, initial or a step; "" where that is not stored."""
    stored = result.attrs.get("weights", result.attrs.get("step"))
    if stored is None:  # written by the command that measured it
        stored = Spec(str(result.attrs.get("spec", ""))).part("risk").get("weights", "")
    return str(stored)


def epoch_of(run: Run, weights: str) -> float | None:
    """Return the epoch, from 1, after which a run had these weights; None where it is not known."""
    if weights == "best":
        return run.number("epoch")
    if weights in ("last", "initial"):
        return run.last("epoch") if weights == "last" else 0.0
    rows = [(row["step"], row["epoch"]) for row in run.metrics if "step" in row and "epoch" in row]
    if not weights.isdigit() or not rows:
        return None
    steps, epochs = np.array([(0.0, 0.0), *rows], dtype=np.float64).T
    return float(np.interp(float(weights), steps, epochs))


def told(run: Run, weights: str) -> str:
    """Write which weights of a run they are, as a cell of a table."""
    epoch = epoch_of(run, weights)
    if epoch is None or weights == "initial":
        return _KINDS["initial"] if weights == "initial" else f"step {weights}" if weights.isdigit() else "not stored"
    text = f"epoch {epoch:.4g}"
    return text + (f" (step {weights})" if weights.isdigit() else "")


def not_begun(run: Run, weights: str) -> str:
    """Name the parts of a run's method that had not begun at a step, with the epoch of their beginning; "" for none."""
    begins = run.result.get("begins", {}) if run.finished and weights.isdigit() else {}
    late = {name: start for name, start in begins.items() if int(weights) <= start}
    said = []
    for name, start in late.items():
        epoch = epoch_of(run, str(start))
        said.append(f"before {name} began" + ("" if epoch is None else f" (after epoch {epoch:.4g})"))
    return ", ".join(said)


def chosen_of(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Return the runs whose outcome counts at a chosen epoch, for `shows`."""
    return [(run, "best") for run in runs if run.finished and run.number("epoch") is not None]


def shown_weights(pairs: Sequence[tuple[Run, str]]) -> str:
    """Say which weights some results are of, such as ``the epoch chosen on validation (SGD 9, SAM 12; of 12)``."""
    said = []
    pairs = [
        (run, _GIVEN if weights == "best" and not (run.finished or run.metrics) else weights) for run, weights in pairs
    ]
    for weights in dict.fromkeys(weights for _, weights in pairs if weights):
        runs = list({run.name: run for run, other in pairs if other == weights}.values())
        kept_last = weights == "best" and all(run.finished and run.result.get("select") == "last" for run in runs)
        kind = _KINDS["last"] if kept_last else _KINDS.get(weights, f"step {weights}")
        said.append(kind + _epochs(runs, weights))
    return "; ".join(said)


def _epochs(runs: Sequence[Run], weights: str) -> str:
    known = {run.name: epoch for run in runs if (epoch := epoch_of(run, weights)) is not None}
    lengths = {int(last) for run in runs if (last := run.last("epoch")) is not None}
    if not known or weights == "initial":
        return ""
    of = f" of {max(lengths)}" if len(lengths) == 1 else ""
    values = sorted(known.values())
    if len(set(values)) == 1:
        return f" ({values[0]:.4g}{of})"
    if len(known) > _MOST:
        return f" ({values[0]:.4g} to {values[-1]:.4g}{of})"
    return f" ({', '.join(f'{name}: {epoch:.4g}' for name, epoch in known.items())};{of})"


def wrong_labels(run: Run) -> Mapping[str, float] | None:
    """Return the share of wrong labels in each part of a run's data that has some; None where that is not known."""
    stored = run.result.get("labels_changed") if run.finished else None
    if isinstance(stored, dict):
        return {str(part): float(share) for part, share in stored.items()}
    return None


def shown_labels(runs: Iterable[Run], parts: Sequence[str]) -> str:
    """Say of each part of the data how many of its labels are wrong; "" where nothing is known."""
    found = [known for run in runs if (known := wrong_labels(run)) is not None]
    said = []
    for part in parts if found else ():
        shares = sorted({known.get(part, 0.0) for known in found})
        low, high = (f"{100 * share:.3g}" for share in (shares[0], shares[-1]))
        share = low if low == high else f"{low} to {high}"
        said.append(f"{part} labels clean" if high == "0" else f"{share} % of the {part} labels wrong on purpose")
    return ", ".join(said)


def shows(
    pairs: Sequence[tuple[Run, str]], parts: Sequence[str] = (), also: str = "", *, of: str = "Weights"
) -> list[Paragraph]:
    """Return the line that opens a section: which weights it shows, and how clean the labels behind it are."""
    weights = shown_weights(pairs)
    labels = shown_labels([run for run, _ in pairs], parts)
    said = [f"{of}: {weights}" if weights else "", f"Labels: {labels}" if labels else "", also]
    text = ". ".join(part for part in said if part)
    return [Paragraph(f"{text}.", note=True)] if text else []
