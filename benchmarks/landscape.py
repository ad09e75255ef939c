"""Surveys against a written-down reference procedure: time per point, whole pictures, and how exact they are.

The reference, as people write it: float32 and contiguous; at each point the weights are rebuilt tensor by tensor, a
DataLoader with batches of 128 and two workers is iterated, and loss and hits are read back per batch. All ratios are of
times taken side by side in one run. The reference's time for a whole picture is its time per point, the median of
several, times the number of points. "bare" is nothing but the forward passes, in the best layout and batch size found.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowland import landscape
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.landscape.layout import rebatched
from lowland.landscape.refine import refine
from lowland.landscape.tolerance import Tolerance, too_far
from lowland.models import resnet

Case = tuple[nn.Module, Tensor, Tensor]


def digits(count: int) -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)[:count], torch.tensor(y)[:count]


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> Case:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval(), x, y


def cases(samples: int, epochs: int) -> dict[str, Callable[[], Case]]:
    x, y = digits(min(samples, 1797))
    # digits enlarged to the size of CIFAR images: real classes for a network of that size to learn
    large = nn.functional.interpolate(x.repeat(-(-samples // len(x)), 3, 1, 1)[:samples], size=32, mode="bilinear")
    labels = y.repeat(-(-samples // len(y)))[:samples]
    mlp = lambda: nn.Sequential(  # ruff: ignore[lambda-assignment]
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    return {
        "mlp": lambda: trained(mlp(), x, y, 10 * epochs),
        "digits resnet8": lambda: trained(resnet(8, channels=1), x, y, 2 * epochs),
        "resnet20 32x32": lambda: trained(resnet(20), large, labels, epochs),
        "resnet56 without skips": lambda: trained(resnet(56, channels=1, skip=False), x, y, 2 * epochs),
    }


def reference_seconds(case: Case, plane: landscape.Plane, workers: int, points: int) -> float:
    """Median seconds per point of the reference procedure."""
    model, x, y = copy.deepcopy(case[0]), case[1], case[2]
    loader = DataLoader(TensorDataset(x, y), batch_size=128, num_workers=workers)
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    times = []
    for a in np.linspace(-1, 1, points + 1):
        start = time.perf_counter()
        for name, parameter in model.named_parameters():
            parameter.data = base[name] + a * plane.axes[0].values[name] + a * plane.axes[1].values[name]
        total, hits = 0.0, 0
        with torch.no_grad():
            for inputs, targets in loader:
                output = model(inputs)
                total += nn.functional.cross_entropy(output, targets).item() * len(targets)
                hits += (output.argmax(1) == targets).sum().item()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def bare_seconds(risk: EmpiricalRisk, kernel: dict[str, Any], repeats: int) -> float:
    """Median seconds of the forward passes alone, with the kernel that the trial found."""
    with torch.no_grad(), risk.prepared(), landscape.surface_task.ComputeSettings(**kernel).applied(risk.model):
        batches = list(rebatched(risk.batches(), kernel["batch_size"], kernel["memory_format"]))
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for batch in batches:
                risk.model(batch.input)
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def survey_seconds(risk: EmpiricalRisk, plane: landscape.Plane, points: int) -> tuple[float, dict[str, Any]]:
    """Seconds per point of a survey of full precision, taken from its own progress, and its kernel."""
    stamps: list[float] = []
    surface = landscape.evaluate(
        risk, plane, landscape.grid(points, 2), batch_size="auto", on_event=lambda event: stamps.append(event.elapsed)
    )
    kernel = json.loads(surface.attrs["kernel"])
    step = kernel["chunk"]  # points that come together are announced together
    return statistics.median(np.diff(stamps[1:-1:step])) / step, kernel


def two_processes_seconds(risk: EmpiricalRisk, plane: landscape.Plane, side: int) -> float:
    """Seconds per point of the same survey by two worker processes, once both are at work."""
    stamps: list[tuple[float, int]] = []
    where = landscape.grid(side, side)
    landscape.evaluate(
        risk, plane, where, batch_size="auto", engine="processes:2",
        on_event=lambda event: stamps.append((event.elapsed, event.done)),
    )  # fmt: skip
    first = next(k for k, (_, done) in enumerate(stamps) if done >= where.size // 4)
    return (stamps[-1][0] - stamps[first][0]) / (stamps[-1][1] - stamps[first][1])


def truth(
    case: Case, where: landscape.Grid, chosen: np.ndarray, options: argparse.Namespace, name: str, kind: torch.dtype
) -> np.ndarray:
    """Losses at some points of a grid, in float64 or float32; of a whole grid by a survey that can be interrupted."""
    model, x, y = copy.deepcopy(case[0]).to(kind), case[1].to(kind), case[2]
    single = landscape.random_plane(case[0])
    plane = landscape.user_plane(model, [{n: v.to(kind) for n, v in a.values.items()} for a in single.axes])
    risk = EmpiricalRisk(
        model, nn.CrossEntropyLoss(), [(x[k : k + 250], y[k : k + 250]) for k in range(0, len(x), 250)]
    )
    if len(chosen) == len(where.x) * len(where.y):
        store = options.pictures / f"{name} in {str(kind).removeprefix('torch.')}.zarr"
        return landscape.evaluate(risk, plane, where, engine=options.engine, store=store).loss.values.reshape(-1)
    survey = landscape.surface_task.SurfaceTask({"": risk}, (plane,), paired=False)
    points = [landscape.surface_task.Point(where.coordinates(int(k))) for k in chosen]
    with survey.setup() as place:
        return np.array([row.values["loss"] for point in points for row in survey.measure(place, [point])])


def exactness(case: Case, options: argparse.Namespace, name: str, pictures: dict[str, Any]) -> dict[str, Any]:
    """Add to each picture how far its pixels are from float64, all of them or so many at random.

    With ``--float32-grid`` all of them are compared with a full grid of full precision, and that one with float64 at
    the random ones: for networks whose full grid in float64 takes hours. With ``--float32`` the random ones
    are compared with full precision, and that with float64 at eight of them: where float64 has no fast kernels.
    """
    stored = np.load(options.pictures / f"{name}.npz")
    where = landscape.Grid(stored["x"], stored["y"])
    count = len(where.x) * len(where.y)
    chosen = np.sort(np.random.default_rng(0).choice(count, min(options.checks, count), replace=False))
    row: dict[str, Any] = {}
    if options.float32_grid and len(chosen) < count:
        true = truth(case, where, np.arange(count), options, name, torch.float32)
        double = truth(case, where, chosen, options, name, torch.float64)
        row = {"float32_error": float(np.abs(true[chosen] / double - 1).max()), "float64_points": len(chosen)}
        chosen = np.arange(count)
    elif options.float32:
        true, some = truth(case, where, chosen, options, name, torch.float32), slice(None, None, -(-len(chosen) // 8))
        double = truth(case, where, chosen[some], options, name, torch.float64)
        row = {"float32_error": float(np.abs(true[some] / double - 1).max()), "float64_points": len(double)}
    else:
        true = truth(case, where, chosen, options, name, torch.float64)
    for kind, picture in pictures.items():
        values = stored[kind].reshape(-1)
        ratios = too_far(np.abs(values[chosen] - true), true, float(np.ptp(values)), _floor(values), Tolerance())
        outside = [[*divmod(int(chosen[k]), len(where.y)), float(ratios[k])] for k in np.flatnonzero(ratios > 1)]
        picture |= {"inside": float((ratios <= 1).mean()), "worst": float(ratios.max()), "outside": outside}
    if len(chosen) == count:
        row["seeds"] = {safety: over_seeds(where, true, safety) for safety in (5, 10)}
    return row | {"checked": len(chosen), "pictures": pictures}


def _floor(values: np.ndarray) -> float:
    """Below this values count as this: a tenth of the loss at the origin, the middle of every grid here."""
    return Tolerance().floor * abs(float(values.reshape(-1)[values.size // 2]))


def over_seeds(where: landscape.Grid, true: np.ndarray, safety: float) -> dict[str, list[float]]:
    """Points and share of pixels inside for ten other seeds of the checks, on a grid that is known."""
    found: dict[str, list[float]] = {"measured": [], "inside": []}
    for seed in range(1, 11):
        part = refine(where, Tolerance(safety=safety, seed=seed), lambda k: true[k][:, None])
        ratios = too_far(
            part.values[:, 0] - true[part.guessed], true[part.guessed], float(np.ptp(true)), _floor(true), Tolerance()
        )
        found["measured"].append(len(part.measured))
        found["inside"].append(1 - float((ratios > 1).sum()) / true.size)
    return found


KINDS: dict[str, tuple[Tolerance, str]] = {
    "default": (Tolerance(), "serial"),
    "two processes": (Tolerance(), "processes:2"),
    "strict": (Tolerance(safety=10), "serial"),
}


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Times of points and pictures; of networks that take little time the medians of five turns side by side."""
    model, x, y = case
    plane = landscape.random_plane(model)
    risk = EmpiricalRisk(
        model, nn.CrossEntropyLoss(), [(x[k : k + 128], y[k : k + 128]) for k in range(0, len(x), 128)]
    )
    turns = [turn(case, risk, plane, options)]
    if turns[0]["reference_s"] < 0.1:
        turns += [turn(case, risk, plane, options) for _ in range(4)]
    row: dict[str, Any] = {"case": name, "samples": len(x), "parameters": sum(p.numel() for p in model.parameters())}
    row |= {key: statistics.median(one[key] for one in turns) for key in turns[0] if key not in ("kernel", "found")}
    found = {kind: [one["found"][kind] for one in turns] for kind in KINDS}
    options.pictures.mkdir(parents=True, exist_ok=True)
    values = {kind: some[-1][1].loss.values for kind, some in found.items()}
    last = found["default"][-1][1]
    np.savez(options.pictures / f"{name}.npz", **values, x=last.x.values, y=last.y.values)
    pixels = options.side**2
    row["pictures"] = {
        kind: {
            "seconds": statistics.median(seconds for seconds, _ in some),
            "faster": statistics.median(
                one["reference_s"] * pixels / seconds for one, (seconds, _) in zip(turns, some, strict=True)
            ),
            "measured": int((some[-1][1].status == 1).sum()),
            "precision": some[-1][1].attrs["precision"],
        }
        for kind, some in found.items()
    }
    row["over_full_grid"] = statistics.median(
        seconds / (one["point_s"] * pixels) for one, (seconds, _) in zip(turns, found["default"], strict=True)
    )
    return row | {"turns": len(turns), "kernel": turns[-1]["kernel"], "trial": json.loads(last.attrs["trial"])}


