"""The study, top to bottom: check, search, train at equal epochs and at equal compute, survey, compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lowland.core.contexts import forked_rng
from lowland.core.errors import InputError
from lowland.core.types import as_batch, forward
from lowland.data import DataSplits, TensorData
from lowland.engine import OnEvent, select
from lowland.losses import TrainingLoss
from lowland.results.files import write_atomically
from lowland.study.endpoints import check_endpoint, cost_of, equal_cost_epochs, read_endpoint
from lowland.study.plan import Job, check_changes, jobs, run_spec, variants
from lowland.study.search import Trial, best_trial, search, settings_of, trial_jobs
from lowland.study.work import Failures, OnRun, train
from lowland.workflows import FitSpec, curvature, surface, to_yaml
from lowland.workflows.build import build_data, build_loss, build_model, build_optimizer, build_schedule
from lowland.workflows.parse import from_yaml
from lowland.workflows.study import Changes, StudySpec

__all__ = ["Progress", "Study", "check_study", "run_study"]

Progress = Callable[[str], OnEvent]
"""Label -> receiver of events."""


@dataclass
class Study:
    """A study that has run.

    Args:
        spec: The study.
        jobs: Its runs by budget, ``"epochs"`` and ``"compute"``; the dearest method has one set of runs for both.
        settings: (part, method) -> what the search chose.
        trials: (part, method) -> trials of the search.
        failures: Runs that failed.
    """

    spec: StudySpec
    failures: Failures
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    settings: dict[tuple[str, str], Changes] = field(default_factory=dict)
    trials: dict[tuple[str, str], list[Trial]] = field(default_factory=dict)


def run_study(spec: StudySpec, *, progress: Progress | None = None, on_run: OnRun | None = None) -> Study:
    """Run a study, or go on with one; what is finished is not done again.

    Args:
        spec: The study.
        progress: Gives a receiver of events for each label.
        on_run: Called after each run of the comparison.

    Returns:
        The study, with every run either finished or kept as failed.
    """
    label = progress or (lambda text: lambda event: None)
    check_study(spec)
    folder = _open_folder(spec)
    study = Study(spec, Failures(folder))
    _search(study, label)
    study.jobs["epochs"] = list(jobs(spec, "epochs", study.settings))
    train(study.jobs["epochs"], study.failures, engine=spec.engine, on_event=label("equal epochs"), on_run=on_run)
    if "compute" in spec.budgets:
        _equal_compute(study, label, on_run)
    _survey(study, label)
    return study


def check_study(spec: StudySpec) -> None:
    """Check everything that can be checked before anything is trained."""
    # Every method is built on every part's data and measured on one batch, in a network that is thrown away.
    check_changes(spec)
    check_endpoint(spec.endpoint)
    select(spec.engine)
    for variant in variants(spec):
        splits = build_data(run_spec(spec, variant, spec.reference(), {}).data)
        for method in spec.methods:
            found = run_spec(spec, variant, method, {})
            try:
                _rehearse(found, splits)
            except InputError as error:
                where = f"methods.{method}" + (f" on {variant}" if variant else "")
                raise InputError(f"{where}: {error.argument}", error.rule, error.got, error.advice) from error
    if spec.search.trials and spec.search.sampler == "grid":
        for method in spec.methods:
            settings_of(spec, method)


def _rehearse(spec: FitSpec, splits: DataSplits) -> None:
    """Take one batch through model and loss, without a step."""
    build_schedule(spec.schedule)
    model = build_model(spec.model, splits, seed=spec.seed)
    optimizer, loss = build_optimizer(spec.optimizer, model), build_loss(spec.loss, model, splits)
    resident = isinstance(splits.train, TensorData)
    size = min(spec.batch_size, len(splits.train)) if resident else spec.batch_size
    batch = as_batch(next(iter(splits.train.batches(size) if resident else splits.train)))
    if isinstance(loss, TrainingLoss):
        if loss.needs_index and batch.index is None:
            raise InputError("loss.method", "needs sample ids, and the data have none", spec.loss.method,
                             "wrap the data set in lowland.data.Indexed")  # fmt: skip
        steps = math.ceil(len(splits.train) / size) if resident else len(splits.train)
        loss.prepare(
            model=model, epochs=spec.epochs, steps_per_epoch=steps, samples=splits.train.index if resident else None
        )
        loss.epoch = 0
    with forked_rng(0):
        value = loss(forward(model, batch), batch if isinstance(loss, TrainingLoss) else batch.target)
    if not torch.isfinite(torch.as_tensor(value)).all():
        raise InputError("loss", "must be finite at the initial weights", float(value))
    optimizer.zero_grad()


def _open_folder(spec: StudySpec) -> Path:
    """Return the study's folder; refuse one that holds another study."""
    folder = Path(spec.folder)
    file = folder / "study.yaml"
    if file.is_file():
        known = from_yaml(StudySpec, file)
        known.folder, known.engine = spec.folder, spec.engine  # where it lies and who computes change no number
        if known != spec:
            raise InputError("folder", "holds another study", str(folder), "choose another --folder")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("folder", "must be new, empty or the folder of this study", str(folder))
    write_atomically(file, to_yaml(spec).encode())
    return folder


