"""Planted data with known truth: coverage, false positives, margins, pairing, and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lowland.core.errors import InputError
from lowland.report.statistics import t_interval
from lowland.study.statistics import (
    Answer,
    all_noninferior,
    answer,
    equivalent,
    guarded,
    holm,
    noninferior,
    p_value,
    paired_effect,
    retention,
    seeds_to_decide,
)

STUDIES = 2000


def arms(random, seeds, *, effect=0.0, correlation=0.0, spread=0.01):
    """Return two arms whose values share a part per seed."""
    shared = math.sqrt(correlation) * random.standard_normal(seeds)
    own = math.sqrt(1 - correlation) * random.standard_normal((2, seeds))
    base, treated = 0.8 + spread * (shared + own)
    return dict(enumerate(treated + effect)), dict(enumerate(base))


@pytest.mark.parametrize("seeds", [3, 8, 20])
def test_intervals_of_planted_studies_cover_the_true_effect(seeds):
    random = np.random.default_rng(11)
    effect, hits = 0.02, 0
    for _ in range(STUDIES):
        found = paired_effect(*arms(random, seeds, effect=effect, correlation=0.5))
        hits += found.interval.low <= effect <= found.interval.high
    assert 0.94 <= hits / STUDIES <= 0.96


def test_a_row_of_null_methods_rarely_claims_anything():
    random = np.random.default_rng(2)
    false = claimed = 0
    for _ in range(STUDIES):
        base = random.standard_normal(8)
        effects = [paired_effect(dict(enumerate(random.standard_normal(8))), dict(enumerate(base))) for _ in range(5)]
        false += any(value <= 0.05 for value in holm([p_value(effect) for effect in effects]))
        claimed += any(given.verdict == "reproduced" for given in answer(effects, smallest=0.5))
    assert 0.02 < false / STUDIES <= 0.06  # two-sided; the arms share the base, which makes Holm a little strict
    assert claimed / STUDIES <= 0.06


def test_without_correction_the_row_would_claim_too_much():
    random = np.random.default_rng(2)
    false = 0
    for _ in range(500):
        base = random.standard_normal(8)
        raw = [
            p_value(paired_effect(dict(enumerate(random.standard_normal(8))), dict(enumerate(base)))) for _ in range(5)
        ]
        false += min(raw) <= 0.05
    assert false / 500 > 0.1


def test_what_would_decide_alone_says_so_among_several():
    random = np.random.default_rng(3)
    found = met = 0
    for _ in range(200):
        effects = [paired_effect(*arms(random, 8, effect=0.009)) for _ in range(4)]
        for effect, given in zip(effects, answer(effects, smallest=0.001), strict=True):
            if given.verdict == "undecided" and effect.interval.low > 0:
                found += 1
                assert given.reason == "the interval would decide alone, not among 4" and given.adjusted > 0.05
                assert given.seeds_needed > (seeds_to_decide(effect, 0.001) or 0) - 1
    assert found > 20
    for _ in range(200):
        effects = [paired_effect(*arms(random, 8, effect=0.0)) for _ in range(4)]
        for effect, given in zip(effects, all_noninferior(effects, 0.009), strict=True):
            alone = noninferior(effect, 0.009)
            assert given.adjusted >= given.p == p_value(effect, null=-0.009)
            assert given.verdict == (alone.verdict if given.adjusted <= 0.05 else "undecided")
            met += given.verdict != alone.verdict
    assert met > 20


def test_contrasts_of_one_row_share_holms_correction():
    base = dict.fromkeys(range(8), 0.0)
    effects = [paired_effect({k: m + 0.01 * (-1) ** k for k in range(8)}, base) for m in (0.0095, 0.03)]
    alone = [noninferior(effect, 1e-9) for effect in effects]
    assert [one.verdict for one in alone] == ["reproduced", "reproduced"] and 0.025 < alone[0].p <= 0.05
    doubtful = guarded(effects[:1] * 2, alone[:1] * 2)
    assert [one.verdict for one in doubtful] == ["undecided"] * 2 and doubtful[0].adjusted == 2 * alone[0].p
    assert [one.verdict for one in guarded(effects, alone)] == ["reproduced"] * 2  # the stronger goes first
    unknown = guarded(effects, [alone[1], Answer("undecided", "no margin")])
    assert unknown[0].adjusted == 2 * alone[1].p and math.isnan(unknown[1].adjusted)


def test_a_row_of_methods_at_the_margin_rarely_claims_noninferiority():
    random, passed = np.random.default_rng(8), 0
    for _ in range(STUDIES):
        effects = [paired_effect(*arms(random, 8, effect=-0.01)) for _ in range(5)]
        passed += any(given.verdict == "reproduced" for given in all_noninferior(effects, 0.01))
    assert passed / STUDIES <= 0.05  # 0.12 without the correction


def test_the_seeds_asked_for_decide_among_several():
    random = np.random.default_rng(9)
    effect = paired_effect({0: 0.002, 1: 0.014, 2: 0.005, 3: 0.011}, dict.fromkeys(range(4), 0.0))
    needed = seeds_to_decide(effect, 0.001, family=4)
    assert needed > seeds_to_decide(effect, 0.001)
    draws = random.normal(effect.interval.mean, effect.deviation, size=(STUDIES, needed))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
    assert ((4 * p <= 0.05) & (draws.mean(1) > 0)).mean() >= 0.78


@pytest.mark.parametrize("seeds", [4, 8, 20])
def test_a_true_loss_equal_to_the_margin_rarely_passes_as_noninferior(seeds):
    random = np.random.default_rng(3)
    margin = 0.01
    passed = [noninferior(paired_effect(*arms(random, seeds, effect=-margin)), margin).verdict for _ in range(STUDIES)]
    assert 0.01 < passed.count("reproduced") / STUDIES <= 0.05


def test_a_method_that_loses_a_quarter_of_the_gain_rarely_retains_it():
    random = np.random.default_rng(4)
    passed = 0
    for _ in range(STUDIES):
        noise = 0.01 * random.standard_normal((3, 8))
        base, reference, treated = (dict(enumerate(row + up)) for row, up in zip(noise, (0, 0.04, 0.03), strict=True))
        passed += retention(treated, reference, base)[1].verdict == "reproduced"
    assert passed / STUDIES <= 0.05


def test_retention_needs_a_reference_that_gains():
    values = {seed: 0.5 + 0.01 * (-1) ** seed for seed in range(8)}
    same = {seed: 0.5 + 0.01 * (-1) ** (seed // 2) for seed in range(8)}
    given = retention(values, same, values)[1]
    assert given.verdict == "undecided" and "no margin" in given.reason


def test_pairing_shrinks_the_interval_by_the_root_of_one_over_one_minus_correlation():
    random = np.random.default_rng(5)
    ratios = []
    for _ in range(300):
        treated, base = arms(random, 20, correlation=0.8)
        unpaired = stats.ttest_ind([*treated.values()], [*base.values()]).confidence_interval()
        paired = paired_effect(treated, base).interval
        ratios.append((unpaired.high - unpaired.low) / (paired.high - paired.low))
    # sqrt(1 / (1 - 0.8)) = 2.236; 19 instead of 38 degrees of freedom take 3.4 % back
    assert np.median(ratios) == pytest.approx(2.236 / 1.034, rel=0.05)


def test_paired_numbers_agree_with_scipy():
    random = np.random.default_rng(6)
    treated, base = arms(random, 9, effect=0.004)
    found = paired_effect(treated, base)
    expected = stats.ttest_rel([*treated.values()], [*base.values()])
    assert p_value(found) == pytest.approx(expected.pvalue)
    assert found.interval.low == pytest.approx(expected.confidence_interval().low)
    against = stats.ttest_rel([*treated.values()], [value + 0.01 for value in base.values()])
    assert p_value(found, null=0.01) == pytest.approx(against.pvalue)


def test_a_claim_of_lower_turns_the_sign():
    treated, base = {0: 1.0, 1: 2.0, 2: 2.5}, {0: 3.0, 1: 3.0, 2: 3.5}
    assert paired_effect(treated, base, higher=False).interval.mean == pytest.approx(4 / 3)


def test_pairs_are_by_seed_and_never_by_place():
    assert paired_effect({2: 3.0, 1: 2.0}, {1: 1.0, 2: 2.0, 3: 9.0}).seeds == (1, 2)


def test_holm_agrees_with_the_definition_for_every_order():
    for p in itertools.permutations([0.001, 0.02, 0.02, 0.2]):
        slow = []
        for own in p:
            before = sorted(p)[: sorted(p).index(own) + 1]
            slow.append(min(1.0, max((len(p) - place) * value for place, value in enumerate(before))))
        assert holm(p) == pytest.approx(slow)


def shifted(mean, spread, seeds=12):
    values = np.linspace(-1, 1, seeds) * spread + mean
    return paired_effect(dict(enumerate(values)), dict.fromkeys(range(seeds), 0.0))


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [(0.05, 0.01, "reproduced"), (0.0, 0.002, "refuted"), (-0.05, 0.01, "refuted"), (0.01, 0.05, "undecided")],
)
def test_the_three_answers(mean, spread, verdict):
    assert answer([shifted(mean, spread)], smallest=0.02)[0].verdict == verdict


def test_a_sure_but_small_effect_says_so():
    given = answer([shifted(0.004, 0.001)], smallest=0.02)[0]
    assert given.verdict == "reproduced" and "below the smallest" in given.reason


def test_three_seeds_decide_nothing_however_clear():
    given = answer([shifted(1.0, 1e-6, seeds=3)], smallest=0.02)[0]
    assert given.verdict == "undecided" and given.seeds_needed == 4


def test_the_seeds_named_decide_four_times_out_of_five():
    random = np.random.default_rng(8)
    needed = seeds_to_decide(shifted(0.01, 0.05), 0.002)
    spread = shifted(0.01, 0.05).deviation
    decided = 0
    for _ in range(400):
        values = 0.01 + spread * random.standard_normal(needed)
        decided += t_interval(values.tolist()).low > 0
    assert 0.74 < decided / 400 < 0.86


def test_equivalence_needs_the_whole_interval_inside_the_margin():
    assert equivalent(shifted(0.0, 0.002), 0.01)
    assert not equivalent(shifted(0.0095, 0.002), 0.01)
    assert not equivalent(shifted(0.0, 0.002, seeds=3), 0.01)


def test_equal_runs_give_a_point_and_no_division_by_zero():
    same = paired_effect(dict.fromkeys(range(6), 0.5), dict.fromkeys(range(6), 0.5))
    assert p_value(same) == 1.0 and answer([same], smallest=0.01)[0].verdict == "not measurable here"
    apart = paired_effect(dict.fromkeys(range(6), 0.1 + 0.2), {k: 0.1 * (k % 2) * 1e-17 for k in range(6)})
    assert p_value(apart) == 2.0**-5  # the sign test's: a t test of rounding errors would give 1e-80


@pytest.mark.parametrize(("same", "seen"), [(0, True), (9, True), (10, False), (17, False), (20, False)])
def test_where_half_of_the_seeds_do_not_differ_at_all_nothing_is_said(same, seen):
    # a checkpoint chosen before the treatment began gave the base's bits on 17 of 20 seeds, and "refuted" was printed
    random = np.random.default_rng(4)
    base = dict(enumerate(random.standard_normal(20)))
    treated = {k: v + (0.0 if k < same else 0.001 * random.standard_normal()) for k, v in base.items()}
    effect = paired_effect(treated, base)
    for found in (answer([effect], smallest=0.1)[0], noninferior(effect, 0.1), *all_noninferior([effect], 0.1)):
        assert (found.verdict == "not measurable here") is not seen and found.seeds_needed is None
        assert seen or f"{same} of 20 differences are exactly 0" in found.reason
    assert equivalent(effect, 0.1) is seen
    reference = {k: v + 0.5 + 0.01 * k for k, v in base.items()}
    assert retention(base, reference, base)[1].verdict == "refuted"  # the contrast with a gain is not 0


@pytest.mark.parametrize("count", [4, 5])
def test_few_equal_differences_decide_nothing_by_any_rule(count):
    seeds = range(count)  # coins that fall alike: with values of +1 and -1 four of them agree in one study of eight
    effect = paired_effect(dict.fromkeys(seeds, 1.0), dict.fromkeys(seeds, 0.5))
    for found in (answer([effect], smallest=0.1)[0], noninferior(effect, 0.1)):
        assert (found.verdict, found.seeds_needed) == ("undecided", 6) and "sign test" in found.reason
    assert not equivalent(paired_effect(dict.fromkeys(seeds, 0.5), dict.fromkeys(seeds, 0.5)), 0.1)
    enough = paired_effect(dict.fromkeys(range(6), 1.0), dict.fromkeys(range(6), 0.5))
    assert answer([enough], smallest=0.1)[0].verdict == noninferior(enough, 0.1).verdict == "reproduced"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: paired_effect({0: 1.0}, {0: 1.0}), "at least 2"),
        (lambda: paired_effect({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0}), "finite"),
        (lambda: answer([shifted(0.0, 1.0)], smallest=0.0), "smallest_effect"),
        (lambda: noninferior(shifted(0.0, 1.0), -1.0), "margin"),
        (lambda: holm([0.5, 1.5]), "probabilities"),
    ],
)
def test_bad_input_is_one_clear_error(call, text):
    with pytest.raises(InputError, match=text):
        call()
