"""The whole study on clusters of points: budgets, search, kills, failures, bad input, pages, and the two commands."""

import io
import json
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from tests.study_cases import METHODS, base_run, tiny_study

from lowland.cli.main import main
from lowland.cli.studies import LiveOutput, show_recommend
from lowland.core.errors import InputError, LowlandError
from lowland.engine import Event
from lowland.results import Run
from lowland.study import compare_methods, recommend, run_study, work, write_report
from lowland.study.compare import check_same_data, page_of
from lowland.study.endpoints import ENDPOINTS, cost_of, read_endpoint, read_reach
from lowland.study.plan import Job
from lowland.study.run import check_study
from lowland.study.work import Failure
from lowland.workflows import DataSpec, LossSpec, ModelSpec, RecommendSpec, SearchSpec, SurveySpec, to_yaml
from lowland.workflows.changes import apply_changes


def rows_of(study):
    return {(row.budget, row.method): row for row in compare_methods(study)}


def test_a_study_compares_at_equal_epochs_and_at_equal_compute(tmp_path):
    study = run_study(tiny_study(tmp_path / "s", budgets=["epochs", "compute"]))
    rows = rows_of(study)
    sam, sgd = rows["epochs", "SAM"], rows["epochs", "SGD"]
    assert sorted(sam.values) == [0, 1, 2, 3]
    assert sam.differences[2] == sam.values[2] - sgd.values[2]
    # 3 epochs of 3 steps; validation is 3 forward passes an epoch, a third of a pass each
    assert (sgd.passes, sam.passes) == (9 + 3, 18 + 3)
    longer = rows["compute", "SGD"]
    assert longer.epochs == 5 and abs(longer.passes - sam.passes) <= 4
    assert rows["compute", "SAM"].values == sam.values
    assert sgd.verdict == "" and sam.verdict in ("reproduced", "refuted", "undecided", "not measurable here")
    assert [one.partition(":")[0] for one in sam.instrument] == ["reach", "floor and ceiling", "planted effect"]
    assert "it acted in 100 % of the steps" in sam.instrument[0]


def test_pairs_share_initial_weights_and_order(tmp_path):
    same = {"SGD": {}, "again": {"optimizer.momentum": 0.9}}
    rows = rows_of(run_study(tiny_study(tmp_path / "s", methods=same)))
    assert set(rows["epochs", "again"].differences.values()) == {0.0}


class Killed(BaseException):
    """What a killed process leaves behind: nothing runs after it."""


def test_a_killed_study_goes_on_from_the_last_epoch_to_the_same_numbers(tmp_path, monkeypatch):
    whole = run_study(tiny_study(tmp_path / "whole"))
    ends, real = [], work.fit

    def dies(spec, *, on_event=None):
        def count(event):
            ends.append((event.kind, event.done))
            epochs = [one for one, next_ in pairwise(ends) if one == next_]  # the last step is told again after them
            if len(epochs) == 8:  # in the third run, after its second epoch
                raise Killed
            if on_event is not None:
                on_event(event)

        return real(spec, on_event=count)

    monkeypatch.setattr(work, "fit", dies)
    with pytest.raises(Killed):
        run_study(tiny_study(tmp_path / "killed"))
    monkeypatch.setattr(work, "fit", real)
    trained = []
    again = run_study(tiny_study(tmp_path / "killed"), on_run=lambda job, failure: trained.append(job.key))
    assert len(trained) == 8
    for one, other in zip(whole.jobs["epochs"], again.jobs["epochs"], strict=True):
        first, second = (Run(job.spec.folder).metrics for job in (one, other))
        for left, right in zip(first, second, strict=True):
            assert left | {"seconds": 0} == right | {"seconds": 0}
    assert [row.values for row in compare_methods(whole)] == [row.values for row in compare_methods(again)]


