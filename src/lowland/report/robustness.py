"""Robustness cards in a report: what was measured beside what curvature predicts, one figure per part."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lowland.report.curvature import part_of
from lowland.report.marks import shows, weights_of
from lowland.report.sections import Block, Details, Figure, Gallery, Paragraph, Section, Table
from lowland.report.statistics import show, show_known
from lowland.results.matched import LOSS_RATIO, common_loss, comparable, nearest, within
from lowland.results.recipes import loss_of
from lowland.results.run import Run
from lowland.viz.spec import Axis, Curve, Line, Scatter, ScatterPoint

if TYPE_CHECKING:
    import xarray as xr

_TITLES: Final = {
    "rounding": "Rounded weights",
    "noise": "Noise on the weights",
    "worst": "The worst direction",
    "forgetting": "A fine-tune on other data, and back",
    "merging": "On the way to other weights",
    "inputs": "Noise and attacks on inputs",
}
_SIZES: Final = {
    "rounding": "bits",
    "noise": "step length over weight norm",
    "worst": "step length over weight norm",
    "forgetting": "step (second half: on the own data)",
    "merging": "share of the way",
    "inputs": "size on inputs in [0, 1]",
}
_NOTES: Final = (
    "Changes are to the plain weights on the same samples, with paired standard errors; for noise that over directions "
    "is added.",
    "Predicted: g·d + d'Hd/2, one product each; the ratio is what was measured on the samples of the prediction over "
    "it: 1 while the quadratic picture holds. Like noise: what noise of that length would cost, the filter-weighted "
    "trace times ρ²/2.",
)


_SAME: Final = ("train_loss", "weight_norm", "batch_norm", "samples", "split", "rounded")
"""What agrees between cards of the same weights on the same data in the same mode."""
_STATED: Final = ("batch_norm", "samples")


def robustness_section(runs: Sequence[Run]) -> Section | None:
    """Build the section of all cards: those of several runs at equal train loss."""
    found = {run.name: whole(run.cards, list(run.cards)[-1]) for run in runs if run.cards}
    if not found:
        return None
    blocks: list[Block] = []
    if len(found) > 1:
        found, said = _comparable(runs, found)
        blocks.append(Paragraph(said))
    pairs = [(run, weights_of(found[run.name])) for run in runs if run.name in found]
    settings = _settings(found.values())
    also = "Measured on " + "; ".join(f"{name}: {value}" for name, value in settings.items() if value)
    blocks[:0] = shows(pairs, settings["data"].split(", "), also)
    blocks.append(comparison_table(found, short=True))
    if len(found) > 1:
        blocks.append(Details("Every change, side by side", (comparison_table(found),)))
    blocks.append(Gallery(tuple(Figure(figure, height=400) for figure in figures(found))))
    blocks += [Details(f"Card of {name}", (card_table(card), *_said(card))) for name, card in found.items()]
    return Section("Robustness", tuple(blocks))


def whole(cards: Mapping[str, xr.Dataset], name: str) -> xr.Dataset:
    """Return a card with the parts that it lacks, from cards of the same weights on the same data."""
    card = cards[name]
    for other in reversed(list(cards.values())):
        lacking = ~np.isin(other["part"].values, card["part"].values)
        if lacking.any() and all(other.attrs.get(key) == card.attrs.get(key) for key in _SAME):
            import xarray as xr

            notes = dict.fromkeys(json.loads(card.attrs["notes"]) + json.loads(other.attrs["notes"]))
            card = xr.concat([card, other.isel(row=lacking)], "row", combine_attrs="override")
            card.attrs["notes"] = json.dumps(list(notes))
    return card


def _settings(cards: Iterable[xr.Dataset]) -> dict[str, str]:
    """Return on what and how cards were measured; more than one value where they differ."""
    known = []
    for card in cards:
        modes = {name.replace("_", " "): str(card.attrs.get(name, "not stored")) for name in _STATED}
        known.append({"data": part_of(card), "loss": loss_of(card), **modes})
    return {name: ", ".join(dict.fromkeys(one[name] for one in known)) for name in known[0]}


def _comparable(runs: Sequence[Run], ends: dict[str, xr.Dataset]) -> tuple[dict[str, xr.Dataset], str]:
    """Return the cards at train losses that are near enough, and which those are."""
    for what in ("data", "loss", "batch norm"):
        if ", " in (unlike := _settings(ends.values())[what]):
            return ends, f"Not comparable: the cards are of different {what} ({unlike})."
    data, losses = part_of(next(iter(ends.values()))), [float(card.attrs["train_loss"]) for card in ends.values()]
    if comparable(losses):
        return ends, f"All cards are at {data} losses within a factor {LOSS_RATIO}: {', '.join(map(show, losses))}."
    target, chosen = common_loss(losses), {}
    for run in runs if target is not None else ():
        if run.name in ends:
            known = {name: float(card.attrs["train_loss"]) for name, card in run.cards.items()}
            place = nearest(known, target or math.nan)
            if within(known[place], target or math.nan):
                chosen[run.name] = whole(run.cards, place)
    if len(chosen) == len(ends):
        return chosen, (
            f"Not comparable at the end: the {data} losses differ by more than a factor {LOSS_RATIO}. These are the "
            f"cards at matched {data} loss, near {show(target)}."
        )
    return ends, (
        f"Not comparable: the {data} losses ({', '.join(map(show, losses))}) differ by more than a factor "
        f"{LOSS_RATIO}, and cross-entropy curvature vanishes as a net memorizes. Measure snapshots from "
        "where the losses were equal: lowland robustness RUN --risk.weights STEP."
    )


def _rows(card: xr.Dataset) -> list[dict[str, Any]]:
    columns = {str(name): card[name].values.tolist() for name in card.data_vars}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def ratio_of(row: Mapping[str, Any]) -> float:
    """Return measured over predicted, on the same samples."""
    predicted = row["first"] + row["second"]
    return float(row["compared"] / predicted) if predicted else math.nan


def card_table(card: xr.Dataset) -> Table:
    """Build the table of one card."""
    rows = [
        {
            "part": row["part"],
            "change": row["name"],
            "size": f"{row['size']:.4g}",
            "loss": show_known(row["loss"], 4),
            "change of the loss": _change(row),
            "change of accuracy (points)": _signed(100 * row["accuracy_change"], 100 * row["accuracy_change_se"]),
            "predicted": show_known(row["first"] + row["second"], 4),
            "measured / predicted": show_known(ratio_of(row)),
            "like noise": show_known(row["trace"], 4),
        }
        for row in _rows(card)
    ]
    loss, accuracy = (show_known(card.attrs.get(f"train_{name}"), 4) for name in ("loss", "accuracy"))
    caption = f"Plain weights: loss {loss}, accuracy {accuracy}, filter-weighted trace {_trace(card)}"
    return Table.of(rows, caption, (sizes_told(card), *_NOTES))


def sizes_told(card: xr.Dataset) -> str:
    """Say what the sizes of a card's changes are, part by part."""
    parts = dict.fromkeys(row["part"] for row in _rows(card))
    meant: dict[str, list[str]] = {}
    for part in parts:
        meant.setdefault(_SIZES[part], []).append(part)
    return "Size: " + "; ".join(f"{text} ({', '.join(named)})" for text, named in meant.items()) + "."


