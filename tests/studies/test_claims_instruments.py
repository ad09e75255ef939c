"""The ledger on planted studies: its intervals, its false verdicts, and what its instruments catch."""

import math

import numpy as np
import pytest
import torch
from studies.claims.answers import outcome
from studies.claims.claim import Claim
from studies.claims.readers import _log_depth
from studies.claims.record import Record
from studies.claims.rows import better
from studies.claims.rows.checkpoints import rise_by_noise, rise_by_rounding, rise_by_training
from studies.claims.rows.every import claims
from studies.claims.rows.tasks import SMALL

from lowland.core.risk import EmpiricalRisk
from lowland.study import Instrument

STUDIES = 2000
SMALLEST = 0.01


def row(**options):
    tool = options.pop("instrument", Instrument(floor=0.0, ceiling=1.0, learned=1.0))
    pair = (("treated", "base"),)
    return Claim("planted", "G", "s", "p", "e", SMALLEST, pair, None, instrument=tool, seeds=20, **options)


def record(treated, base, **beside):
    runs = [
        {
            "seed": seed,
            "values": {"treated": float(one), "base": float(other)},
            "error": "",
            "train_loss": {"treated": 0.1, "base": 0.1},
            **{kind: {"treated": float(values[seed])} for kind, values in beside.items()},
        }
        for seed, (one, other) in enumerate(zip(treated, base, strict=True))
    ]
    return Record("planted", "", runs)


def planted(random, *, effect=0.0, spread=0.01, seeds=20):
    base = 0.7 + 0.03 * random.standard_normal(seeds)
    return base + effect + spread * random.standard_normal(seeds), base


@pytest.mark.parametrize("effect", [0.0, SMALLEST, 3 * SMALLEST])
@pytest.mark.parametrize("spread", [0.01, 0.03])
def test_intervals_cover_and_few_verdicts_are_false(effect, spread):
    random = np.random.default_rng(17)
    covered = false = 0
    for _ in range(STUDIES):
        found = outcome(row(), record(*planted(random, effect=effect, spread=spread)))
        interval, verdict = found.effects[0].interval, found.answers[0].verdict
        covered += interval.low <= effect <= interval.high
        false += verdict == ("reproduced" if effect == 0 else "refuted")
    assert 0.94 <= covered / STUDIES <= 0.96
    assert false / STUDIES <= 0.05


def late(random):
    """A treatment that moves the numbers by nothing but the last bits, and whose steps come after the checkpoint."""
    treated, base = planted(random, effect=0.05)
    return record(treated, base, reach=np.where(np.arange(20) < random.integers(4, 21), 0.0, 0.2))


def at_its_bound(random):
    treated, base = planted(random, effect=0.3)
    end = random.choice([0.0, 1.0])
    out = random.permutation(20) < random.integers(8, 21)
    return record(np.where(out, end, treated), base)


def does_not_train(random):
    found = record(*planted(random, effect=0.1))
    for run in found.runs[: random.integers(8, 21)]:
        run["train_loss"] = {"treated": 2.1 + 0.2 * random.random(), "base": 0.1}
    return found


@pytest.mark.parametrize("broken", [late, at_its_bound, does_not_train])
def test_a_broken_instrument_is_always_caught(broken):
    random = np.random.default_rng(23)
    for _ in range(STUDIES):
        assert outcome(row(), broken(random)).answers[0].verdict == "not measurable here"


def test_a_treatment_that_never_acts_is_always_caught():
    random = np.random.default_rng(29)
    for _ in range(STUDIES):
        treated, base = planted(random, effect=0.05)
        acts = random.permutation(20) < random.integers(0, 17)  # on at most 16 of 20 seeds
        found = outcome(row(), record(np.where(acts, treated, base), base))
        assert found.answers[0].verdict == "not measurable here"


def test_the_instrument_lets_good_studies_through():
    random = np.random.default_rng(31)
    verdicts = [
        outcome(row(), record(*planted(random, effect=2 * SMALLEST))).answers[0].verdict for _ in range(STUDIES // 10)
    ]
    assert verdicts.count("reproduced") / len(verdicts) > 0.95


def test_a_valley_is_at_the_floor_of_the_measure_of_bumps_and_a_dent_of_a_tenth_is_far_above_it():
    axis = np.linspace(-1, 1, 31)
    bowl = axis[:, None] ** 2 + axis**2
    assert _log_depth(bowl) == -4.0  # one minimum
    bowl[8, 8] = bowl[7:10, 7:10].min() - 0.1
    assert -1.0 <= _log_depth(bowl) < -0.75
    assert _log_depth(bowl + 1e-5 * np.cos(np.indices(bowl.shape).sum(0) * np.pi)) < -0.75  # rounding is no bump


def test_the_largest_rate_is_found_by_bisection(monkeypatch):
    threshold = {"SGD": 3.0, "LLR": 500.0, "never": 0.01}

    class Runs:
        def train(self, spec, seed):
            return spec

    rows = {one.name: one for one in claims(SMALL)}
    arm = rows["llr-largest-rate"].arms["SGD"]
    arms = {}
    for name in threshold:
        run = type(arm)(arm.run, {"seed": list(threshold).index(name)})
        arms[name] = run

    def train_loss(spec, name):
        limit = list(threshold.values())[spec.seed]
        return 0.1 if spec.optimizer.learning_rate < limit else math.inf

    monkeypatch.setattr(better, "read_endpoint", train_loss)
    found = better.largest_rate(Runs(), arms, 0)
    assert found["SGD"] == pytest.approx(0.5) and found["LLR"] == 2.0 and found["never"] == -1.0  # 3.16 is too much


@pytest.mark.parametrize("rise", [rise_by_rounding, rise_by_noise, rise_by_training])
def test_what_is_done_to_a_checkpoint_is_undone(rise):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(48, 4)
    )
    x, y = torch.randn(32, 1, 6, 6), torch.arange(32) % 4
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), [(x, y)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = risk.evaluate()["loss"].value
    assert math.isfinite(rise(risk)) and risk.evaluate()["loss"].value == loss
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_every_row_with_a_better_instrument_points_to_one_and_does_not_run_again():
    rows = {one.name: one for one in claims(SMALL)}
    replaced = {one.name: one.better for one in rows.values() if one.better}
    assert len(set(replaced.values())) == len(replaced) and set(replaced.values()) <= set(rows)
    assert all(rows[name].group == rows[other].group for name, other in replaced.items())
    assert not any(rows[other].better for other in replaced.values())