def test_a_finished_study_trains_nothing(tmp_path, monkeypatch):
    run_study(tiny_study(tmp_path / "s"))
    monkeypatch.setattr(work, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert len(rows_of(run_study(tiny_study(tmp_path / "s")))) == 2


def test_a_failed_run_is_shown_decides_nothing_and_is_tried_again(tmp_path, monkeypatch):
    real = work.fit

    def fails(spec, *, on_event=None):
        if spec.seed == 1 and spec.optimizer.method == "sam":
            raise RuntimeError("the machine caught fire")
        return real(spec, on_event=on_event)

    monkeypatch.setattr(work, "fit", fails)
    study = run_study(tiny_study(tmp_path / "s"))
    row = rows_of(study)["epochs", "SAM"]
    assert list(row.values) == [0, 2, 3] and "caught fire" in row.failed[1]
    assert row.verdict == "undecided" and "failed" in row.reason
    assert "caught fire" in write_report(study).read_text(encoding="utf-8")
    monkeypatch.setattr(work, "fit", real)
    healed = rows_of(run_study(tiny_study(tmp_path / "s")))["epochs", "SAM"]
    assert not healed.failed and len(healed.values) == 4


def test_a_run_that_diverges_counts_as_failed(tmp_path):
    wild = {"SGD": {}, "wild": {"optimizer.learning_rate": 1e30}}
    row = rows_of(run_study(tiny_study(tmp_path / "s", methods=wild, endpoint="train_loss")))["epochs", "wild"]
    assert len(row.failed) == 4 and row.verdict == "undecided" and math.isnan(row.interval.mean)


def test_the_search_tries_as_much_for_every_method_and_never_sees_the_test_part(tmp_path):
    search = SearchSpec(
        trials=2, grid={"optimizer.learning_rate": [0.001, 0.3]}, grids={"SAM": {"optimizer.options.rho": [0.05, 0.1]}}
    )
    study = run_study(tiny_study(tmp_path / "s", search=search, seeds=2))
    assert {len(tried) for tried in study.trials.values()} == {2}
    assert study.settings["", "SGD"] == {"optimizer.learning_rate": 0.3}
    job = next(job for job in study.jobs["epochs"] if job.method == "SGD")
    assert job.spec.optimizer.learning_rate == 0.3
    for path in (tmp_path / "s" / "trials").glob("*/*/result.json"):
        result = json.loads(path.read_text())
        assert result["test"]["accuracy"] == result["chosen"]["validation_accuracy"]
        assert result["recipe"]["data"] != Run(job.spec.folder).result["recipe"]["data"]
    assert [len(scores) for scores in page_of(study).best_of.values()] == [2, 2]


def test_optuna_suggests_the_same_settings_after_a_restart(tmp_path):
    search = SearchSpec(trials=3, grid={"optimizer.learning_rate": [0.01, 0.1, 0.3]}, sampler="optuna")
    spec = tiny_study(tmp_path / "s", methods={"SGD": {}}, seeds=2, search=search)
    first, second = run_study(spec), run_study(spec)
    assert first.trials == second.trials and len(first.trials["", "SGD"]) == 3


def test_a_teachers_passes_are_counted(tmp_path):
    methods = {"SGD": {}, "MESA": {"loss.method": "mesa", "loss.options.start": 1}}
    rows = rows_of(run_study(tiny_study(tmp_path / "s", methods=methods, seeds=2)))
    assert rows["epochs", "MESA"].passes == pytest.approx(rows["epochs", "SGD"].passes + 2 * 3 / 3)


def test_parts_are_compared_inside_themselves(tmp_path):
    parts = {"small": {"data.options.size": 24}, "wide": {"model.options.width": 16}}
    study = run_study(tiny_study(tmp_path / "s", variants=parts, seeds=2))
    assert {(row.variant, row.method) for row in compare_methods(study)} == {(p, m) for p in parts for m in METHODS}


def test_the_page_has_every_part(tmp_path):
    survey = SurveySpec(curvature=2, surface=True, points=3)
    search = SearchSpec(trials=2, grid={"optimizer.learning_rate": [0.1, 0.3]})
    study = run_study(tiny_study(tmp_path / "s", survey=survey, search=search, seeds=2, question="Does SAM help here?"))
    text = write_report(study, date="").read_text(encoding="utf-8")
    for words in (
        "Does SAM help here?",
        "Declared before anything ran",
        "Paired differences",
        "Pareto front",
        "expected validation score",
        "Does sharper mean worse?",
        "Kendall",
    ):
        assert words in text
    assert text == write_report(study, date="").read_text(encoding="utf-8")
    page = page_of(study)
    assert {row.measure for row in page.sharpness} >= {"lambda_max", "trace"} and page.points


@pytest.mark.slow
def test_processes_give_the_same_numbers(tmp_path):
    serial, spread = (
        run_study(tiny_study(tmp_path / name, seeds=2, engine=name)) for name in ("serial", "processes:2")
    )
    assert [row.values for row in compare_methods(serial)] == [row.values for row in compare_methods(spread)]


def test_every_endpoint_reads_a_number(tmp_path):
    folder = run_study(tiny_study(tmp_path / "s", seeds=2)).jobs["epochs"][0].spec.folder
    rows = Run(folder).metrics
    levels = ("steps_to_loss", "passes_to_loss", "restricted_steps_to_loss", "reached_loss")
    threshold = {**dict.fromkeys(levels, ":9"), "loss_spikes": ":1.5"}
    threshold |= {"largest_drop_from": ":1", "mean_square_drop_from": ":1"}
    values = {name: read_endpoint(folder, name + threshold.get(name, "")) for name in ENDPOINTS}
    assert all(math.isfinite(value) for value in values.values())
    assert values["steps_to_loss"] == 3 and math.isnan(read_endpoint(folder, "steps_to_loss:0"))
    assert (values["restricted_steps_to_loss"], values["reached_loss"]) == (3, 1)
    assert [read_endpoint(folder, f"{name}:0") for name in ("restricted_steps_to_loss", "reached_loss")] == [9, 0]
    assert values["test_error"] == pytest.approx(1 - values["test_accuracy"])
    assert values["largest_drop"] == max(
        a["train_loss"] - b["train_loss"] for a, b in zip(rows, rows[1:], strict=False)
    )
    assert values["largest_drop_from"] == values["largest_drop"] >= read_endpoint(folder, "largest_drop_from:2")
    pairs = list(zip(rows, rows[1:], strict=False))
    assert values["climb"] == sum(max(0.0, math.log(b["train_loss"] / a["train_loss"])) for a, b in pairs)
    assert cost_of(folder).epochs == 3 and cost_of(folder).passes > cost_of(folder).training == 9


def test_reach_is_the_share_of_epochs_in_which_the_method_acted_before_the_measured_weights(tmp_path):
    methods = {
        "SGD": {},
        "SAM": {"optimizer.method": "sam"},
        "late": {"optimizer.method": "sam", "optimizer.options.start": 6},
        "SAF": {"loss.method": "saf", "loss.options.start": 1, "loss.options.look_back": 1},
    }
    base = replace(base_run(), select="last")
    jobs = run_study(tiny_study(tmp_path / "s", methods=methods, base=base, seeds=2)).jobs["epochs"]
    folders = {job.method: job.spec.folder for job in jobs}
    assert math.isnan(read_reach(folders["SGD"])) and read_reach(folders["SAM"]) == 1.0
    assert read_reach(folders["late"]) == pytest.approx(1 / 3) and read_reach(folders["late"], step=6) == 0.0
    assert read_reach(folders["SAF"]) == pytest.approx(2 / 3)


def test_a_treatment_that_begins_after_the_chosen_checkpoint_is_not_measurable_here(tmp_path):
    never = {"SGD": {}, "late": {"optimizer.method": "sam", "optimizer.options.start": 9}}
    row = rows_of(run_study(tiny_study(tmp_path / "s", methods=never)))["epochs", "late"]
    assert row.verdict == "not measurable here" and "reach: 0 of 4 seeds differ" in row.reason
    assert (
        "reach: 0 of 4 seeds differ" in write_report(run_study(tiny_study(tmp_path / "s", methods=never))).read_text()
    )


def test_a_study_says_before_it_trains_what_it_can_see(tmp_path):
    methods = {"SGD": {}, "late": {"optimizer.method": "sam", "optimizer.options.start": 6}}
    told, trained = [], []
    spec = tiny_study(tmp_path / "s", methods=methods, smallest_effect=0.005)
    run_study(
        spec, on_note=lambda line: told.append((line, len(trained))), on_run=lambda job, failure: trained.append(job)
    )
    assert trained and all(count == 0 for _, count in told)
    power, reach, resolution = (line for line, _ in told)
    assert power.startswith("Power: 4 seeds find a difference of 0.005 in 80 % of studies where the paired differences")
    assert "standard deviation of 0.0023 or less" in power and check_study(spec) == [power, reach, resolution]
    assert reach.startswith("Reach: late acts in the last 33 % of training") and "base.select: last" in reach
    assert resolution.startswith("Resolution: the test part has 96 samples, so that one is 0.01")
    assert "two" not in power and check_study(replace(spec, seeds=3))[0] == (
        "Power: 3 seeds decide nothing; four are the fewest."
    )


def test_no_difference_is_not_said_where_the_smallest_effect_would_not_be_found(tmp_path):
    same = {"SGD": {}, "decay": {"optimizer.weight_decay": 0.02}}
    rows = rows_of(run_study(tiny_study(tmp_path / "s", methods=same, smallest_effect=1e-4)))
    given = rows["epochs", "decay"]
    assert given.verdict == "not measurable here"
    sure = rows_of(run_study(tiny_study(tmp_path / "t", methods=same, smallest_effect=0.5, endpoint="test_loss")))
    assert sure["epochs", "decay"].verdict == "refuted"


NUMBERS = {"data": DataSpec(name="tests.study_cases:measured_data"), "loss": LossSpec(name="mse")}
REGRESSION = replace(base_run(), model=ModelSpec(name=base_run().model.name, options={"classes": 1}), **NUMBERS)
LOADERS = replace(base_run(), data=DataSpec(name="tests.study_cases:loader_data"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": {"SGD": {}, "SAM": {"optimizer.methud": "sam"}}}, "methods.SAM.optimizer.methud"),
        ({"methods": {"SGD": {}, "SAM": {"optimizer.method": "smam"}}}, "did you mean 'sam'"),
        ({"methods": {"SGD": {}, "SAM": {"optimizer.learning_rate": "fast"}}}, "learning_rate"),
        ({"methods": {"SGD": {}, "more": {"data.options.size": 96}}}, "methods.more.data.options.size"),
        ({"methods": {"SGD": {}, "late": {"select": "last"}}}, "methods.late.select"),
        ({"methods": {"SGD": {}, "long": {"epochs": 9}}}, "methods.long.epochs"),
        ({"methods": {}}, "at least one method"),
        ({"methods": {"S": {}, "late": {"optimizer.method": "late_sam"}}}, "methods.late: schedule.*leave the decay"),
        ({"methods": {"SGD": {}, "SAF": {"loss.method": "saf"}}, "base": LOADERS}, "methods.SAF.*sample ids"),
        ({"endpoint": "test_acuracy"}, "did you mean 'test_accuracy'"),
        ({"endpoint": "steps_to_loss"}, "a number after its colon"),
        ({"base": REGRESSION}, "endpoint.*needs data with classes"),
        ({"engine": "cloud"}, "engine"),
        ({"variants": {"x": {"seed": 3}}}, "variants.x.seed"),
        ({"search": SearchSpec(trials=3, grid={"optimizer.learning_rate": [0.1]})}, "at least 3 settings"),
        ({"search": SearchSpec(trials=1, grid={"optimizer.rate": [0.1]})}, "search.optimizer.rate"),
    ],
)
def test_bad_input_is_one_error_before_anything_is_written(tmp_path, change, text):
    with pytest.raises(LowlandError, match=text):
        run_study(tiny_study(tmp_path / "s", **change))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": 1}, "at least 2"),
        ({"baseline": "Adam"}, "must name methods"),
        ({"smallest_effect": 0.0}, "smallest_effect"),
        ({"budgets": []}, "budgets"),
        ({"survey": SurveySpec(curvature=9)}, "survey.curvature"),
        ({"methods": {"a/b": {}}}, "file names"),
    ],
)
def test_a_spec_that_cannot_mean_anything_is_refused(tmp_path, change, text):
    with pytest.raises(InputError, match=text):
        tiny_study(tmp_path / "s", **change)


