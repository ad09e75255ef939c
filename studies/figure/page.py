"""``docs/figure.md``, written from what is stored: the answer, the pictures, every number, and what was not run."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.report import show, show_interval
from studies.claims.files import write_whole
from studies.figure.answer import answer
from studies.figure.draw import CAP, LOWEST, pictures, shown
from studies.figure.plan import LEARNED, PARTS, Survey, expected_seconds
from studies.figure.procedure import procedure_line
from studies.figure.record import Entry, Record, interval

__all__ = ["budget_table", "page", "write_page"]

_HEAD = """# The figure that everybody knows

Li et al. (2018, Figures 1 and 5) show the loss of deep residual networks around what they were trained to. With
shortcuts it is a smooth bowl; without them it turns chaotic as the network gets deeper: benign at 20 layers, clearly
not convex at 56, steep everywhere at 110. Here are the same networks, narrower, on 3,000 real images, with numbers
beside the pictures. The numbers and the answer are written from the surfaces in `studies/figure/results/` by
`python -m studies.figure --only table`; `--only draw` draws all pictures again in seconds; `make figure` trains and
surveys what is missing, and goes on where it stopped.
"""


def write_page(record: Record) -> None:
    """Write the page."""
    write_whole(record.places.page, page(record))


def page(record: Record) -> str:
    """Return the page."""
    parts = [_HEAD, "## The answer\n", answer(record), "", "## The pictures\n", _pictures(record)]
    parts += ["## Every surface\n", _KEY, _table(record.entries), "", "## Over seeds\n", _seeds(record), ""]
    parts += _procedures(record)
    parts += ["## How it was made\n", _made(record), "", "## Cost\n", _cost(record), "", _missing(record)]
    return "\n".join(parts) + "\n"


def _pictures(record: Record) -> str:
    lines = [
        f"Colors and heights are logarithms of the loss on the training images, from {show(LOWEST, 1)} to {CAP:g}: "
        "what lies higher is drawn as high as that. The cross is the trained network; 1 on an axis is a step as long "
        "as the weights, filter by filter.\n"
    ]
    for name, (title, _) in pictures(record).items():
        lines.append(f"### {title[:1].upper()}{title[1:]}\n")
        lines += [f"![](images/figure/{name}.svg)\n"]
        lines += [f"![](images/figure/{name}-solid.svg)\n"] if name == "pairs-0" else []
    return "\n".join(lines)


_KEY = f"""\
*Not convex*: share of the points that lie above a chord of the surface through two others, by more than the errors of
all three. *Minima*: local minima inside the plane, but the lowest, that are deeper than twice the error. *Outward*:
share of the points from which downhill leads away from the center, beyond the error. The error is what the refined
survey promises of an interpolated point, taken at every point; the measured ones are exact to the column *float*
(largest relative difference to double precision at nine points). Behind the bar stands the inner half of both axes
alone. A network has *learned* where the loss at the center is at most {LEARNED}: around one that has not there is no
minimum to look at. It gets no verdict, and where training has ended it is not surveyed.
"""


def _table(entries: Sequence[Entry]) -> str:
    lines = [
        "| network | train loss, accuracy | test loss, accuracy | learned | loss at the center, on the rim | not "
        "convex \\| inner | minima \\| inner | outward | points measured | float |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        n = entry.number
        if not entry.surveyed:
            lines.append(f"{_trained(entry)} | {show(n('center'))} | – | – | – | – | – |")
            continue
        promise = entry.content["promise"]
        lines.append(
            f"{_trained(entry)} | {show(n('center'))}, {show(n('rim'))} "
            f"| {n('non_convex'):.1%} \\| {n('non_convex_inner'):.1%} "
            f"| {n('minima'):.0f} \\| {n('minima_inner'):.0f} | {n('outward'):.1%} "
            f"| {promise['measured']} of {promise['points']} | {show(entry.content['float_error'], 1)} |"
        )
    return "\n".join(lines)


def _trained(entry: Entry) -> str:
    n = entry.number
    ends = (f"{show(n(f'{split}_loss'))}, {n(f'{split}_accuracy'):.1%}" for split in ("train", "test"))
    train, test = ends if entry.survey.weights == "last" else ("–", "–")
    return f"| {shown(entry)} | {train} | {test} | {'yes' if entry.learned else '**no**'}"


def _seeds(record: Record) -> str:
    lines = ["| network | seeds | not convex (%) | minima | train loss at the center |", "|---|---|---|---|---|"]
    for width in record.size.widths:
        for depth in record.size.depths:
            for skip in (True, False):
                own = record.over_seeds(depth, skip, width)
                if own:
                    bent, dips, loss = (interval(own, name) for name in ("non_convex", "minima", "center"))
                    lines.append(
                        f"| ResNet-{depth}, {'with' if skip else 'without'} shortcuts, width {width} | {len(own)} | "
                        f"{show_interval(bent, factor=100, decimals=1)} | {show_interval(dips, decimals=1)} | "
                        f"{show_interval(loss, decimals=3)} |"
                    )
    return "\n".join([*lines, "", "Fewer than four seeds are listed one by one."])


def _procedures(record: Record) -> list[str]:
    rows = [(entry, entry.content["procedure"]) for entry in record.entries if "procedure" in entry.content]
    if not rows:
        return []
    lines = [f"| {shown(entry)} | {procedure_line(p)} |" for entry, p in rows]
    return ["## By the procedure of Li et al.'s tool\n", _PROCEDURE, *lines, ""]


_PROCEDURE = """\
The same points once more as their tool takes them: directions scaled filter by filter, biases and norms left out, one
point after the other, in lines that use none of ours but the random numbers (`studies/figure/procedure.py`).

