"""The report: one file, all text escaped, sections only for what there is, intervals and marks as promised."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tests.report_cases import curvature, plane, run, spectrum, walk

from lowland import report, results
from lowland.core.errors import InputError, StoreError
from lowland.core.schema import new_surface
from lowland.opening import open_runs
from lowland.report.comparison import comparison_table
from lowland.report.curvature import beyond, curvature_section, lowest_eigenvalue
from lowland.report.landscapes import landscapes_section
from lowland.report.sections import Gallery, Paragraph, Table
from lowland.report.statistics import paired_interval, show, t_interval
from lowland.report.trust import trust_box
from lowland.results import Run
from lowland.viz.paths import build_path

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$title"


class Outline(HTMLParser):
    """Collects tags, external addresses and text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside.append(tag)
        for key, value in attrs:
            if key in ("src", "href") and not (value or "").startswith("#"):
                self.addresses.append(value or "")
            if key.startswith("on"):
                self.handlers.append(key)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "h2":
            self.headings.append(data)
        if not self._inside or self._inside[-1] not in ("script", "style"):
            self.text += data


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    return parser


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    gains = {0: 0.02, 1: 0.03, 2: 0.01, 3: 0.02, 4: 0.04}
    plain = [run(f"sgd-{s}", method="SGD", seed=s, accuracy=0.80 + 0.01 * s) for s in gains]
    sharp = [run(f"sam-{s}", method="SAM", seed=s, accuracy=0.80 + 0.01 * s + g, passes=200) for s, g in gains.items()]
    return [*plain, *sharp]


