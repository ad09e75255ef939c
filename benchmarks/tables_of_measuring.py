"""Tables of what measures: surveys, curvature, topology, films, robustness."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.table import Result, made, table


def landscape(result: Result) -> str:
    rows = [
        [row["case"], f"{row['samples']:,}", f"{row['parameters']:,}", f"{1e3 * row['point_s']:.1f}",
         f"{row['over_bare']:.2f}", f"{row['faster']:.1f}", f"{row['faster_without_workers']:.1f}",
         f"{row['faster_two_processes']:.1f}", f"{row['faster_two_processes_without_workers']:.1f}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["network", "samples", "parameters", "ms per point", "x bare forward passes", "faster than the reference",
              "than it without loader workers", "two processes: faster than the reference",
              "than it without loader workers"]  # fmt: skip
    text = table(header, rows)

    def exact(row: Result, picture: Result) -> list[str]:
        if "inside" not in picture:
            return ["not compared", "", ""]
        against = "float64" if "float32_error" not in row else f"float32, itself {row['float32_error']:.0e} off"
        return [f"{picture['inside']:.2%} of {row['checked']:,}", f"{picture['worst']:.2f}", against]

    pictures = [
        [row["case"], kind, f"{picture['faster']:.1f}", f"{picture['measured']:,}", picture["precision"],
         *exact(row, picture)]
        for row in result["rows"] for kind, picture in row["pictures"].items()
    ]  # fmt: skip
    header = ["picture", "", "faster than the reference", "points measured", "precision", "pixels inside the tolerance",
              "worst pixel over the tolerance", "compared with"]  # fmt: skip
    text += "\n\n" + table(header, pictures)
    seeds = [
        f"{row['case']} {min(some['measured'])} to {max(some['measured'])} points, at least "
        f"{min(some['inside']):.2%} inside (safety {safety})"
        for row in result["rows"] for safety, some in row.get("seeds", {}).items()
    ]  # fmt: skip
    if starts := [f"{row['case']} {row['start']['over_point']:.2f}" for row in result["rows"] if "start" in row]:
        text += "\n\nThe checks at the start of a survey, in points of it: " + ", ".join(starts) + "."
    if seeds:
        text += f"\n\nTen other seeds of the checks, on the full grids compared with: {'; '.join(seeds)}."
    processors = dict.fromkeys(row["processor"] for row in result["rows"])
    text += "\n\nProcessors: " + "; ".join(
        f"{one.replace('(R)', '')} ({', '.join(row['case'] for row in result['rows'] if row['processor'] == one)})"
        for one in processors
    ) + "."  # fmt: skip
    over = ", ".join(f"{row['over_full_grid']:.2f} ({row['case']})" for row in result["rows"])
    text += f"\n\nTime of the default picture over that of the full grid: {over}."
    for other in result["others"] or []:
        text += (
            f"\n\n{other['case']}: {other['their_s']:.2f} s, here {other['our_s']:.2f} s; largest error "
            f"{other['their_error']:.1e}, here {other['our_error']:.1e}."
        )
    parts = [*result["rows"], *(row["start"] for row in result["rows"] if "start" in row)]
    return text + made(parts, "landscape", f"{result['rows'][0]['threads']} thread")


def curvature(result: Result) -> str:
    kinds = ("resnet8", "transformer")
    ratios = [result[kind]["times"]["ratio_to_bare"] for kind in kinds]
    peaks = [result[kind]["memory"]["mib"] for kind in kinds]
    tools = {"lowland": "Lowland, nothing built yet", "bare double backward": "bare double backward",
             "pyhessian": "PyHessian", "hessian_eigenthings": "hessian-eigenthings",
             "curvlinops": "curvlinops"}  # fmt: skip
    rows = [
        [title, *(f"{r[f'{name}, 1']:.2f}" for r in ratios), *(f"{r[f'{name}, 8']:.2f}" for r in ratios),
         *(f"{p[f'{name}, 8']:.0f}" for p in peaks)]
        for name, title in tools.items() if f"{name}, 1" in ratios[0]
    ]  # fmt: skip
    rows.insert(1, ["Lowland, graph built", *(f"{r['lowland, graph there, 1']:.2f}" for r in ratios), "", "", "", ""])
    header = ["processor time over a bare double backward", "1 vector, ResNet-8", "1, transformer", "8, ResNet-8",
              "8, transformer", "peak MiB (8), ResNet-8", "transformer"]  # fmt: skip
    text = table(header, rows)
    over = ", ".join(f"{result[kind]['times']['eight_to_floor']:.3f} ({kind})" for kind in kinds)
    text += f"\n\nEight vectors over one graph and eight second backward passes: {over}."
    cold = []
    for kind in kinds:
        ends = result[kind].get("ends")
        if ends is None:
            continue
        errors = sorted(abs(error) for error in ends["lambda_min_error"])
        mean = sum(ends["products"]) / len(ends["products"])
        row = [
            kind, f"{mean:.1f} ({min(ends['products'])} to {max(ends['products'])})",
            f"{errors[len(errors) // 2]:.1%} / {errors[-1]:.1%}", str(ends["arpack_products"]),
        ]  # fmt: skip
        cold.append([*row, *mapped(result[kind].get("map"))])
    text += "\n\n" + table(
        ["both ends", "products, cold", "error of lambda_min, median / worst seed", "two ARPACK runs",
         "products per point of a 31 x 31 map", "worst lambda_min where decided, points checked",
         "negative / undecided / none found"], cold,
    )  # fmt: skip
    whole = result.get("whole", {})
    if "starts" in whole:
        text += "\n\n" + table(
            ["cold starts on planted spectra, `missed=`", "products", "lower end more than 2% off", "worst",
             "inside `bound_min`", "`bound_min` over the end found, median"],
            [[f"{name}, {missed}", f"{one['products']:.1f}", f"{one['off']} of {one['starts']}", f"{one['worst']:.1%}",
              f"{one['inside']} of {one['starts']}", "" if one["bound"] is None else f"{one['bound']:.3f}"]
             for name, found in whole["starts"].items() if name != "made" for missed, one in found.items()],
        )  # fmt: skip
    if "estimators" in whole:
        trace = whole["estimators"]["trace"]
        text += "\n\n" + table(
            ["products for the trace (planted spectrum)", *trace],
            [[name, *(f"{trace[count][name]:.2%}" for count in trace)] for name in next(iter(trace.values()))],
        )
        density = whole["estimators"]["density"]
        text += "\n\n" + table(
            ["L1 error of the density, probes x steps", *density],
            [[name, *(f"{density[count][name]:.4f}" for count in density)] for name in next(iter(density.values()))],
        )
    if "curve" in whole:
        curve = whole["curve"]
        text += (
            f"\n\nThe curve along training took {curve['share']:.1%} of the {curve['training_s']:.0f} s of "
            f"{curve['steps']} training steps ({curve['measurements']} measurements)."
        )
    return text + made(
        [part["made"] for kind in (*kinds, "whole") for part in result.get(kind, {}).values()], "curvature"
    )


def cold_floor(result: Result) -> str:
    header = ["cold starts, `missed=0.05`: products", "starts", "by the last polynomial (`reach`)", "by all of them",
              "by all, the end known"]  # fmt: skip
    rows = [
        [one["name"], str(one["starts"]), *(f"{one[rule]:.1f}" for rule in ("last", "sum", "known"))]
        for one in result["rows"]
    ]
    return table(header, rows) + made(result["made"], "cold_floor")


def warm_starts(result: Result) -> str:
    """New ends of planted spectra that warm starts miss, and a line through trained networks, by `noise=`."""
    planted = [
        [f"{one['beyond']:.0%}, vectors {one['mixed']:.0%} off", f"{one['noise']:g}", f"{one['products']:.1f}",
         f"{one['missed']} of {one['starts']}"]
        for one in result["planted"]["rows"]
    ]  # fmt: skip
    lines = [
        [one["network"], f"{one['noise']:g}", f"{one['products']:.1f}", f"{one['worst']:.1%} of {one['points']}"]
        for one in result["lines"]["rows"]
    ]
    maps = [
        [one["network"], f"{one['products_per_point']:.1f}", f"{one['cold_checks']}, {one['cold_disagreements']}",
         f"{one['worst']:.1%} of {one['checked']}", f"{one['negative']} / {one['undecided']} / {one['none_found']}"]
        for one in result["maps"]["rows"]
    ]  # fmt: skip
    return (
        table(["a new lowest value below the parent's by", "`noise=`", "products", "missed by more than 2%"], planted)
        + "\n\n"
        + table(["17 points of a line, 1/15 apart", "`noise=`", "products", "worst lambda_min, points"], lines)
        + "\n\n"
        + table(
            [
                "31 x 31 map, `noise=1.0`",
                "products per point, cold checks included",
                "cold checks, disagreements",
                "worst lambda_min, points checked",
                "negative / undecided / none found",
            ],
            maps,
        )
        + made([result[part]["made"] for part in ("planted", "lines", "maps")], "warm_starts")
    )


def mapped(found: Result | None) -> list[str]:
    if found is None:
        return ["not measured"] * 3
    return [
        f"{found['products_per_point']:.1f}",
        f"{found['largest_lambda_min_error_where_decided']:.1%} of {found['decided_points']}",
        f"{found['negative']} / {found['undecided']} / {found['none_found']}",
    ]


def film(result: Result) -> str:
    rows = []
    for name, run in result["runs"].items():
        frames = run["frames"]
        counts = sorted(frame["measured"] for frame in frames)
        wrong, pixels = (sum(frame[key] for frame in frames) for key in ("outside", "pixels"))
        checks, failed = (sum(frame[key] or 0 for frame in frames) for key in ("checked", "failures"))
        rows.append([
            name, str(len(frames)), f"{counts[0]}, {counts[len(counts) // 2]}, {counts[-1]}", f"{sum(counts):,}",
            f"{sum(counts) / run['points']:.2f}", f"{run['alone'] / run['points']:.2f}", f"{failed} of {checks:,}",
            f"{max(frame['share_bound'] or 0 for frame in frames):.1%}", f"{wrong} of {pixels:,}",
            f"{max(frame['outside'] / frame['pixels'] for frame in frames):.1%}",
        ])  # fmt: skip
    header = ["ResNet-8", "frames", "points of a frame: least, median, most", "points in all", "as full surfaces",
              "each frame alone, as full surfaces", "checks beyond the tolerance", "promise of the worst frame",
              "fresh pixels beyond it", "in the worst frame"]  # fmt: skip
    text = table(header, rows)
    text += "\n\nFresh pixels are points of each frame that were measured for this table alone, none of them a check."
    return text + made(result, "film")


def topology(result: Result) -> str:
    def smad(value: float | None) -> str:
        return "fails" if value is None else f"{value:.3g}"

    def basins(found: dict[str, int]) -> str:
        grid = f" ({found['resolved']} resolved by the grid)" if "resolved" in found else ""
        return f"{found['basins']}{grid}"

    rows = [
        [row["surface"], "–" if row["planted"] is None else str(row["planted"]), f"{row['error']:g}",
         str(row["landscaper"]["minima"]), smad(row["landscaper"]["smad"]), str(row["lowland"]["parts"]),
         basins(row["lowland"]), f"{row['landscaper']['seconds']:.2f}", f"{row['lowland']['seconds']:.2f}"]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["surface", "planted", "standard error", "landscaper: minima", "its SMAD", "Lowland: parts",
              "basins beyond the errors", "landscaper, s", "Lowland, s"]  # fmt: skip
    return table(header, rows) + made(result, "topology")


def limits(result: Result) -> str:
    header = ["network", "forward pass, ms", "its rate, GFLOP/s", "that of a matrix product"]
    header += ["16 points in one pass, ms a point", "norms folded, ms", "compiled, ms", "to compile, s"]
    rows = [
        [one["case"], f"{1e3 * one['plain_s']:.2f}", f"{one['operations'] / one['plain_s'] / 1e9:.0f}",
         f"{one['product_rate'] / 1e9:.0f}", f"{1e3 * one['many_s']:.2f}", f"{1e3 * one['folded_s']:.2f}",
         f"{1e3 * one['compiled_s']:.2f}", f"{one['compile_s']:.0f}"]
        for one in result["rows"]
    ]  # fmt: skip
    return table(header, rows) + made(result, "-m benchmarks.limits")


def refinement_bounds(result: Result) -> str:
    header = ["network", "", "points, mean", "worst pixel over the tolerance", "pixels beyond it, mean"]
    rows = [
        [one["network"], one["way"], f"{one['points']:.0f}", f"{one['worst']:.2f}", f"{one['outside']:.2%}"]
        for one in result["rows"]
    ]
    return table(header, rows) + made(result, "-m benchmarks.refinement_bounds")


def error_models(result: Result) -> str:
    header = ["estimate", "networks", "points, mean", "geometric mean", "worst pixel over the tolerance",
              "pixels beyond it", "pictures with none"]  # fmt: skip
    rows = [
        [row["way"], f"{row['half']} ({row['networks']})", f"{row['points']:.0f}", f"{row['geometric']:.0f}",
         f"{row['worst']:.2f}", f"{row['outside']:.2%}", f"{row['inside']:.0%}"]
        for row in result["rows"]
        if not row["way"][-1].isdigit() or "safety" in row["way"]  # the others are the pairs of factors that were tried
    ]  # fmt: skip
    return table(header, rows) + made(result, "-m benchmarks.error_models")


_WAYS = (
    ("rounding", "INT8 per channel, symmetric"), ("rounding", "INT4 per channel, symmetric"),
    ("rounding", "INT4 per group of 32, asymmetric"), ("noise", "per filter"), ("worst", ""), ("forgetting", ""),
)  # fmt: skip
"""Parts and names of the rows that a page shows."""


def robustness_ways(result: Result) -> str:
    runs = result["runs"]
    methods = list(dict.fromkeys(run["method"] for run in runs))
    seeds = len({run["seed"] for run in runs})

    def short(value: float) -> str:
        return f"{float(f'{value:.2g}'):g}".replace("-", "−")

    def over_seeds(values: Sequence[float], more: str = "") -> str:
        span = "" if seeds == 1 else f" [{short(min(values))}, {short(max(values))}]"
        return short(statistics.mean(values)) + span + more

    def cell(method: str, key: Sequence[Any]) -> str:
        rows = [row for run in runs if run["method"] == method
                for row in run["rows"] if [row["part"], row["name"], row["size"]] == list(key)]  # fmt: skip
        measured, predicted = (sum(row[name] for row in rows) for name in ("compared", "predicted"))
        return over_seeds([row["change"] for row in rows], f" ({short(measured / predicted)})")

    def plain(name: str) -> list[str]:
        return [over_seeds([run[name] for run in runs if run["method"] == method]) for method in methods]

    keys = [(r["part"], r["name"], r["size"]) for r in runs[0]["rows"]
            if any(r["part"] == part and r["name"].startswith(name) for part, name in _WAYS)]  # fmt: skip
    last = {key[:2]: key for key in keys}  # of a fine-tune its end
    keys = [key for key in keys if key[0] != "forgetting" or key == last[key[:2]]]
    rows = [["train loss", *plain("train_loss")], ["filter-weighted trace", *plain("filter_trace")]]
    rows += [[f"{part}: {name}, {size:g}", *(cell(method, (part, name, size)) for method in methods)]
             for part, name, size in keys]  # fmt: skip
    text = table(["change of the loss (measured over predicted)", *methods], rows)
    if seeds > 1:
        text += f"\n\nMeans over {seeds} seeds with the lowest and the highest; ratios are of the means."
    command = "robustness.py --part ways" + " --network transformer" * ("AdamW" in methods)
    return text + made(result, "robustness").replace("robustness.py", command)


def robustness_card(result: Result) -> str:
    rows = [[name, f"{row['seconds']:.0f}", f"{row['busy']:.0f}"] for name, row in result["rows"].items()]
    alone = ", each part by itself" if len(rows) > 1 else ""
    text = table([f"{result['network']}{alone}", "seconds", "processor seconds"], rows)
    inputs = f"; attacks and noise on {result['tested']} test images" if "inputs" in result["rows"] else ""
    text += f"\n\n{result['samples']:,} samples, {result['curvature_samples']} of them for what curvature predicts"
    text += f"{inputs}; load {result['load']:.1f} at the start."
    threads = f"{result['threads']} threads"
    flags = "--part card" + " --network transformer" * result["network"].startswith("transformer")
    return text + made(result, "robustness", threads).replace("robustness.py", f"robustness.py {flags}")


def robustness_profile(result: Result) -> str:
    rows = []
    for name, row in result["rows"].items():
        surface, profile = row["surface_ms"], row["profile_ms"]
        rows.append([name, f"{surface:.2f}", f"{profile:.2f}", f"{profile / surface:.2f}"])
    text = table([f"{result['directions']} directions x {result['radii']} radii, processor ms per point", "surface",
                  "profile", "ratio"], rows)  # fmt: skip
    return text + made(result, "robustness").replace("robustness.py", "robustness.py --part profile")


def robustness_curve(result: Result) -> str:
    rows = []
    for name, parts in (("the curve", ["curve"]), (f"and {result['points']} points measured", ["curve", "measured"])):
        ratios = sorted(sum(row[part] for part in parts) / row["end"] for row in result["rows"])
        rows.append([name, f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
    header = [f"ResNet-8, {result['samples']:,} digits, {result['epochs']} epochs", "x an end", "of pairs"]
    text = table(header, rows) + f"\n\nProcessor time, {len(result['rows'])} pairs of networks."
    return text + made(result, "robustness").replace("robustness.py", "robustness.py --part curve --epochs 30")
