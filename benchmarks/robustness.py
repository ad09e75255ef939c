"""What the card says of four ways to train at equal train loss, and how long a card and a basin profile take.

    python benchmarks/robustness.py --part ways       # runs of the demo's networks, a card of each
    python benchmarks/robustness.py --part ways --network transformer --width 64 --blocks 2 --samples 256  # on text
    python benchmarks/robustness.py --part card       # seconds of every part of a ResNet-20's card
    python benchmarks/robustness.py --part card --network transformer --samples 256  # one of 10 M weights, on text
    python benchmarks/robustness.py --part profile    # 200 directions x 10 radii beside a surface of as many points
    python benchmarks/robustness.py --part curve --epochs 30  # a curve between two networks beside training one of them

Each writes benchmarks/results/robustness_PART.json (robustness_card_transformer.json), with the load of the machine at
its start. Processor time stands beside the time that passed: other work changes the one far less than the other.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import nn

import lowland as ll
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.data import DataSplits, TensorData
from lowland.results import Run
from lowland.results.matched import matched_steps
from lowland.robustness import RobustnessOptions, card, outcomes
from lowland.workflows import DataSpec, FitSpec, OptimizerSpec, fit

RESULTS = Path(__file__).parent / "results"
METHODS = {"SGD": "none", "SAM": "sam", "SALA": "sala", "EMA": "ema"}
Sizes = tuple[int, int, int, int]
"""Of a model of bytes: lines, their length, its width and blocks."""
PARTS = ("rounding", "noise", "worst", "forgetting", "inputs")


def run_of(folder: Path, name: str, seed: int, epochs: int) -> Run:
    data = DataSpec(name="digits", options={"train_size": 300, "label_noise": 0.2})
    optimizer, place = OptimizerSpec(method=METHODS[name]), folder / f"{name}-{seed}"
    fit(FitSpec(folder=str(place), data=data, batch_size=32, seed=seed, optimizer=optimizer, epochs=epochs, threads=1,
                snapshots_every_epochs=1))  # fmt: skip
    found = ll.open(place)
    assert isinstance(found, Run)
    return found


def turned(risk: EmpiricalRisk, run: Run) -> EmpiricalRisk:
    """The same images and labels, turned by 90 degrees: other data for the same network."""
    data = run.data().train
    return EmpiricalRisk(risk.model, risk.loss, [(torch.rot90(data.input, 1, (2, 3)), data.target)])


def ways(seeds: int, epochs: int, folder: Path, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """A card of each method and seed, at the snapshot whose train loss is nearest to one that all four have reached."""
    made = []
    for seed in range(seeds):
        runs = [run_of(folder, name, seed, epochs) for name in METHODS]
        for name, run, step in zip(METHODS, runs, matched_steps(runs), strict=True):
            risk = run.risk(weights=step)
            made.append({"method": name, "seed": seed, "step": int(step), **carded(risk, turned(risk, run))})
            print(name, seed, step, made[-1]["train_loss"], flush=True)
        keep(made)


def carded(risk: EmpiricalRisk, other: EmpiricalRisk) -> dict[str, Any]:
    """What a card says: facts of the weights, and the row of every change."""
    options = RobustnessOptions(parts=["rounding", "noise", "worst", "forgetting"])
    found, (seconds, _) = timed(card, risk, options, finetune=other)
    facts = {key: float(found.attrs[key]) for key in ("train_loss", "filter_trace", "filter_trace_se")}
    rows = [
        {"part": row.part, "name": row.name.split(" (")[0], "size": row.size, "change": row.loss_change,
         "se": (row.loss_change_se**2 + (0.0 if row.draws < 2 else row.draw_se) ** 2) ** 0.5,
         "predicted": row.predicted, "compared": row.compared}
        for row in outcomes(found)
    ]  # fmt: skip
    return {"seconds": seconds, **facts, "rows": rows}


BASED: dict[str, Callable[[torch.optim.Optimizer, nn.Module], Any]] = {
    "AdamW": lambda base, model: base,
    "SAM": lambda base, model: ll.optim.SAM(base, rho=0.05, model=model),
    "SALA": lambda base, model: ll.optim.SALA(base, rho=0.05, model=model),
    "EMA": lambda base, model: ll.optim.EMA(base, decay=0.95, model=model),
}


def ways_of_text(seeds: int, target: float, sizes: Sizes, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """A card of each method and seed on a model of bytes, where its train loss first meets the target."""
    made = []
    for seed in range(seeds):
        for name in BASED:
            risk, other, step = met(name, seed, target, sizes)
            made.append({"method": name, "seed": seed, "step": step, **carded(risk, other)})
            print(name, seed, step, made[-1]["train_loss"], flush=True)
        keep(made)


def met(name: str, seed: int, target: float, sizes: Sizes) -> tuple[EmpiricalRisk, EmpiricalRisk, int]:
    """Train until the loss on all lines, looked at every ten steps with the weights that count, meets the target."""
    samples, length, width, blocks = sizes
    own = lines(samples, length)
    torch.manual_seed(seed)
    model = Transformer(length, width, blocks)
    optimizer = BASED[name](torch.optim.AdamW(model.parameters(), lr=3e-3), model)
    for step in range(1, 20_001):
        rows = torch.randint(samples, (64,))

        def closure(rows: torch.Tensor = rows) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(own[0][rows]), own[1][rows])
            loss.backward()
            return loss

        optimizer.step(closure)
        if step % 10 == 0:
            evaluated = copy.deepcopy(model).eval() if name == "AdamW" else averaged(optimizer, model)
            with torch.no_grad():
                if nn.functional.cross_entropy(evaluated(own[0]), own[1]) <= target:
                    return text_risk(evaluated, own), text_risk(evaluated, lines(samples, length, back=True)), step
    raise RuntimeError(f"{name} did not reach a train loss of {target} in {step} steps")


def averaged(optimizer: Any, model: nn.Module) -> nn.Module:
    """A copy of the model with the weights that a wrapper evaluates."""
    optimizer.eval()
    copied = copy.deepcopy(model).eval()
    optimizer.train()
    return copied


def text_risk(model: nn.Module, text: tuple[torch.Tensor, torch.Tensor]) -> EmpiricalRisk:
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), list(zip(*(part.split(64) for part in text), strict=True)))


def timed(call: Callable[..., Any], *words: Any, **more: Any) -> tuple[Any, tuple[float, float]]:
    start, before = time.perf_counter(), time.process_time()
    found = call(*words, **more)
    return found, (time.perf_counter() - start, time.process_time() - before)


def enlarged(samples: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The digits, as often as it takes, in three channels of that side."""
    part = ll.data.load("digits").train
    index = torch.arange(samples) % len(part)
    x = nn.functional.interpolate(part.input[index], size=side, mode="bilinear") if side > 8 else part.input[index]
    return (x.repeat(1, 3, 1, 1) if side > 8 else x), part.target[index]


