"""Rows whose instrument could not see what was asked, with one that can: measured where the treatment is in force.

Late treatments are measured at the end of training, sharpness at equal train loss, drops of the loss in the epochs in
which the method acts, divergence by the largest learning rate that trains, and escape by its rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from lowland.study import Instrument, read_endpoint
from lowland.workflows import Changes
from studies.claims.claim import Claim
from studies.claims.readers import log_sharpness
from studies.claims.rows.instruments import ACCURACY, DIGITS, DROPS, log_measure
from studies.claims.rows.llr import LLR, window
from studies.claims.rows.llr_measures import escape_rates
from studies.claims.rows.sam import SAM
from studies.claims.rows.tasks import Size, arm, digits, endpoint, matched, signals
from studies.claims.rows.trajectory import MESA, SAF
from studies.claims.runs import Arm, RunCache

__all__ = ["better_claims"]

_NONE: Final = "tables not found"
_LOWEST: Final = -1.0
_HIGHEST: Final = 2.0
"""log10 of the learning rates between which the largest one that trains is looked for."""

_TENTHS: Final = round(10 * (_HIGHEST - _LOWEST))
_EDGE: Final = Instrument(floor=_LOWEST, ceiling=_HIGHEST, ties=True)


def better_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_late(size), *_stability(size), *_path(size)]


def _late(size: Size) -> list[Claim]:
    run, small = replace(signals(size), select="last"), replace(digits(size), select="last")
    steps = run.epochs * -(-size.samples // run.batch_size)
    late = {
        f"SAM in the last {share} %": arm(run, {**SAM, "optimizer.options.start": steps * (100 - share) // 100})
        for share in (10, 25, 50)
    }
    return [
        Claim(
            "sam-late-end",
            "SAM",
            "SAM in the last part of training suffices.",
            "Andriushchenko and Flammarion 2022; no number taken over",
            "test accuracy at the end of training, MNIST-1D with 30 % label noise",
            0.01,
            tuple((name, "SGD") for name in late),
            endpoint("test_accuracy"),
            {"SGD": arm(run), **late},
            seeds=size.seeds,
            seconds=24,
            instrument=ACCURACY,
            spread=(0.0107, "SAM against SGD in sam-equal-epochs"),
        ),
        Claim(
            "llr-low-end",
            "LLR",
            "Steepening the low-loss region alone generalizes better.",
            "figure 2 of the code's run.sh",
            "test accuracy at the end of training, digits with 30 % label noise",
            0.01,
            (("low", "SGD"),),
            endpoint("test_accuracy"),
            {"SGD": arm(small, tuned=True), "low": arm(small, window(10.0, 0.2, 0.3), tuned=True)},
            seeds=size.seeds + 10,
            seconds=2,
            instrument=DIGITS,
            spread=(0.0161, "llr-low"),
        ),
    ]


def _stability(size: Size) -> list[Claim]:
    small = digits(size, snapshots_every_epochs=None)
    fast: Changes = {"optimizer.learning_rate": 0.5}
    what = "log10 of the learning rate from which on runs end above the loss of a guess, to a tenth, digits"
    return [
        Claim(
            "llr-largest-rate",
            "LLR",
            "With LLR larger learning rates train.",
            _NONE,
            what,
            0.1,
            (("LLR", "SGD"),),
            largest_rate,
            {"SGD": arm(small), "LLR": arm(small, LLR)},
            seeds=size.seeds,
            seconds=9,
            instrument=_EDGE,
        ),
        Claim(
            "llr-high-largest-rate",
            "LLR",
            "With the high-loss region flattened larger learning rates train.",
            _NONE,
            what,
            0.1,
            (("high", "SGD"),),
            largest_rate,
            {"SGD": arm(small), "high": arm(small, window(0.1, 0.7, 1e6))},
            seeds=size.seeds,
            seconds=5,
            after=("llr-largest-rate",),
            instrument=_EDGE,
        ),
        Claim(
            "llr-climb",
            "LLR",
            "LLR has fewer loss spikes.",
            _NONE,
            "sum of all rises of the train loss's logarithm from epoch to epoch, learning rate 0.5, digits",
            0.2,
            (("LLR", "SGD"),),
            endpoint("climb"),
            {"SGD": arm(small, fast), "LLR": arm(small, {**LLR, **fast})},
            higher=False,
            seeds=2 * size.seeds,
            seconds=2,
            instrument=DROPS,
        ),
        Claim(
            "llr-escape-rate",
            "LLR",
            "Reshaping leaves a sharp minimum sooner.",
            "theory of the predecessors; no number taken",
            "log10 of the steps spent in the sharp well per escape, of a two-well loss, gradient noise scaled alike",
            0.1,
            (("LLR", "plain"), ("LLR", "plain at LLR's mean rate")),
            escape_rates,
            higher=False,
            seeds=size.seeds,
            seconds=2,
            instrument=Instrument(floor=0.0),
            spread=(0.026, "llr-escape"),
        ),
    ]


def _path(size: Size) -> list[Claim]:
    small = digits(size)
    plain = {"SGD": arm(small), "SAF": arm(small, SAF), "MESA": arm(small, MESA)}
    sharp = "log10 of SAM's sharpness (rho 0.05) where the paths have the same train loss, digits"
    first = max(1, size.survey_epochs // 10)
    active = f"from one epoch to the next from epoch {first} on, where the methods act, digits"
    return [
        Claim(
            "saf-sharpness-equal-loss",
            "SAF and MESA",
            "SAF and MESA find flatter regions than SGD.",
            "figure 4b; no numbers in the text",
            sharp,
            0.1,
            (("SAF", "SGD"), ("MESA", "SGD")),
            matched(log_sharpness),
            plain,
            higher=False,
            seeds=2 * size.seeds,
            seconds=6,
            instrument=log_measure(-12.0),
            spread=(0.2262, "SALA against SGD in sala-sharpness"),
        ),
        Claim(
            "saf-sharpness-sam-equal-loss",
            "SAF and MESA",
            "SAM is flatter than SAF and MESA.",
            "figure 4b; no numbers in the text",
            sharp,
            0.1,
            (("SAM", "SAF"), ("SAM", "MESA")),
            matched(log_sharpness),
            {"SAM": arm(small, SAM), **{name: plain[name] for name in ("SAF", "MESA")}},
            higher=False,
            seeds=2 * size.seeds,
            seconds=4,
            after=("saf-sharpness-equal-loss",),
            instrument=log_measure(-12.0),
            spread=(0.2262, "SALA against SGD in sala-sharpness"),
        ),
        Claim(
            "saf-largest-drop-active",
            "SAF and MESA",
            "SAF avoids sudden drops of the train loss.",
            "the derivation, equations 5 to 7; no number published",
            f"largest drop of the train loss {active}",
            0.02,
            (("SAF", "SGD"), ("MESA", "SGD")),
            endpoint(f"largest_drop_from:{first}"),
            plain,
            higher=False,
            seeds=size.seeds,
            seconds=1,
            after=("saf-sharpness-equal-loss",),
            instrument=DROPS,
        ),
        Claim(
            "saf-mean-square-drop-active",
            "SAF and MESA",
            "SAF makes the train loss fall in smaller steps.",
            "the derivation, equations 5 to 7; no number published",
            f"mean square drop of the train loss {active}",
            0.001,
            (("SAF", "SGD"), ("MESA", "SGD")),
            endpoint(f"mean_square_drop_from:{first}"),
            plain,
            higher=False,
            seeds=size.seeds,
            seconds=1,
            after=("saf-sharpness-equal-loss",),
            primary=False,
            instrument=DROPS,
        ),
    ]


def largest_rate(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Find the learning rate from which on runs end above the loss of a guess, by bisection of tenths of a decade."""
    found = {}
    for name, one in arms.items():
        trains, fails = -1, _TENTHS  # places on the scale; the ends stand for "not even the lowest" and "every one"
        while fails - trains > 1:
            middle = (trains + fails) // 2
            rate = 10 ** (_LOWEST + middle / 10)
            optimizer = replace(one.spec.optimizer, learning_rate=rate)
            path = runs.train(replace(one.spec, optimizer=optimizer), seed)
            ends_well = read_endpoint(path, "train_loss") <= math.log(10)
            trains, fails = (middle, fails) if ends_well else (trains, middle)
        found[name] = _LOWEST + max(fails, 0) / 10
    return found
