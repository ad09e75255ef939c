"""The ledger: stored per seed, resumed, stale only when code changes, and a page that hides nothing."""

import json
import math
import time
from dataclasses import replace

import pytest
from studies.claims import claim as claim_module
from studies.claims import ledger
from studies.claims import runs as runs_module
from studies.claims.__main__ import main
from studies.claims.answers import outcome, over_the_ledger
from studies.claims.budget import chosen, in_order, seconds_left, to_run
from studies.claims.claim import Claim
from studies.claims.page import budget_table, minutes_left, pages
from studies.claims.record import read_record, run_claim
from studies.claims.rows.every import FULL, SMALL, Size, claims
from studies.claims.rows.llr_measures import escape_steps
from studies.claims.rows.lookahead import first_stage_cosines
from studies.claims.rows.tasks import arm, endpoint, steps_to
from studies.claims.runs import Arm, RunCache, settings_of
from tests.study_cases import base_run

from lowland import landscape
from lowland.core.errors import InputError, StoreError
from lowland.study import Instrument, apply_changes, read_endpoint

TINY = Size("small", 2, 2, 64, 2, 48, 2)


def page(outcomes):
    return "\n".join(pages(outcomes).values())


def planted(gain=0.1, *, fails=(), calls=None, **options):
    def measure(runs, arms, seed):
        if calls is not None:
            calls.append(seed)
        if seed in fails:
            raise RuntimeError("no power")
        return {"base": 0.5 + 0.01 * seed, "treated": 0.5 + 0.011 * seed + gain, "passes base": 10.0}

    settings = {"seeds": 6, "instrument": Instrument(), **options}
    return Claim(
        "planted", "Group", "It helps.", "a number", "accuracy", 0.01, (("treated", "base"),), measure, **settings
    )


def test_every_seed_is_stored_with_date_machine_and_time(tmp_path):
    record = run_claim(planted(), tmp_path, RunCache(tmp_path))
    stored = json.loads((tmp_path / "planted.json").read_text())
    assert [run["seed"] for run in stored["runs"]] == [0, 1, 2, 3, 4, 5]
    assert {"created", "machine", "versions", "cpu_seconds", "seconds"} <= set(stored["runs"][0])
    assert record.values("base")[3] == 0.53 and stored["runs"][0]["passes"] == {"base": 10.0}


def test_a_second_run_measures_only_what_is_missing(tmp_path):
    calls = []
    claim = planted(calls=calls)
    run_claim(claim, tmp_path, RunCache(tmp_path), seeds=2)
    run_claim(claim, tmp_path, RunCache(tmp_path))
    assert calls == [0, 1, 2, 3, 4, 5]
    assert outcome(claim, read_record(tmp_path, "planted")).state == "done"


def other_code(*modules):
    """Fingerprint of source that has changed."""
    return "0123456789abcdef"


def test_changed_code_makes_a_row_stale_and_it_runs_again(tmp_path, monkeypatch):
    calls = []
    claim = planted(calls=calls)
    run_claim(claim, tmp_path, RunCache(tmp_path))
    monkeypatch.setattr(claim_module, "fingerprint", other_code)
    stale = outcome(claim, read_record(tmp_path, "planted"))
    assert stale.state == "stale" and stale.answers[0].verdict == "reproduced"
    assert "files that the row imports have changed since" in page([stale])
    changed = planted(0.2, calls=calls)
    record = run_claim(changed, tmp_path, RunCache(tmp_path))
    assert calls == [0, 1, 2, 3, 4, 5] * 2 and outcome(changed, read_record(tmp_path, "planted")).state == "done"
    assert record.values("treated")[5] == pytest.approx(0.755) and not record.verified


def test_a_row_stands_where_changed_code_gives_its_first_seed_again(tmp_path, monkeypatch):
    calls = []
    claim = planted(calls=calls)
    before = run_claim(claim, tmp_path, RunCache(tmp_path))
    monkeypatch.setattr(claim_module, "fingerprint", other_code)
    late = run_claim(claim, tmp_path, RunCache(tmp_path), until=time.monotonic() - 1)
    assert late.fingerprint == before.fingerprint  # no time to look: still stale
    record = run_claim(claim, tmp_path, RunCache(tmp_path))
    assert calls == [0, 1, 2, 3, 4, 5, 0] and record.runs == before.runs
    found = outcome(claim, read_record(tmp_path, "planted"))
    assert found.state == "done" and "; seed 0 gave the same numbers" in page([found])


def test_a_row_that_is_declared_otherwise_does_not_stand(tmp_path, monkeypatch):
    calls = []
    run_claim(planted(calls=calls), tmp_path, RunCache(tmp_path))
    monkeypatch.setattr(claim_module, "fingerprint", other_code)
    record = run_claim(planted(calls=calls, seeds=7), tmp_path, RunCache(tmp_path))
    assert len(calls) == 13 and not record.verified