def test_the_folder_of_another_study_is_refused(tmp_path):
    run_study(tiny_study(tmp_path / "s", seeds=2))
    with pytest.raises(InputError, match="another study"):
        run_study(tiny_study(tmp_path / "s", seeds=3))


def test_runs_on_other_data_are_not_compared(tmp_path):
    one = run_study(tiny_study(tmp_path / "a", seeds=2)).jobs["epochs"][0]
    other = apply_changes(base_run(), {"data.options.spread": 0.5}, "base")
    two = run_study(tiny_study(tmp_path / "b", seeds=2, base=other)).jobs["epochs"][0]
    with pytest.raises(InputError, match="share their data"):
        check_same_data([job.spec.folder for job in (one, two)])


@pytest.mark.parametrize(("name", "values"), [("batch_norm", ["running", "batch"]), ("samples", [48, 24])])
def test_curvature_in_two_modes_or_of_two_sample_sizes_is_not_mixed(tmp_path, monkeypatch, name, values):
    study = run_study(tiny_study(tmp_path / "s", seeds=2, survey=SurveySpec(curvature=2)))
    from lowland.study import compare as module

    real, modes = module.results.open, iter([*values, values[0], values[0]])

    def opened(path):
        found = real(path)
        found.attrs[name] = next(modes)
        return found

    monkeypatch.setattr(module.results, "open", opened)
    with pytest.raises(InputError, match="one batch-norm mode"):
        page_of(study)