| surface | points | measured by us: largest relative difference | interpolated by us |
|---|---|---|---|"""


def _made(record: Record) -> str:
    size, tolerance = record.size, record.size.tolerance
    entries = record.entries
    surveyed = [entry for entry in entries if entry.surveyed]
    floats = max((entry.content["float_error"] for entry in surveyed), default=0.0)
    lines = [
        f"- Data: {size.data}; the {size.train_size or '3,000'} training images are trained on and every point of a "
        f"surface is the loss on the same {size.samples} of them.",
        f"- Training: SGD with Nesterov momentum 0.9, weight decay 5e-4 on everything, learning rate "
        f"{size.learning_rate:g} with warm-up over {size.warmup:g} epoch{'s' * (size.warmup != 1)} and one cosine to "
        f"0, {size.epochs} epochs of batches of {size.batch_size}, no augmentation (the paper: 300 epochs of batches "
        "of 128, three steps, crops and flips, CIFAR-10, width 16).",
        f"- Surfaces: last weights, evaluation mode, [-1, 1] on both axes, {size.side} x {size.side} points, filter "
        "normalization, biases and batch norm fixed; running statistics unless it says batch statistics.",
        f"- Refined: fewer points are measured where the surface is smooth, the others interpolated to "
        f"{tolerance.range:.0%} of the range and {tolerance.value:.0%} of the value and checked; single precision was "
        f"within {show(floats, 1)} of double.",
    ]
    if entries:
        days = sorted({entry.content["created"][:10] for entry in entries})
        machines = "; ".join(sorted({entry.content["machine"] for entry in entries}))
        torch = ", ".join(sorted({entry.content["versions"]["torch"] for entry in entries}))
        lines.append(f"- Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}, {machines}, torch {torch}.")
        lines += ["- What the surveys promise of their pictures:", *_promises(surveyed)]
    lines.append(
        "- The files `studies/figure/results/*.h5` have the old tool's form: its `plot_2D.py` draws them as they are."
    )
    return "\n".join(lines)


def _promises(entries: Sequence[Entry]) -> list[str]:
    """Write each promise once, with the surfaces that have it; that of most surfaces comes last."""
    same: dict[str, list[str]] = {}
    for entry in entries:
        statement, floor = entry.content["promise"]["statement"], f"{entry.number('center') / 10:.3g}"
        said = statement.replace(f"values below {floor} count", "values below a tenth of that at the center count")
        same.setdefault(said, []).append(shown(entry))
    ordered = sorted(same.items(), key=lambda pair: len(pair[1]))
    names = [*("; ".join(own) for _, own in ordered[:-1]), "all others" if ordered[1:] else "all"]
    return [f"    - {who}: {said}" for who, (said, _) in zip(names, ordered, strict=False)]


def budget_table(record: Record) -> str:
    """Write what every part costs: measured where it has run, expected where not."""
    lines = ["| part | surfaces | done | measured (min) | still to go (min) |", "|---|---|---|---|---|"]
    done = {entry.survey: entry for entry in record.entries}
    trained = {survey.net for survey in done}
    counted: set[str] = set()
    sums = [0, 0, 0.0, 0.0]
    for part in PARTS:
        own = [survey for survey in record.surveys if survey.part == part]
        spent = sum(_spent(done[survey], counted) for survey in own if survey in done)
        left = 0.0
        for survey in own:
            if survey not in done:
                left += sum(expected_seconds(survey, record.size, trained=survey.net in trained))
                trained.add(survey.net)
        row = [len(own), sum(survey in done for survey in own), spent / 60, left / 60]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        lines.append(_budget_line(PARTS[part], row))
    return "\n".join([*lines, _budget_line("together", sums)])


def _spent(entry: Entry, counted: set[str]) -> float:
    """Return the seconds of a survey, and of its training the first time it is met."""
    name = entry.survey.net.name
    training = 0.0 if name in counted else float(entry.content["training"]["seconds"])
    counted.add(name)
    return float(entry.content.get("seconds", 0.0)) + training


def _budget_line(name: str, row: Sequence[float]) -> str:
    return f"| {name} | {row[0]:.0f} | {row[1]:.0f} | {row[2]:.0f} | {row[3]:.0f} |"


def _cost(record: Record) -> str:
    table = budget_table(record)
    return f"Minutes of one core; those measured were shared with other work on the machine.\n\n{table}"


def _missing(record: Record) -> str:
    done = {entry.survey for entry in record.entries}
    rest: list[Survey] = [survey for survey in record.surveys if survey not in done]
    if not rest:
        return "All surfaces of the plan have been measured."
    names = "\n".join(f"- {PARTS[survey.part]}: `{survey.name}`" for survey in rest)
    return f"## Not run yet\n\n`make figure` runs these, in this order:\n\n{names}"
