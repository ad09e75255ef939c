"""Instruments: what they let pass and what they catch, against slow twins and planted data with known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from lowland.core.errors import InputError
from lowland.core.seeds import generator
from lowland.study import Answer, Check, Instrument, answer, judged, largest_spread, measurable, paired_effect, power
from lowland.study.instrument import TRIES, instrument_of, planted_power
from lowland.study.statistics import seeds_for


def study(random, seeds, *, effect=0.0, spread=0.01):
    base = dict(enumerate(0.8 + 0.02 * random.standard_normal(seeds)))
    return {k: v + effect + spread * random.standard_normal() for k, v in base.items()}, base


def slow_power(treated, base, *, smallest, higher, family):
    """The planted studies one by one, through the public functions."""
    effect, sign = paired_effect(treated, base, higher=higher), 1 if higher else -1
    scatter, count = np.array(effect.interval.values) - effect.interval.mean, len(effect.seeds)
    places = generator(0, "bootstrap", "planted").integers(0, count, size=(TRIES, count))
    found = 0
    null = paired_effect({k: base[k] + (-1) ** k for k in base}, base)  # never the smallest p value of the family
    for row in places:
        drawn = math.sqrt(count / (count - 1)) * scatter[row]
        planted = {seed: base[seed] + sign * (smallest + d) for seed, d in zip(effect.seeds, drawn, strict=True)}
        one = paired_effect(planted, base, higher=higher)
        found += answer([one, *[null] * (family - 1)], smallest=smallest)[0].verdict == "reproduced"
    return found / TRIES


@pytest.mark.parametrize(
    ("seeds", "spread", "higher", "family"), [(6, 0.01, True, 1), (8, 0.004, False, 3), (20, 0.008, True, 2)]
)
def test_a_planted_effect_is_found_as_often_as_by_the_rule_itself(seeds, spread, higher, family):
    treated, base = study(np.random.default_rng(3), seeds, spread=spread)
    settings = {"smallest": 0.006, "higher": higher, "family": family}
    assert planted_power(treated, base, **settings) == slow_power(treated, base, **settings)


@pytest.mark.parametrize(("seeds", "family"), [(4, 1), (8, 1), (20, 4)])
def test_power_is_the_share_of_simulated_studies_that_find_the_effect(seeds, family):
    random = np.random.default_rng(1)
    for effect in (0.5, 1.0):
        draws = random.normal(effect, 1.0, size=(20_000, seeds))
        p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
        share = ((family * p <= 0.05) & (draws.mean(1) > 0)).mean()
        assert power(1.0, seeds, effect, family=family) == pytest.approx(share, abs=0.012)


def test_planted_and_predicted_power_agree_on_average():
    random, found = np.random.default_rng(5), []
    for _ in range(60):
        found.append(planted_power(*study(random, 20, spread=0.01), smallest=0.006))
    assert np.mean(found) == pytest.approx(power(0.01, 20, 0.006), abs=0.08)


def test_the_largest_spread_is_where_power_falls_below_eighty_per_cent():
    for seeds, family in ((4, 1), (5, 1), (4, 7), (8, 3), (40, 1)):
        spread = largest_spread(seeds, 0.01, family=family)
        assert power(spread, seeds, 0.01, family=family) == pytest.approx(0.8, abs=1e-5)
        assert seeds_for(0.99 * spread, 0.01, family=family) <= seeds
    assert largest_spread(3, 0.01) == power(0.0, 3, 0.01) == 0.0 and power(0.0, 8, 0.01) == 1.0
    assert power(1e-9, 8, 1.0) == 1.0  # far beyond where SciPy's function fails


def test_values_at_a_bound_are_counted_on_both_sides():
    tool = Instrument(floor=0.0, ceiling=1.0)
    assert tool.bounds([0.0, 0.5, 0.5, 0.5, 0.5, 0.5]).works is True
    assert tool.bounds([0.0, 1.0, 0.5, 0.5, 0.5, 0.5]).works is False
    assert Instrument().bounds([0.0] * 6).works is True
    with pytest.raises(InputError, match="below the ceiling"):
        Instrument(floor=1.0, ceiling=1.0)


def test_a_planted_effect_is_cut_at_the_bound_and_not_found():
    # every roughness at its floor: "lower is claimed" could never have been seen
    values = dict.fromkeys(range(8), -6.0)
    assert planted_power(values, values, smallest=0.1, higher=False) == 1.0
    assert planted_power(values, values, smallest=0.1, higher=False, instrument=Instrument(floor=-6.0)) == 0.0


def test_a_measure_that_does_not_answer_to_what_is_planted_in_its_data_is_found_out():
    random = np.random.default_rng(2)
    treated, base = study(random, 12)
    tool = Instrument()
    deaf = tool.planted(treated, base, smallest=0.05, response=dict.fromkeys(base, 0.0))
    assert tool.planted(treated, base, smallest=0.05).works is True
    assert deaf.works is False and "planted in the data" in deaf.shown
    answers = tool.planted(treated, base, smallest=0.05, response=dict.fromkeys(base, 0.05))
    assert answers.works is True


def test_reach_needs_four_fifths_of_the_seeds_and_a_treatment_before_the_measured_weights():
    base = {k: 0.5 + 0.01 * k for k in range(20)}
    for same, works in ((0, True), (3, True), (4, False), (17, False)):
        effect = paired_effect({k: v + 0.01 * (k >= same) for k, v in base.items()}, base)
        assert Instrument().reach(effect).works is works
    effect = paired_effect({k: v + 0.01 for k, v in base.items()}, base)
    assert Instrument().reach(effect, [0.1] * 20).works is True
    assert Instrument().reach(effect, [0.0] * 5 + [0.1] * 15).works is False
    ties = paired_effect({k: v + (k >= 5) for k, v in base.items()}, base)
    assert Instrument(ties=True).reach(ties).works is True  # counts agree by chance


def test_learning_is_asked_only_where_it_is_declared():
    assert Instrument(learned=1.0).learning([0.1] * 9 + [2.1]).works is True
    assert Instrument(learned=1.0).learning([0.1] * 8 + [2.1] * 2).works is False
    assert Instrument(learned=1.0).learning([math.nan] * 10).works is False
    assert Instrument(learned=1.0).learning([]).works is None and Instrument().learning([9.0]).works is True


def test_low_power_counts_only_where_as_much_was_not_seen():
    tool, random = Instrument(), np.random.default_rng(7)
    noise = {k: 0.01 * random.standard_normal() for k in range(8)}
    base = dict.fromkeys(noise, 0.5)
    for effect, seen in ((0.0, False), (0.1, True), (-0.1, True)):
        check = tool.planted({k: 0.5 + effect + v for k, v in noise.items()}, base, smallest=0.005)
        assert check.seen is seen and check.works is seen
    equal = tool.planted({k: 0.5 + v for k, v in noise.items()}, base, smallest=0.03, margin=True)
    assert equal.works is True  # the interval lies above minus the margin


def test_comparisons_whose_instrument_fails_are_no_part_of_the_family():
    effects = [paired_effect({k: 0.0105 + 0.01 * (-1) ** k for k in range(8)}, dict.fromkeys(range(8), 0.0))] * 3
    fine, blind = [Check("reach", "8 of 8", True)], [Check("reach", "1 of 8 seeds differ", False)]

    def rule(working):
        return answer(working, smallest=0.001)

    assert [one.verdict for one in judged(effects, [fine] * 3, rule)] == ["undecided"] * 3
    found = judged(effects, [blind, fine, blind], rule)
    assert [one.verdict for one in found] == ["not measurable here", "reproduced", "not measurable here"]
    assert found[0].reason == "reach: 1 of 8 seeds differ"


def test_an_answer_stays_where_everything_works_or_is_not_known():
    given = Answer("refuted", "below", None, 0.01, 0.02)
    assert measurable(given, [Check("reach", "", True), Check("learning", "", None)]) is given
    lost = measurable(given, [Check("reach", "none", False)])
    assert (lost.verdict, lost.p, lost.adjusted) == ("not measurable here", 0.01, 0.02)


def test_endpoints_know_their_bounds():
    assert instrument_of("test_accuracy").ceiling == 1.0 and instrument_of("steps_to_loss:0.5").floor == 0.0
    assert instrument_of("loss_spikes:1.1").ties and instrument_of("test_loss") == Instrument()
