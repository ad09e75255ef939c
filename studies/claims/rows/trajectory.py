"""Rows of SAF and MESA (Du et al. 2022, "Sharpness-Aware Training for Free")."""

from __future__ import annotations

from lowland.workflows import Changes
from studies.claims.claim import Claim
from studies.claims.readers import sharpness_late
from studies.claims.rows.instruments import ACCURACY, DROPS, EXACT, log_measure
from studies.claims.rows.sam import RHO, SAM
from studies.claims.rows.tasks import ADAMW, ADAPTIVE, Size, arm, digits, endpoint, passes_over, reader, signals

__all__ = ["MESA", "SAF", "trajectory_claims"]

SAF: Changes = {"loss.method": "saf", "loss.options.start": 0.1}
MESA: Changes = {"loss.method": "mesa", "loss.options.start": 0.1}
WEIGHTS = {"loss__options__weight": [0.1, 0.3, 0.8]}

_NOTE = "first active epoch a tenth of the run (5 of 90 epochs in the paper); the weight is times temperature squared"


def trajectory_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_path_claims(size), *_accuracy_claims(size)]


def _path_claims(size: Size) -> list[Claim]:
    """Return the rows about the path, on the surveyed task."""
    small = digits(size)
    surveyed = {"SGD": arm(small), "SAM": arm(small, SAM), "SAF": arm(small, SAF), "MESA": arm(small, MESA)}
    plain = {name: surveyed[name] for name in ("SGD", "SAF", "MESA")}
    sharp = "log10 of SAM's sharpness (rho 0.05), mean over the second half of training, digits"
    return [
        Claim(
            "saf-sharpness",
            "SAF and MESA",
            "SAF and MESA find flatter regions than SGD along the whole path.",
            "figure 4b; no numbers in the text",
            sharp,
            0.1,
            (("SAF", "SGD"), ("MESA", "SGD")),
            reader(sharpness_late, surveyed=True),
            plain,
            higher=False,
            seeds=size.seeds,
            seconds=5,
            note=_NOTE,
            instrument=log_measure(-300.0),
            better="saf-sharpness-equal-loss",
        ),
        Claim(
            "saf-sharpness-sam",
            "SAF and MESA",
            "SAM is flatter than SAF in the second half of training.",
            "figure 4b; no numbers in the text",
            sharp,
            0.1,
            (("SAM", "SAF"), ("SAM", "MESA")),
            reader(sharpness_late, surveyed=True),
            surveyed,
            higher=False,
            seeds=size.seeds,
            seconds=3,
            after=("saf-sharpness",),
            note=_NOTE,
            instrument=log_measure(-300.0),
            better="saf-sharpness-sam-equal-loss",
        ),
        Claim(
            "saf-largest-drop",
            "SAF and MESA",
            "SAF avoids sudden drops of the train loss.",
            "the derivation, equations 5 to 7; no number published",
            "largest drop of the train loss from one epoch to the next, digits",
            0.02,
            (("SAF", "SGD"), ("MESA", "SGD")),
            endpoint("largest_drop"),
            plain,
            higher=False,
            seeds=size.seeds,
            seconds=1,
            note=_NOTE,
            instrument=DROPS,
            better="saf-largest-drop-active",
        ),
        Claim(
            "saf-mean-square-drop",
            "SAF and MESA",
            "SAF makes the train loss fall in smaller steps.",
            "the derivation, equations 5 to 7; no number published",
            "mean square drop of the train loss per epoch, digits",
            0.001,
            (("SAF", "SGD"), ("MESA", "SGD")),
            endpoint("mean_square_drop"),
            plain,
            higher=False,
            seeds=size.seeds,
            seconds=1,
            primary=False,
            note=_NOTE,
            instrument=DROPS,
            better="saf-mean-square-drop-active",
        ),
        Claim(
            "saf-cost",
            "SAF and MESA",
            "A run of SAF or MESA costs less than one of SAM.",
            "0.7 % and 15 % over SGD, SAM 100 %; measured by others: MESA 30 %",
            "log2 of the training passes over SGD's, a teacher's included, digits",
            0.1,
            (("SAF", "SAM"), ("MESA", "SAM")),
            passes_over("SGD"),
            surveyed,
            higher=False,
            seeds=7,
            seconds=1,
            primary=False,
            note="Passes are counted and equal for every seed; seven are the fewest that decide two comparisons.",
            instrument=EXACT,
        ),
    ]


