"""Whether a measure can see what it is asked about: no verdict without an instrument that works.

Four things are shown from the numbers per seed before an answer counts:

- reach: the treatment had acted on what was measured (arms that agree to the last bit have not met it);
- floor and ceiling: fewer than a fifth of the values sit at a bound of the measure;
- learning: both sides have reached the train loss that was declared;
- a planted effect: the smallest effect of interest, added to the base and put through the rule with the study's own
  scatter, is found in at least 80 % of tries.

What fails makes an answer "not measurable here". A planted effect that is not found does so only where nothing of its
size was seen: an interval that lies beyond the smallest effect, on either side of 0, shows that the rule does see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.special import nctdtr, stdtrit

from lowland.core.errors import InputError, check_positive, require
from lowland.core.seeds import generator
from lowland.report.statistics import show
from lowland.study.statistics import (
    LEAST_SEEDS,
    LEVEL,
    POWER,
    Answer,
    Effect,
    half_widths,
    paired_effect,
    seeds_for,
    two_sided,
)
from lowland.workflows.study import StudySpec

SHARE: Final = 0.2
"""A fifth of the seeds at a bound, or without the treatment, are too many."""

TRIES: Final = 400
"""Planted studies: the share that finds the effect is known to 2 points at 80 %."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that an instrument has to show.

    Args:
        name: reach, floor and ceiling, learning, equal loss, range or planted effect.
        shown: What the stored numbers say, in a clause.
        works: Whether that is enough; None where the numbers do not say.
        seen: Whether an effect of the planted size was seen, although the planted one is too rarely found.
    """

    name: str
    shown: str
    works: bool | None
    seen: bool = False


@dataclass(frozen=True, kw_only=True)
class Instrument:
    """What is declared of a measure before anything runs.

    Args:
        floor: Value at or below which the measure says no more; None where there is none. Default None.
        ceiling: Value at or above which it says no more. Default None.
        learned: Train loss that both sides must have reached. Default None: none is needed.
        equal_loss: Whether the two sides must have comparable train losses, as curvatures must. Default False.
        edge: Loss that the border of a surface must reach, so that the network leaves its basin. Default None.
        ties: Whether two arms may agree to the last bit by chance, as counts do. Default False.

    Raises:
        InputError: If the floor is not below the ceiling.

    Example:
        >>> Instrument(floor=0.1, ceiling=1.0).bounds([0.1, 0.1, 0.5, 0.6]).works
        False
    """

    floor: float | None = None
    ceiling: float | None = None
    learned: float | None = None
    equal_loss: bool = False
    edge: float | None = None
    ties: bool = False

    def __post_init__(self) -> None:
        if self.floor is not None and self.ceiling is not None and not self.floor < self.ceiling:
            raise InputError("floor", f"must be below the ceiling {self.ceiling:g}", self.floor)

    def bounds(self, values: Sequence[float]) -> Check:
        """Tell whether fewer than a fifth of the values sit at a bound."""
        low = sum(self.floor is not None and value <= self.floor for value in values)
        high = sum(self.ceiling is not None and value >= self.ceiling for value in values)
        ends = [
            f"{name} {show(end)}" for name, end in (("floor", self.floor), ("ceiling", self.ceiling)) if end is not None
        ]
        if not ends:
            return Check("floor and ceiling", "none", True)
        text = f"{low + high} of {len(values)} values at a bound ({', '.join(ends)})"
        return Check("floor and ceiling", text, low + high < SHARE * len(values))

    def reach(self, effect: Effect, reached: Sequence[float] = ()) -> Check:
        """Tell whether the treatment had acted on what was measured.

        Args:
            effect: The comparison; equal bits are the sign of a treatment that has not acted.
            reached: Share of the training steps before the measured weights in which it acted, by seed; () if unknown.

        Returns:
            The check.
        """
        count = len(effect.seeds)
        same = sum(value == 0 for value in effect.interval.values)
        out = sum(share <= 0 for share in reached)
        text = f"{count - same} of {count} seeds differ"
        if reached:
            text += f"; it acted in {100 * float(np.median(reached)):.0f} % of the steps before the measured weights"
        limit = 0.5 if self.ties else SHARE
        return Check("reach", text, same < limit * count and (not reached or out < SHARE * len(reached)))

    def learning(self, losses: Sequence[float]) -> Check:
        """Tell whether more than four fifths of the runs have reached the declared train loss."""
        if self.learned is None:
            return Check("learning", "not asked", True)
        if not losses:
            return Check("learning", "no train losses are stored", None)
        out = sum(not loss <= self.learned for loss in losses)
        text = f"{len(losses) - out} of {len(losses)} runs at a train loss of {show(self.learned)} or less"
        return Check("learning", text, out < SHARE * len(losses))

    def planted(
        self,
        treated: Mapping[int, float],
        base: Mapping[int, float],
        *,
        smallest: float,
        higher: bool = True,
        family: int = 1,
        response: Mapping[int, float] | None = None,
        margin: bool = False,
    ) -> Check:
        """Tell whether the rule finds the smallest effect of interest at this number of seeds, see `planted_power`."""
        # With a margin the rule is non-inferiority: equal arms are as far from its bound as the smallest effect from 0.
        effect = paired_effect(treated, base, higher=higher)
        share = planted_power(
            treated, base, smallest=smallest, higher=higher, family=family, instrument=self, response=response
        )
        needed = seeds_for(effect.deviation, smallest, family=family)
        what = f"{smallest:g}" if response is None else "what was planted in the data"
        text = f"{what} is found in {100 * share:.0f} % of tries with {len(effect.seeds)} seeds"
        if share < POWER and needed is not None and needed > len(effect.seeds):
            text += f", 80 % need {needed}"
        low = -smallest if margin else smallest
        beyond = effect.interval.low > low or effect.interval.high < -smallest
        seen = share < POWER and beyond and not effect.too_few
        if seen:
            text += "; the interval lies beyond it, so that as much has been seen"
        return Check("planted effect", text, share >= POWER or seen, seen)


_BOUNDS: Final[dict[str, tuple[float | None, float | None, bool]]] = {
    **dict.fromkeys(("test_accuracy", "test_error", "validation_accuracy", "train_accuracy"), (0.0, 1.0, False)),
    **dict.fromkeys(("steps_to_loss", "passes_to_loss", "restricted_steps_to_loss"), (0.0, None, True)),
    "reached_loss": (0.0, 1.0, True),
    "loss_spikes": (0.0, None, True),
}
"""Endpoint -> floor, ceiling, and whether arms may agree by chance."""


def instrument_of(endpoint: str) -> Instrument:
    """Return the bounds of an endpoint of a study; most losses have none that are met."""
    floor, ceiling, ties = _BOUNDS.get(endpoint.partition(":")[0], (None, None, False))
    return Instrument(floor=floor, ceiling=ceiling, ties=ties)


def planted_power(
    treated: Mapping[int, float],
    base: Mapping[int, float],
    *,
    smallest: float,
    higher: bool = True,
    family: int = 1,
    instrument: Instrument | None = None,
    response: Mapping[int, float] | None = None,
    tries: int = TRIES,
    seed: int = 0,
) -> float:
    """Return how often the rule says "reproduced" of an effect of the smallest size of interest that was planted.

    The differences of the study about their mean are its scatter; they are drawn anew with replacement (times the root
    of n / (n - 1), as their mean was taken out), added to the base with the smallest effect, cut to the bounds of the
    measure, and judged as `answer` judges, at the strictest level that Holm's correction can ask for.

    Args:
        treated: Endpoint by seed.
        base: Endpoint by seed of what it is compared with; the effect is planted there.
        smallest: Smallest effect of interest, in the endpoint's unit.
        higher: Whether the claim is that the treated arm's endpoint is higher. Default True.
        family: Comparisons that are judged together. Default 1.
        instrument: Bounds of the measure. Default None: it has none.
        response: By how much the measure moved when the effect was planted in the data of the base themselves, by seed.
            Default None: the effect is added to the measure.
        tries: Planted studies. Default 400.
        seed: Seed of the draws. Default 0.

    Returns:
        A share between 0 and 1.

    Raises:
        InputError: If fewer than two seeds are shared, or the smallest effect is not positive.

    Example:
        >>> base = {seed: 0.90 for seed in range(8)}
        >>> other = {seed: 0.90 + 0.001 * (-1) ** seed for seed in range(8)}
        >>> planted_power(other, base, smallest=0.01), planted_power(other, base, smallest=0.0001) < 0.2
        (1.0, True)
    """
    check_positive(smallest_effect=smallest)
    effect = paired_effect(treated, base, higher=higher)
    count, sign = len(effect.seeds), 1.0 if higher else -1.0
    if count < LEAST_SEEDS:
        return 0.0
    scatter = np.array(effect.interval.values) - effect.interval.mean
    random = generator(seed, "bootstrap", "planted")
    drawn = math.sqrt(count / (count - 1)) * scatter[random.integers(0, count, size=(tries, count))]
    start = np.array([base[one] for one in effect.seeds])
    ends = (None, None) if instrument is None else (instrument.floor, instrument.ceiling)
    moved = sign * smallest if response is None else np.array([response.get(one, 0.0) for one in effect.seeds])
    planted = start + moved + sign * drawn
    planted = planted if ends == (None, None) else np.clip(planted, *ends)
    differences = sign * (planted - start)
    means, error = differences.mean(1), differences.std(1, ddof=1) / math.sqrt(count)
    p = two_sided(means, error, count)
    seen = 2 * (differences == 0).sum(1) < count
    return float((seen & (means > 0) & (family * p <= 1 - LEVEL)).mean())


def power(deviation: float, seeds: int, smallest: float, *, family: int = 1) -> float:
    r"""Return the chance that the rule finds an effect of the smallest size, at a spread of the paired differences.

    .. math:: P(T > t_{n-1,\,1 - 0.025/m}), \qquad T \sim t_{n-1}(\sqrt n\, \delta / s)

    Args:
        deviation: s: standard deviation of the paired differences (endpoint's unit).
        seeds: n: seeds of each arm.
        smallest: delta: the effect (endpoint's unit).
        family: m: comparisons that are judged together. Default 1.

    Returns:
        A probability; 0 below four seeds, which decide nothing.

    Raises:
        InputError: If the deviation is negative, or the effect or a count is not positive.

    Example:
        >>> round(power(0.0107, 20, 0.005), 2), round(power(0.0107, 38, 0.005), 2)
        (0.51, 0.8)
    """
    check_positive(smallest_effect=smallest, seeds=seeds, family=family)
    require(deviation >= 0, "deviation", "must not be negative", deviation)
    if seeds < LEAST_SEEDS or (deviation == 0 and family * 2.0 ** (1 - seeds) > 1 - LEVEL):
        return 0.0
    if deviation == 0:
        return 1.0
    bound = stdtrit(seeds - 1, 1 - (1 - LEVEL) / 2 / family)
    shift = min(math.sqrt(seeds) * smallest / deviation, 30.0)  # beyond that SciPy's function fails, and all is found
    return float(1 - nctdtr(seeds - 1, shift, bound))


def largest_spread(seeds: int, smallest: float, *, family: int = 1) -> float:
    """Return the spread of paired differences up to which the rule finds the smallest effect in 80 % of studies.

    Args:
        seeds: Seeds of each arm.
        smallest: The effect (endpoint's unit).
        family: Comparisons that are judged together. Default 1.

    Returns:
        A standard deviation (endpoint's unit); 0 below four seeds, which decide nothing.

    Example:
        >>> round(largest_spread(20, 0.005), 4)
        0.0076
    """
    return 0.0 if seeds < LEAST_SEEDS else smallest / float(half_widths(seeds, family)[seeds])


def power_of(spec: StudySpec) -> str:
    """Return in words what a study of so many seeds can find, before it runs."""
    family = max(len(spec.methods) - 1, 1)
    spread = largest_spread(spec.seeds, spec.smallest_effect, family=family)
    if spread == 0:
        return f"Power: {spec.seeds} seeds decide nothing; four are the fewest."
    together = f", {family} comparisons judged together" if family > 1 else ""
    text = (
        f"Power: {spec.seeds} seeds find a difference of {spec.smallest_effect:g} in 80 % of studies where the paired "
    )
    text += f"differences have a standard deviation of {spread:.2g} or less{together}"
    return f"{text}; where it is larger, and no more is seen, the answer is not measurable here."


def measurable(given: Answer, checks: Sequence[Check]) -> Answer:
    """Return an answer, or "not measurable here" with what failed.

    Args:
        given: The answer of the rule.
        checks: What the instrument has shown.

    Returns:
        The answer, with its p values as they were.

    Example:
        >>> measurable(Answer("refuted", "below"), [Check("reach", "3 of 20 seeds differ", False)]).verdict
        'not measurable here'
    """
    failed = [f"{check.name}: {check.shown}" for check in checks if check.works is False]
    if not failed:
        return given
    return replace(given, verdict="not measurable here", reason="; ".join(failed))


Judge = Callable[[Sequence[Effect]], list[Answer]]
"""Effects that belong together -> their answers."""


def judged(effects: Sequence[Effect], checks: Sequence[Sequence[Check]], judge: Judge) -> list[Answer]:
    """Judge the comparisons whose instrument works; the others are no part of the family that Holm's correction guards.

    Args:
        effects: The comparisons.
        checks: What the instrument of each has shown.
        judge: The rule.

    Returns:
        One answer per comparison.
    """
    blind = [any(check.works is False and check.name != "planted effect" for check in one) for one in checks]
    given = iter(judge([effect for effect, out in zip(effects, blind, strict=True) if not out]))
    answers = [Answer("undecided", "") if out else next(given) for out in blind]
    return [measurable(answer, one) for answer, one in zip(answers, checks, strict=True)]
