"""Rows of LLR (Chen et al. 2025, "Efficient Loss Landscape Reshaping"); its result tables are not open to us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lowland.workflows import Changes, DataSpec, FitSpec, ModelSpec
from studies.claims.claim import Claim
from studies.claims.rows.instruments import (
    ACCURACY,
    BYTES,
    COUNT,
    DIGITS,
    DIVERGED,
    ESCAPE,
    EXACT,
    PERTURBATION,
    STEPS,
    TRAIN_LOSS,
    log_measure,
)
from studies.claims.rows.llr_measures import (
    controls,
    escape_steps,
    median_attack,
    reshaped_curvature,
    seconds_per_step,
    share_diverged,
)
from studies.claims.rows.tasks import ADAPTIVE, Size, arm, digits, endpoint, signals, steps_to

__all__ = ["LLR", "llr_claims"]

LLR: Changes = {"loss.method": "llr", "loss.options.reshaper": {"name": "sech", "a": 2.5, "b": 0.15}}
SLOPES = {"loss__options__reshaper__a": [2.5, 5.0, 10.0]}

_NONE = "tables not found"
_TASK = "test accuracy, MNIST-1D with 30 % label noise"


def window(slope: float, low: float, high: float) -> Changes:
    """Return the changes of a loss that is reshaped in one window of normalized losses alone."""
    shape = {"name": "linearwindow", "a": slope, "low": low, "high": high}
    return {"loss.method": "llr", "loss.options.reshaper": shape}


def llr_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_accuracy(size), *_training(size), *_regions(size), *_theory(size), *_elsewhere(size)]


def _accuracy(size: Size) -> list[Claim]:
    run = signals(size)
    warm: Changes = {"schedule.warmup": 5.0}
    return [
        Claim(
            "llr-accuracy",
            "LLR",
            "LLR generalizes better than a tuned base with warm-up.",
            f"{_NONE}; the withdrawn predecessor: +1.46 % for a ResNet-20 on CIFAR-100",
            _TASK,
            0.005,
            (("LLR", "base"),),
            endpoint("test_accuracy"),
            {"base": arm(run, warm, tuned=True), "LLR": arm(run, LLR, tuned=True, **SLOPES)},
            seeds=size.seeds,
            seconds=15,
            note="the warm-up that LLR has built in is given to the base too",
            instrument=ACCURACY,
        ),
        Claim(
            "llr-controls",
            "LLR",
            "What LLR gains is more than its multiplier of another seed would.",
            "no such control",
            _TASK,
            0.005,
            (("LLR", "multiplier on the gradient"), ("LLR", "multiplier on the rate"), ("LLR", "LLR, decay scaled")),
            controls,
            {"task": arm(run, LLR)},
            seeds=size.few,
            seconds=30,
            instrument=ACCURACY,
        ),
    ]


def _training(size: Size) -> list[Claim]:
    small = digits(size)
    fast: Changes = {"optimizer.learning_rate": 0.5}
    pair = {"SGD": arm(small), "LLR": arm(small, LLR)}
    tuned = {"SGD": arm(small, tuned=True), "LLR": arm(small, LLR, tuned=True, **SLOPES)}
    return [
        Claim(
            "llr-stability",
            "LLR",
            "With LLR fewer runs diverge.",
            _NONE,
            "share of learning rates (0.3, 1, 3, 10, 30) whose run ends above its initial loss, digits",
            0.1,
            (("LLR", "SGD"),),
            share_diverged,
            pair,
            higher=False,
            seeds=size.few,
            seconds=8,
            instrument=DIVERGED,
            better="llr-largest-rate",
        ),
        Claim(
            "llr-steps",
            "LLR",
            "LLR reaches a train loss in fewer steps.",
            _NONE,
            "steps to a train loss of 1.0, digits with 30 % label noise",
            5.0,
            (("LLR", "SGD"),),
            steps_to(1.0),
            tuned,
            higher=False,
            seeds=size.seeds,
            seconds=2,
            note="both tuned alike on validation accuracy; untuned, LLR's slope at the initial loss is 0.006",
            instrument=STEPS,
        ),
        Claim(
            "llr-spikes",
            "LLR",
            "LLR has fewer loss spikes.",
            _NONE,
            "epochs whose train loss exceeds 1.1 times the one before, learning rate 0.5, digits",
            0.5,
            (("LLR", "SGD"),),
            endpoint("loss_spikes:1.1"),
            {"SGD": arm(small, fast), "LLR": arm(small, {**LLR, **fast})},
            higher=False,
            seeds=size.seeds,
            seconds=2,
            instrument=COUNT,
            better="llr-climb",
        ),
        Claim(
            "llr-cost",
            "LLR",
            "LLR costs next to nothing.",
            "negligible",
            "processor time of a step over SGD's, digits",
            0.05,
            (("1.05 times SGD", "LLR"),),
            seconds_per_step,
            pair,
            seeds=size.few,
            seconds=1,
            primary=False,
            note="steps of both in turns, medians of 100; the claim is at most 1.05",
            instrument=EXACT,
        ),
    ]


def _regions(size: Size) -> list[Claim]:
    small = digits(size)
    plain, tuned = arm(small), arm(small, tuned=True)
    return [
        Claim(
            "llr-low",
            "LLR",
            "Steepening the low-loss region alone generalizes better.",
            "figure 2 of the code's run.sh",
            "test accuracy, digits with 30 % label noise",
            0.01,
            (("low", "SGD"),),
            endpoint("test_accuracy"),
            {"SGD": tuned, "low": arm(small, window(10.0, 0.2, 0.3), tuned=True)},
            seeds=size.seeds,
            seconds=2,
            instrument=DIGITS,
            better="llr-low-end",
        ),
        Claim(
            "llr-high",
            "LLR",
            "Flattening the high-loss region alone keeps more runs from diverging.",
            _NONE,
            "share of learning rates (0.3, 1, 3, 10, 30) whose run ends above its initial loss, digits",
            0.1,
            (("high", "SGD"),),
            share_diverged,
            {"SGD": plain, "high": arm(small, window(0.1, 0.7, 1e6))},
            higher=False,
            seeds=size.few,
            seconds=6,
            instrument=DIVERGED,
            better="llr-high-largest-rate",
        ),
        Claim(
            "llr-ultralow",
            "LLR",
            "Flattening the ultra-low-loss region alone optimizes better.",
            _NONE,
            "train loss in the last epoch, digits with 30 % label noise",
            0.01,
            (("ultra-low", "SGD"),),
            endpoint("train_loss"),
            {"SGD": tuned, "ultra-low": arm(small, window(0.1, 0.0, 0.1), tuned=True)},
            higher=False,
            seeds=size.seeds,
            seconds=2,
            instrument=TRAIN_LOSS,
        ),
    ]


def _theory(size: Size) -> list[Claim]:
    return [
        Claim(
            "llr-escape",
            "LLR",
            "Reshaping leaves a sharp minimum sooner.",
            "theory of the predecessors; no number taken",
            "log10 of the mean steps until a particle leaves the sharp well of a two-well loss, gradient noise scaled "
            "alike",
            0.1,
            (("LLR", "plain"), ("LLR", "plain at LLR's mean rate")),
            escape_steps,
            higher=False,
            seeds=size.seeds,
            seconds=2,
            instrument=ESCAPE,
            better="llr-escape-rate",
        ),
        Claim(
            "llr-curvature",
            "LLR",
            "The reshaped loss is flatter where the plain loss is ultra-low.",
            _NONE,
            "log10 of the largest eigenvalue of the reshaped loss, f' H + f'' g g^T, beside the plain one, digits",
            0.1,
            (("reshaped", "plain"),),
            reshaped_curvature,
            {"SGD": arm(digits(size))},
            higher=False,
            seeds=size.few,
            seconds=6,
            instrument=log_measure(-300.0, equal_loss=False),
        ),
    ]


def _elsewhere(size: Size) -> list[Claim]:
    small, language = digits(size), _language(size)
    return [
        Claim(
            "llr-robustness",
            "LLR",
            "LLR makes networks more robust to attacks.",
            _NONE,
            "median L-infinity perturbation that changes the answer, inputs in [0, 1], 200 test images of digits",
            0.002,
            (("LLR", "SGD"),),
            median_attack,
            {"SGD": arm(small, tuned=True), "LLR": arm(small, LLR, tuned=True, **SLOPES)},
            seeds=size.few,
            seconds=15,
            after=("llr-steps",),
            instrument=PERTURBATION,
        ),
        Claim(
            "llr-language",
            "LLR",
            "LLR helps a language model.",
            _NONE,
            "test loss (nats per byte), a small transformer on the Python language reference",
            0.01,
            (("LLR", "AdamW"),),
            endpoint("test_loss"),
            {"AdamW": arm(language, {}, tuned=True, **ADAPTIVE), "LLR": arm(language, LLR, tuned=True, **ADAPTIVE)},
            higher=False,
            seeds=size.few,
            seconds=20,
            note="with Adam the multiplier mostly cancels, and the documentation advises against it",
            instrument=BYTES,
        ),
    ]


def _language(size: Size) -> FitSpec:
    build: Callable[..., Any] = replace
    data = DataSpec(name="text", options={"context": 32, "train_size": 300})
    network = ModelSpec(name="transformer", options={"width": 64, "depth": 2, "context": 32})
    run: FitSpec = build(signals(size), data=data, model=network, epochs=8)
    adam = replace(run.optimizer, name="adamw", learning_rate=1e-3, weight_decay=0.01)
    return replace(run, optimizer=adam)
