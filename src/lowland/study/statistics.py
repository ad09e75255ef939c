"""From numbers per seed to an answer: paired differences, corrections for many looks, and the seeds that would decide.

All effects are differences of runs that share a seed (initial weights, order, augmentation), oriented so that positive
means "as claimed". The rules are fixed before a run:

- reproduced: the interval of the paired difference lies above 0;
- refuted: it lies below the smallest effect of interest;
- undecided otherwise, with the seeds that would decide. Differences that are all equal have an interval without width:
  the sign test decides there;
- not measurable here where half of the differences or more are exactly 0: the treatment had not acted on what was
  measured (a checkpoint from before it began), or the measure is at a bound. That is no evidence either way.

Non-inferiority and equivalence are two one-sided tests at 2.5 % each, which is the same 95 % interval against the
margin (Schuirmann 1987; ICH E9 takes 2.5 % too), so that every table has one interval and one level. A margin that is
a share of a measured gain is noisy itself; `retention` therefore tests the contrast of the three arms.

Distributions are SciPy's. Ours are what it lacks: the sign test's answer where all differences are equal (its t test
divides by a spread of 0), Holm's correction, and the seeds that would decide.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

from lowland.core.errors import InputError, check_positive, require
from lowland.report.statistics import Interval, t_interval

LEAST_SEEDS: Final = 4
"""Fewer seeds are shown one by one and decide nothing: the t interval of three spans 4.3 standard errors either way."""

LEVEL: Final = 0.95
POWER: Final = 0.8
"""Chance of a decision that `seeds_to_decide` plans for (Cohen 1988)."""

_ROUNDING: Final = 1e-12
"""A standard error below this share of the mean is the rounding of equal differences."""

_LEAST_EQUAL: Final = 6
"""Fewer differences that are all equal decide nothing: their t interval has no width, and 2^(1 - 5) is above 5 %."""

Verdict = Literal["reproduced", "refuted", "undecided", "not measurable here"]


@dataclass(frozen=True, slots=True)
class Effect:
    """A paired difference, oriented so that positive means "as claimed".

    Args:
        seeds: The seeds that both arms have.
        interval: Mean difference with its 95 % t interval.
        deviation: Standard deviation of the differences.
    """

    seeds: tuple[int, ...]
    interval: Interval
    deviation: float

    @property
    def standard_error(self) -> float:
        """Standard error of the mean difference."""
        return self.deviation / math.sqrt(len(self.seeds))

    @property
    def equal(self) -> bool:
        """Whether all differences are equal, but for rounding."""
        return self.standard_error <= _ROUNDING * abs(self.interval.mean)

    @property
    def too_few(self) -> str:
        """Why there are too few seeds to decide anything; empty if there are enough."""
        if len(self.seeds) < LEAST_SEEDS:
            return f"{len(self.seeds)} seeds are shown one by one and decide nothing"
        if self.equal and len(self.seeds) < _LEAST_EQUAL:
            return f"{len(self.seeds)} equal differences decide nothing: a sign test needs {_LEAST_EQUAL}"
        return ""

    @property
    def unseen(self) -> str:
        """Why the measure cannot tell the arms apart; empty if it can."""
        count, same = len(self.seeds), sum(value == 0 for value in self.interval.values)
        if count < LEAST_SEEDS or 2 * same < count:
            return ""
        return f"{same} of {count} differences are exactly 0, so that the measure does not see the treatment"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a comparison ends with.

    Args:
        verdict: reproduced, refuted, undecided or not measurable here.
        reason: The rule that gave it, in a clause.
        seeds_needed: Seeds in all that would decide with a chance of 80 %; None where decided or where no number would.
        p: Two-sided p value of "the effect is the bound of the rule": 0, or the margin of non-inferiority.
        adjusted: The same after the correction over all comparisons; equals ``p`` where there is one.
    """

    verdict: Verdict
    reason: str
    seeds_needed: int | None = None
    p: float = math.nan
    adjusted: float = math.nan