def stepped(model: nn.Module, x: torch.Tensor, y: torch.Tensor, kind: Any = None, steps: int = 20) -> nn.Module:
    """A few steps, so that losses and statistics are those of a network that has learned something."""
    of = model.parameters()
    optimizer = torch.optim.SGD(of, lr=0.05, momentum=0.9) if kind is None else kind(of, lr=1e-3)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * (step + 1)) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def risk_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> EmpiricalRisk:
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), list(zip(x.split(250), y.split(250), strict=True)))


class Block(nn.Module):
    """Causal attention and an MLP, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attention(self.first(x)).chunk(3, -1)
        ]
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """A model of bytes; 10.0 M weights at the defaults. Logits are [n, bytes, length], as cross entropy takes them."""

    def __init__(self, length: int, width: int = 320, blocks: int = 8) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(256, width), nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*(Block(width, max(1, width // 64)) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(x) + self.places)).transpose(1, 2)


def lines(count: int, length: int, *, back: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines of the chapters of Python's help, from the first one on or from the last one, and their next bytes."""
    chapters = "\n".join(topics[name] for name in sorted(topics, reverse=back)).encode()
    rows = torch.tensor(list(chapters[: count * (length + 1)])).reshape(count, length + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def of_images(samples: int, tested: int) -> tuple[EmpiricalRisk, dict[str, Any], str]:
    x, y = enlarged(samples, 32)
    risk = risk_of(stepped(ll.models.resnet(20), x, y), x, y)
    other = risk_of(risk.model, torch.rot90(x, 1, (2, 3)), y)
    test = TensorData(x, y, torch.arange(samples)).take(torch.arange(tested))
    data = DataSplits("enlarged", test, test, test, classes=10, shape=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    return risk, {"forgetting": {"finetune": other}, "inputs": {"data": data}}, "ResNet-20, 32 x 32"


def of_text(samples: int, length: int, width: int, blocks: int) -> tuple[EmpiricalRisk, dict[str, Any], str]:
    own, other = lines(samples, length), lines(samples, length, back=True)
    model = stepped(Transformer(length, width, blocks), *own, torch.optim.AdamW)
    risk, away = text_risk(model, own), text_risk(model, other)
    count = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M weights"
    return risk, {"forgetting": {"finetune": away}}, f"transformer, {count}, lines of {length} bytes"


def card_times(
    subject: tuple[EmpiricalRisk, dict[str, Any], str], options: RobustnessOptions, *, whole: bool
) -> dict[str, Any]:
    """Seconds of every part, with everything that a card of that part alone needs, and of all; or of all alone."""
    risk, needs, network = subject
    rows, parts = {}, list(options.parts or ())
    alone = {} if whole else {part: [part] for part in parts}
    for name, some in {**alone, "whole card": parts}.items():
        given = {key: value for part in some for key, value in needs.get(part, {}).items()}
        _, (seconds, busy) = timed(card, risk, replace(options, parts=some), **given)
        rows[name] = {"seconds": seconds, "busy": busy}
        print(name, f"{seconds:.1f} s, processor {busy:.1f} s", flush=True)
    return {"rows": rows, "network": network, "threads": torch.get_num_threads()}


def profile_times(directions: int, radii: int) -> dict[str, Any]:
    """The profile against a surface with as many points, both of the same risk, network by network."""
    x, y = enlarged(1797, 8)
    torch.manual_seed(0)
    networks = {
        "mlp": nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)),
        "resnet8": ll.models.create("resnet8", channels=1, seed=0),
    }
    rows, points = {}, directions * radii
    for name, network in networks.items():
        risk = risk_of(stepped(network, x, y), x, y)
        places = [0.01 * (k + 1) for k in range(radii)]
        options = RobustnessOptions(parts=["noise"], directions=directions, radii=places, curvature_samples=None)
        plane, grid = ll.landscape.random_plane(network, seed=0), ll.landscape.grid(directions, radii)
        _, surface = timed(ll.landscape.evaluate, risk, plane, grid)
        _, both = timed(card, risk, options)  # by filter and absolute
        rows[name] = {"surface_ms": 1e3 * surface[1] / points, "profile_ms": 1e3 * both[1] / (2 * points)}
        print(name, rows[name], flush=True)
    return {"rows": rows, "directions": directions, "radii": radii}