def turn(case: Case, risk: EmpiricalRisk, plane: landscape.Plane, options: argparse.Namespace) -> dict[str, Any]:
    """Everything timed once, side by side."""
    reference = reference_seconds(case, plane, 2, options.points)
    plain = reference_seconds(case, plane, 0, options.points)
    ours, kernel = survey_seconds(risk, plane, max(options.points, int(1 / plain)))
    two = two_processes_seconds(risk, plane, options.side if reference < 0.1 else options.points)
    bare = bare_seconds(risk, kernel, options.points)
    found = {kind: picture_seconds(risk, plane, options, *how) for kind, how in KINDS.items()}
    again = reference_seconds(case, plane, 2, options.points)  # before and after, since the machine is not always alike
    return {
        "reference_s": (reference + again) / 2, "plain_s": plain, "point_s": ours, "two_processes_s": two,
        "faster": reference / ours, "faster_without_workers": plain / ours, "over_bare": ours / bare,
        "faster_two_processes": reference / two, "faster_two_processes_without_workers": plain / two,
        "kernel": kernel, "found": found,
    }  # fmt: skip


def start(case: Case, plane: landscape.Plane, points: int) -> dict[str, Any]:
    """What the checks at the start of a survey take, in points of that survey, side by side."""
    model, x, y = case
    data = [(x[k : k + 128], y[k : k + 128]) for k in range(0, len(x), 128)]
    ratios: list[float] = []
    seconds = 0.0
    while len(ratios) < (20 if seconds < 0.1 else 3):
        seconds, _ = survey_seconds(EmpiricalRisk(model, nn.CrossEntropyLoss(), data), plane, points)
        fresh = EmpiricalRisk(model, nn.CrossEntropyLoss(), data)
        begin = time.perf_counter()
        fresh.check_deterministic()
        ratios.append((time.perf_counter() - begin) / seconds)
    return {"over_point": statistics.median(ratios), "turns": len(ratios), **provenance()}