def _trace(card: xr.Dataset) -> str:
    return _signed(card.attrs["filter_trace"], card.attrs["filter_trace_se"])


def _change(row: Mapping[str, Any]) -> str:
    drawn = 0.0 if math.isnan(row["draw_se"]) else row["draw_se"]
    return _signed(row["loss_change"], math.hypot(row["loss_change_se"], drawn))


def _signed(value: float, error: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{show(value, 3)}" + ("" if math.isnan(error) else f" ± {show(error, 2)}")


def comparison_table(cards: Mapping[str, xr.Dataset], *, short: bool = False) -> Table:
    """Build the table of cards: the change of the loss, and in brackets measured over predicted; or a short one."""
    named = {name: {(r["part"], _kind(r), r["size"]): r for r in _rows(card)} for name, card in cards.items()}
    keys = list(dict.fromkeys(key for rows in named.values() for key in rows))
    keys = _middle(keys) if short else keys
    rows = [
        {"change": key[1] if key[0] == "rounding" else f"{key[1]}, {key[2]:.4g}"}  # its names hold the bits
        | {name: _cell(rows.get(key)) for name, rows in named.items()}
        for key in keys
    ]
    head = {"change": f"{_settings(cards.values())['data']} loss"} | {
        name: show_known(card.attrs["train_loss"], 4) for name, card in cards.items()
    }
    trace = {"change": "filter-weighted trace"}
    trace |= {name: _trace(card) for name, card in cards.items()}
    caption = "Change of the loss (of accuracy, in points, for inputs), and measured over predicted in brackets"
    return Table.of([head, trace, *rows], f"{caption}; of each part the middle size" if short else caption, _NOTES)


def _middle(keys: Sequence[tuple[str, str, float]]) -> list[tuple[str, str, float]]:
    """Return one change of each part: the first kind of it at the middle of the sizes."""
    sizes: dict[str, set[float]] = {}
    for part, _, size in keys:
        sizes.setdefault(part, set()).add(size)
    middle = {part: sorted(found)[(len(found) - 1) // 2] for part, found in sizes.items()}
    return [next(key for key in keys if key[0] == part and key[2] == size) for part, size in middle.items()]


def _kind(row: Mapping[str, Any]) -> str:
    return "worst direction" if row["part"] == "worst" else f"{row['part']}: {row['name']}"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if math.isnan(row["loss_change"]):
        return _signed(100 * row["accuracy_change"], 100 * row["accuracy_change_se"])
    ratio = ratio_of(row)
    return _change(row) + ("" if math.isnan(ratio) else f" ({show(ratio, 2)})")


def _said(card: xr.Dataset) -> Iterator[Paragraph]:
    names = json.loads(card.attrs["rounded"])
    yield Paragraph(f"Rounded and moved by noise: {', '.join(names)}.", note=True)
    for text in (*json.loads(card.attrs["notes"]), card.attrs.get("curvature_kinks", "")):
        if text:
            yield Paragraph(str(text), note=True)


def figures(cards: Mapping[str, xr.Dataset]) -> Iterator[Line | Scatter]:
    """Yield one figure per part, of one card or of several by name."""
    for part, title in _TITLES.items():
        rows = {name: [r for r in _rows(card) if r["part"] == part] for name, card in cards.items()}
        rows = {name: found for name, found in rows.items() if found}
        if rows and part == "rounding":
            yield _rounding(rows, title)
        elif rows:
            yield _curves(rows, part, title)


def _rounding(rows: Mapping[str, list[dict[str, Any]]], title: str) -> Scatter:
    points = []
    for name, found in rows.items():
        for row in found:
            x, y, error = row["first"] + row["second"], row["loss_change"], row["loss_change_se"]
            label = name if len(rows) > 1 else row["name"]  # a look for each run, not for each of eight times runs
            points.append(ScatterPoint(label, x, y, None if math.isnan(error) else (y - 2 * error, y + 2 * error)))
    axes = Axis("predicted change of the loss"), Axis("measured change of the loss")
    return Scatter(tuple(points), *axes, title, "Bars: two paired standard errors.", diagonal="measured as predicted")


def _curves(rows: Mapping[str, list[dict[str, Any]]], part: str, title: str) -> Line:
    curves: list[Curve] = []
    kinds = {run: list(dict.fromkeys(_curve_of(row) for row in found)) for run, found in rows.items()}
    shown = "worst" if any("worst" in named for named in kinds.values()) else next(iter(kinds.values()))[0]
    for run, found in rows.items():
        # of several runs one kind: eight looks tell curves apart
        for kind in kinds[run] if len(rows) == 1 else [shown]:
            if some := [row for row in found if _curve_of(row) == kind]:
                curves += _with_prediction(kind if len(rows) == 1 else run, some, part)
    metric = "accuracy" if part == "inputs" else "change of the loss"
    said = ["Bands: 5 % to 95 % of the directions."] if part == "noise" else []
    if len(rows) > 1 and any(len(named) > 1 for named in kinds.values()):
        said.insert(0, f"Shown: {shown}. The table has all kinds.")
    caption = " ".join(said)
    log = part == "worst" and any((curve.y > 0).any() for curve in curves)  # spans decades
    if log:
        curves = [by_sign for curve in curves for by_sign in _by_sign(curve)]
    return Line(tuple(curves), Axis(_SIZES[part]), Axis(metric, log=log), title, caption)


def _by_sign(curve: Curve) -> Iterator[Curve]:
    """Yield a curve for a logarithmic axis: what is below zero by its size, marked so."""
    if (curve.y > 0).all():
        yield curve
        return
    for sign, words in ((1, "above 0"), (-1, "below 0, its size")):
        sizes = np.where(sign * curve.y > 0, sign * curve.y, np.nan)
        if np.isfinite(sizes).any():
            dotted = {"reference": curve.reference or sign < 0, "follows": curve.follows or sign < 0}
            bare = replace(curve, low=None, high=None, band="", markers=True, **dotted)  # type: ignore[arg-type]
            yield replace(bare, name=f"{curve.name}, {words}", y=sizes, sign=sign)


def _curve_of(row: Mapping[str, Any]) -> str:
    """Return which curve of its figure a row is of: the whole way of a fine-tune, whichever direction won."""
    names = {"worst": "worst direction", "forgetting": row["name"].split(",")[0]}
    return str(names.get(row["part"], row["name"]))


def _with_prediction(label: str, rows: list[dict[str, Any]], part: str) -> Iterator[Curve]:
    x = np.array([row["size"] for row in rows])
    y = np.array([row["accuracy" if part == "inputs" else "loss_change"] for row in rows])
    if part == "noise":
        ends = np.array([row["quantiles"] for row in rows])
        yield Curve(label, x, y, ends[:, 0], ends[:, -1], "5 % to 95 % of directions", markers=True)
    else:
        error = np.array([row["accuracy_change_se" if part == "inputs" else "loss_change_se"] for row in rows])
        known = bool(np.isfinite(error).all())
        low, high = (y - error, y + error) if known else (None, None)
        yield Curve(label, x, y, low, high, "± one standard error" if known else "", markers=True)
    if part != "inputs":
        predicted = np.array([row["first"] + row["second"] for row in rows])
        yield Curve(f"{label}: predicted", x, predicted, reference=True, follows=True)
