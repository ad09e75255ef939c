"""From finished runs to rows with answers: the rule of the spec applied to what the runs have stored."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from lowland import report, results
from lowland.core.errors import require
from lowland.report.build import footer
from lowland.report.curvature import scalar
from lowland.report.landscapes import landscapes_section
from lowland.report.statistics import t_interval
from lowland.report.study import SharpnessRow, StudyPage, StudyRow, study_sections
from lowland.results.run import Run
from lowland.study.association import association, sign_errors
from lowland.study.endpoints import cost_of, read_endpoint, read_reach
from lowland.study.instrument import Check, instrument_of, judged, power_of
from lowland.study.plan import Job
from lowland.study.run import Study
from lowland.study.search import expected_best
from lowland.study.statistics import Answer, Effect, all_noninferior, answer, paired_effect
from lowland.workflows import to_yaml
from lowland.workflows.changes import variants
from lowland.workflows.study import StudySpec

MEASURES: Final = ("lambda_max", "trace", "filter_trace", "sam_sharpness")


def compare_methods(study: Study) -> list[StudyRow]:
    """Compare every method with the baseline, part by part and budget by budget.

    Args:
        study: A study that has run.

    Returns:
        One row per part, budget and method.

    Raises:
        InputError: If runs of one part disagree on their data.
    """
    rows = []
    for budget in study.spec.budgets:
        for variant in variants(study.spec):
            found = [job for job in study.jobs[budget] if job.variant == variant]
            check_same_data([job.spec.folder for job in found if study.failures[job.key] is None])
            rows += _rows(study, budget, variant, found)
    return rows


def check_same_data(folders: Sequence[str]) -> None:
    """Refuse to compare runs that were trained or tested on different data."""
    kinds = {str(Run(folder).result["recipe"]["data"]): folder for folder in folders}
    require(len(kinds) <= 1, "runs", "must share their data", [*kinds.values()])


def rule_of(spec: StudySpec) -> str:
    """Return the rule of a study in words, as it was declared."""
    what = f"{spec.endpoint.replace('_', ' ')}, {spec.direction} is better"
    if spec.rule == "noninferior":
        test = f"non-inferior where the interval of the paired difference lies above minus {spec.smallest_effect:g}"
    else:
        test = (
            f"reproduced where the 95 % interval of the paired difference to {spec.reference()} lies on the claimed "
            f"side of 0, refuted where it lies below {spec.smallest_effect:g}, undecided otherwise"
        )
    test += (
        "; not measurable here where the treatment had not acted on what was measured, where a fifth of the values sit "
        "at a bound, or where the smallest effect is found in less than 80 % of studies and no more was seen"
    )
    checkpoint = "the epoch with the best validation score" if spec.base.select == "best" else "the last epoch"
    return f"{what}; {test}; Holm's correction over the methods; {spec.seeds} seeds; {checkpoint} counts for all."


def _rows(study: Study, budget: str, variant: str, found: Sequence[Job]) -> list[StudyRow]:
    spec = study.spec
    rows = {method: _row(study, budget, variant, method, found) for method in spec.methods}
    base = rows[spec.reference()]
    effects: dict[str, Effect] = {}
    for method, row in rows.items():
        shared = [seed for seed in row.values if seed in base.values]
        if method != base.method and len(shared) >= 2:
            effects[method] = paired_effect(row.values, base.values, higher=spec.direction == "higher")
    family = len(effects)
    checks = {name: _checks(study, rows[name], base, effect, family, found) for name, effect in effects.items()}
    smallest = spec.smallest_effect
    judge = partial(answer, smallest=smallest)
    if spec.rule == "noninferior":
        judge = partial(all_noninferior, margin=smallest)
    answers = dict(zip(effects, judged([*effects.values()], [*checks.values()], judge), strict=True))
    for method, row in rows.items():
        if method == base.method:
            continue
        given = answers.get(method, Answer("undecided", "fewer than 2 seeds finished in both arms"))
        failed = len(row.failed) + len(base.failed)
        if failed:
            given = replace(given, verdict="undecided", reason=f"{failed} of its runs or the baseline's failed")
        differences = {s: row.values[s] - base.values[s] for s in row.values if s in base.values}
        rows[method] = replace(
            row,
            differences=differences,
            difference=t_interval([*differences.values()]) if differences else None,
            verdict=given.verdict,
            reason=given.reason,
            seeds_needed=given.seeds_needed,
            adjusted=given.adjusted,
            instrument=tuple(f"{check.name}: {check.shown}" for check in checks.get(method, ())),
        )
    return list(rows.values())


def _checks(
    study: Study, row: StudyRow, base: StudyRow, effect: Effect, family: int, found: Sequence[Job]
) -> list[Check]:
    """Show whether the endpoint can see what is asked."""
    spec, tool = study.spec, instrument_of(study.spec.endpoint)
    folders = [job.spec.folder for job in found if job.method == row.method and study.failures[job.key] is None]
    step = None if spec.endpoint.startswith(("test_", "validation_", "gap")) else math.inf  # else the whole run counts
    reach = [share for share in (read_reach(one, step) for one in folders) if math.isfinite(share)]
    values = [*row.values.values(), *base.values.values()]
    shown = [tool.reach(effect, reach), tool.bounds(values)]
    higher = spec.direction == "higher"
    planted = tool.planted(
        row.values,
        base.values,
        smallest=spec.smallest_effect,
        higher=higher,
        family=family,
        margin=spec.rule == "noninferior",
    )
    return [*shown, planted]


def _row(study: Study, budget: str, variant: str, method: str, found: Sequence[Job]) -> StudyRow:
    own = [job for job in found if job.method == method]
    values: dict[int, float] = {}
    failed: dict[int, str] = {}
    costs = []
    for job in own:
        failure = study.failures[job.key]
        value = math.nan if failure else read_endpoint(job.spec.folder, study.spec.endpoint)
        if failure is not None:
            failed[job.seed] = failure.error
        elif not math.isfinite(value):
            failed[job.seed] = f"no {study.spec.endpoint.replace('_', ' ')}: it diverged or never got there"
        else:
            values[job.seed] = value
        if failure is None:
            costs.append(cost_of(job.spec.folder))
    settings = study.settings.get((variant, method), {})
    return StudyRow(
        variant,
        budget,
        method,
        values,
        t_interval([*values.values()]),
        failed,
        passes=sum(c.passes for c in costs) / len(costs) if costs else math.nan,
        seconds=sum(c.seconds for c in costs) / len(costs) if costs else math.nan,
        epochs=own[0].spec.epochs if own else 0,
        settings=", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items()),
    )


def page_of(study: Study) -> StudyPage:
    """Collect everything that the report's pages show."""
    spec = study.spec
    sharpness, points = _sharpness(study)
    best_of = {
        " on ".join(filter(None, (method, variant))): expected_best([trial.validation for trial in tried])
        for (variant, method), tried in study.trials.items()
    }
    notes = ["Intervals cover initial weights and order of the samples; all runs of a part see the same data."]
    notes.append(power_of(spec))
    if spec.search.trials:
        notes.append(
            f"Settings: {spec.search.trials} trials for every method, chosen on validation data with seeds from "
            f"{spec.search.first_seed} on; the runs compared here have other seeds."
        )
    else:
        notes.append("No settings were searched: the methods were run as the spec has them.")
    return StudyPage(
        question=spec.question,
        rule=rule_of(spec),
        endpoint=spec.endpoint,
        percent=spec.endpoint.endswith(("accuracy", "error")),
        higher=spec.direction == "higher",
        baseline=spec.reference(),
        rows=tuple(compare_methods(study)),
        best_of=best_of,
        sharpness=tuple(sharpness),
        points=points,
        point_measure=MEASURES[0] if points else "",
        notes=tuple(notes),
        spec=to_yaml(spec),
    )