def picture_seconds(
    risk: EmpiricalRisk, plane: landscape.Plane, options: argparse.Namespace, tolerance: Tolerance, engine: str
) -> tuple[float, Any]:
    """Seconds of a whole picture with everything switched on, and the picture."""
    start = time.perf_counter()
    where = landscape.grid(options.side, options.side)
    picture = landscape.evaluate(
        risk, plane, where, refined=tolerance, batch_size="auto", precision="auto", engine=engine
    )
    return time.perf_counter() - start, picture


def others(points: int) -> list[dict[str, Any]]:
    """Time and largest error against float64 of other packages on the same work, as far as they are installed."""
    x, y = digits(600)
    torch.manual_seed(0)
    first, second = (trained(resnet(8, channels=1), x, y, 3)[0] for _ in range(2))
    measures = {"loss_landscapes": line_of_loss_landscapes, "landscaper": plane_of_landscaper}
    found = []
    for name, measured in measures.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed: not compared")
            continue
        risk = EmpiricalRisk(copy.deepcopy(first), nn.CrossEntropyLoss(), [(x, y)])
        double = EmpiricalRisk(copy.deepcopy(first).double(), nn.CrossEntropyLoss(), [(x.double(), y)])
        # copies: a tool may leave the networks frozen
        found.append(measured(risk, double, copy.deepcopy(first), copy.deepcopy(second), points))
    return found


