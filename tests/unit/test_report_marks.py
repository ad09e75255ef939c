"""What the report says of its weights and labels, rows from before a method began, legends, words for every figure, the site."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.report_cases import card, curvature, film, plane, run, spectrum, walk
from torch import nn

from lowland import report, viz
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import spectral_density
from lowland.report.curvature import curvature_section
from lowland.report.dynamics import training_section
from lowland.report.keys import captions_of, key_of, key_of_row
from lowland.report.marks import epoch_of, shown_labels, shown_weights, weights_of
from lowland.report.robustness import figures, robustness_section
from lowland.report.sections import Details, Figure, Gallery, Paragraph, Table
from lowland.results import Run
from lowland.viz.curves import build_cost, build_line, build_spectrum
from lowland.viz.describe import describe
from lowland.viz.films import build_film
from lowland.viz.paths import build_animation, build_path
from lowland.viz.plotly import draw, plain
from lowland.viz.plotly_canvas import encoded
from lowland.viz.spec import Panels, ScatterPoint
from lowland.viz.surfaces import build_contour, build_convexity_map, build_heat_map, build_surface

OUTCOME: dict[str, Any] = {"test_accuracy": 0.9, "epoch": 4, "select": "best", "passes": 60}


def trained(name: str, **parts: Any) -> Run:
    result = {**OUTCOME, **parts.pop("result", {})}
    return run(name, method=name, seed=0, accuracy=0.9, **{"result": result, **parts})


def said(section: report.Section | None) -> str:
    assert section is not None
    return " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))


def test_weights_are_named_by_epoch() -> None:
    one = trained("SGD")
    assert [epoch_of(one, weights) for weights in ("best", "last", "initial", "25", "path")] == [4, 5, 0, 1.5, None]
    assert shown_weights([(one, "best")]) == "the epoch chosen on validation (4 of 5)"
    assert shown_weights([(one, "best"), (trained("SAM", result={"epoch": 2}), "best")]) == (
        "the epoch chosen on validation (SGD: 4, SAM: 2; of 5)"
    )
    kept = trained("SGD", result={"select": "last", "epoch": 5})
    assert shown_weights([(kept, "best")]) == "the last epoch (5 of 5)"
    many = [(trained(f"s{k}", result={"epoch": k % 5 + 1}), "best") for k in range(12)]
    assert shown_weights(many) == "the epoch chosen on validation (1 to 5 of 5)"
    assert shown_weights([(one, "")]) == ""
    assert shown_weights([(Run(name="other"), "best")]) == "as they were given"  # a checkpoint: nobody chose an epoch


def test_what_a_result_says_of_its_weights_is_read_from_where_it_stands() -> None:
    assert weights_of(plane(weights="last")) == "last"
    assert weights_of(plane(spec="version: 1\nrisk:\n  weights: initial\n")) == "initial"
    assert weights_of(plane(step=30)) == "30"
    assert weights_of(plane()) == ""


def test_labels_of_each_part_are_clean_wrong_or_not_spoken_of() -> None:
    noisy = trained("a", result={"labels_changed": {"train": 0.18, "validation": 0.2}})
    parts = ("train", "validation", "test")
    assert shown_labels([noisy], parts) == (
        "18 % of the train labels wrong on purpose, 20 % of the validation labels wrong on purpose, test labels clean"
    )
    assert shown_labels([trained("b", result={"labels_changed": {}})], ("train",)) == "train labels clean"
    assert shown_labels([trained("c")], parts) == ""


def test_each_section_opens_with_its_weights_and_curves_carry_the_epoch() -> None:
    own = {"surfaces": {"plane": plane(weights="best", split="train")}, "curvature": {"end": curvature(0.1)}}
    own["curvature"]["end"].attrs.update(weights="best", split="train")
    one = trained(
        "SGD", result={"labels_changed": {"train": 0.18}}, trajectory=walk().assign_attrs(weights="last"), **own
    )
    built = report.build([one])
    assert [section.title for section in built.sections][:2] == ["Landscapes", "Training"]  # nothing to compare
    texts = {section.title: said(section) for section in built.sections}
    for title in ("Landscapes", "Comparison", "Curvature"):
        assert "Weights: the epoch chosen on validation (4 of 5)" in texts[title], title
        assert "18 % of the train labels" in texts[title], title
    assert "Plane through: the last epoch (5 of 5)" in texts["Trajectories"]
    section = training_section([one, trained("SAM", result={"epoch": 1})])
    assert section is not None and "A star marks the epoch whose weights count" in said(section)
    gallery = next(block for block in section.blocks if isinstance(block, Gallery))
    curves = gallery.blocks[0].spec.curves  # type: ignore[union-attr]
    assert [curve.stars for curve in curves] == [(4.0,), (1.0,)]
    assert np.allclose(curves[0].starred[1], curves[0].y[4])


def test_rows_at_matched_loss_say_whether_the_method_had_begun() -> None:
    begins = {"result": {"begins": {"SAF": 30}}}
    early, late = curvature(0.11), curvature(0.1)
    early.attrs["step"], late.attrs["step"] = 30, 40
    ends = {"curvature": {"end": curvature(0.1)}}
    for found, marked in ((early, True), (late, False)):
        saf = trained("SAF", curvature={"step": found, "end": curvature(0.01)}, **begins)
        section = curvature_section([saf, trained("SGD", **ends)])
        assert section is not None
        table = [block for block in section.blocks if isinstance(block, Table)][-1]
        cell = dict(zip(table.header, table.rows[0], strict=True))["weights of"]
        assert ("before SAF began (after epoch 2)" in cell) == marked, cell
        assert cell.startswith("epoch 2 (step 30)" if marked else "epoch 3 (step 40)")


def test_a_row_of_figures_has_one_legend_and_one_caption() -> None:
    line = plane(9, 6).isel(y=2, drop=True)
    first, second = (Figure(build_line({"SGD": line, "SAM": line}, title=title)) for title in ("a", "b"))
    key = key_of_row([first, second])
    assert key is not None and [entry.name for entry in key.entries] == ["SGD", "SAM"]
    other = Figure(build_line({"SAM": line, "SGD": line}))  # other colors: no legend could speak for both
    assert key_of_row([first, other]) is None
    fields = [Figure(build_contour(plane(scale=scale))) for scale in (1.0, 2.0)]
    assert key_of_row(fields) is None  # two scales
    shared = viz.shared_scale([plane(), plane(scale=2.0)])
    rows = [Figure(build_contour(plane(scale=s, recipe_fingerprint="abc"), scale=shared)) for s in (1.0, 2.0)]
    key = key_of_row(rows)
    assert key is not None and key.scale == shared and key.ramp.endswith(" 100%")
    assert all(0 <= place <= 100 for place, _ in key.ticks)
    common, own = captions_of(rows)
    assert "batch norm: running" in common and own == ["", ""] and "abc" not in common
    refined = plane()
    refined["status"][1::2] = 2
    entries = [entry.name for entry in key_of(Figure(build_contour(refined))).entries]
    assert entries == ["measured", "interpolated", "the model"]
    assert "30 of 54 points measured, 24 interpolated" in build_contour(refined).caption


def kinds() -> dict[str, Any]:
    cells = plane()
    cells["negative_curvature"] = np.sign(cells["loss"] - 2)
    over = build_path({"SGD": walk()}, plane())
    return {
        "contour": build_contour(plane()),
        "surface": build_surface(plane()),
        "heat map": build_heat_map(plane()),
        "convexity": build_convexity_map(cells),
        "line": build_line({"SGD": plane().isel(y=2, drop=True)}),
        "density": build_spectrum(spectrum()),
        "cost": build_cost([ScatterPoint("SGD", 1, 90.0), ScatterPoint("SAM", 2, 91.0)]),
        "path": over,
        "animation": build_animation(over),  # type: ignore[arg-type]
        "film": build_film(film()),
        "panels": Panels((build_contour(plane(), title="a"), build_contour(plane(), title="b"))),
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_figure_can_be_told_in_words(kind: str) -> None:
    text = describe(kinds()[kind])
    words = {
        "convexity": "none found at",
        "line": "SGD from",
        "density": "spectrum from",
        "cost": "SGD 90 at 1; SAM 91 at 2",
        "film": "4 frames from step 0 to 30",
        "path": "SGD goes from (",
    }
    assert words.get(kind, "lowest 0.1") in text, text
    assert len(text) < 700


def test_a_density_is_drawn_as_it_was_measured() -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(3, 2), (torch.randn(20, 3), torch.randint(2, (20,)))
    found = spectral_density(EmpiricalRisk(model, nn.CrossEntropyLoss(), [batch]), probes=2, steps=4)
    drawn = viz.density(found)
    line = drawn.axes[0].lines[0]
    assert np.allclose(line.get_xdata(), found.grid)
    both = viz.density({"a": found, "b": found.dataset()}, backend="plotly")
    assert [trace.legendgroup for trace in both.data if (trace.name or "").startswith(("a,", "b,"))] == ["a", "b"]


def test_a_site_has_an_index_and_a_page_for_each_run(tmp_path: Path) -> None:
    names = ["SGD, seed 0", "a/b", "a b", "index"]
    runs = [trained(name) for name in names]
    index = report.write_site(runs, tmp_path / "site", date="")
    files = {path.name for path in index.parent.iterdir()}
    assert files == {"index.html", "plotly.js", "SGD-seed-0.html", "a-b.html", "a-b-2.html", "index-2.html"}
    text = index.read_text(encoding="utf-8")
    assert '<a href="a-b-2.html">a b</a>' in text and 'src="plotly.js"' in text
    page = (index.parent / "a-b.html").read_text(encoding="utf-8")
    assert 'href="index.html"' in page and 'href="SGD-seed-0.html"' in page and 'href="a-b-2.html"' in page
    assert all((index.parent / name).stat().st_size < 300_000 for name in files - {"plotly.js"})
    assert report.write_site(runs[:1], index.parent, date="") == index  # renewed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="site"):
        report.write_site(runs, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def values(part: Any) -> Any:
    """A figure's JSON with its typed arrays as lists."""
    if isinstance(part, dict) and "bdata" in part:
        array = np.frombuffer(base64.b64decode(part["bdata"]), part["dtype"])
        return array.reshape([int(size) for size in str(part.get("shape", array.size)).split(",")]).tolist()
    if isinstance(part, dict):
        return {name: values(entry) for name, entry in part.items()}
    return [values(entry) for entry in part] if isinstance(part, list) else part


