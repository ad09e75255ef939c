"""Writes tables of stored results into the docs, between ``<!-- measured: NAME -->`` and ``<!-- /measured -->``.

python -m benchmarks.tables            # write
python -m benchmarks.tables --check    # say which pages differ from the stored results, and exit with 1
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.table import Result, made, table
from benchmarks.tables_of_measuring import (
    cold_floor,
    curvature,
    error_models,
    film,
    landscape,
    limits,
    refinement_bounds,
    robustness_card,
    robustness_curve,
    robustness_profile,
    robustness_ways,
    topology,
    warm_starts,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def losses(result: Result) -> str:
    ratios: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        ratios.setdefault(row["method"], {})[row["model"]] = row["ratio"]
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    text = table(
        ["step over a plain step", *models],
        [[name, *(f"{by[model]:.4f}" if by[model] < 1.01 else f"{by[model]:.2f}" for model in models)]
         for name, by in ratios.items()],
    )  # fmt: skip
    kl = ", ".join(f"{r['kl_relative_error']:.1%} ({r['model']})" for r in result["rows"] if "kl_relative_error" in r)
    memory = result["memory"]
    return (
        f"{text}\n\nA bfloat16 teacher changes MESA's divergence by {kl}. A memory of 1,281,167 x 1,000 outputs as int8"
        f" in a file of four slots takes {memory['file_GB']:.2f} GB of disk and {memory['resident_GB']:.2f} GB of "
        f"memory above what the process held before, {memory['ms_per_batch_of_256']:.1f} ms per batch of 256; what is "
        f"kept is off by {memory['kl_error_range_10']:.1e} (logits of range 10) and "
        f"{memory['kl_error_range_35']:.1e} (range 35) in divergence at temperature 5." + made(result, "losses")
    )


def trainers(result: Result) -> str:
    text = table(
        ["", "added to a step, microseconds", "step over that without", "half of the rounds between",
         "step without, ms", "rounds"],
        [[row["case"], f"{row['added_us']:.0f}", f"{row['ratio']:.4f}", f"{row['low']:.4f} and {row['high']:.4f}",
          f"{row['step_ms']:.1f}", str(row["rounds"])] for row in result["rows"]],
    )  # fmt: skip
    load = " to ".join(f"{value:.1f}" for value in result["load"])
    return f"{text}\n\nLoad of the machine (2 cores) meanwhile: {load}." + made(result, "trainers")


def scale(result: Result) -> str:
    rows = [
        [row["engine"], f"{row['start_s']:.1f}", f"{row['overhead_ms']:.2f}", f"{row['overhead_16_ms']:.2f}",
         f"{row['driver_ms']:.2f}", f"{row['point_ms']:.0f}", f"{row['speed_up']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["engine", "start, s", "overhead per point, ms", "in chunks of 16, ms",
              "driver's processor time per point, ms", "a point of the survey, ms", "speed-up"]  # fmt: skip
    text = table(header, rows)
    for row in result["cluster"]:
        text += (
            f"\n\n`{row['engine']}`: one driver hands out {row['points_per_second']:,.0f} points a second "
            f"({row['points_per_second_16']:,.0f} in chunks of 16), so that 1,000 workers stay busy where a point "
            f"takes {row['shortest_point_for_1000_workers_s']:.2g} s or more "
            f"({row['shortest_point_for_1000_workers_16_s']:.2g} s in chunks of 16). "
            "The bottleneck is the driver's one process."
        )
    return text + made(result, "scale", "1 thread per worker")


def cluster(result: Result) -> str:
    asked = result["settings"]
    rows = [
        [f"{row['workers']:,}", f"{row['points']:,}", f"{row['busy_in_the_middle']:.1%}",
         f"{row['limit_in_the_middle']:.1%}", str(row["died"]), f"{row['lost']:.2%}", f"{row['driver_ms']:.2f}",
         f"{row['late_ms']:.1f}", f"{row['memory_MB']:.0f}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["workers", "points", "time that they compute", "at most", "workers that died", "work lost",
              "driver's processor time per point, ms", "a report waits, ms", "driver's memory, MB"]  # fmt: skip
    text = table(header, rows)
    text += (
        f"\n\nPoints of {asked['seconds']:g} s in the mean (lognormal, {asked['spread']:g} in the logarithm), "
        f"{asked['deaths']:.0%} of the chunks kill their worker half way, a new one starts in {asked['start']:g} s."
    )
    return text + made(result, "cluster")


def pipeline(result: Result) -> str:
    rows = [
        [row["augmentation"], f"{row['batch_ms']:.2f}", f"{row['step_ms']:.0f}", f"{row['ratio']:.2%}"]
        for row in result["rows"]
    ]
    cost = result["loop"]
    text = table(["augmentation", "batch, ms", "training step of a ResNet-20, ms", "share"], rows)
    text += (
        f"\n\n`fit` over a bare loop: {cost['steps_over_bare_loop']:.3f} x a step; "
        f"{cost['epoch_end_ms']:.0f} ms per epoch end."
    )
    if "networks" in cost:  # not there before 0.2.0
        loops = [
            [one["network"], str(one["batch_size"]), f"{one['bare_step_ms']:.2f}", f"{one['added_us']:.0f}",
             f"{one['steps_over_bare_loop']:.3f}", f"{one['epoch_end_ms']:.1f}"]
            for one in cost["networks"]
        ]  # fmt: skip
        header = [
            "`fit` beside a bare loop",
            "samples",
            "bare step, ms",
            "added, microseconds",
            "ratio",
            "epoch end, ms",
        ]
        text += "\n\n" + table(header, loops)
    return text + made(result, "pipeline", f"{result['settings']['threads']} threads")


def compiled(result: Result) -> str:
    rows = [
        [row["network"], row["compiled"], str(row["breaks"]), str(row["graphs"]), f"{row['first_steps_s']:.1f}",
         f"{row['eager_ms']:.2f}", f"{row['step_ms']:.2f}", f"{row['ratio']:.2f}", f"{row['apart']:.0e}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["network", "compiled", "graph breaks", "graphs", "first two steps, s", "eager step, ms",
              "compiled step, ms", "ratio", "weights apart after 5 steps (float64)"]  # fmt: skip
    return table(header, rows) + made(result, "compiled")


def memory(result: Result) -> str:
    rows = [[group, f"`{name}`", f"{row['weights']:.1f}", f"{row['activations']:.1f}"]
            for group, calls in result["rows"].items() for name, row in calls.items()]  # fmt: skip
    text = table(["", "held at the peak, beyond the model", "sets of weights", "activations of a batch"], rows)
    return text + made(result, "memory")


def mutation(result: Result) -> str:
    def row(name: str, some: list[Result]) -> list[str]:
        caught = sum(one["verdict"] == "caught" for one in some)
        same = sum("reason" in one for one in some)
        return [name, str(len(some)), str(caught), str(same), f"{caught / max(1, len(some) - same):.1%}"]

    every = list(result["mutants"].values())
    header = ["", "mutants", "caught", "equivalent", "score"]
    parts = []
    for title, field in (("package", "room"), ("kind of fault", "kind")):
        names = sorted({one[field] for one in every})
        rows = [row(name, [one for one in every if one[field] == name]) for name in names]
        parts.append(table([title, *header[1:]], [*rows, row("all", every)]))
    left = [f"`{one['path']}:{one['line']}` ({one['kind']})" for one in every
            if one["verdict"] != "caught" and "reason" not in one]  # fmt: skip
    if left:
        parts.append("Caught by no fast test, and not shown to be equivalent: " + ", ".join(left) + ".")
    return "\n\n".join(parts) + made(result, "-m benchmarks.mutation run")


TABLES: dict[str, Callable[[Result], str]] = {
    "losses": losses, "landscape": landscape, "curvature": curvature, "cluster": cluster, "scale": scale,
    "warm_starts": warm_starts, "cold_floor": cold_floor,
    "pipeline": pipeline, "film": film, "trainers": trainers, "topology": topology, "robustness_ways": robustness_ways,
    "robustness_ways_transformer": robustness_ways,
    "robustness_card": robustness_card, "robustness_card_transformer": robustness_card,
    "robustness_profile": robustness_profile, "robustness_curve": robustness_curve,
    "memory": memory, "mutation": mutation, "refinement_bounds": refinement_bounds, "limits": limits,
    "compiled": compiled, "error_models": error_models,
}  # fmt: skip


def filled(page: str) -> str:
    """Return a page with its blocks written anew."""

    def block(found: re.Match[str]) -> str:
        path = RESULTS / f"{found[2]}.json"
        if not path.exists():  # not measured yet
            return found[0]
        result = json.loads(path.read_text())
        return f"{found[1]}{TABLES[found[2]](result)}\n{found[3]}"

    return BLOCK.sub(block, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.read_text()
        new = filled(page)
        if new == page:
            continue
        stale.append(path.relative_to(ROOT))
        if not options.check:
            path.write_text(new)
    print(*stale, sep="\n")
    sys.exit(bool(stale) and options.check)


if __name__ == "__main__":
    main()
