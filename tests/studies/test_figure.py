"""The figure of deep networks with and without shortcuts: its numbers, its slices, and a page that follows from files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from studies.figure import __main__ as command
from studies.figure import work
from studies.figure.answer import answer, chaotic
from studies.figure.measure import allowed_error, local_minima, non_convex, numbers_of, outward
from studies.figure.page import page
from studies.figure.plan import MNIST, PARTS, Net, Size, Survey, expected_seconds, plan
from studies.figure.procedure import by_procedure
from studies.figure.record import Entry, Record
from studies.figure.work import stored
from torch import nn

from lowland import EmpiricalRisk, landscape
from lowland.core.schema import new_surface
from lowland.landscape import Tolerance

TINY = Size(
    data="digits",
    train_size=32,
    epochs=3,
    batch_size=16,
    samples=16,
    side=9,
    fine=11,
    depths=(8,),
    widths=(2,),
    seeds=1,
)
AXIS = np.linspace(-1, 1, 51)
X, Y = np.meshgrid(AXIS, AXIS, indexing="ij")
BOWL = 0.05 + 2 * X**2 + Y**2
EXACT = Tolerance(value=1e-6, range=1e-6)


def waves(height, values=BOWL):
    return values + height * (np.sin(12 * X) ** 2 + np.sin(12 * Y) ** 2)


def surface_of(values):
    surface = new_surface(AXIS, AXIS)
    surface["loss"][:], surface["status"][:] = values, 1
    return surface


def twin_non_convex(values, error):
    found = np.zeros(values.shape, dtype=bool)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            for span in (1, 2, 4, 8, 16):
                for a, b in ((1, 0), (0, 1), (1, 1), (1, -1)):
                    ends = [(i + s * span * a, j + s * span * b) for s in (-1, 1)]
                    if all(0 <= p < values.shape[0] and 0 <= q < values.shape[1] for p, q in ends):
                        chord = np.mean([values[end] + error[end] for end in ends])
                        found[i, j] |= values[i, j] - error[i, j] > chord
    return found


def test_a_bowl_has_nothing_and_what_is_planted_is_found():
    smooth, rough = (numbers_of(surface_of(v), EXACT) for v in (BOWL, waves(1.0)))
    assert smooth["non_convex"] == smooth["minima"] == smooth["outward"] == 0
    assert smooth["center"] == pytest.approx(0.05) and smooth["highest"] == pytest.approx(3.05)
    assert rough["non_convex"] > 0.5 and rough["minima"] > 10 and rough["outward"] > 0.1
    assert 0 < rough["minima_inner"] < rough["minima"]


def test_what_the_error_could_have_made_is_not_counted():
    noise = np.exp(np.random.default_rng(0).uniform(-0.0295, 0.0295, BOWL.shape))
    tolerance = Tolerance(value=0.03, range=1.0)
    found = numbers_of(surface_of((BOWL + 1) * noise), tolerance)
    assert found["non_convex"] == found["minima"] == found["outward"] == 0


def test_points_above_a_chord_are_those_of_a_slow_twin():
    values = waves(0.3)[:23, :23]
    error = allowed_error(values, 0.05, Tolerance(value=0.03))
    np.testing.assert_array_equal(non_convex(values, error), twin_non_convex(values, error))
    assert 0 < non_convex(values, error).mean() < 1


def test_the_number_of_minima_is_that_of_planted_pits():
    values = np.full((21, 21), 2.0)
    values[10, 10] = 0.1
    for place in ((3, 4), (15, 6), (12, 17)):
        values[place] = 1.0
    values[0, 9] = 0.5  # on the edge, where what lies beyond could be lower
    assert local_minima(values, 0.01, Tolerance(value=0.03)) == 3
    assert local_minima(values, 0.01, Tolerance(value=0.5)) == 0


def test_downhill_leads_outward_on_a_dome_and_overflow_is_as_high_as_the_highest():
    assert outward(5 - X**2 - Y**2, np.full_like(X, 1e-9), AXIS, AXIS) > 0.99
    broken = BOWL.copy()
    broken[0, 0] = np.inf
    found = numbers_of(surface_of(broken), EXACT)
    assert found["not_finite"] == pytest.approx(1 / 51**2) and found["highest"] == pytest.approx(3.05)


def test_the_plan_begins_with_all_pairs_of_the_first_seed_and_fits_in_six_hours():
    first = plan(MNIST)[: 2 * len(MNIST.depths)]
    assert {(s.net.depth, s.net.skip) for s in first} == {(d, skip) for d in MNIST.depths for skip in (True, False)}
    assert {s.net.seed for s in first} == {0} and {s.part for s in plan(MNIST)} == set(PARTS)
    names = [s.name for s in plan(MNIST)]
    assert len(set(names)) == len(names)
    trained, seconds = set(), 0.0
    for survey in plan(MNIST):
        seconds += sum(expected_seconds(survey, MNIST, trained=survey.net in trained))
        trained.add(survey.net)
    assert seconds <= 6 * 3600


@pytest.fixture(scope="module", autouse=True)
def everything_is_surveyed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "LEARNED", 10.0)  # three epochs on 32 images teach nothing
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure")
    places = {name: folder / name for name in ("folder", "store", "page", "images")}
    flags = [word for name, path in places.items() for word in (f"--{name}", str(path))]
    assert command.main(["pairs", *flags], size=TINY) == 0
    return folder, flags


def record_of(folder):
    places = command.Places(folder / "folder", folder / "store", folder / "page", folder / "images")
    return Record(TINY, places)


def test_a_tiny_figure_is_made_and_what_was_not_run_is_said(made):
    folder, _ = made
    text = (folder / "page").read_text()
    assert "ResNet-8, without shortcuts, width 2, seed 0" in text
    assert "## Not run yet" in text and "resnet8-width2-seed0-direction1" in text
    assert {path.name for path in (folder / "images").iterdir()} == {"pairs-0.svg", "pairs-0-solid.svg"}
    for file in (folder / "store").glob("*.h5"):
        assert file.stat().st_size < 100_000


def test_the_fine_surfaces_agree_with_the_procedure_of_the_old_tool(made):
    folder, flags = made
    assert command.main(["fine", *flags], size=TINY) == 0
    found = [e.content["procedure"] for e in record_of(folder).entries if e.survey.part == "fine"]
    assert len(found) == 2
    for one in found:
        assert one["points"] == 121 and one["measured"] > 20 and one["largest_difference"] < 1e-5
    assert "## By the procedure of Li et al.'s tool" in (folder / "page").read_text()


def test_the_procedure_sees_another_surface_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    before = [p.detach().clone() for p in model.parameters()]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(torch.randn(30, 1, 4, 4), torch.arange(30) % 3)])
    surface = landscape.evaluate(risk, landscape.random_plane(model, 1), landscape.grid(5, 5))
    found = by_procedure(risk, surface, 1, EXACT)
    assert found["measured"] == found["points"] == 25 and found["largest_difference"] < 1e-5
    assert by_procedure(risk, surface, 2, EXACT)["largest_difference"] > 1e-3  # other directions
    turned = surface.copy(deep=True)
    turned["loss"][:] = surface["loss"].values.T
    assert by_procedure(risk, turned, 1, EXACT)["largest_difference"] > 1e-3
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))


def test_what_is_stored_is_not_measured_again(made, monkeypatch):
    _, flags = made
    monkeypatch.setattr(command, "run_survey", lambda *_, **__: pytest.fail("measured again"))
    assert command.main(["pairs", *flags], size=TINY) == 0


def test_other_settings_are_measured_anew(made):
    folder, _ = made
    survey = Survey("pairs", Net(8, True, 2, 0), 9)
    places = record_of(folder).places
    assert stored(survey, TINY, places) is not None
    assert stored(survey, Size(**{**vars(TINY), "epochs": 4}), places) is None


def test_the_time_limit_stops_it_and_the_next_call_goes_on(made, tmp_path, capsys):
    folder, _ = made
    flags = ["--folder", str(folder / "folder"), "--store", str(tmp_path), "--page", str(tmp_path / "page.md")]
    flags += ["--images", str(tmp_path / "images")]
    assert command.main(["pairs", *flags, "--minutes", "1e-9"], size=TINY) == 0
    assert "The time is over" in capsys.readouterr().out and not [*tmp_path.glob("*.json")]
    assert command.main(["pairs", *flags], size=TINY) == 0  # the runs are there, and their surveys go on
    assert len([*tmp_path.glob("*.json")]) == 2


def test_a_network_that_has_not_learned_is_not_surveyed_and_gets_no_verdict(made, tmp_path, monkeypatch):
    folder, _ = made
    monkeypatch.setattr(work, "LEARNED", 0.0)
    survey, places = Survey("pairs", Net(8, False, 2, 0), 9), command.Places(folder / "folder", tmp_path)
    work.run_survey(survey, TINY, places, until=None, tell=print)
    (entry,) = Record(TINY, places).entries
    assert not entry.surveyed and not chaotic(entry) and [path.suffix for path in tmp_path.iterdir()] == [".json"]
    text = page(Record(TINY, places))
    assert "without shortcuts, width 2, seed 0" in text and "| **no** |" in text and "pairs-0" not in text


def test_the_answer_says_what_a_condition_does_to_the_verdict_and_counts_every_width(monkeypatch):
    def entry(part, minima, inner=0, width=2, center=0.1, **how):
        numbers = {"center": center, "minima": minima, "minima_inner": inner, "non_convex": 0.5}
        return Entry(Survey(part, Net(8, False, width, 0), 9, **how), {"numbers": numbers, "training": {}})

    given = [
        entry("pairs", 14, inner=4),
        entry("width", 6, width=4),
        entry("batch norm", 1, batch_norm="batch"),
        entry("length", 8, center=1.64, weights="third"),
        entry("directions", 19, direction=1),
    ]
    monkeypatch.setattr(Record, "entries", given)
    said = {line.split("**")[1]: line for line in answer(Record(TINY)).splitlines() if line.startswith("- **")}
    assert "1 of 2 chaotic surfaces" in said["Range"]
    assert said["Batch norm"].endswith("1 minimum (14), so that it is **not chaotic**.")
    assert said["Training length"].endswith("has not learned (train loss 1.64): no verdict.")
    assert said["Directions"].endswith("19 minima (14).")


def test_wrong_input_is_refused_in_a_line(made, capsys):
    _, flags = made
    assert command.main(["resnet20", *flags], size=TINY) == 2
    assert command.main(["--minutes", "0", "batch norm", *flags], size=TINY) == 2
    assert [line[:22] for line in capsys.readouterr().err.splitlines()] == ["studies.figure: error:"] * 2


def test_the_page_and_its_numbers_follow_from_the_stored_surfaces():
    record = Record()
    assert page(record) == Path(record.places.page).read_text()
    for entry in [entry for entry in record.entries if entry.surveyed]:
        again = numbers_of(record.surface(entry.survey), record.size.tolerance)
        assert again == json.loads(json.dumps(entry.content["numbers"]))


def test_all_stored_files_are_small():
    store = Record().places.store
    assert sum(path.stat().st_size for path in store.rglob("*.*")) < 6_000_000