def test_the_check_trains_nothing_and_writes_nothing(tmp_path):
    check_study(tiny_study(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def recommended(folder, methods, **options):
    base = base_run()
    sizes = {"seeds": 2, "fresh": 6, "trials": 1, **options}
    return recommend(
        RecommendSpec(folder=str(folder), model=base.model, data=base.data, base=base, methods=methods, **sizes)
    )


def test_recommend_confirms_a_planted_winner_on_fresh_seeds(tmp_path):
    found = recommended(tmp_path / "r", {"asleep": {"schedule.warmup": 1e9}, "awake": {}})
    assert found.winner == "awake" and found.lines[0].startswith("awake helped: +")
    assert {seed for row in found.confirm for seed in row.values} == set(range(1000, 1006))
    assert {row.budget for row in found.confirm} == {"epochs", "compute"}
    base = base_run()
    asked = SimpleNamespace(spec=RecommendSpec(model=base.model, data=base.data, base=base))
    head, *table = show_recommend(found, asked).table
    assert head[:2] == ["look", "part of the data"] and "validation" not in " ".join(head)
    assert {tuple(row[:2]) for row in table} == {("first look", "validation"), ("confirmation", "test")}
    assert "points of test accuracy" in found.lines[0]


def test_recommend_says_so_where_nothing_differs(tmp_path):
    found = recommended(tmp_path / "r", {"SGD": {}, "same": {"optimizer.momentum": 0.9}})
    assert found.lines[0].startswith("Nothing to confirm") and found.winner == "SGD"
    assert "2 seeds cannot say more" in found.lines[0]
    assert "same" in found.lines[1] and "1.00" in found.lines[2]


def test_a_live_table_stands_above_bars_with_the_time_left(tmp_path):
    screen = io.StringIO()
    output = LiveOutput()
    output.bars.console = Console(file=screen, force_terminal=True, width=140)
    with output:
        run_study(tiny_study(tmp_path / "s", seeds=2), progress=output.progress, on_run=output.on_run)
        output.progress("equal epochs")(Event("progress", 4, 12, 10.0, 65.0, 0.4))
        output.on_run(Job("epochs", "", "SAM", 2, base_run()), Failure("it broke"))
    text = screen.getvalue()
    assert "epochs SGD" in text and "epochs SAM" in text and "mean test_accuracy" in text
    assert "1:05 left" in text and "it broke" in text
    last = text[text.rindex("compared at equal, method") :]
    assert last[last.index("epochs SAM") :].split()[:6] == ["epochs", "SAM", "│", "2", "│", "1"]


def test_the_commands(tmp_path, capsys, monkeypatch):
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(tiny_study(tmp_path / "s", seeds=2)))
    assert main(["study", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["method"] for row in found["rows"]} == {"SGD", "SAM"}
    assert found["instrument"][0].startswith("Power: 2 seeds decide nothing")
    content = yaml.safe_load(file.read_text()) | {"sseds": 3}
    file.write_text(yaml.safe_dump(content))
    assert main(["study", str(file)]) == 2
    assert "sseds" in capsys.readouterr().err


def test_an_endpoint_of_the_whole_run_is_reached_by_what_acts_after_the_chosen_epoch(tmp_path):
    late = {"SGD": {}, "late": {"optimizer.method": "sam", "optimizer.options.start": 6}}
    row = rows_of(run_study(tiny_study(tmp_path / "s", methods=late, endpoint="train_loss")))["epochs", "late"]
    assert "it acted in 33 % of the steps" in row.instrument[0]
