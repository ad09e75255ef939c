"""The pages' own words: how it is to be read, the rule, and two sentences per paper with the rows they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["CHANGES", "GROUP", "HEAD", "REPLACED", "RULE", "TAKE_HOME", "Sentence"]

HEAD: Final = """# The claims ledger

Which published claims hold, measured here at a size that two cores can carry? One row is one claim; its name leads to
all of it: the published number, ours with its interval and cost, what its instrument has shown, and the rule that was
declared before. A positive difference always means "as claimed".

The numbers per seed are in `studies/claims/results/`; `python -m studies.claims --only table` writes these pages from
them, and `make claims` runs what is missing first. A row is *stale* where files that its module imports have changed
since it was measured: its numbers are those of the revision that it names. `make claims` measures its first seed again:
if the numbers are the same to 1e-6 the row stands, and says so; if not, every seed is measured anew.
"""

REPLACED: Final = """\
Rows whose instrument could not see their claim, or not as well as a later one, stay as they were measured:
"""

CHANGES: Final = """# What changed since the ledger of {date}

Each answer that differs, and why; each row that is new; and each that was declared otherwise after its numbers.
The [ledger](../claims.md) has all rows in one table.

## Answers
"""

GROUP: Final = """# Claims: {group}

Each row in full. Rows that have a better instrument stand last, judged as they were measured. The
[ledger](../claims.md) has all rows in one table, and [the rule](../claims.md#the-rule) by which they are answered.
"""

RULE: Final = """\
*Reproduced* where the 95 % interval of the difference, paired by seed, lies on the claimed side of 0; *refuted* where
it lies below the smallest effect of interest; *undecided* otherwise, with the seeds that would decide with a chance of
80 %. Before any of these counts, the instrument has to work, by the row's own stored numbers; otherwise the answer is
*not measurable here*, with what failed:

- *reach*: the treatment had acted on what was measured (more than four fifths of the seeds differ from the base);
- *floor and ceiling*: fewer than a fifth of the values sit at a bound of the measure;
- *learning* and *equal loss*: both sides reached the train loss that was declared, and a curvature is compared only
  where the train losses differ by less than a factor 1.5;
- *range*: the surface reaches the declared loss on its border, so that the network leaves its basin;
- *planted effect*: the smallest effect of interest, planted in the base with the row's own scatter and put through the
  same rule, is found in at least 80 % of 400 tries (a share with a standard error of 2 or 3 points). Where it is not,
  the answer counts only if the interval lies beyond the smallest effect on either side of 0, so that as much as was
  planted has been seen in the runs themselves.

Holm's correction guards the comparisons of a row whose instrument works, Benjamini and Hochberg's the first comparison
of the primary rows. "Keeps three quarters of the gain" is tested as one contrast of three arms. A row with a failed
seed is undecided. Where a row counts steps to a train loss, a run that never gets there counts with all its steps (the
restricted mean time), and the share that got there is shown. Differences that are all equal have an interval without
width: the sign test decides there, from six seeds on.
"""


@dataclass(frozen=True)
class Sentence:
    """A sentence to take home, and what it rests on."""

    text: str  # The sentence
    rests_on: Mapping[str, str]  # Row -> answer of its first comparison; where one differs the sentence is not printed


TAKE_HOME: Final[Mapping[str, tuple[Sentence, ...]]] = {
    "SAM": (
        Sentence(
            "At equal epochs SAM generalizes better than SGD on noisy labels, and at equal train loss it ends flatter.",
            {"sam-equal-epochs": "reproduced", "sam-curvature": "reproduced"},
        ),
        Sentence(
            "Against SGD that trains twice as long it did worse, the whole interval below 0; but so few seeds would "
            "mostly have missed the smallest gain, so that the rule gives no answer. In the last tenth or quarter of "
            "training alone it gained nothing.",
            {"sam-equal-compute": "not measurable here", "sam-late-end": "refuted"},
        ),
    ),
    "LLR": (
        Sentence(
            "No claim of better accuracy could be confirmed, and most could not be measured at this size.",
            {"llr-accuracy": "not measurable here", "llr-language": "not measurable here"},
        ),
        Sentence(
            "Its loss climbs less, and with the high-loss region flattened larger learning rates train; it is slower "
            "to reach a train loss, and its step costs more than 5 % on a small network.",
            {
                "llr-climb": "reproduced",
                "llr-high-largest-rate": "reproduced",
                "llr-steps": "refuted",
                "llr-cost": "refuted",
            },
        ),
    ),
    "SAF and MESA": (
        Sentence(
            "On noisy labels both generalize much better than SGD and keep SAM's gain; SAF takes half of SAM's "
            "training passes, MESA two thirds.",
            {"saf-accuracy": "reproduced", "saf-keeps-sams-gain": "reproduced", "saf-cost": "reproduced"},
        ),
        Sentence(
            "At equal train loss SAF is flatter than SGD; the last ledger had refuted it from ends that could not be "
            "compared, and for MESA it cannot be measured here.",
            {"saf-sharpness": "not measurable here", "saf-sharpness-equal-loss": "reproduced"},
        ),
    ),
    "SALA": (
        Sentence(
            "It keeps SAM's gain over SGD and is flatter than SGD at equal train loss.",
            {"sala-keeps-sams-gain": "reproduced", "sala-sharpness": "reproduced"},
        ),
        Sentence(
            "It costs a half more than SGD here, not a quarter, and is slower to reach a train loss.",
            {"sala-cost": "refuted", "sala-speed": "refuted"},
        ),
    ),
    "Lookahead": (
        Sentence(
            "On noisy labels it improves SGD and Adam by 7 to 10 points, far more than was published on clean ones.",
            {"lookahead-sgd": "reproduced", "lookahead-adam": "reproduced"},
        ),
        Sentence(
            "On a few real digits the same gain is too small for 20 seeds to measure.",
            {"lookahead-sgd-digits": "not measurable here"},
        ),
    ),
    "Newer claims": (
        Sentence(
            "At equal train loss SAM's solutions lose less than SGD's when they are rounded to four bits, when noise "
            "is added, and when they are trained on something else.",
            {"sam-rounding": "reproduced", "sam-noise": "reproduced", "sam-forgetting": "reproduced"},
        ),
        Sentence(
            "They did not end sharper, with strong weight decay either; SAM over a late phase with its own anneal, "
            "and F-SAM with label noise, gained nothing.",
            {"sam-sharper": "refuted", "late-sam-anneal": "refuted", "friendly-sam-noise": "refuted"},
        ),
    ),
    "Li et al.": (
        Sentence(
            "At equal train loss small batches, large learning rates and SGD end in wider regions than large ones, "
            "small ones and Adam; deep networks without shortcuts are harder to train.",
            {
                "li-batch-equal-loss": "reproduced",
                "li-rate-equal-loss": "reproduced",
                "li-adam-equal-loss": "reproduced",
                "li-trainability": "reproduced",
                "li-trainability-depth": "reproduced",
            },
        ),
        Sentence(
            "That their surfaces are rougher cannot be measured on 8 x 8 pixels, also by bumps beyond the error; on "
            "28 x 28 pixels the figure shows it from 56 layers on, with running statistics and at a higher train loss.",
            {"li-skips-bumps": "not measurable here", "li-depth-bumps": "not measurable here"},
        ),
    ),
}
"""Group -> its two sentences."""