def test_a_failed_seed_is_stored_shown_and_tried_again(tmp_path):
    broken = planted(fails={2}, calls=[])
    run_claim(broken, tmp_path, RunCache(tmp_path))
    found = outcome(broken, read_record(tmp_path, "planted"))
    assert found.answers[0].verdict == "undecided" and "1 seeds failed" in found.answers[0].reason
    text = page([found])
    assert "**Failed**: seed 2: RuntimeError: no power" in text
    calls = []
    run_claim(planted(calls=calls), tmp_path, RunCache(tmp_path))
    assert calls == [2]


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "reproduced"), (-0.1, "refuted"), (-0.0025, "refuted")])
def test_claims_that_fail_are_printed_as_plainly_as_those_that_hold(tmp_path, gain, verdict):
    claim = planted(gain)
    run_claim(claim, tmp_path, RunCache(tmp_path))
    assert f"**{verdict}**" in page([outcome(claim, read_record(tmp_path, "planted"))])


def test_a_row_that_never_ran_says_so_and_has_no_number(tmp_path):
    text = page([outcome(planted(), read_record(tmp_path, "planted"))])
    assert "**Not run yet** (6 seeds declared)" in text and "| treated |" not in text
    assert text.index("## Budget") < text.index("# Claims: Group")


def test_three_arms_ask_whether_the_gain_is_kept(tmp_path):
    def measure(runs, arms, seed):
        return {"base": 0.5 + 0.01 * seed, "sam": 0.6 + 0.0101 * seed, "sala": 0.6 + 0.0102 * seed}

    claim = Claim(
        "kept", "G", "s", "p", "e", 0.01, (("sala", "sam", "base"),), measure, seeds=6, instrument=Instrument()
    )
    run_claim(claim, tmp_path, RunCache(tmp_path))
    found = outcome(claim, read_record(tmp_path, "kept"))
    assert found.answers[0].verdict == "reproduced"
    assert "sala keeps three quarters of sam's gain over base" in page([found])


def test_the_ledger_corrects_over_its_primary_rows(tmp_path):
    good, null = planted(), planted(1e-5, primary=False)
    run_claim(good, tmp_path, RunCache(tmp_path))
    outcomes = [outcome(good, read_record(tmp_path, "planted")), outcome(null, None)]
    assert list(over_the_ledger(outcomes)) == ["planted"]


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "planted.json").write_text("{}")
    with pytest.raises(StoreError, match="not a record"):
        read_record(tmp_path, "planted")


def test_runs_are_shared_and_belong_to_their_code(tmp_path, monkeypatch):
    runs, spec = RunCache(tmp_path), base_run()
    first = runs.train(spec, 3)
    monkeypatch.setattr(runs_module, "fit", lambda spec: pytest.fail("trained again"))
    assert runs.train(spec, 3) == first != runs.place(spec)
    monkeypatch.setattr(runs_module, "fingerprint", other_code)
    assert runs.place(spec) != first


def test_a_row_is_computed_again_from_its_stored_runs_without_training(tmp_path, monkeypatch):
    arms = {"SGD": arm(base_run()), "SAM": arm(base_run(), {"optimizer.method": "sam"})}
    claim = Claim(
        "row",
        "G",
        "s",
        "p",
        "e",
        0.01,
        (("SAM", "SGD"),),
        endpoint("test_accuracy"),
        arms,
        seeds=3,
        instrument=Instrument(),
    )
    first = run_claim(claim, tmp_path / "store", RunCache(tmp_path / "runs"))
    (tmp_path / "store" / "row.json").unlink()
    monkeypatch.setattr(runs_module, "fit", lambda spec: pytest.fail("trained again"))
    again = run_claim(claim, tmp_path / "store", RunCache(tmp_path / "runs"))
    assert not again.failed
    assert all(first.values(name) == again.values(name) and len(first.values(name)) == 3 for name in arms)


def test_every_tuned_arm_has_as_many_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "TRIALS", 2)
    arm = Arm(base_run(), {"optimizer.method": "sam"}, {"optimizer.options.rho": [0.05, 0.1]}, tuned=True)
    assert len(settings_of(arm)) == len(settings_of(Arm(base_run(), tuned=True))) == 2
    settled = RunCache(tmp_path).settled(arm)
    assert settled.data == arm.run.data and settled.optimizer.options["rho"] in (0.05, 0.1)


@pytest.mark.parametrize("size", [SMALL, FULL, TINY])
def test_every_row_is_declared_in_full(size):
    rows = claims(size)
    assert len({row.name for row in rows}) == len(rows) >= 50
    for row in rows:
        names = {name for compared in row.comparisons for name in compared}
        assert row.smallest > 0 and names and row.seeds >= 2 and row.statement and row.published and row.endpoint
        assert set(row.after) <= {other.name for other in rows}, row.name