def _search(study: Study, label: Progress) -> None:
    spec = study.spec
    if not spec.search.trials:
        return
    for variant in variants(spec):
        for method in spec.methods:
            text = "search: " + " on ".join(part for part in (method, variant) if part)
            tried = _trials(study, variant, method, label(text))
            study.trials[variant, method] = tried
            study.settings[variant, method] = best_trial(tried, _first_failure(study, variant, method)).settings


def _first_failure(study: Study, variant: str, method: str) -> str:
    prefix = "/".join(part for part in ("trials", variant, method) if part)
    return next((failure.error for key, failure in study.failures.items() if key.startswith(f"{prefix}/")), "")


def _trials(study: Study, variant: str, method: str, on_event: OnEvent) -> list[Trial]:
    spec = study.spec

    def run(numbered: Mapping[int, Changes]) -> dict[int, float]:
        made = {n: trial_jobs(spec, variant, method, n, settings) for n, settings in numbered.items()}
        every = [job for found in made.values() for job in found]
        train(every, study.failures, engine=spec.engine, on_event=on_event)
        return {n: _validation(found, study.failures) for n, found in made.items()}

    return search(spec, method, run)


def _validation(found: list[Job], failures: Failures) -> float:
    """Return the mean validation accuracy (or minus the loss) of a trial; NaN where a run failed."""
    values = []
    for job in found:
        if failures[job.key] is not None:
            return math.nan
        accuracy = read_endpoint(job.spec.folder, "validation_accuracy")
        loss = read_endpoint(job.spec.folder, "validation_loss")
        values.append(accuracy if math.isfinite(accuracy) else -loss)
    return sum(values) / len(values)


def _equal_compute(study: Study, label: Progress, on_run: OnRun | None) -> None:
    """Give every method the passes of the dearest one: longer runs, each with its schedule over its whole length."""
    spec, lengths = study.spec, {}
    for variant in variants(spec):
        costs = {method: _cost_per_epoch(study, variant, method) for method in spec.methods}
        now = {method: run_spec(spec, variant, method, {}).epochs for method in spec.methods}
        for method, epochs in equal_cost_epochs(now, costs).items():
            if epochs > now[method]:
                lengths[variant, method] = epochs
    longer = list(jobs(spec, "compute", study.settings, epochs=lengths))
    train(longer, study.failures, engine=spec.engine, on_event=label("equal compute"), on_run=on_run)
    kept = [job for job in study.jobs["epochs"] if (job.variant, job.method) not in lengths]
    study.jobs["compute"] = longer + kept


def _cost_per_epoch(study: Study, variant: str, method: str) -> float:
    found = [job for job in study.jobs["epochs"] if (job.variant, job.method) == (variant, method)]
    costs = [cost_of(job.spec.folder) for job in found if study.failures[job.key] is None]
    return sum(cost.passes / cost.epochs for cost in costs) / len(costs) if costs else math.nan


def _survey(study: Study, label: Progress) -> None:
    spec, survey = study.spec, study.spec.survey
    for job in study.jobs["epochs"]:
        if study.failures[job.key] is not None:
            continue
        name = " ".join(part for part in (job.variant, job.method, f"seed {job.seed}") if part)
        if job.seed in spec.survey_seeds():
            told = label(f"curvature of {name}")
            curvature(job.spec.folder, risk=survey.risk, threads=job.spec.threads, on_event=told)
        if survey.surface and job.seed == spec.first_seed:
            surface(
                job.spec.folder, risk=survey.risk, points=(survey.points, survey.points), extent=survey.extent,
                threads=job.spec.threads, on_event=label(f"surface of {name}"),
            )  # fmt: skip
