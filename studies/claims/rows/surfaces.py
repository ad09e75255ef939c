"""Rows of Li et al. 2018 with instruments that can see: at equal train loss, off the floor, where the basin is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from lowland.study import Instrument, read_endpoint
from lowland.workflows import Changes
from studies.claims.claim import Claim, Measure
from studies.claims.readers import bumps, ends_ratio, log_bowl, surface_number
from studies.claims.rows.instruments import LEARNED, log_measure
from studies.claims.rows.landscape import network
from studies.claims.rows.tasks import Size, arm, digits, matched
from studies.claims.runs import Arm, RunCache

__all__ = ["surface_claims"]

_NONE: Final = "figures; no numbers in the text"
_BUMPS: Final = (
    "log10 of the depth of all local minima but the deepest, in the natural logarithm of the loss and above the error "
    "of the measurement, of a 31 x 31 filter-normalized surface out to 1, where the paths have the same train loss, "
    "digits"
)
_RATIO: Final = (
    "log10 of the median of |lowest / highest| Hessian eigenvalue over 25 points of a filter-normalized plane, of the "
    "weights that the plane moves, where the paths have the same train loss, digits"
)
_BOWL: Final = (
    "log10 curvature at the center of an 11 x 11 filter-normalized surface at spacing 0.2, kinks included, where the "
    "paths have the same train loss, digits"
)
_ROUGH: Final = Instrument(floor=-4.0, learned=LEARNED, equal_loss=True, edge=math.log(10))
_RANGE: Final = (
    "the range was set by the loss on the border of seed 0, and heights became logarithms after that seed had shown no "
    "minimum but one"
)
_DEEP: Final = "56 layers without shortcuts do not learn this task in the budget (li-trainability-depth)"


def surface_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_architecture(size), *_training(size), *_order(size)]


def _architecture(size: Size) -> list[Claim]:
    def net(depth: int, *, width: int = 8, skip: bool = True) -> Arm:
        return arm(digits(size, model=network(depth, width=width, skip=skip)))

    pairs = {
        "": ("without", "with shortcuts", {"with shortcuts": net(20), "without": net(20, skip=False)}),
        "-depth": (
            "20 layers without",
            "8 layers without",
            {"8 layers without": net(8, skip=False), "20 layers without": net(20, skip=False)},
        ),
        "-width": (
            "width 4",
            "width 16",
            {"width 16": net(20, width=16, skip=False), "width 4": net(20, width=4, skip=False)},
        ),
    }
    said = {
        "": "Without shortcuts the surface is rougher.",
        "-depth": "Without shortcuts a deeper network has a rougher surface.",
        "-width": "A narrower network has a rougher surface.",
    }
    bent = {
        "": "Without shortcuts the plane is further from convex.",
        "-depth": "Without shortcuts a deeper network has a plane that is further from convex.",
        "-width": "A narrower network has a plane that is further from convex.",
    }
    found = []
    for place, (treated, base, arms) in pairs.items():
        note = _DEEP if place == "-depth" else ""
        seen = "; ".join(filter(None, (note, _RANGE)))
        name = {"": "li-skips", "-depth": "li-depth", "-width": "li-width"}[place]
        rough = Claim(
            f"{name}-bumps",
            "Li et al.",
            said[place],
            _NONE,
            _BUMPS,
            0.3,
            ((treated, base),),
            matched(bumps),
            arms,
            seeds=2 * size.few,
            seconds=14,
            note=seen,
            instrument=_ROUGH,
        )
        convex = Claim(
            f"li-convexity-ratio{place}",
            "Li et al.",
            bent[place],
            "DenseNet-like regions have a ratio below 1 %",
            _RATIO,
            0.3,
            ((treated, base),),
            matched(ends_ratio),
            arms,
            seeds=size.few,
            seconds=20,
            after=(f"{name}-bumps",),
            primary=not place,
            note=note,
            instrument=log_measure(-6.0),
        )
        found += [rough, convex]
    return found


def _training(size: Size) -> list[Claim]:
    plain, bowl = digits(size), matched(log_bowl)
    adam = {"optimizer.name": "adam", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.0}
    rows: dict[str, tuple[str, str, dict[str, Changes]]] = {
        "batch": (
            "Small batches end in wider regions than large ones.",
            _NONE,
            {"batches of 16": {"batch_size": 16}, "whole batch": {"batch_size": size.images}},
        ),
        "rate": (
            "Large learning rates end in wider regions than small ones.",
            "no number published",
            {"rate 0.2": {"optimizer.learning_rate": 0.2}, "rate 0.01": {"optimizer.learning_rate": 0.01}},
        ),
        "adam": ("SGD ends in wider regions than Adam.", "no number published", {"SGD": {}, "Adam": adam}),
    }
    return [
        Claim(
            f"li-{name}-equal-loss",
            "Li et al.",
            statement,
            published,
            _BOWL,
            0.1,
            (tuple(changes),),
            bowl,
            {words: arm(plain, change) for words, change in changes.items()},
            higher=False,
            seeds=size.seeds + 10,
            seconds=5,
            instrument=log_measure(-3.0),
            spread=(0.1777, "the largest of li-batch, li-rate and li-adam at the end"),
        )
        for name, (statement, published, changes) in rows.items()
    ]


def _order(size: Size) -> list[Claim]:
    def both(decay: float) -> dict[str, Arm]:
        return {
            name: arm(digits(size), {"batch_size": count, "optimizer.weight_decay": decay})
            for name, count in (("small", 16), ("large", size.images))
        }

    what = (
        "log10 curvature of the large batch over that of the small one, with the sign of the difference of their test "
    )
    what += "errors, digits"
    tool = Instrument(learned=LEARNED)
    return [
        Claim(
            "li-normalized-margin",
            "Li et al.",
            "Filter-normalized curvature orders small and large batches as their test error does, un-normalized "
            "curvature does not, under weight decay.",
            "VGG-9, weight decay 5e-4: error 6.0 % (128) and 10.19 % (8192), figures for the rest",
            f"{what}, weight decay 5e-3",
            0.1,
            (("filter", "none"),),
            margins({"": 5e-3}),
            both(5e-3),
            seeds=size.seeds,
            seconds=6,
            instrument=tool,
        ),
        Claim(
            "li-decay-margin",
            "Li et al.",
            "It is weight decay that makes un-normalized curvature mislead.",
            "figures 2 and 3: un-normalized, the small batch looks sharper with decay and flatter without",
            what,
            0.1,
            (("none, without decay", "none, with decay"),),
            margins({", without decay": 0.0, ", with decay": 5e-3}),
            both(5e-3),
            seeds=size.seeds,
            seconds=5,
            after=("li-normalized-margin",),
            note="the filter-normalized margins stand beside them",
            instrument=tool,
        ),
    ]


def margins(decays: Mapping[str, float]) -> Measure:
    """Return the measure of how far curvature orders two runs as their test errors do."""

    def measure(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for words, decay in decays.items():
            specs = [one.spec for one in (arms["small"], arms["large"])]
            changed = [replace(one, optimizer=replace(one.optimizer, weight_decay=decay)) for one in specs]
            small, large = (runs.train(one, seed) for one in changed)
            worse = read_endpoint(large, "test_error") - read_endpoint(small, "test_error")
            loss = max(read_endpoint(path, "train_loss") for path in (small, large))
            for kind in ("filter", "none"):
                read = surface_number("curvature", normalization=kind)
                found[f"{kind}{words}"] = math.copysign(1.0, worse) * (read(large) - read(small)) if worse else 0.0
                found[f"train loss {kind}{words}"] = loss
        return found

    return measure
