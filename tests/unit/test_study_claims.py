"""The ledger: stored per seed, resumed, stale only when code changes, and a page that hides nothing."""

import json
import math

import pytest
from tests.study_cases import base_run

from lowland.cli.main import main
from lowland.core.errors import InputError, StoreError
from lowland.study import bench as bench_module
from lowland.study import claims as module
from lowland.study.bench import Arm, Bench, bare_code, code_of, fingerprint_of, settings_of
from lowland.study.claims import Claim, chosen, outcome, over_the_ledger, read_record, run_claim
from lowland.study.page import budget_table, page
from lowland.study.rows import FULL, SMALL, Size, claims
from lowland.study.rows.llr_measures import escape_steps
from lowland.study.rows.lookahead import first_stage_cosines

TINY = Size("small", 2, 2, 64, 2, 48, 2)


def planted(gain=0.1, *, fails=(), calls=None, **options):
    def measure(bench, arms, seed):
        if calls is not None:
            calls.append(seed)
        if seed in fails:
            raise RuntimeError("no power")
        return {"base": 0.5 + 0.01 * seed, "treated": 0.5 + 0.011 * seed + gain, "passes base": 10.0}

    settings = {"seeds": 6, "code": ("study/claims.py",), **options}
    return Claim(
        "planted", "Group", "It helps.", "a number", "accuracy", 0.01, (("treated", "base"),), measure, **settings
    )


def test_every_seed_is_stored_with_date_machine_and_time(tmp_path):
    record = run_claim(planted(), tmp_path, Bench(tmp_path))
    stored = json.loads((tmp_path / "planted.json").read_text())
    assert [run["seed"] for run in stored["runs"]] == [0, 1, 2, 3, 4, 5]
    assert {"created", "machine", "versions", "cpu_seconds", "seconds"} <= set(stored["runs"][0])
    assert record.values("base")[3] == 0.53 and stored["runs"][0]["passes"] == {"base": 10.0}


def test_a_second_run_measures_only_what_is_missing(tmp_path):
    calls = []
    claim = planted(calls=calls)
    run_claim(claim, tmp_path, Bench(tmp_path), seeds=2)
    run_claim(claim, tmp_path, Bench(tmp_path))
    assert calls == [0, 1, 2, 3, 4, 5]
    assert outcome(claim, read_record(tmp_path, "planted")).state == "done"


def test_changed_code_makes_a_row_stale_and_it_runs_again(tmp_path, monkeypatch):
    calls = []
    claim = planted(calls=calls)
    run_claim(claim, tmp_path, Bench(tmp_path))
    monkeypatch.setattr(module, "fingerprint_of", lambda files: "0123456789abcdef")
    stale = outcome(claim, read_record(tmp_path, "planted"))
    assert stale.state == "stale" and stale.answers[0].verdict == "reproduced"
    assert "code that has changed since" in page([stale])
    run_claim(claim, tmp_path, Bench(tmp_path))
    assert len(calls) == 12 and outcome(claim, read_record(tmp_path, "planted")).state == "done"


def test_comments_and_docstrings_are_no_code():
    one = 'def f(x):\n    """Old."""\n    return x  # why\n'
    assert bare_code(one) == bare_code('"""New."""\ndef f(x):\n\n    """Other."""\n    return x\n')
    assert bare_code(one) != bare_code(one.replace("return x", "return x + 1"))
    assert fingerprint_of(["core/names.py"]) != fingerprint_of(["core/errors.py"])


def test_a_failed_seed_is_stored_shown_and_tried_again(tmp_path):
    broken = planted(fails={2})
    run_claim(broken, tmp_path, Bench(tmp_path))
    found = outcome(broken, read_record(tmp_path, "planted"))
    assert found.answers[0].verdict == "undecided" and "1 seeds failed" in found.answers[0].reason
    text = page([found])
    assert "**Failed**: seed 2: RuntimeError: no power" in text
    calls = []
    run_claim(planted(calls=calls), tmp_path, Bench(tmp_path))
    assert calls == [2]


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "reproduced"), (-0.1, "refuted"), (-0.0025, "refuted")])
def test_claims_that_fail_are_printed_as_plainly_as_those_that_hold(tmp_path, gain, verdict):
    claim = planted(gain)
    run_claim(claim, tmp_path, Bench(tmp_path))
    assert f"**{verdict}**" in page([outcome(claim, read_record(tmp_path, "planted"))])


def test_a_row_that_never_ran_says_so_and_has_no_number(tmp_path):
    text = page([outcome(planted(), read_record(tmp_path, "planted"))])
    assert "**Not run yet** (6 seeds declared)" in text and "| treated |" not in text
    assert text.index("## Budget") < text.index("## Group")