def test_the_small_ledger_fits_in_75_minutes_of_two_cores():
    rows = claims(SMALL)
    outcomes = [outcome(row, None) for row in rows]
    assert minutes_left(outcomes) == sum(row.seeds * row.seconds for row in to_run(rows)) / 60 <= 150
    assert minutes_left([outcome(row, None) for row in claims(FULL)]) > 10 * minutes_left(outcomes)
    assert "| together |" in budget_table(outcomes)


def test_cheap_and_primary_rows_run_first_each_after_those_it_reads_from():
    rows = in_order(claims(SMALL))
    places = {row.name: place for place, row in enumerate(rows)}
    assert sorted(places) == sorted(row.name for row in claims(SMALL))
    for row in rows:
        assert all(places[before] < places[row.name] for before in row.after)
    assert [row.primary for row in rows] == sorted((row.primary for row in rows), reverse=True)
    read = {name for row in rows for name in row.after}
    alone = [row for row in rows if row.primary and not row.after and row.name not in read]
    assert [row.name for row in alone] == [r.name for r in sorted(alone, key=lambda r: r.seeds * r.seconds)]
    assert places["sam-equal-epochs"] < places["llr-accuracy"]  # dearer, but five rows read from its runs
    assert in_order([one for one in rows if one.name == "saf-keeps-sams-gain"])[0].name == "saf-keeps-sams-gain"


def test_the_budget_uses_what_finished_seeds_took(tmp_path):
    claim = planted(seconds=30.0)
    assert seconds_left(claim, None) == 180.0
    record = run_claim(claim, tmp_path, RunCache(tmp_path), seeds=2)
    for run in record.runs:
        run["cpu_seconds"] = 7.0
    assert seconds_left(claim, record) == 4 * 7.0
    record.fingerprint = "other code"
    assert seconds_left(claim, record) == 180.0


def test_an_interruption_loses_only_the_seed_in_flight(tmp_path):
    calls = []

    def killed(runs, arms, seed):
        calls.append(seed)
        if seed == 3 and len(calls) == 4:
            raise KeyboardInterrupt
        return {"base": 0.5, "treated": 0.6}

    claim = Claim("planted", "G", "s", "p", "e", 0.01, (("treated", "base"),), killed, seeds=6, instrument=Instrument())
    with pytest.raises(KeyboardInterrupt):
        run_claim(claim, tmp_path, RunCache(tmp_path))
    assert [run["seed"] for run in read_record(tmp_path, "planted").runs] == [0, 1, 2]
    run_claim(claim, tmp_path, RunCache(tmp_path))
    assert calls == [0, 1, 2, 3, 3, 4, 5]


def test_no_seed_begins_after_the_time_is_up(tmp_path):
    calls = []
    record = run_claim(planted(calls=calls), tmp_path, RunCache(tmp_path), until=time.monotonic() - 1)
    assert not calls and not record.runs and not list(tmp_path.glob("*.json"))


def test_runs_that_never_reach_a_loss_count_with_all_their_steps_and_the_share_is_shown(tmp_path):
    run = base_run()  # 3 epochs of 3 steps
    arms = {"reaches": arm(run, {"optimizer.learning_rate": 0.5}), "asleep": arm(run, {"schedule.warmup": 1e9})}
    level = 1.0986 - 0.05  # ln 3 is the loss of a guess
    claim = Claim(
        "speed",
        "G",
        "s",
        "p",
        "steps",
        1.0,
        (("reaches", "asleep"),),
        steps_to(level),
        arms,
        higher=False,
        seeds=6,
        instrument=Instrument(ties=True),
    )
    record = run_claim(claim, tmp_path / "store", RunCache(tmp_path / "runs"))
    assert set(record.values("asleep").values()) == {9.0} and not record.failed
    assert max(record.values("reaches").values()) < 9.0
    found = outcome(claim, record)
    assert found.answers[0].verdict == "reproduced"
    text = page([found])
    assert "| runs that got there |" in text and "| 100% |" in text and "| 0% |" in text
    folder = RunCache(tmp_path / "runs").train(arms["asleep"].spec, 0)
    assert math.isnan(read_endpoint(folder, f"steps_to_loss:{level}"))


def test_rows_are_chosen_by_name_or_group():
    rows = claims(TINY)
    assert [row.name for row in chosen(rows, ["sam-late"])] == ["sam-late"]
    assert {row.group for row in chosen(rows, ["LLR"])} == {"LLR"}
    with pytest.raises(InputError, match="did you mean 'sam-late'"):
        chosen(rows, ["sam-lat"])


