"""What is trained and surveyed, in the order in which it runs, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from lowland.landscape import Tolerance
from lowland.workflows import DataSpec, FitSpec, ModelSpec, OptimizerSpec, ScheduleSpec

__all__ = ["LEARNED", "MNIST", "PARTS", "Net", "Size", "Survey", "expected_seconds", "plan"]

BatchNorm = Literal["running", "batch", "recalibrated"]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    data: str = "mnist"
    train_size: int | None = None  # Training images; None takes all
    epochs: int = 10
    batch_size: int = 50
    learning_rate: float = 0.1
    warmup: float = 1.0  # Epochs
    samples: int = 250  # Training images that every point of a surface is measured on
    side: int = 51  # Points a side
    fine: int = 101  # Points a side of the one fine pair
    depths: tuple[int, ...] = (20, 56, 110)
    widths: tuple[int, ...] = (4, 8)
    seeds: int = 3
    tolerance: Tolerance = field(default_factory=lambda: Tolerance(value=0.03))

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return self.epochs * -(-(self.train_size or 3000) // self.batch_size)


MNIST: Final = Size()

LEARNED: Final = 1.15
"""Train loss up to which a network counts as one that learned: half of that of guessing among ten classes."""


@dataclass(frozen=True)
class Net:
    """A network and its run."""

    depth: int
    skip: bool
    width: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the run and of its files."""
        return f"resnet{self.depth}{'' if self.skip else '-noshort'}-width{self.width}-seed{self.seed}"

    def spec(self, size: Size, folder: str = "") -> FitSpec:
        """Return the run: the paper's optimizer, with a warm-up and a cosine instead of its steps."""
        return FitSpec(
            folder=folder,
            model=ModelSpec(name=f"resnet{self.depth}", options={"width": self.width, "skip": self.skip}),
            data=DataSpec(name=size.data, options={} if size.train_size is None else {"train_size": size.train_size}),
            optimizer=OptimizerSpec(learning_rate=size.learning_rate, nesterov=True, weight_decay=5e-4),
            schedule=ScheduleSpec(warmup=size.warmup),
            epochs=size.epochs,
            batch_size=size.batch_size,
            seed=self.seed,
            snapshots_every_epochs=max(1, size.epochs // 3),
            threads=1,
        )


@dataclass(frozen=True)
class Survey:
    """A surface of a trained network."""

    part: str  # Which question it answers, see `PARTS`
    net: Net
    side: int
    direction: int = 0  # Seed of the two directions
    batch_norm: BatchNorm = "running"
    weights: Literal["last", "third"] = "last"  # Of the end of training, or of a third of it

    @property
    def name(self) -> str:
        """Name of the files."""
        words = [
            self.net.name,
            f"direction{self.direction}" if self.direction else "",
            "batch-statistics" if self.batch_norm == "batch" else "",
            "third" if self.weights == "third" else "",
            "fine" if self.part == "fine" else "",
        ]
        return "-".join(word for word in words if word)

    def asked(self, size: Size) -> dict[str, Any]:
        """Return what identifies the stored numbers, as plain JSON values; another value measures anew."""
        net, tolerance = self.net, size.tolerance
        run: dict[str, Any] = {
            "data": size.data,
            "train_size": size.train_size,
            "epochs": size.epochs,
            "batch_size": size.batch_size,
        }
        run |= {"learning_rate": size.learning_rate, "warmup": size.warmup}
        return {
            "depth": net.depth, "skip": net.skip, "width": net.width, "seed": net.seed, "run": run,
            "side": self.side, "direction": self.direction, "batch_norm": self.batch_norm, "weights": self.weights,
            "samples": size.samples, "tolerance": {"range": tolerance.range, "value": tolerance.value},
        }  # fmt: skip


PARTS: Final = {
    "pairs": "Depth, with and without shortcuts",
    "directions": "Other directions",
    "batch norm": "Batch statistics instead of running ones",
    "length": "A third of the training",
    "width": "Another width",
    "fine": "More points",
}
"""Part of the plan -> its title."""


def plan(size: Size = MNIST) -> list[Survey]:
    """Return all surveys; wherever a run of them stops, what is there can be drawn."""
    base, *others = size.widths
    middle = size.depths[len(size.depths) // 2]

    def both(part: str, depth: int, width: int, seed: int, side: int = size.side, **how: Any) -> list[Survey]:
        return [Survey(part, Net(depth, skip, width, seed), side, **how) for skip in (True, False)]

    first, *more = [[s for depth in size.depths for s in both("pairs", depth, base, k)] for k in range(size.seeds)]
    return [
        *first,
        *both("directions", middle, base, 0, direction=1),
        *both("batch norm", middle, base, 0, batch_norm="batch"),
        *both("length", middle, base, 0, weights="third"),
        *(survey for seed in more for survey in seed),
        *(s for width in others for k in range(size.seeds) for d in size.depths for s in both("width", d, width, k)),
        *both("fine", middle, base, 0, side=size.fine),
    ]


_STEP: Final = {4: (0.01, 0.0031), 8: (0.015, 0.0047)}
"""Width -> seconds of a training step of 50 images: what every net takes, and what each layer adds."""
_FORWARD: Final = {4: (1e-4, 1.1e-5), 8: (1e-4, 2.3e-5)}
"""Width -> seconds of a forward pass per image, likewise."""
_MEASURED: Final = 0.2
"""Share of a plane's points that a refined survey measures, in the mean over smooth and rough ones."""


def expected_seconds(survey: Survey, size: Size, *, trained: bool) -> tuple[float, float]:
    """Return what training (0 where it is done) and surveying take on one core."""
    depth, width = survey.net.depth, survey.net.width
    (step, per_layer), (image, image_layer) = _STEP.get(width, _STEP[8]), _FORWARD.get(width, _FORWARD[8])
    training = 0.0 if trained else size.steps * size.batch_size / 50 * (step + per_layer * depth)
    points = survey.side**2 * _MEASURED + 20  # those checked in float64
    return training, points * size.samples * (image + image_layer * depth)