def paired_effect(treated: Mapping[int, float], base: Mapping[int, float], *, higher: bool = True) -> Effect:
    """Return the paired difference ``treated - base`` over the seeds that both have.

    Args:
        treated: Endpoint by seed.
        base: Endpoint by seed of what it is compared with.
        higher: Whether the claim is that the treated arm's endpoint is higher. Default True.

    Returns:
        The difference, oriented so that positive means "as claimed".

    Raises:
        InputError: If fewer than two seeds are shared, or a value is not finite.

    Example:
        >>> effect = paired_effect({0: 0.91, 1: 0.93, 2: 0.92}, {0: 0.90, 1: 0.91, 2: 0.89})
        >>> f"{effect.interval.mean:.3f} +- {effect.standard_error:.3f}"
        '0.020 +- 0.006'
    """
    seeds = tuple(sorted(set(treated) & set(base)))
    require(len(seeds) >= 2, "seeds", "must be at least 2 shared by both arms, for an interval", len(seeds))
    sign = 1.0 if higher else -1.0
    differences = np.array([sign * (treated[seed] - base[seed]) for seed in seeds])
    if not np.isfinite(differences).all():
        bad = [seed for seed, value in zip(seeds, differences, strict=True) if not np.isfinite(value)]
        raise InputError("values", "must be finite; a failed run is shown as failed", f"seeds {bad}")
    return Effect(seeds, t_interval(differences.tolist(), level=LEVEL), float(differences.std(ddof=1)))


def p_value(effect: Effect, *, null: float = 0.0) -> float:
    """Return the two-sided p value of the paired t test."""
    return float(two_sided(effect.interval.mean, effect.standard_error, len(effect.seeds), null=null))


