"""Rows of Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scipy.stats import kendalltau

from lowland.study import read_endpoint
from lowland.workflows import ModelSpec
from studies.claims.claim import Claim
from studies.claims.readers import negative_share, path_share_above_null, surface_number
from studies.claims.rows.instruments import LEARNED, PATH, SHARE, TAU, TRAIN_LOSS, log_measure
from studies.claims.rows.tasks import Size, arm, digits, endpoint, reader
from studies.claims.runs import Arm, RunCache

__all__ = ["landscape_claims"]

_NONE = "figures; no numbers in the text"
_ROUGH = "log10 roughness of an 11 x 11 filter-normalized surface, digits"
_FLOOR = "-6 is the floor of the measure: one valley along every grid line"
_CONVEX = "share of 25 points of a plane with negative curvature beyond its residual, digits"
_TRAIN = "train loss in the last epoch, digits"
_BOWL = "log10 curvature at the center of an 11 x 11 filter-normalized surface at spacing 0.2, kinks included, digits"


def network(depth: int, *, width: int = 8, skip: bool = True) -> ModelSpec:
    """Return a residual network, with or without shortcuts."""
    return ModelSpec(name=f"resnet{depth}", options={"width": width, "skip": skip})


def landscape_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_architecture(size), *_training(size), *_measures(size)]


def _architecture(size: Size) -> list[Claim]:
    def net(depth: int, *, width: int = 8, skip: bool = True) -> Arm:
        return arm(digits(size, model=network(depth, width=width, skip=skip)))

    skips = {"with shortcuts": net(20), "without": net(20, skip=False)}
    deep = {"56 layers without": net(56, skip=False), "20 layers without": net(20, skip=False)}
    wide = {"width 16": net(20, width=16, skip=False), "width 4": net(20, width=4, skip=False)}
    rough = reader(surface_number("roughness"), surveyed=True)
    return [
        Claim(
            "li-skips",
            "Li et al.",
            "Without shortcuts the surface is rougher.",
            _NONE,
            _ROUGH,
            0.1,
            (("without", "with shortcuts"),),
            rough,
            skips,
            seeds=size.few,
            seconds=6,
            note=_FLOOR,
            instrument=log_measure(-6.0),
            better="li-skips-bumps",
        ),
        Claim(
            "li-depth",
            "Li et al.",
            "Without shortcuts a deeper network has a rougher surface.",
            _NONE,
            _ROUGH,
            0.1,
            (("56 layers without", "20 layers without"),),
            rough,
            deep,
            seeds=size.few,
            seconds=14,
            note=_FLOOR,
            instrument=log_measure(-6.0),
            better="li-depth-bumps",
        ),
        Claim(
            "li-width",
            "Li et al.",
            "A wider network has a smoother surface.",
            _NONE,
            _ROUGH,
            0.1,
            (("width 16", "width 4"),),
            rough,
            wide,
            higher=False,
            seeds=size.few,
            seconds=8,
            note=_FLOOR,
            instrument=log_measure(-6.0),
            better="li-width-bumps",
        ),
        Claim(
            "li-convexity",
            "Li et al.",
            "Without shortcuts more of the plane is not convex.",
            "DenseNet-like regions have a ratio below 1 %",
            _CONVEX,
            0.05,
            (("without", "with shortcuts"),),
            reader(negative_share, surveyed=True),
            skips,
            seeds=size.few,
            seconds=32,
            after=("li-skips",),
            instrument=replace(SHARE, learned=LEARNED, equal_loss=True),
            better="li-convexity-ratio",
        ),
        Claim(
            "li-convexity-depth",
            "Li et al.",
            "Without shortcuts a deeper network has more of the plane not convex.",
            _NONE,
            _CONVEX,
            0.05,
            (("56 layers without", "20 layers without"),),
            reader(negative_share, surveyed=True),
            deep,
            seeds=min(4, size.few),
            seconds=60,
            after=("li-depth", "li-convexity"),
            primary=False,
            instrument=replace(SHARE, learned=LEARNED, equal_loss=True),
            better="li-convexity-ratio-depth",
        ),
        Claim(
            "li-convexity-width",
            "Li et al.",
            "A wider network has less of the plane not convex.",
            _NONE,
            _CONVEX,
            0.05,
            (("width 16", "width 4"),),
            reader(negative_share, surveyed=True),
            wide,
            higher=False,
            seeds=min(4, size.few),
            seconds=40,
            after=("li-width",),
            primary=False,
            instrument=replace(SHARE, learned=LEARNED, equal_loss=True),
            better="li-convexity-ratio-width",
        ),
        Claim(
            "li-trainability",
            "Li et al.",
            "Without shortcuts a deep network is harder to train.",
            "ResNet-56 on CIFAR-10: error 5.89 % with, 13.31 % without (rate 0.1)",
            "train loss in the last epoch, 56 layers, digits",
            0.05,
            (("without", "with shortcuts"),),
            endpoint("train_loss"),
            {"with shortcuts": net(56), "without": net(56, skip=False)},
            seeds=size.few,
            seconds=5,
            after=("li-depth",),
            instrument=TRAIN_LOSS,
        ),
        Claim(
            "li-trainability-depth",
            "Li et al.",
            "Without shortcuts a deeper network is harder to train.",
            "figures; the 56-layer network without shortcuts trains worse than the 20-layer one",
            _TRAIN,
            0.05,
            (("56 layers without", "20 layers without"),),
            endpoint("train_loss"),
            deep,
            seeds=size.few,
            seconds=1,
            after=("li-depth",),
            primary=False,
            instrument=TRAIN_LOSS,
        ),
        Claim(
            "li-trainability-width",
            "Li et al.",
            "A wider network is easier to train.",
            _NONE,
            _TRAIN,
            0.05,
            (("width 16", "width 4"),),
            endpoint("train_loss"),
            wide,
            higher=False,
            seeds=size.few,
            seconds=1,
            after=("li-width",),
            primary=False,
            instrument=TRAIN_LOSS,
        ),
    ]


def _training(size: Size) -> list[Claim]:
    bowl = reader(surface_number("curvature"), surveyed=True)
    samples = size.images
    plain = digits(size)

    def changed(**changes: object) -> Arm:
        return arm(plain, {key.replace("__", "."): value for key, value in changes.items()})

    batches = {"batches of 16": changed(batch_size=16), "whole batch": changed(batch_size=samples)}
    rates = {"rate 0.2": changed(optimizer__learning_rate=0.2), "rate 0.01": changed(optimizer__learning_rate=0.01)}
    adam = {"optimizer__name": "adam", "optimizer__learning_rate": 1e-3, "optimizer__weight_decay": 0.0}
    note = "at the end of training, where the train losses may differ"
    return [
        Claim(
            "li-batch",
            "Li et al.",
            "Small batches end in wider regions than large ones.",
            _NONE,
            _BOWL,
            0.1,
            (("batches of 16", "whole batch"),),
            bowl,
            batches,
            higher=False,
            seeds=size.seeds,
            seconds=6,
            note=note,
            instrument=log_measure(-3.0),
            better="li-batch-equal-loss",
        ),
        Claim(
            "li-rate",
            "Li et al.",
            "Large learning rates end in wider regions than small ones.",
            "no number published",
            _BOWL,
            0.1,
            (("rate 0.2", "rate 0.01"),),
            bowl,
            rates,
            higher=False,
            seeds=size.seeds,
            seconds=6,
            note=note,
            instrument=log_measure(-3.0),
            better="li-rate-equal-loss",
        ),
        Claim(
            "li-adam",
            "Li et al.",
            "SGD ends in wider regions than Adam.",
            "no number published",
            _BOWL,
            0.1,
            (("SGD", "Adam"),),
            bowl,
            {"SGD": arm(plain), "Adam": changed(**adam)},
            higher=False,
            seeds=size.seeds,
            seconds=6,
            note=note,
            instrument=log_measure(-3.0),
            better="li-adam-equal-loss",
        ),
        Claim(
            "li-normalized",
            "Li et al.",
            "Filter-normalized curvature orders small and large batches as their test "
            "error does, un-normalized curvature does not, under weight decay.",
            "VGG-9, weight decay 5e-4: error 6.0 % (128) and 10.19 % (8192), figures for the rest",
            "share of seeds whose order agrees, digits, weight decay 5e-3",
            0.1,
            (("filter", "none"),),
            order_agrees,
            {
                name: changed(batch_size=count, optimizer__weight_decay=5e-3)
                for name, count in (("small", 16), ("large", samples))
            },
            seeds=size.seeds,
            seconds=6,
            instrument=SHARE,
            better="li-normalized-margin",
        ),
        Claim(
            "li-decay",
            "Li et al.",
            "It is weight decay that makes un-normalized curvature mislead.",
            "figures 2 and 3: un-normalized, the small batch looks sharper with decay and flatter without",
            "share of seeds whose un-normalized order of small and large batches agrees with the test errors, digits",
            0.1,
            (("without decay", "with decay"),),
            order_by_decay,
            {
                f"{name}, {words}": changed(batch_size=count, optimizer__weight_decay=decay)
                for words, decay in (("without decay", 0.0), ("with decay", 5e-3))
                for name, count in (("small", 16), ("large", samples))
            },
            seeds=size.seeds,
            seconds=4,
            after=("li-normalized",),
            note="the filter-normalized shares stand beside them",
            instrument=SHARE,
            better="li-decay-margin",
        ),
    ]


def _measures(size: Size) -> list[Claim]:
    options = {"blocks": [3, 3, 3], "growth": 6}
    networks = {
        "ResNet-8": network(8),
        "ResNet-20": network(20),
        "ResNet-20 without": network(20, skip=False),
        "ResNet-8, width 16": network(8, width=16),
        "VGG-9": ModelSpec(name="vgg9", options={"narrow": 8, "size": 8}),
        "DenseNet": ModelSpec(name="lowland.models.densenet:densenet", options=options),
    }
    every = {name: arm(digits(size, model=model)) for name, model in networks.items()}
    return [
        Claim(
            "li-path",
            "Li et al.",
            "A training path lies in very few dimensions.",
            "40 to 90 % on two components",
            "share on two components less that of a random walk with the same steps, digits",
            0.05,
            (("SGD", "random walk"),),
            share_above,
            {"SGD": arm(digits(size))},
            seeds=size.seeds,
            seconds=4,
            note="a random walk puts 76 to 90 % there (Antognini and Sohl-Dickstein 2018)",
            instrument=PATH,
        ),
        Claim(
            "li-architectures",
            "Li et al.",
            "Across architectures a flatter surface goes with a lower test error.",
            _NONE,
            "Kendall's tau of surface curvature and test error over six networks, digits",
            0.2,
            (("tau", "none"),),
            architecture_tau,
            every,
            seeds=size.few,
            seconds=15,
            note="architectures differ in many ways; no cause can be read off",
            instrument=TAU,
        ),
    ]


def share_above(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Measure the share of a path's variance above a random walk's."""
    return {**reader(path_share_above_null)(runs, arms, seed), "random walk": 0.0}


def order_agrees(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Tell whether curvature orders two runs as their test error does, with and without normalization."""
    paths = [runs.train(runs.settled(arms[name]), seed) for name in ("small", "large")]
    errors = [read_endpoint(path, "test_error") for path in paths]
    found = {}
    for kind in ("filter", "none"):
        read = surface_number("curvature", normalization=kind)
        sharp = [read(path) for path in paths]
        found[kind] = float((sharp[1] - sharp[0]) * (errors[1] - errors[0]) > 0)
    return found


def order_by_decay(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Tell whether curvature orders two runs as their test error does, with and without weight decay."""
    found = {}
    for words in ("without decay", "with decay"):
        pair = {name: arms[f"{name}, {words}"] for name in ("small", "large")}
        agrees = order_agrees(runs, pair, seed)
        found[words], found[f"{words}, filter"] = agrees["none"], agrees["filter"]
    return found


def architecture_tau(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Correlate surface curvature and test error over architectures, inside one seed."""
    paths = [runs.train(runs.settled(one), seed) for one in arms.values()]
    read = surface_number("curvature")
    tau = kendalltau([read(path) for path in paths], [read_endpoint(path, "test_error") for path in paths]).statistic
    return {"tau": float(tau), "none": 0.0}
