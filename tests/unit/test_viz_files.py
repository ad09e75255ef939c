"""Files of figures: text stays text, fonts are inside, VTK files hold the numbers, every kind exports."""

from __future__ import annotations

import base64
import io
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from tests.report_cases import asymmetric, film, plane, spectrum, walk

from lowland import viz
from lowland.core.errors import InputError
from lowland.core.schema import new_surface
from lowland.viz import matplotlib, style
from lowland.viz.backends import BACKENDS
from lowland.viz.export import KINDS, FigureOptions, build_figure
from lowland.viz.spec import Panels
from lowland.viz.surfaces import build_contour, build_surface


def damaged() -> object:
    surface = plane()
    surface["loss"][2, 3] = np.inf
    surface["status"][4, 1], surface["loss"][4, 1] = 3, np.nan
    return surface


def vtk_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of our XML files, read with nothing but the standard library."""
    kinds = {"Float64": "<f8", "Int64": "<i8", "UInt8": "u1"}
    found = {}
    for node in ElementTree.parse(path).getroot().iter("DataArray"):
        raw = base64.b64decode(node.text or "")
        assert struct.unpack("<Q", raw[:8])[0] == len(raw) - 8
        values = np.frombuffer(raw[8:], dtype=kinds[node.attrib["type"]])
        found[node.attrib["Name"]] = values.reshape(-1, int(node.attrib.get("NumberOfComponents", 1))).squeeze()
    return found


def test_pdf_text_is_text_with_embedded_truetype_and_the_same_bytes(tmp_path: Path) -> None:
    surface = plane()
    for name in ("one.pdf", "two.pdf"):
        viz.contour(surface, title="Basin of run 7").savefig(tmp_path / name)
    data = (tmp_path / "one.pdf").read_bytes()
    assert data == (tmp_path / "two.pdf").read_bytes()
    assert b"/FontFile2" in data and b"/Type3" not in data


def test_svg_text_is_text_with_the_font_inside_and_the_same_bytes(tmp_path: Path) -> None:
    from fontTools.ttLib import TTFont

    surface = plane()
    for name in ("one.svg", "two.svg"):
        viz.contour(surface, title="Basin ü of <run> 7").savefig(tmp_path / name)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert "Basin ü of &lt;run&gt; 7" in text
    assert ElementTree.fromstring(text).tag.endswith("svg")
    data = re.search(r"base64,([^)]+)\) format\('woff'\)", text)
    assert data is not None
    letters = TTFont(io.BytesIO(base64.b64decode(data.group(1)))).getBestCmap()
    assert set(map(ord, "Basin ü of <run> 7")) <= set(letters)
    assert len(letters) < 120
    assert not re.search(r"(href|src)=[\"']https?:", text)


@pytest.mark.parametrize("suffix", [".vts", ".vtp"])
def test_vtk_files_hold_values_places_and_hidden_points(tmp_path: Path, suffix: str) -> None:
    surface = plane()
    viz.save(build_surface(surface), tmp_path / f"surface{suffix}")
    arrays = vtk_arrays(tmp_path / f"surface{suffix}")
    x, y, height = arrays["points"].T
    planted = np.array([asymmetric(np.array([a]), np.array([b]))[0, 0] for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(arrays["loss"], planted, rtol=1e-12)
    # Heights follow the logarithm, from 0 to 0.6 of the wider side.
    span = np.log(planted.max() / planted.min())
    np.testing.assert_allclose(height, np.log(planted / planted.min()) / span * 0.6 * 2.5, atol=1e-12)
    assert arrays["loss standard error"].shape == x.shape


def test_vtk_hides_what_is_no_number(tmp_path: Path) -> None:
    surface = damaged()
    viz.save(build_surface(surface), tmp_path / "s.vts")  # type: ignore[arg-type]
    viz.save(build_surface(surface), tmp_path / "s.vtp")  # type: ignore[arg-type]
    grid, polygons = vtk_arrays(tmp_path / "s.vts"), vtk_arrays(tmp_path / "s.vtp")
    hidden = {2 + 9 * 3, 4 + 9 * 1}
    assert set(np.nonzero(grid["vtkGhostType"])[0]) == hidden
    assert np.isinf(grid["loss"][2 + 9 * 3])
    assert hidden.isdisjoint(polygons["connectivity"])
    assert len(polygons["offsets"]) == 8 * 5 - 8


def test_vtp_holds_the_path_on_the_surface(tmp_path: Path) -> None:
    surface = plane(41, 31)
    path = walk()
    path["coordinate"][:] = 0.3 * path["coordinate"] / float(np.abs(path["coordinate"]).max())
    viz.export({"s": surface}, tmp_path / "p.vtp", "path", trajectories={"SGD": path})
    arrays = vtk_arrays(tmp_path / "p.vtp")
    on_path = arrays["step"] >= 0
    assert on_path.sum() == 12
    np.testing.assert_allclose(arrays["points"][on_path][:, :2], path["coordinate"].values)
    assert (arrays["points"][on_path][:, 2] > 0).all()
    assert not (arrays["points"][on_path][:, 2] == arrays["points"][on_path][0, 2]).all()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".vts", ".vtp"])
def test_a_vtk_reader_reads_the_same_numbers(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("vtk", reason="the extra vtk is not installed")
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader, vtkXMLStructuredGridReader

    surface = plane()
    target = tmp_path / f"s{suffix}"
    viz.export({"s": surface}, target, "path", trajectories={"SGD": walk()})
    reader = vtkXMLStructuredGridReader() if suffix == ".vts" else vtkXMLPolyDataReader()
    reader.SetFileName(str(target))
    reader.Update()
    output = reader.GetOutput()
    count = 9 * 6
    assert output.GetNumberOfPoints() == count + (12 if suffix == ".vtp" else 0)
    places = vtk_to_numpy(output.GetPoints().GetData())[:count]
    loss = vtk_to_numpy(output.GetPointData().GetArray("loss"))[:count]
    planted = [asymmetric(np.array([a]), np.array([b]))[0, 0] for a, b, _ in places]
    np.testing.assert_allclose(loss, planted, rtol=1e-12)
    if suffix == ".vts":
        assert tuple(output.GetExtent()) == (0, 8, 0, 5, 0, 0)
    else:
        assert (output.GetNumberOfPolys(), output.GetNumberOfLines()) == (8 * 5, 1)


@pytest.mark.parametrize("suffix", [s for suffixes in BACKENDS.values() for s in suffixes])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_exports_or_says_why_not(tmp_path: Path, kind: str, suffix: str) -> None:
    results = {"s": plane()}
    if kind == "line":
        line = new_surface(np.linspace(-1, 1, 9), directions=["0", "1"])
        line["loss"][:], line["status"][:] = 1.0 + line["x"] ** 2, 1
        results = {"s": line}
    if kind == "density":
        results = {"s": spectrum()}
    if kind == "convexity":
        surface = plane()
        surface["negative_curvature"] = np.sign(surface["loss"] - 2)
        results = {"s": surface}
    if kind == "film":
        results = {"s": film()}
    target = tmp_path / f"figure{suffix}"
    scenes = (".vts", ".vtp")
    moving, movies = ("animation", "film"), (".gif", ".mp4")
    if kind in moving and suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg", reason="the extra film is not installed")
    refused = {(kind, s) for kind in moving for s in (".pdf", ".svg", ".png", *scenes)}
    refused |= {(kind, s) for kind in KINDS if kind not in moving for s in movies}
    refused |= {(flat, s) for flat in ("line", "density", "merge-tree") for s in scenes}
    if (kind, suffix) in refused:
        with pytest.raises(InputError, match="path" if kind not in moving else "backend"):
            viz.export(results, target, kind, trajectories={"SGD": walk(4)})
        assert not target.exists()
        return
    assert viz.export(results, target, kind, trajectories={"SGD": walk(4)}).stat().st_size > 500


def test_options_change_the_figure_without_recomputation(tmp_path: Path) -> None:
    options = FigureOptions(minimum=0.5, maximum=5.0, log=False, levels=4, color_map="cividis", title="T", caption="")
    spec = build_figure({"a": plane()}, "contour", options=options)
    assert (spec.scale.minimum, spec.scale.maximum, spec.scale.log) == (0.5, 5.0, False)
    assert (spec.scale.color_map, spec.title, spec.caption) == ("cividis", "T", "")
    assert 4 <= len(spec.scale.levels) <= 12


@pytest.mark.parametrize(
    "results, path, kind, options, match",
    [
        ({}, "f.pdf", "contour", {}, "results"),
        ({"a": plane()}, "f.gif", "contour", {}, "path"),
        ({"a": plane()}, "missing/f.pdf", "contour", {}, "path"),
        ({"a": plane()}, "f.pdf", "pie", {}, "kind"),
        ({"a": plane()}, "f.pdf", "path", {}, "trajectories"),
        ({"a": plane()}, "f.pdf", "contour", {"color_map": "jet"}, "color_map"),
        ({"a": plane()}, "f.pdf", "contour", {"minimum": 3.0, "maximum": 1.0}, "limits"),
        ({"a": plane()}, "f.pdf", "contour", {"levels": 0}, "levels"),
        ({"a": plane()}, "f.pdf", "contour", {"size": "poster"}, "size"),
        ({"a": plane()}, "f.pdf", "contour", {"minimum": -1.0, "log": True}, "log"),
        ({"a": plane()}, "f.pdf", "convexity", {}, "negative_curvature"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, results: dict[str, object], path: str, kind: str, options: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        viz.export(results, tmp_path / path, kind, options=FigureOptions(**options))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_shares_its_scale_and_levels() -> None:
    panels = build_figure({"a": plane(), "b": plane(scale=9.0)}, "surface")
    assert isinstance(panels, Panels)
    assert len({panel.scale for panel in panels.panels}) == 1  # type: ignore[union-attr]
    assert [panel.title for panel in panels.panels] == ["a", "b"]


def test_captions_carry_units_recipe_and_counts() -> None:
    caption = build_contour(damaged()).caption  # type: ignore[arg-type]
    for part in ("normalized direction", "batch norm: running", "samples: 200", "seed: 3", "1 of 54 points failed"):
        assert part in caption
    assert "data:" not in caption and "data: train" in build_contour(plane(split="train")).caption
    assert "data:" not in build_contour(plane(split="data")).caption  # a data set without parts
    path = {"planes": [{"kind": "pca", "arguments": {"anchored": False}}]}
    assert build_contour(plane(recipe=path)).caption.endswith("plane: pca; anchored at: mean of the path")


@pytest.mark.parametrize("size", ["neurips-column", "column", "icml-text"])
@pytest.mark.parametrize("kind", ["contour", "surface", "heat-map", "merge-tree"])
def test_at_the_width_of_a_column_every_part_has_room(kind: str, size: str) -> None:
    surface = plane()
    surface["status"][::2, 1] = 2
    surface["loss_se"] = 0.01 * np.abs(surface["loss"]) + 0.001
    figure = build_figure({"run": surface}, kind, options=FigureOptions(size=size))
    drawn = matplotlib.draw(figure, size=size)
    drawn.draw_without_rendering()
    assert drawn.get_figwidth() == style.SIZES[size][0]
    panels = [axes for axes in drawn.axes if axes.get_xlabel()]
    assert panels
    for axes in panels:
        box = axes.get_window_extent()
        assert min(box.width, box.height) > 0.3 * drawn.dpi * min(style.SIZES[size]), kind
    caption = drawn._supxlabel.get_window_extent() if drawn._supxlabel else None
    for axes in panels if caption is not None else ():
        for text in (axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()):
            assert not text.get_window_extent().overlaps(caption), (kind, text.get_text())