def test_the_page_is_self_contained_and_holds_plotly_once(runs: list[Run], tmp_path: Path) -> None:
    path = report.write(report.build([runs[0], runs[5]], date=""), tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    found = outline(text)
    assert found.addresses == []
    assert text.count("plotly.js v") == 1
    assert path.stat().st_size < 2_500_000
    assert found.headings == [
        "Comparison",
        "Training",
        "Landscapes",
        "Trajectories",
        "Curvature",
        "What cannot be compared",
        "Appendix: settings, files and hashes",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_six_runs_with_everything_stay_below_four_megabytes(tmp_path: Path) -> None:
    many = []
    for k in range(6):
        rough = np.random.default_rng(k).random((51, 51))
        surface, path_plane = plane(51, 51), plane(25, 25)
        surface["loss"][:], surface["loss_se"][:] = surface["loss"] + rough, rough
        parts = {"surfaces": {"random": surface, "trajectory": path_plane}, "trajectory": walk(200, seed=k)}
        many.append(run(f"run {k}", method=f"m{k}", seed=0, accuracy=0.9, spec="x: 1\n" * 100, **parts))
    path = report.write(report.build(many), tmp_path / "six.html")
    assert path.stat().st_size <= 4_000_000


def test_the_same_runs_give_the_same_bytes(runs: list[Run]) -> None:
    assert report.render(report.build(runs[:1], date="")) == report.render(report.build(runs[:1], date=""))


def test_hostile_names_stay_text() -> None:
    surfaces = {HOSTILE: plane(note=HOSTILE)}
    evil = run(HOSTILE, method=HOSTILE, seed=0, accuracy=0.9, spec=HOSTILE, surfaces=surfaces)
    text = report.render(
        report.build([evil, run("b", method="b", seed=0, accuracy=0.8)], title=HOSTILE, lead=[HOSTILE])
    )
    found = outline(text)
    assert "img" not in found.tags
    assert found.handlers == []
    assert "alert('x')</script>" not in text
    packed = re.findall(r'<script type="text/plain" id="data">([A-Za-z0-9+/=]+)</script>\n', text)
    figures = json.loads(gzip.decompress(base64.b64decode(packed[0])))["figures"]
    assert len(figures) > 8 and all(set(figure) >= {"data", "layout"} for figure in figures.values())
    assert found.text.count(HOSTILE) >= 4
    harmless = outline(
        report.render(
            report.build([run("a", method="a", seed=0, accuracy=0.9), run("b", method="b", seed=0, accuracy=0.8)])
        )
    )
    assert found.tags.count("script") == harmless.tags.count("script")


def test_sections_appear_only_for_what_the_runs_contain() -> None:
    bare = Run(name="bare", result={"test_accuracy": 0.5})
    found = outline(report.render(report.build([bare])))
    assert found.headings == ["Comparison", "What cannot be compared", "Appendix: settings, files and hashes"]
    assert "plotly.js v" not in report.render(report.build([bare]))


def test_the_difference_is_paired_by_seed(runs: list[Run]) -> None:
    table = comparison_table(runs)
    column = table.header.index("difference to SGD (points)")
    assert table.rows[0][column] == "baseline"
    differences = 100 * np.array([0.02, 0.03, 0.01, 0.02, 0.04])
    half = 2.7764451 * differences.std(ddof=1) / np.sqrt(5)
    mean = differences.mean()
    assert table.rows[1][column] == f"+{mean:.2f} [+{mean - half:.2f}, +{mean + half:.2f}]"
    assert table.rows[1][table.header.index("passes, all counted (× SGD)")] == "200 (2.00 ×)"


def test_a_teachers_forward_passes_are_counted_in_every_table() -> None:
    rows = [{"epoch": 1, "step": 6, "passes": 6}, {"epoch": 2, "step": 12, "passes": 12, "loss_mesa_kl": 0.1}]
    plain = Run(name="a", method="SGD", seed=0, metrics=rows[:1], result={"passes": 12})
    mesa = Run(name="b", method="MESA", seed=0, metrics=rows, result={"passes": 12})
    table = comparison_table([plain, mesa])
    assert table.rows[1][table.header.index("passes, all counted (× SGD)")] == "14.0 (1.17 ×)"  # 12 + 6 / 3
    assert mesa.number("passes") == 14.0 and any("a teacher)" in note for note in table.notes)


def test_three_seeds_are_shown_as_three_points(runs: list[Run]) -> None:
    table = comparison_table(runs[:3])
    assert table.rows[0][table.header.index("test accuracy (%)")] == "80.00, 81.00, 82.00"


def test_a_run_that_was_made_twice_is_one_seed(runs: list[Run]) -> None:
    twice = [*runs, run("copy", method=runs[0].method, seed=runs[0].seed, accuracy=0.1)]
    table, once = comparison_table(twice), comparison_table(runs)
    assert table.rows == once.rows
    assert any("same seed: copy" in note for note in table.notes) and not any("same seed" in n for n in once.notes)


def test_runs_that_have_not_ended_are_no_seeds_of_the_mean(runs: list[Run]) -> None:
    begun = run("begun", method=runs[0].method, seed=99, accuracy=0.1)
    del vars(begun)["result"]
    row = comparison_table([*runs, begun]).rows[0]
    assert row[1] == "5 (of 6, the rest unfinished)" and row[2] == comparison_table(runs).rows[0][2]


def test_pairing_uses_shared_seeds_only() -> None:
    found = paired_interval({0: 1.0, 1: 2.0, 7: 9.0}, {0: 0.5, 1: 1.0, 8: 3.0})
    assert found is not None and found.values == (0.5, 1.0)
    assert paired_interval({0: 1.0}, {1: 1.0}) is None
    assert np.isnan(t_interval([1.0]).low)


def test_runs_of_different_train_loss_are_not_compared_at_the_end() -> None:
    a, b = run("a", method="SGD", seed=0, accuracy=0.9, train_loss=0.01), run("b", method="SAM", seed=0, accuracy=0.9)
    table = comparison_table([a, b])
    assert table.rows[1][table.header.index("λ max")] == "10.0 † (residual 0.02)"
    assert "†" not in " ".join(table.rows[0])
    assert any("not comparable at the end" in note for note in table.notes)
    section = curvature_section([a, b])
    assert section is not None
    words = " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))
    assert "Not comparable at the end" in words and "No comparison at matched loss" in words


def test_matched_loss_takes_the_snapshot_of_equal_loss() -> None:
    early = {"step-10": curvature(0.11, top=55.0), "end": curvature(0.01, top=3.0)}
    early["sharpness"] = curvature(0.1).drop_vars(["lambda_max", "eigenvalue", "residual"])  # holds no eigenvalues
    early = {name: early[name] for name in ("sharpness", "step-10", "end")}
    a = Run(name="a", curvature=early, result={"learning_rate": 0.1, "momentum": 0.9})
    b = Run(name="b", curvature={"end": curvature(0.1, top=16.0)})
    section = curvature_section([a, b])
    assert section is not None
    matched = [block for block in section.blocks if isinstance(block, Table)][1]
    rows = {row[0]: row for row in matched.rows}
    assert rows["a"][1] == "step-10" and rows["a"][matched.header.index("λ max")].startswith("55.0")
    assert rows["a"][matched.header.index("λ max / edge")] == "–"  # the step size at that snapshot is not known
    first = section.blocks[0]
    assert isinstance(first, Table) and first.rows[0][first.header.index("λ max / edge")] == "0.079"
    assert rows["b"][1] == "end"


@pytest.mark.parametrize(
    "groups, expected",
    [
        ([{"lr": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": False}], "0.079"),  # 0.1 * 3 / 3.8
        ([{"lr": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": True}], "0.22"),  # times 1 + 2 * 0.9
        ([{"lr": 0.1, "momentum": 0.0, "dampening": 0, "nesterov": False}], "0.15"),
        ([{"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": False}], "0.039"),
        ([{"lr": 0.1, "momentum": 0.0, "alpha": 0.99, "eps": 1e-8}], "–"),  # RMSprop
        ([{"lr": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5}], "–"),  # Muon
        ([{"lr": rate, "momentum": 0.9, "dampening": 0, "nesterov": False} for rate in (0.1, 0.2)], "–"),
    ],
)
def test_the_edge_is_that_of_the_optimizer_that_ran(groups: list[dict[str, float]], expected: str) -> None:
    outcome = {"chosen": {"learning_rate": 0.1}, "recipe": {"optimizer settings": [*groups, {"rho": 0.05}]}}
    section = curvature_section([Run(name="a", curvature={"end": curvature(0.1, top=3.0)}, result=outcome)])
    assert section is not None
    table = section.blocks[0]
    assert isinstance(table, Table) and table.rows[0][table.header.index("λ max / edge")] == expected


def test_curvature_always_comes_with_train_loss() -> None:
    section = curvature_section([Run(name="a", curvature={"end": curvature(0.1)})])
    assert section is not None
    table = section.blocks[0]
    assert isinstance(table, Table)
    for needed in ("train loss", "train accuracy", "weight norm", "batch norm"):
        assert table.rows[0][table.header.index(needed)] not in ("", "–")


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, "−0.200 (residual 0.01)"),
        ({"lambda_min_converged": 0.0, "lambda_min_bound": 0.5}, "not converged, |λ min| ≤ 0.500"),
        ({"lambda_min_converged": 0.0, "lambda_min_bound": np.inf}, "not converged"),
        ({"bottom": 0.2, "lambda_min": 0.2}, "none found below 0 (0.200)"),
        ({"bottom": -0.005, "lambda_min": -0.005}, "sign undecided (−0.00500, residual 0.01)"),
    ],
)
def test_the_lowest_eigenvalue_says_what_is_known_of_its_sign(variables: dict[str, float], expected: str) -> None:
    assert lowest_eigenvalue(curvature(0.1, **variables)) == expected


def test_the_trust_box_shows_what_is_stored_and_nothing_else() -> None:
    always = {
        "points",
        "cosine between the axes",
        "largest standard error of the loss",
        "basin width at loss + 0.1",
        "curvature at the center",
        "roughness",
        "batch norm",
        "samples",
    }
    assert {name for name, _, _ in trust_box(plane(), "random").checks} == always
    refinement = {"statement": "at most 5 % of the pixels", "worst_check": 0.25}
    trial = {"bfloat16_error": {"of_range": 0.002}}
    full = trust_box(
        plane(refinement=refinement, trial=trial, precision="bfloat16"),
        "random",
        curvature=curvature(0.1, filter_trace_spread=0.9),
    )
    assert (
        full.first
        == "54 of 54 measured; worst check 0.25 of the tolerance; standard error up to 0.010 at loss 3.91; 200 samples"
    )
    values = {name: (value, meaning) for name, value, meaning in full.checks}
    assert values["cosine between the axes"][0] == "0.0030"
    assert values["interpolation error"][0] == "at most 5 % of the pixels"
    assert values["worst random check"][0] == "0.25"
    assert values["precision"] == ("bfloat16", "differs from float32 by 0.0020 of the range")
    mean = values["Hessian, mean over all directions"]
    assert mean == ("4.00 ± 0.10", "filter-weighted trace, without kinks; single directions vary by 0.90")
    assert (
        "at spacing" in values["curvature at the center"][1] and "at twice that" in values["curvature at the center"][1]
    )


def test_the_part_of_the_kinks_stands_beside_both_curvatures() -> None:
    result = curvature(
        0.1, filter_trace_spread=0.9, picture_curvature=7.0, picture_curvature_se=0.2, kinks=3.0, kinks_se=0.1
    )
    for name in ("picture_curvature", "kinks"):
        result[name].attrs.update(spacing=0.04, causes="MaxPool2DWithIndices, Relu")
    checks = {name: (value, meaning) for name, value, meaning in trust_box(plane(), "random", curvature=result).checks}
    value, meaning = checks["curvature beyond the Hessian's"]
    assert value == "3.00 ± 0.10 of 7.00 ± 0.20 (at spacing 0.04)"
    assert "same random directions" in meaning and "MaxPool2DWithIndices, Relu" in meaning
    page = report.build([Run(name="a", curvature={"end": result}, surfaces={})])
    table = next(b for s in page.sections if s.title == "Curvature" for b in s.blocks if isinstance(b, Table))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells["curvature of pictures"] == "7.00 ± 0.20 (at spacing 0.04)"
    assert cells["beyond the Hessian"] == "3.00 ± 0.10 (MaxPool2DWithIndices, Relu)"
    assert any("that no Hessian sees" in note for note in table.notes)
    result["kinks"].attrs["causes"] = ""  # as of a network without kinks, over a spacing where it is no parabola
    assert beyond(result) == "3.00 ± 0.10 (no kinks known: what a parabola misses)"
    checks = {name: meaning for name, _, meaning in trust_box(plane(), "random", curvature=result).checks}
    assert "no kinks known" in checks["curvature beyond the Hessian's"]


def test_lines_densities_and_convexity_maps_get_their_figures() -> None:
    line = new_surface(np.linspace(-1, 1, 9), directions=["0", "1"])
    line["loss"][:], line["status"][:] = 1.0 + line["x"] ** 2, 1
    surface = plane()
    surface["negative_curvature"] = np.sign(surface["loss"] - 2)
    one = Run(
        name="a", surfaces={"line": line, "map": surface}, curvature={"density": spectrum(), "end": curvature(0.1)}
    )
    found = report.build([one])
    titles = [
        b.spec.title
        for s in found.sections
        for g in s.blocks
        for b in getattr(g, "blocks", [g])
        if isinstance(b, report.Figure)
    ]
    assert (
        "Loss along a line" in titles
        and "a: negative curvature" in titles
        and "Spectral density of the Hessian" in titles
    )
    table = next(b for s in found.sections if s.title == "Curvature" for b in s.blocks if isinstance(b, Table))
    assert table.rows[0][1] == "0.100"  # the density has no train loss and is not taken for the end of training


def test_a_walk_is_called_a_walk(runs: list[Run]) -> None:
    drifting = Run(name="walker", trajectory=walk(share=(0.5, 0.2)))
    text = outline(report.render(report.build([drifting]))).text
    assert "no more than a walk" in text
    assert "random-walk null" in text


def test_mixed_data_are_refused_or_marked() -> None:
    a, b = (
        Run(name="a", result={"passes": 1}, spec="data: {name: digits}"),
        Run(name="b", result={"passes": 1}, spec="data: {name: mnist}"),
    )
    with pytest.raises(InputError, match="share their data"):
        report.build([a, b])
    text = outline(report.render(report.build([a, b], allow_mixed=True))).text
    assert "differ in their data" in text


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`runs`"):
        report.build([])
    with pytest.raises(InputError, match="different names"):
        report.build([Run(name="a"), Run(name="a")])
    with pytest.raises(InputError, match="`path`"):
        report.write(report.build([Run(name="a")]), tmp_path / "report.pdf")
    with pytest.raises(InputError, match="`path`"):
        report.write(report.build([Run(name="a")]), tmp_path / "missing" / "report.html")
    with pytest.raises(InputError, match="`run`"):
        open_runs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no results"):
        open_runs([tmp_path])


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train_loss\n0,10,1.5\n1,20,\n", encoding="utf-8")
    (tmp_path / "result.json").write_text('{"test_accuracy": 0.9}', encoding="utf-8")
    (tmp_path / "spec.yaml").write_text("seed: 1\n", encoding="utf-8")
    found = Run(tmp_path, name="mine", seed=1)
    assert found.last("train_loss") == 1.5
    assert found.result == {"test_accuracy": 0.9}
    (tmp_path / "result.json").write_text('{"test_accuracy": ', encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        report.build(open_runs([tmp_path]))


def test_seeds_of_one_method_are_found_from_the_specs(tmp_path: Path) -> None:
    def folder(path: str, seed: int, method: str, rho: float = 0.05) -> Path:
        found = tmp_path / path
        found.mkdir(parents=True)
        spec = f"folder: {path}\nseed: {seed}\noptimizer: {{name: sgd, method: {method}, options: {{rho: {rho}}}}}\n"
        (found / "spec.yaml").write_text(spec, encoding="utf-8")
        return found

    folders = [
        folder("a/one", 0, "none"),
        folder("b/one", 1, "none"),
        folder("two", 0, "sam"),
        folder("three", 0, "sam", 0.2),
    ]
    runs = open_runs(folders)
    assert [run.name for run in runs] == ["a/one", "b/one", f"{tmp_path.name}/two", f"{tmp_path.name}/three"]
    assert [run.method for run in runs][:2] == ["SGD", "SGD"]
    assert runs[2].method != runs[3].method and all(run.method.startswith("SAM (") for run in runs[2:])
    assert [run.seed for run in runs] == [0, 1, 0, 0]
    with pytest.raises(InputError, match="each folder once"):
        open_runs([folders[0], folders[0]])


def test_a_page_holds_no_more_solids_than_a_browser_keeps_alive() -> None:
    section = landscapes_section([Run(name=f"run {k}", surfaces={"plane": plane(4, 4)}) for k in range(10)])
    assert section is not None
    galleries = [block for block in section.blocks if isinstance(block, report.Gallery)]
    assert [len(gallery.blocks) for gallery in galleries] == [10, 8, 10]  # contours, solids, boxes
    assert all(isinstance(box, report.Box) and box.first.startswith("16 of 16 measured") for box in galleries[2].blocks)
    assert any(isinstance(b, Paragraph) and "first 8 of 10" in b.text for b in section.blocks)


def test_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "surfaces").mkdir()
    results.save(curvature(0.1), tmp_path / "surfaces" / "wrong.zarr")
    with pytest.raises(StoreError, match="expected a surface"):
        report.build(open_runs([tmp_path]))


def test_losses_are_called_by_the_part_of_the_data_and_not_compared_across_parts() -> None:
    def rows(*parts: str) -> tuple[Table, str]:
        named = {part: curvature(0.1).assign_attrs({"split": part} if part != "old" else {}) for part in parts}
        section = curvature_section([Run(name=part, curvature={"end": result}) for part, result in named.items()])
        assert section is not None
        return next(b for b in section.blocks if isinstance(b, Table)), str(section.blocks)

    assert "data loss" in rows("data")[0].header and "data accuracy" in rows("data")[0].header
    assert "train loss" in rows("old", "train")[0].header  # results of before it was stored
    table, text = rows("train", "test")
    assert [row[table.header.index("loss")] for row in table.rows] == ["0.100 (train)", "0.100 (test)"]
    assert "different parts of the data" in text and "at matched" not in text


def test_requested_measures_stand_side_by_side() -> None:
    def measured(shift: float) -> Run:
        more = {
            "measure": ("measure", ["SAM", "worst, l2"]),
            "sharpness": ("measure", [0.1 + shift, 2.0]),
            "sharpness_se": ("measure", [0.01, np.nan]),
            "winner": ("measure", ["", "auto-PGD"]),
            "top_eigenvalue": ("rank", [9.0, 4.0]),
            "top_residual": ("rank", [0.001, 0.01]),
            "layer": ("layer", ["conv.weight"]),
            "layer_trace": ("layer", [3.0]),
            "layer_trace_se": ("layer", [0.5]),
        }
        return Run(name=f"run {shift:g}", curvature={"end": curvature(0.1).assign(more)})

    section = curvature_section([measured(0.0), measured(1.0)])
    assert section is not None
    tables = {b.caption: b for b in section.blocks if isinstance(b, Table)}
    table = tables["Sharpness measures"]
    assert table.header == ("measure", "run 0", "run 1")
    assert table.rows[0] == ("SAM", "0.100 ± 0.010", "1.10 ± 0.010")
    assert table.rows[1] == ("worst, l2", "2.00 (auto-PGD)", "2.00 (auto-PGD)")
    assert table.notes[1] == "Train loss: run 0 0.100, run 1 0.100."
    assert tables["Largest eigenvalues"].rows[1] == ("2", "4.00 (residual 0.01)", "4.00 (residual 0.01)")
    folded = next(b for b in section.blocks if isinstance(b, report.Details))
    assert isinstance(folded.blocks[0], Table) and folded.blocks[0].rows[0] == (
        "conv.weight",
        "3.00 ± 0.50",
        "3.00 ± 0.50",
    )
    report.render(report.build([measured(0.0), measured(1.0)]))


def test_paths_on_one_plane_share_a_picture() -> None:
    described = '{"axes": [{"fingerprint": "a"}, {"fingerprint": "b"}]}'
    paths = [walk(seed=k).assign_attrs(plane=described) for k in range(2)]
    section = report.build([Run(name=f"run {k}", trajectory=path) for k, path in enumerate(paths)]).sections[0]
    galleries = [block for block in section.blocks if isinstance(block, report.Gallery)]
    joint, distance = galleries[0].blocks
    assert isinstance(joint, report.Figure) and [c.name for c in joint.spec.curves] == ["run 0", "run 1"]
    assert isinstance(distance, report.Figure) and distance.spec.y_axis.label == "distance from the plane"
    other = walk(seed=2).assign_attrs(plane='{"axes": [{"fingerprint": "c"}, {"fingerprint": "d"}]}')
    with pytest.raises(InputError, match="plane of the path"):
        build_path({"a": other}, plane(recipe={"planes": [{"axes": [{"fingerprint": "a"}, {"fingerprint": "b"}]}]}))


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0.00"),
        (123456.0, "123456"),
        (-0.00001234, "−1.23e−5"),
        (float("inf"), "+∞"),
        (float("nan"), "not a number"),
    ],
)
def test_numbers_are_written_with_three_digits(value: float, text: str) -> None:
    assert show(value) == text


def test_viz_and_report_work_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import lowland.viz, lowland.report\n"
        "from lowland.report import build, render\nfrom lowland.results import Run\n"
        "assert 'Comparison' in render(build([Run(name='a', result={'test_accuracy': 0.5})]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_no_section_number_is_lost() -> None:
    text = report.render(report.build([Run(name="a", result={"passes": 3})]))
    assert re.findall(r'href="#(section-\d)"', text) == re.findall(r'<section id="(section-\d)"', text)


def test_a_line_of_which_one_direction_was_measured_does_not_stop_the_report() -> None:
    line = new_surface([-1.0, 0.0, 1.0], directions=["0", "1"])
    line["loss"][0], line["status"][0] = [2.0, 1.0, 2.0], 1
    text = report.render(report.build([run("a", method="SGD", seed=0, accuracy=0.8, surfaces={"line": line})], date=""))
    assert "Landscapes" not in outline(text).headings
    line["loss"][1, 1], line["status"][1, 1] = 1.0, 1
    text = report.render(report.build([run("a", method="SGD", seed=0, accuracy=0.8, surfaces={"line": line})], date=""))
    assert "Landscapes" in outline(text).headings


def test_one_run_has_its_contours_beside_its_surface_and_the_baseline_is_a_method_of_the_page(runs: list[Run]) -> None:
    section = landscapes_section(runs[:1])
    assert section is not None
    rows = [block for block in section.blocks if isinstance(block, Gallery)]
    assert [len(row.blocks) for row in rows] == [2, 1]  # figures, and what says whether to trust them
    page = report.render(report.build(runs, baseline="SAM", date=""))
    assert "difference to SAM (points)" in page and "difference to SGD" not in page
    with pytest.raises(InputError, match="`baseline` must be one of SGD, SAM"):
        report.build(runs, baseline="Adam")


def test_one_method_alone_has_no_ratios_and_no_intervals() -> None:
    rows = [{"epoch": 1, "step": 6, "passes": 6, "train_loss": 0.5}]
    alone, other = (
        Run(name=name, method=name, seed=0, metrics=rows, result={"passes": 6}, curvature={"end": curvature(0.4)})
        for name in ("SGD", "SAM")
    )
    single, both = comparison_table([alone]), comparison_table([alone, other])
    assert "passes, all counted" in single.header and "passes, all counted (× SGD)" in both.header
    assert not any("t interval" in note for note in single.notes) and any("t interval" in note for note in both.notes)
    assert single.rows[0][single.header.index("train loss (epoch's mean)")] == "0.500"  # not that of the curvature
    assert any("That of the weights themselves" in note for note in single.notes)


def test_no_comparison_at_matched_loss_is_announced_that_is_not_there() -> None:
    ends = [Run(name=name, curvature={"end": curvature(loss)}) for name, loss in (("a", 0.1), ("b", 0.9))]
    section = curvature_section(ends)
    assert section is not None
    texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert any("Not comparable at the end" in text for text in texts)
    assert any("No comparison at matched loss" in text for text in texts) and "below" not in " ".join(texts)


def test_further_measures_have_their_units() -> None:
    found = curvature(0.1, fisher_rao_norm=2.0)
    found["fisher_rao_norm"].attrs.update(long_name="Fisher-Rao norm", units="loss")
    section = curvature_section([Run(name="a", curvature={"end": found})])
    assert section is not None
    headers = [block.header for block in section.blocks if isinstance(block, Table)]
    assert "Fisher-Rao norm (loss)" in headers[1]