def curve_times(epochs: int, turns: int = 3) -> dict[str, Any]:
    """Processor seconds of a curve beside the training of an end over as many epochs, and of measuring it."""
    data, rows = ll.data.load("digits"), []
    x, y = data.train.input, data.train.target
    for turn in range(turns):
        batches = lambda epoch: zip(x.split(64), y.split(64), strict=True)  # ruff: ignore[lambda-assignment]
        ends = [ll.models.create("resnet8", channels=1, seed=2 * turn + k) for k in (0, 1)]
        trained = []
        for end in ends:
            base = torch.optim.SGD(end.parameters(), lr=0.03, momentum=0.9)
            trained.append(
                timed(ll.training.fit, end, base, nn.CrossEntropyLoss(), data, epochs=epochs, batch_size=64)[1][1]
            )
        found, (_, bent) = timed(ll.landscape.curve, *ends, nn.CrossEntropyLoss(), batches, epochs=epochs)
        risk = EmpiricalRisk(ends[0], nn.CrossEntropyLoss(), list(batches(0)), batch_norm="recalibrated")
        where = ll.landscape.grid(21, extent=(0, 1))
        _, (_, measured) = timed(ll.landscape.evaluate, risk, found.line(ends[0]), where)
        rows.append({"end": sum(trained) / 2, "curve": bent, "measured": measured})
        print(rows[-1], flush=True)
    return {"rows": rows, "epochs": epochs, "samples": len(x), "points": 21}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("ways", "card", "profile", "curve"), required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where runs are kept, to go on; default: nowhere")
    parser.add_argument("--threads", type=int, default=2, help="of the card's times")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--tested", type=int, default=256, help="test images of the part inputs")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--network", choices=("resnet", "transformer"), default="resnet", help="whose card")
    parser.add_argument("--length", type=int, default=32, help="bytes of a line, for the transformer")
    parser.add_argument("--width", type=int, default=320, help="of the transformer")
    parser.add_argument("--blocks", type=int, default=8, help="of the transformer")
    parser.add_argument("--target", type=float, default=1.5, help="train loss (nats a byte) of the four ways on text")
    parser.add_argument("--curvature_samples", type=int, default=256, help="of predictions and the worst direction")
    parser.add_argument("--whole", action="store_true", help="time no part of the card alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads if options.part == "card" else 1)
    load = os.getloadavg()[0]

    def keep(found: dict[str, Any]) -> None:
        result = {**found, "load": load, **provenance()}
        name = options.part if options.network == "resnet" else f"{options.part}_{options.network}"
        (RESULTS / f"robustness_{name}.json").write_text(json.dumps(result, indent=1) + "\n")

    sizes = options.length, options.width, options.blocks
    if options.part == "ways" and options.network == "transformer":
        ways_of_text(options.seeds, options.target, (options.samples, *sizes), lambda made: keep({"runs": made}))
    elif options.part == "ways":
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            ways(options.seeds, options.epochs, folder, lambda made: keep({"runs": made}))
    elif options.part == "card":
        torch.manual_seed(0)
        text = options.network == "transformer"
        parts = [part for part in options.parts.split(",") if part != "inputs" or not text]
        subject = of_text(options.samples, *sizes) if text else of_images(options.samples, options.tested)
        count = options.curvature_samples
        times = card_times(subject, RobustnessOptions(parts=parts, curvature_samples=count), whole=options.whole)
        keep({**times, "samples": options.samples, "tested": options.tested, "curvature_samples": count})
    elif options.part == "curve":
        keep(curve_times(options.epochs))
    else:
        keep(profile_times(200, 10))


if __name__ == "__main__":
    main()