def two_sided(mean: ArrayLike, error: ArrayLike, count: int, *, null: float = 0.0) -> NDArray[np.float64]:
    """Return the two-sided p values of paired t tests by means and standard errors of ``count`` differences."""
    # the line that scipy.stats.ttest_1samp ends with, which takes 200 times as long to get there
    mean, error = np.asarray(mean, dtype=np.float64), np.asarray(error, dtype=np.float64)
    distance, equal = np.abs(mean - null), error <= _ROUNDING * np.abs(mean)
    sign_test = np.where(distance <= _ROUNDING * abs(null), 1.0, 2.0 ** (1 - count))
    t_test = 2 * stdtr(count - 1, -distance / np.where(equal, 1.0, error))
    p: NDArray[np.float64] = np.where(equal, sign_test, t_test)
    return p


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for a family of comparisons so that the chance of any false rejection stays below the level."""
    # p_(i) becomes max over j <= i of (m - j + 1) p_(j), at most 1 (Holm 1979).
    values = np.asarray(p, dtype=np.float64)
    if values.size and not ((values >= 0) & (values <= 1)).all():
        raise InputError("p", "must be probabilities", values.tolist())
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def answer(effects: Sequence[Effect], *, smallest: float, level: float = LEVEL) -> list[Answer]:
    """Give one of four answers to each comparison; Holm's correction over all of them guards both verdicts.

    Args:
        effects: The comparisons that belong together.
        smallest: Smallest effect of interest, in the endpoint's unit.
        level: Level of the interval that decides. Default 0.95.

    Returns:
        Per comparison: reproduced where the interval lies above 0, refuted where it lies below the smallest effect,
        not measurable here where half of the differences are exactly 0, undecided otherwise.

    Raises:
        InputError: If the smallest effect is not positive.

    Example:
        >>> base = {seed: 0.90 + 0.01 * seed for seed in range(6)}
        >>> better = {seed: value + 0.02 + 0.001 * seed for seed, value in base.items()}
        >>> answer([paired_effect(better, base)], smallest=0.005)[0].verdict
        'reproduced'
    """
    require(smallest > 0, "smallest_effect", "must be positive, in the endpoint's unit", smallest)
    p = [p_value(effect) for effect in effects]
    above = holm(p)
    below = holm([p_value(effect, null=smallest) for effect in effects])
    return [
        replace(_verdict(effect, smallest, up <= 1 - level, down <= 1 - level, len(effects)), p=raw, adjusted=up)
        for effect, raw, up, down in zip(effects, p, above, below, strict=True)
    ]


def _verdict(effect: Effect, smallest: float, differs: bool, differs_from_smallest: bool, family: int) -> Answer:
    mean = effect.interval.mean
    if effect.unseen:
        return Answer("not measurable here", effect.unseen)
    if effect.too_few:
        return Answer("undecided", effect.too_few, seeds_to_decide(effect, smallest) or LEAST_SEEDS)
    positive, small = differs and mean > 0, differs_from_smallest and mean < smallest
    if positive:
        remark = ", and below the smallest effect of interest" if small else ""
        return Answer("reproduced", "the interval lies on the claimed side of 0" + remark)
    if small:
        against = " and on the other side of 0" if differs and mean < 0 else ""
        return Answer("refuted", "the interval lies below the smallest effect of interest" + against)
    alone = effect.interval.low > 0 or effect.interval.high < smallest
    reason = f"the interval would decide alone, not among {family}" if alone else "the interval decides neither way"
    return Answer("undecided", reason, seeds_to_decide(effect, smallest, family=family))


def seeds_to_decide(effect: Effect, smallest: float, *, family: int = 1, most: int = 10_000) -> int | None:
    """Return the number of seeds in all with which the observed mean and spread would decide, with a chance of 80 %."""
    # The smallest n whose noncentral t lies beyond t_{n-1, 0.975} in 80 %, of the distance of the mean from 0
    # (reproduced) or from the smallest effect (refuted), whichever comes first; among m comparisons each at 0.05 / m,
    # which is the strictest that Holm's correction can ask for.
    distance = max(effect.interval.mean, smallest - effect.interval.mean)
    first = max(len(effect.seeds) + 1, _LEAST_EQUAL if effect.equal else LEAST_SEEDS)
    return seeds_for(effect.deviation, distance, family=family, first=first, most=most)


def seeds_for(
    deviation: float, distance: float, *, family: int = 1, first: int = LEAST_SEEDS, most: int = 10_000
) -> int | None:
    """Return the fewest seeds with which a mean at a distance from the bound decides in 80 % of studies."""
    enough = deviation * half_widths(most, family)[first:] < distance
    return first + int(np.argmax(enough)) if enough.any() else None


@functools.cache
def half_widths(most: int, family: int) -> NDArray[np.float64]:
    """Return the distance, in deviations, that n = 0 ... most seeds find in 80 % of studies; infinite below 2."""
    counts = np.arange(2, most + 1)
    bounds = stdtrit(counts - 1, 1 - (1 - LEVEL) / 2 / family)
    return np.concatenate([[np.inf, np.inf], nctdtrinc(counts - 1.0, 1 - POWER, bounds) / np.sqrt(counts)])


def all_noninferior(effects: Sequence[Effect], margin: float) -> list[Answer]:
    """Apply `noninferior` to comparisons that belong together, with Holm's correction over all of them."""
    given = [replace(noninferior(effect, margin), p=p_value(effect, null=-margin)) for effect in effects]
    return guarded([_beyond(effect, -margin) for effect in effects], given)


def guarded(effects: Sequence[Effect], given: Sequence[Answer]) -> list[Answer]:
    """Apply Holm's correction to answers that were given alone.

    Args:
        effects: The comparisons that belong together, counted from the bound of each.
        given: Their answers, as of `noninferior` or `retention`.

    Returns:
        The answers with adjusted p values; what is decided alone and not among them is undecided.

    Example:
        >>> effect = paired_effect({k: 0.0095 + 0.01 * (-1) ** k for k in range(8)}, dict.fromkeys(range(8), 0.0))
        >>> [one.verdict for one in guarded([effect] * 2, [Answer("reproduced", "alone", None, 0.03)] * 2)]
        ['undecided', 'undecided']
    """
    found = []
    adjusted = holm([1.0 if math.isnan(one.p) else one.p for one in given])
    for effect, one, p in zip(effects, given, adjusted, strict=True):
        if one.verdict in ("reproduced", "refuted") and p > 1 - LEVEL:
            needed = seeds_to_decide(effect, 0.0, family=len(given))
            one = Answer("undecided", f"the interval would decide alone, not among {len(given)}", needed, one.p)
        found.append(replace(one, adjusted=math.nan if math.isnan(one.p) else p))
    return found