@dataclass(frozen=True)
class _Measured:
    job: Job
    gap: float
    train_loss: float
    measures: Mapping[str, float]


def _measured(study: Study) -> list[_Measured]:
    """Return the runs whose curvature was measured, all in one batch-norm mode and on as many samples."""
    found, modes = [], set()
    for job in study.jobs["epochs"]:
        path = Run(job.spec.folder).curvature_path("hessian")
        if study.failures[job.key] is not None or not path.exists():
            continue
        result = results.open(path)
        modes.add((result.attrs["batch_norm"], result.attrs["samples"]))
        numbers = {name: scalar(result, name) for name in (*MEASURES, "train_loss")}
        known = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
        loss = known.pop("train_loss", math.nan)
        found.append(_Measured(job, read_endpoint(job.spec.folder, "test_loss") - loss, loss, known))
    require(len(modes) <= 1, "survey.risk", "must have one batch-norm mode and sample size for all runs", sorted(modes))
    return [one for one in found if math.isfinite(one.gap)]


def _sharpness(study: Study) -> tuple[list[SharpnessRow], dict[str, list[tuple[float, float]]]]:
    runs = _measured(study)
    rows: list[SharpnessRow] = []
    points: dict[str, list[tuple[float, float]]] = {}
    if len(runs) < 2:
        return rows, points
    ways: dict[str, list[Hashable]] = {
        "one seed, methods differ": [(run.job.variant, run.job.seed) for run in runs],
        "one method, seeds differ": [(run.job.variant, run.job.method) for run in runs],
    }
    settings = [{"method": r.job.method, "part": r.job.variant, "seed": r.job.seed} for r in runs]
    gaps, seeds, losses = [r.gap for r in runs], [r.job.seed for r in runs], [r.train_loss for r in runs]
    for name in MEASURES:
        if not all(name in run.measures for run in runs):
            continue
        values = [run.measures[name] for run in runs]
        errors = sign_errors(values, gaps, settings)
        worst = max(errors, key=lambda factor: errors[factor], default="")
        text = f"{errors[worst]:.2f} ({worst})" if worst else ""
        for words, stratum in ways.items():
            got = association(values, gaps, stratum=stratum, cluster=seeds, covariate=losses)
            rows.append(SharpnessRow(name, words, got.tau, got.low, got.high, got.partial, got.pairs, text))
        if name == MEASURES[0]:
            for run in runs:
                points.setdefault(run.job.method, []).append((run.measures[name], run.gap))
    return rows, points


def write_report(study: Study, *, date: str | None = None) -> Path:
    """Write the page of a study.

    Args:
        study: A study that has run.
        date: As in `lowland.report.build`.

    Returns:
        Where it is: ``report.html`` in the study's folder.
    """
    spec = study.spec
    jobs = [job for job in study.jobs["epochs"] if job.seed == spec.first_seed and study.failures[job.key] is None]
    names = [" ".join(filter(None, (job.method, job.variant, f"seed {job.seed}"))) for job in jobs]
    runs = [
        Run(job.spec.folder, name=name, method=job.method, seed=job.seed) for name, job in zip(names, jobs, strict=True)
    ]
    sections = study_sections(page_of(study))
    gallery = landscapes_section(runs) if runs else None
    shown: tuple[str, ...] = ()
    if gallery is not None:
        sections, shown = [*sections, gallery], tuple(run.name for run in runs)
    title, lead = f"Study: {', '.join(spec.methods)}", (spec.question,) if spec.question else ()
    path = Path(spec.folder) / "report.html"
    report.write(report.Report(title, lead, tuple(sections), shown, footer(date)), path)
    return path