def compared(
    case: str, theirs: Callable[[], np.ndarray], ours: Callable[[EmpiricalRisk], np.ndarray],
    risk: EmpiricalRisk, double: EmpiricalRisk,
) -> dict[str, Any]:  # fmt: skip
    """Time both, the quickest of three turns each, and compare with our float64."""
    times: list[list[float]] = [[], []]
    for _ in range(3):
        start = time.perf_counter()
        values = ours(risk)
        middle = time.perf_counter()
        others_values = theirs()
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    true = ours(double)
    return {
        "case": case, "their_s": min(times[1]), "our_s": min(times[0]),
        "their_error": float(np.abs(others_values - true).max()), "our_error": float(np.abs(values - true).max()),
    }  # fmt: skip


def line_of_loss_landscapes(
    risk: EmpiricalRisk, double: EmpiricalRisk, first: nn.Module, second: nn.Module, points: int
) -> dict[str, Any]:
    """The line between two networks."""
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    x, y = next(iter(risk.batches())).input, next(iter(risk.batches())).target

    def ours(measured: EmpiricalRisk) -> np.ndarray:
        other = copy.deepcopy(second).to(next(measured.model.parameters()).dtype)
        line = landscape.line_between(measured.model, other)
        return landscape.evaluate(measured, line, landscape.grid(points, extent=(0, 1))).loss.values

    def theirs() -> np.ndarray:
        return loss_landscapes.linear_interpolation(first, second, Loss(nn.CrossEntropyLoss(), x, y), steps=points)

    return compared(
        f"loss-landscapes {version('loss-landscapes')}, line of {points} points", theirs, ours, risk, double
    )


