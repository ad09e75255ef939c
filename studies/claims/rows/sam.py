"""Rows of SAM (Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lowland.training import fit
from lowland.workflows import Changes, build_data, build_loss, build_model, build_optimizer
from studies.claims.claim import Claim
from studies.claims.readers import log_lambda_max
from studies.claims.rows.instruments import ACCURACY, log_measure
from studies.claims.rows.tasks import Size, arm, digits, endpoint, matched, signals
from studies.claims.runs import Arm, RunCache

__all__ = ["SAM", "sam_claims"]

SAM: Changes = {"optimizer.method": "sam", "optimizer.options.rho": 0.1}
RHO = {"optimizer__options__rho": [0.05, 0.1, 0.2]}


def sam_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    run = signals(size)
    sgd, sam = arm(run, tuned=True), arm(run, SAM, tuned=True, **RHO)
    twice = arm(replace(run, epochs=2 * run.epochs), tuned=True)
    small = digits(size)
    steps = run.epochs * -(-size.samples // run.batch_size)
    late = {
        f"SAM in the last {share} %": arm(run, {**SAM, "optimizer.options.start": steps * (100 - share) // 100})
        for share in (10, 25, 50)
    }
    wide = replace(run, batch_size=256, epochs=run.epochs)
    return [
        Claim(
            "sam-equal-epochs",
            "SAM",
            "SAM generalizes better than SGD at equal epochs.",
            "WRN-28-10 on CIFAR-100, 200 epochs: error 16.5 % against 18.8 %",
            "test accuracy, MNIST-1D with 30 % label noise",
            0.005,
            (("SAM", "SGD"),),
            endpoint("test_accuracy"),
            {"SGD": sgd, "SAM": sam},
            seeds=size.seeds,
            seconds=22,
            instrument=ACCURACY,
        ),
        Claim(
            "sam-equal-compute",
            "SAM",
            "SAM generalizes better than SGD that trains twice as long.",
            "the paper gives SGD twice the epochs and SAM still wins; ImageNet ResNet-152, 400 epochs: 18.4 % against "
            "20.3 % for the best SGD",
            "test accuracy, MNIST-1D with 30 % label noise",
            0.005,
            (("SAM", "SGD twice"),),
            endpoint("test_accuracy"),
            {"SGD twice": twice, "SAM": sam},
            seeds=size.seeds,
            seconds=14,
            after=("sam-equal-epochs",),
            instrument=ACCURACY,
        ),
        Claim(
            "sam-curvature",
            "SAM",
            "SAM ends in flatter regions than SGD, at equal train loss.",
            "largest eigenvalue 24 against 1.0, at unequal train loss",
            "log10 of the largest Hessian eigenvalue where the paths have the same train loss, digits",
            0.1,
            (("SAM", "SGD"),),
            matched(log_lambda_max),
            {"SGD": arm(small), "SAM": arm(small, SAM)},
            higher=False,
            seeds=size.seeds,
            seconds=5,
            instrument=log_measure(-300.0),
        ),
        Claim(
            "sam-m",
            "SAM",
            "A smaller m (samples that share an ascent) generalizes better.",
            "smaller m is better; no number taken over",
            "test accuracy, MNIST-1D with 30 % label noise, batches of 256",
            0.005,
            (("m = 16", "m = 256"), ("m = 64", "m = 256")),
            micro_batches,
            {"m = 256": arm(wide, SAM)},
            seeds=size.few,
            seconds=60,
            note="batch norm sees the parts, so that m changes its batches too",
            instrument=ACCURACY,
        ),
        Claim(
            "sam-late",
            "SAM",
            "SAM in the last part of training suffices.",
            "Andriushchenko and Flammarion 2022; no number taken over",
            "test accuracy, MNIST-1D with 30 % label noise",
            0.005,
            tuple((name, "SGD") for name in late),
            endpoint("test_accuracy"),
            {"SGD": arm(run), **late},
            seeds=size.seeds,
            seconds=26,
            instrument=ACCURACY,
            better="sam-late-end",
        ),
    ]


def micro_batches(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Train SAM with an ascent per 16, 64 and all 256 samples of a batch."""
    del runs
    (task,) = arms.values()
    found = {}
    for m in (16, 64, 256):
        options = {**task.spec.optimizer.options, "ascent": "micro-batch"}
        spec = replace(task.spec, seed=seed, optimizer=replace(task.spec.optimizer, options=options))
        splits = build_data(spec.data)
        model = build_model(spec.model, splits, seed=seed)
        loss, optimizer = build_loss(spec.loss, model, splits), build_optimizer(spec.optimizer, model)
        result = fit(
            model,
            optimizer,
            loss,
            splits,
            epochs=spec.epochs,
            batch_size=spec.batch_size,
            seed=seed,
            micro_batches=spec.batch_size // m,
            accelerator=spec.accelerator,
        )
        found[f"m = {m}"] = result.test["accuracy"]
    return found
