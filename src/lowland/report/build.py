"""From runs to a report: which sections there are, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import lowland
from lowland.core.errors import InputError, require
from lowland.report.comparison import comparison_section
from lowland.report.curvature import curvature_section, scalar
from lowland.report.dynamics import training_section, trajectories_section
from lowland.report.films import films_section
from lowland.report.landscapes import landscapes_section, path_plane
from lowland.report.robustness import robustness_section
from lowland.report.sections import Block, Details, Listing, Paragraph, Report, Section
from lowland.results.matched import comparable
from lowland.results.recipes import loss_of
from lowland.results.run import Run

if TYPE_CHECKING:
    import xarray as xr


def build(
    runs: Sequence[Run],
    *,
    title: str = "Lowland report",
    lead: Sequence[str] = (),
    baseline: str | None = None,
    extra: Sequence[Section] = (),
    allow_mixed: bool = False,
    date: str | None = None,
) -> Report:
    """Build the report of any number of runs; sections appear only for what the runs contain.

    Args:
        runs: The runs; the first one's method is the baseline unless another is named.
        title: Heading of the page, and its name in the browser's tab.
        lead: First paragraphs.
        baseline: Method that differences and ratios are against.
        extra: Further sections, put before the settings.
        allow_mixed: Accept runs of different data or loss, and mark the report.
        date: Date in the footer; None for today, "" for none (then the same runs give the same file).

    Returns:
        The report, for `html.write`.

    Raises:
        InputError: If there is no run, two share a name, none is of the baseline, or they differ in data or loss
            without ``allow_mixed``.
    """
    mixed = check_runs(runs, allow_mixed=allow_mixed, baseline=baseline)
    first = [comparison_section(runs, baseline=baseline), landscapes_section(runs)]
    if len({run.group for run in runs}) == 1:  # nothing to compare: the landscape says more than one row of numbers
        first.reverse()
    found = (
        first[0],
        training_section(runs),
        first[1],
        trajectories_section(runs),
        films_section(runs),
        curvature_section(runs),
        robustness_section(runs),
    )
    sections = [section for section in found if section is not None]
    sections += [*extra, limits_section(runs, mixed), settings_section(runs)]
    places = tuple(run.place for run in runs)
    surveyed = tuple(run.name for run in runs if run.surfaces or run.curvature or run.trajectory is not None)
    return Report(title, tuple(lead), tuple(sections), surveyed if len(surveyed) > 1 else (), footer(date), places)


def check_runs(runs: Sequence[Run], *, allow_mixed: bool, baseline: str | None = None) -> list[str]:
    """Refuse runs that cannot stand on one page, and return in what they differ that must be said."""
    require(runs, "runs", "must name at least one run")
    names = [run.name for run in runs]
    require(len(set(names)) >= len(names), "runs", "must have different names", names)
    methods = {run.group: None for run in runs}
    if baseline is not None and baseline not in methods:
        raise InputError("baseline", f"must be one of {', '.join(methods)}", baseline)
    mixed = [what for what in ("data", "loss") if len({key for r in runs if (key := r.spec.identity(what))}) > 1]
    if mixed and not allow_mixed:
        kinds = sorted({run.spec.identity(what) for what in mixed for run in runs})
        advice = "compare them all the same with --allow_mixed, which marks the report"
        raise InputError("runs", f"must share their {' and '.join(mixed)}", kinds, advice)
    return mixed


def footer(date: str | None) -> str:
    """Return the last line of a report."""
    day = datetime.now(UTC).strftime("%Y-%m-%d") if date is None else date
    return f"Written by Lowland {lowland.__version__}" + (f" on {day}" if day else "") + "."


def limits_section(runs: Sequence[Run], mixed: Sequence[str]) -> Section:
    """Build the section on what these runs cannot say."""
    limits = [f"The runs differ in their {what}: no number here compares them fairly." for what in mixed]
    measured = [result for run in runs if (result := run.final_curvature) is not None]
    limits += _settings_that_differ("Curvature was", measured)
    if len(measured) > 1 and not comparable([scalar(result, "train_loss") for result in measured]):
        limits.append("Curvature at the end of training is not comparable: the train losses differ too much.")
    surfaces = [surface for run in runs for name, surface in run.surfaces.items() if name != path_plane(run)]
    limits += _settings_that_differ("Surfaces were", surfaces)
    limits += [
        "A random plane is one draw: single directions differ by tens of per cent in curvature. The filter-weighted "
        "trace is the mean over all of them, of the Hessian alone; a picture's own curvature depends on its spacing "
        "where the network has kinks.",
        "Filter normalization does not make surfaces comparable when single units are rescaled, nor between "
        "architectures.",
        "Sharpness is no proof of generalization; both are shown side by side, not as cause and effect.",
    ]
    return Section("What cannot be compared", tuple(Paragraph(text) for text in limits))


def _settings_that_differ(what: str, results: Sequence[xr.Dataset]) -> Iterator[str]:
    for key, words in (
        ("batch_norm", "batch-norm modes"),
        ("samples", "numbers of samples"),
        ("split", "parts of the data"),
    ):
        values = {str(result.attrs[key]) for result in results if key in result.attrs}
        if len(values) > 1:
            yield f"{what} measured with different {words} ({', '.join(sorted(values))})."
    losses = {loss for result in results if (loss := loss_of(result))}
    if len(losses) > 1:
        yield f"{what} measured of different losses ({', '.join(sorted(losses))}): no number compares them."


def settings_section(runs: Sequence[Run]) -> Section:
    """Build the section with everything needed to repeat the runs."""
    blocks: list[Block] = [
        Paragraph("Each run can be repeated from its spec, each point of a surface from its recipe.")
    ]
    for run in runs:
        inner: list[Paragraph | Listing] = []
        if run.place != run.name:
            inner.append(Paragraph(f"Folder: {run.place}"))
        if run.seed is not None:
            inner.append(Paragraph(f"Seed: {run.seed}"))
        if run.spec.text:
            inner.append(Listing(run.spec.text))
        for kind, results in (("Surface", run.surfaces), ("Curvature", run.curvature)):
            for name, result in results.items():
                lines = [f"{key}: {value}" for key, value in sorted(result.attrs.items()) if "\n" not in str(value)]
                inner += [Paragraph(f"{kind} {name}"), Listing("\n".join(lines))]
        if inner:
            blocks.append(Details(run.name, tuple(inner)))
    return Section("Appendix: settings, files and hashes", tuple(blocks))