def plane_of_landscaper(
    risk: EmpiricalRisk, double: EmpiricalRisk, first: nn.Module, _second: nn.Module, points: int
) -> dict[str, Any]:
    """A plane along two given directions, in the steps that landscaper makes of them."""
    from landscaper.compute import compute_loss_landscape

    x, y = next(iter(risk.batches())).input, next(iter(risk.batches())).target
    generator = torch.Generator().manual_seed(0)
    axes = [[torch.randn(p.shape, generator=generator) for p in first.parameters()] for _ in range(2)]
    norm = torch.sqrt(sum(p.detach().double().square().sum() for p in first.parameters()))
    distance, names = 0.5, [name for name, _ in first.named_parameters()]

    def ours(measured: EmpiricalRisk) -> np.ndarray:
        kind = next(measured.model.parameters()).dtype
        steps = []
        for axis in axes:  # every tensor to the root of its size, then all together to a share of the weights' norm
            scaled = [d.double() * d.numel() ** 0.5 / d.double().norm() for d in axis]
            whole = torch.sqrt(sum(d.square().sum() for d in scaled))
            step = norm * distance / (points / 2) / whole
            steps.append({name: (d * step).to(kind) for name, d in zip(names, scaled, strict=True)})
        plane = landscape.user_plane(measured.model, steps)
        half = points // 2
        where = landscape.Grid(np.arange(-half, half + 1.0), np.arange(-half, half + 1.0))
        return landscape.evaluate(measured, plane, where, paired=False).loss.values

    def theirs() -> np.ndarray:
        model = copy.deepcopy(first)
        scalar = lambda net, _: nn.functional.cross_entropy(net(x), y).item()  # ruff: ignore[lambda-assignment]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            values, _ = compute_loss_landscape(model, None, axes, scalar, points, distance, 2, device="cpu")
        return values

    return compared(f"landscaper {version('landscaper')}, plane of {points} x {points}", theirs, ours, risk, double)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="images measured at each point")
    parser.add_argument("--side", type=int, default=51, help="points a side of the picture")
    parser.add_argument("--points", type=int, default=7, help="points timed for every time per point")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of training, more for the small networks")
    parser.add_argument(
        "--checks", type=int, default=300, help="pixels compared with float64; all of them from 2601 on, 0 omits it"
    )
    parser.add_argument(
        "--float32-grid", action="store_true", help="compare all pixels with a float32 grid, that one with float64"
    )
    parser.add_argument(
        "--float32", action="store_true", help="compare the pixels with float32, and that at eight of them with float64"
    )
    parser.add_argument("--check-only", action="store_true", help="compare the pictures of the last run, and no timing")
    parser.add_argument("--engine", default="serial", help="engine of the float64 grid")
    parser.add_argument("--only", nargs="*", help="names of cases; others keep their stored rows")
    parser.add_argument("--pictures", type=Path, default=Path("runs") / "benchmark-pictures", help="where pictures go")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "landscape.json")
    options = parser.parse_args()
    content = json.loads(options.output.read_text()) if options.output.exists() else {"rows": [], "others": None}
    rows = {row["case"]: row for row in content["rows"]}

    def keep() -> None:
        content["rows"] = list(rows.values())
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(content, indent=1) + "\n")

    for name, make in cases(options.samples, options.epochs).items():
        if options.only and name not in options.only:
            continue
        torch.manual_seed(0)
        case = make()
        if not options.check_only:
            rows[name] = {**measure(name, case, options), **provenance(), "threads": torch.get_num_threads()}
            show(rows[name])
            keep()  # before the comparison, which takes longer than all timings
        points = max(options.points, int(0.1 / rows[name]["point_s"]))
        rows[name]["start"] = start(case, landscape.random_plane(case[0]), points)
        keep()
        if options.checks:
            rows[name] |= exactness(case, options, name, rows[name]["pictures"])
            show(rows[name])
            keep()
    if not options.only and not options.check_only:
        content["others"] = others(options.side)
        print(*content["others"], sep="\n")
    content["settings"] = {name: getattr(options, name) for name in ("samples", "side", "points", "epochs")}
    options.output.write_text(json.dumps(content, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    """Print a row of the table."""
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items() if not isinstance(v, dict)}
    print("  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)


if __name__ == "__main__":
    main()