def test_the_measures_that_train_nothing():
    found = escape_steps(None, {}, 0)
    assert set(found) == {"LLR", "plain", "plain at LLR's mean rate"} and all(map(math.isfinite, found.values()))
    task = next(row for row in claims(TINY) if row.name == "sala-direction")
    cosines = first_stage_cosines(None, task.arms, 0)
    assert all(-1 <= value <= 1 for value in cosines.values())


def test_the_command_writes_the_page_from_stored_runs_alone(tmp_path, capsys):
    sizes = ["--store", str(tmp_path / "store"), "--page", str(tmp_path / "claims.md"), "--folder", str(tmp_path / "r")]
    assert main(["--only", "table", "--json", *sizes]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in found["rows"].values()} == {"not run yet"}
    assert "What cannot be decided here" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert main(["nonsense", *sizes]) == 2


def test_the_budget_is_printed_and_written_first_without_training(tmp_path, capsys):
    sizes = ["--store", str(tmp_path / "store"), "--page", str(tmp_path / "claims.md"), "--folder", str(tmp_path / "r")]
    for full, name in (([], "claims.md"), (["--full"], "claims-full.md")):
        assert main(["--only", "budget", "--json", *full, *sizes]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["minutes_left"] > 60 and found["page"] == str(tmp_path / name)
        assert "| together |" in (tmp_path / name).read_text(encoding="utf-8")
    assert not (tmp_path / "r").exists() and not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_row_of_the_full_size_runs_where_there_is_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "FULL", replace(TINY, name="full", accelerator="auto"))
    sizes = ["--store", str(tmp_path / "store"), "--page", str(tmp_path / "claims.md"), "--folder", str(tmp_path / "r")]
    first = in_order(claims(ledger.FULL))[0].name
    assert main([first, "sam-equal-epochs", "--full", "--seeds", "2", "--quiet", *sizes]) == 0
    assert {path.stem for path in (tmp_path / "store" / "full").glob("*.json")} == {first, "sam-equal-epochs"}
    assert "2 of 2 seeds" in (tmp_path / "claims-full" / "sam.md").read_text(encoding="utf-8")


def little_tested(one):
    """An arm with 200 test signals in place of 20,000."""
    if one.run.data.name != "mnist1d":
        return one
    return replace(one, run=apply_changes(one.run, {"data.options.test_size": 200}, "arm"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_gives_a_number_for_every_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "TRIALS", 1)
    grid = landscape.grid
    coarse = lambda *sizes, **options: grid(
        *(max(3, size // 2 | 1) for size in sizes), **options
    )  # 15 x 15 for 31 x 31
    monkeypatch.setattr(landscape, "grid", coarse)
    runs = RunCache(tmp_path)
    for row in claims(TINY):
        found = row.measure(runs, {name: little_tested(one) for name, one in row.arms.items()}, 0)
        assert {name for compared in row.comparisons for name in compared} <= set(found), row.name


@pytest.mark.slow
def test_two_processes_run_rows_side_by_side(tmp_path):
    sizes = ["--store", str(tmp_path / "store"), "--page", str(tmp_path / "claims.md"), "--folder", str(tmp_path / "r")]
    rows = ["llr-escape-rate", "sala-direction"]
    assert main([*rows, "--seeds", "2", "--engine", "processes:2", "--quiet", *sizes]) == 0
    assert sorted(path.stem for path in (tmp_path / "store").glob("*.json")) == rows
    assert "incomplete, 2 of 20 seeds" in (tmp_path / "claims" / "llr.md").read_text(encoding="utf-8")


def test_a_row_that_is_kept_for_comparison_names_the_one_to_run(tmp_path, capsys):
    assert main(["llr-escape", "--store", str(tmp_path / "store"), "--page", str(tmp_path / "claims.md")]) == 2
    assert "llr-escape-rate" in capsys.readouterr().err


def test_a_sharpness_is_shown_with_its_train_loss_and_with_what_cannot_be_compared(tmp_path):
    def measure(runs, arms, seed):
        values = {"base": 1.0 + 0.01 * seed, "treated": 1.1 + 0.011 * seed}
        return {**values, "train loss base": 0.1, "train loss treated": 0.1 if seed < 0 else 0.4}

    tool = Instrument(equal_loss=True)
    claim = Claim("planted", "G", "s", "p", "e", 0.01, (("treated", "base"),), measure, seeds=6, instrument=tool)
    run_claim(claim, tmp_path, RunCache(tmp_path))
    found = outcome(claim, read_record(tmp_path, "planted"))
    assert found.answers[0].verdict == "not measurable here"
    text = page([found])
    assert "**fails**: train losses treated 0.400, base 0.100" in text and "| 0.400 |" in text