@pytest.mark.parametrize("kind", kinds())
def test_what_a_page_draws_is_what_plotly_would_write(kind: str) -> None:
    spec = kinds()[kind]
    theirs = json.loads(draw(spec).to_json())  # plotly refuses a name or a value that it does not know
    theirs["layout"].pop("template")
    ours = json.loads(encoded(plain(spec)))
    for figure in (ours, theirs):
        figure["data"] = values(figure["data"])
        figure["frames"] = values(figure.get("frames", []))
    written = [json.dumps(figure, sort_keys=True) for figure in (ours, theirs)]  # NaN equals NaN there
    assert written[0] == written[1]


def test_a_typed_array_is_as_small_as_its_numbers_allow() -> None:
    arrays = {
        "a": np.array([3, 250]),
        "b": np.array([-3, 250]),
        "c": np.array([2**40]),
        "d": np.zeros(0),
        "e": np.float64(2),
    }
    found = json.loads(encoded({**arrays, "f": np.array(["x"]), "g": np.array([[np.nan, np.inf]])}))
    assert [found[name]["dtype"] for name in "abg"] == ["u1", "i2", "f8"] and found["g"]["shape"] == "1, 2"
    assert found["c"] == [2**40] and found["d"] == [] and found["e"] == 2.0 and found["f"] == ["x"]