def noninferior(effect: Effect, margin: float) -> Answer:
    """Tell whether the treated arm is worse than the reference by less than a margin.

    Args:
        effect: The treated arm against the reference.
        margin: Largest loss that does not matter, in the endpoint's unit.

    Returns:
        Reproduced where the interval lies above minus the margin, refuted where it lies below it.

    Raises:
        InputError: If the margin is not positive.

    Example:
        >>> base = {seed: 0.90 + 0.01 * seed for seed in range(6)}
        >>> alike = {seed: value + 0.001 * (-1) ** seed for seed, value in base.items()}
        >>> noninferior(paired_effect(alike, base), 0.005).verdict
        'reproduced'
    """
    check_positive(margin=margin)
    return _against(effect, -margin, f"-{margin:.3g}")


def retention(
    treated: Mapping[int, float],
    reference: Mapping[int, float],
    base: Mapping[int, float],
    *,
    share: float = 0.75,
    higher: bool = True,
) -> tuple[Effect, Answer]:
    """Tell whether the treated arm keeps a share of the reference's gain over the base.

    Non-inferiority with the margin ``(1 - share) (reference - base)``: the contrast ``treated - base - share (reference
    - base)`` is tested per seed, so that the uncertainty of the margin counts. It means something only where the
    reference gains at all: unless the interval of ``reference - base`` lies above 0 the answer is undecided.

    Args:
        treated: Endpoint by seed.
        reference: Endpoint by seed of the arm whose gain is to be kept.
        base: Endpoint by seed of the arm that both are compared with.
        share: Share of the gain. Default 0.75.
        higher: Whether a higher endpoint is a gain. Default True.

    Returns:
        The contrast and the answer.

    Example:
        >>> base = {seed: 0.90 + 0.001 * seed for seed in range(6)}
        >>> sam = {seed: value + 0.04 + 0.0001 * seed for seed, value in base.items()}
        >>> sala = {seed: value + 0.039 + 0.0002 * seed for seed, value in base.items()}
        >>> retention(sala, sam, base)[1].verdict
        'reproduced'
    """
    gain = paired_effect(reference, base, higher=higher)
    kept = {s: base[s] + share * (reference[s] - base[s]) for s in set(base) & set(reference)}
    contrast = paired_effect(treated, kept, higher=higher)
    if gain.too_few or not gain.interval.low > 0:
        reason = "the reference's own gain over the base is not established, so that there is no margin"
        return contrast, Answer("undecided", reason, seeds_to_decide(gain, max(gain.interval.mean, 1e-12)))
    return contrast, _against(contrast, 0.0, f"{share:.0%} of the reference's gain")


def _against(effect: Effect, bound: float, shown: str) -> Answer:
    p = p_value(effect, null=bound)
    if effect.unseen:
        return Answer("not measurable here", effect.unseen, None, p, p)
    if effect.too_few:
        return Answer("undecided", effect.too_few, _LEAST_EQUAL if effect.equal else LEAST_SEEDS)
    if effect.interval.low > bound:
        return Answer("reproduced", f"the interval lies above {shown}", None, p, p)
    if effect.interval.high < bound:
        return Answer("refuted", f"the interval lies below {shown}", None, p, p)
    return Answer("undecided", f"the interval holds {shown}", seeds_to_decide(_beyond(effect, bound), 0.0), p, p)


def _beyond(effect: Effect, bound: float) -> Effect:
    return replace(effect, interval=replace(effect.interval, mean=effect.interval.mean - bound))


def equivalent(effect: Effect, margin: float) -> bool:
    """Tell whether two arms differ by less than a margin either way (two one-sided tests at 2.5 % each).

    Args:
        effect: One arm against the other.
        margin: Largest difference that does not matter, in the endpoint's unit.

    Returns:
        Whether the whole interval lies inside the margins, with enough seeds to say so.

    Raises:
        InputError: If the margin is not positive.

    Example:
        >>> base = {seed: 0.90 + 0.01 * seed for seed in range(6)}
        >>> alike = {seed: value + 0.001 * (-1) ** seed for seed, value in base.items()}
        >>> equivalent(paired_effect(alike, base), 0.005)
        True
    """
    check_positive(margin=margin)
    inside = -margin < effect.interval.low and effect.interval.high < margin
    return inside and not effect.too_few and not effect.unseen