def _accuracy_claims(size: Size) -> list[Claim]:
    """Return the rows about accuracy."""
    run = signals(size)
    sgd, sam = arm(run, tuned=True), arm(run, SAM, tuned=True, **RHO)
    saf, mesa = (arm(run, changes, tuned=True, **WEIGHTS) for changes in (SAF, MESA))
    swept = {
        f"{name}, weight {weight:g}{'' if squared else ' without temperature squared'}": arm(
            run, {**changes, "loss.options.weight": weight, "loss.options.temperature_squared": squared}
        )
        for name, changes in (("SAF", SAF), ("MESA", MESA))
        for weight in (0.1, 0.3, 1.0)
        for squared in (True, False)
    }
    adaptive = {
        name: arm(run, {**ADAMW, **changes}, tuned=True, **{**ADAPTIVE, **grid})
        for name, changes, grid in (
            ("AdamW", {}, {}),
            ("SAM", SAM, RHO),
            ("SAF", SAF, WEIGHTS),
            ("MESA", MESA, WEIGHTS),
        )
    }
    return [
        Claim(
            "saf-accuracy",
            "SAF and MESA",
            "SAF and MESA generalize better than SGD.",
            "WRN-28-10 on CIFAR-100: 83.81 and 83.59 against 81.67",
            "test accuracy, MNIST-1D with 30 % label noise",
            0.005,
            (("SAF", "SGD"), ("MESA", "SGD")),
            endpoint("test_accuracy"),
            {"SGD": sgd, "SAF": saf, "MESA": mesa},
            seeds=size.seeds,
            seconds=19,
            note=_NOTE,
            after=("sam-equal-epochs",),
            instrument=ACCURACY,
        ),
        Claim(
            "saf-keeps-sams-gain",
            "SAF and MESA",
            "SAF and MESA keep SAM's gain.",
            "WRN-28-10 on CIFAR-100: 83.81 and 83.59 against SAM's 83.51; ResNet-18: 80.06 and 79.79 against 80.18",
            "test accuracy, MNIST-1D with 30 % label noise",
            0.005,
            (("SAF", "SAM", "SGD"), ("MESA", "SAM", "SGD")),
            endpoint("test_accuracy"),
            {"SGD": sgd, "SAM": sam, "SAF": saf, "MESA": mesa},
            seeds=size.seeds,
            seconds=1,
            after=("saf-accuracy",),
            note=_NOTE,
            instrument=ACCURACY,
        ),
        Claim(
            "saf-weight",
            "SAF and MESA",
            "SAF and MESA help at each weight, with and without the factor temperature squared.",
            "weights 0.3 (SAF) and 0.8 (MESA); the factor is in the code and not in the paper",
            "test accuracy, MNIST-1D with 30 % label noise",
            0.005,
            tuple((name, "SGD") for name in swept),
            endpoint("test_accuracy"),
            {"SGD": arm(run), **swept},
            seeds=size.few,
            seconds=85,
            primary=False,
            instrument=ACCURACY,
        ),
        Claim(
            "saf-adamw",
            "SAF and MESA",
            "SAM, SAF and MESA generalize better than AdamW where that is the base.",
            "ViT-S/32 on ImageNet: AdamW 68.1, SAM 68.9, SAF 69.5, MESA 69.6",
            "test accuracy, MNIST-1D with 30 % label noise, AdamW as the base",
            0.005,
            (("SAM", "AdamW"), ("SAF", "AdamW"), ("MESA", "AdamW")),
            endpoint("test_accuracy"),
            adaptive,
            seeds=size.few,
            seconds=70,
            note=f"a small ResNet in place of a transformer; {_NOTE}",
            instrument=ACCURACY,
        ),
    ]