def test_a_card_is_short_first_and_whole_on_demand() -> None:
    runs = [trained(name) for name in ("SGD", "SAM")]
    for one in runs:
        vars(one)["cards"] = {"card": card()}
    section = robustness_section(runs)
    assert section is not None
    short = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[0] for row in short.rows] == [
        "train loss",
        "filter-weighted trace",
        "rounding: INT4 symmetric",
        "noise: filter, 0.05",
        "worst direction, 0.05",
        "inputs: noise on inputs, 0.1",
    ]
    folded = [block for block in section.blocks if isinstance(block, Details)]
    whole = folded[0].blocks[0]
    assert [block.summary for block in folded] == ["Every change, side by side", "Card of SGD", "Card of SAM"]
    assert isinstance(whole, Table) and len(whole.rows) == 2 + 4 + 6 + 3 + 3 and set(short.rows) <= set(whole.rows)
    single = robustness_section(runs[:1])
    kinds_of = ["Paragraph", "Table", "Gallery", "Details"]
    assert single is not None and [type(block).__name__ for block in single.blocks] == kinds_of
    assert said(single) == "Measured on data: train; loss: CrossEntropyLoss(); batch norm: running; samples: 300."
    assert next(row for row in short.rows if row[0] == "filter-weighted trace")[1:] == ("4.00 ± 0.10", "4.00 ± 0.10")