def test_three_arms_ask_whether_the_gain_is_kept(tmp_path):
    def measure(bench, arms, seed):
        return {"base": 0.5 + 0.01 * seed, "sam": 0.6 + 0.0101 * seed, "sala": 0.6 + 0.0102 * seed}

    claim = Claim("kept", "G", "s", "p", "e", 0.01, (("sala", "sam", "base"),), measure, seeds=6)
    run_claim(claim, tmp_path, Bench(tmp_path))
    found = outcome(claim, read_record(tmp_path, "kept"))
    assert found.answers[0].verdict == "reproduced"
    assert "sala keeps three quarters of sam's gain over base" in page([found])


def test_the_ledger_corrects_over_its_primary_rows(tmp_path):
    good, null = planted(), planted(1e-5, primary=False)
    run_claim(good, tmp_path, Bench(tmp_path))
    outcomes = [outcome(good, read_record(tmp_path, "planted")), outcome(null, None)]
    assert list(over_the_ledger(outcomes)) == ["planted"]


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "planted.json").write_text("{}")
    with pytest.raises(StoreError, match="not a record"):
        read_record(tmp_path, "planted")


def test_runs_are_shared_and_belong_to_their_code(tmp_path, monkeypatch):
    bench, spec = Bench(tmp_path), base_run()
    first = bench.train(spec, 3)
    monkeypatch.setattr(bench_module, "fit_run", lambda spec: pytest.fail("trained again"))
    assert bench.train(spec, 3) == first != bench.place(spec)
    monkeypatch.setattr(bench_module, "fingerprint_of", lambda files: "other")
    assert bench.place(spec) != first


def test_every_tuned_arm_has_as_many_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "TRIALS", 2)
    arm = Arm(base_run(), {"optimizer.method": "sam"}, {"optimizer.options.rho": [0.05, 0.1]}, tuned=True)
    assert len(settings_of(arm)) == len(settings_of(Arm(base_run(), tuned=True))) == 2
    settled = Bench(tmp_path).settled(arm)
    assert settled.data == arm.run.data and settled.optimizer.options["rho"] in (0.05, 0.1)


def test_the_small_ledger_fits_in_75_minutes_of_two_cores():
    rows = claims(SMALL)
    assert sum(row.seeds * row.seconds for row in rows) / 60 <= 150
    assert len({row.name for row in rows}) == len(rows) >= 40
    assert "| together |" in budget_table(rows)
    assert len(claims(FULL)) == len(rows)


def test_rows_depend_on_files_that_exist():
    for row in claims(TINY):
        assert all((bench_module.SOURCE / file).is_file() for file in row.code), row.name
        for arm in row.arms.values():
            files = code_of(arm.spec)
            for method in (arm.spec.optimizer.method, arm.spec.loss.method):
                assert method == "none" or any(file.endswith(f"/{method}.py") for file in files), row.name
        names = {name for compared in row.comparisons for name in compared}
        assert row.smallest > 0 and names and row.seeds >= 2


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
    assert main(["claims", "--only", "table", "--json", *sizes]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["state"] for row in found["rows"].values()} == {"not run yet"}
    assert "What cannot be decided here" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert main(["claims", "nonsense", *sizes]) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_gives_a_number_for_every_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "TRIALS", 1)
    bench = Bench(tmp_path)
    for row in claims(TINY):
        found = row.measure(bench, row.arms, 0)
        assert {name for compared in row.comparisons for name in compared} <= set(found), row.name


@pytest.mark.slow
def test_two_processes_run_rows_side_by_side(tmp_path):
    sizes = ["--store", str(tmp_path / "store"), "--page", str(tmp_path / "claims.md"), "--folder", str(tmp_path / "r")]
    rows = ["llr-escape", "sala-direction"]
    assert main(["claims", *rows, "--seeds", "2", "--engine", "processes:2", "--quiet", *sizes]) == 0
    assert sorted(path.stem for path in (tmp_path / "store").glob("*.json")) == rows
    assert "incomplete, 2 of 20 seeds" in (tmp_path / "claims.md").read_text(encoding="utf-8")


def test_a_sharpness_is_shown_with_its_train_loss_and_with_what_cannot_be_compared(tmp_path):
    def measure(bench, arms, seed):
        values = {"base": 1.0 + 0.01 * seed, "treated": 1.1 + 0.011 * seed}
        return {**values, "train loss base": 0.1, "train loss treated": 0.1 if seed < 0 else 0.4}

    claim = planted()
    claim = Claim(claim.name, "G", "s", "p", "e", 0.01, claim.comparisons, measure, seeds=6)
    run_claim(claim, tmp_path, Bench(tmp_path))
    text = page([outcome(claim, read_record(tmp_path, "planted"))])
    assert "treated and base: not comparable at the end" in text and "| 0.400 |" in text