def test_cards_of_the_same_weights_are_one_card_and_others_are_named() -> None:
    whole, one = card(), trained("SGD")
    rounding = whole["part"].values == "rounding"
    parted = {"a": whole.isel(row=rounding), "b": whole.isel(row=~rounding)}
    vars(one)["cards"] = parted
    section, at_once = robustness_section([one]), trained("SGD")
    vars(at_once)["cards"] = {"a": whole}
    assert section is not None and robustness_section([at_once]) is not None
    rows = [
        set(next(b for b in s.blocks if isinstance(b, Table)).rows) for s in (section, robustness_section([at_once]))
    ]
    assert rows[0] == rows[1]
    parted["a"] = parted["a"].assign_attrs(weight_norm=3.0)  # other weights
    apart = robustness_section([one])
    assert apart is not None and "rounding" not in str(apart.blocks)


def test_every_run_has_a_look_of_its_own_in_the_figures_of_cards() -> None:
    found = {f"run {k}": card() for k in range(8)}
    for figure in figures(found):
        entries = key_of(Figure(figure)).entries
        assert {f"run {k}" for k in range(8)} <= {entry.name for entry in entries}
        looks = {(entry.color, entry.shape, entry.dash) for entry in entries}
        assert len(looks) == len({entry.name for entry in entries})
    (alone, *_) = figures({"one": card()})
    assert len({point.name for point in alone.estimates}) == 4  # of one run every way of rounding has its own


def test_a_prediction_below_zero_is_drawn_by_its_size_and_marked() -> None:
    bent = card()
    bent["first"][-4:-3], bent["second"][-4:-3] = -3.0, 0.5  # at the largest step of the worst direction
    worst = next(figure for figure in figures({"one": bent}) if figure.title == "The worst direction")
    assert worst.y_axis.log and {curve.name: np.nanmax(curve.y) for curve in worst.curves} == {
        "worst direction": pytest.approx(0.11),
        "worst direction: predicted, above 0": pytest.approx(0.12),
        "worst direction: predicted, below 0, its size": pytest.approx(2.5),
    }
    shapes = {entry.name.rpartition("predicted, ")[2]: entry.shape for entry in key_of(Figure(worst)).entries}
    assert len(set(shapes.values())) == len(shapes) == 3


@pytest.mark.parametrize(
    ("what", "value"), [("split", "test"), ("batch_norm", "batch"), ("recipe", '{"risk": {"loss": "MSELoss()"}}')]
)
def test_cards_in_another_mode_or_of_other_data_are_not_compared(what: str, value: str) -> None:
    runs = [trained(name) for name in ("SGD", "SAM")]
    for one, changed in zip(runs, ({}, {what: value}), strict=True):
        vars(one)["cards"] = {"card": card().assign_attrs(changed)}
    named = {"split": "data", "batch_norm": "batch norm", "recipe": "loss"}[what]
    assert f"Not comparable: the cards are of different {named}" in said(robustness_section(runs))
