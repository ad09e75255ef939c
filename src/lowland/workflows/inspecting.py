"""The command that says what any checkpoint or series of them is, and measures it by the other commands."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from lowland.core.errors import InputError, check_positive
from lowland.core.names import SPEC, check_engine, unknown
from lowland.core.pace import OnEvent
from lowland.core.settings import RiskSpec
from lowland.workflows.checkpoints import CheckpointFacts, facts_of, series_of, step_of
from lowland.workflows.checks import check_run
from lowland.workflows.robustness import robustness
from lowland.workflows.specs import SubjectSpec, SurveyOptions
from lowland.workflows.surveys import curvature, surface, trajectory

_PARTS: Final = ("path", "surface", "curvature", "robustness")
"""What is measured, in this order."""


@dataclass(frozen=True)
class Inspection:
    """What was found at a path, and what was measured of it."""

    facts: CheckpointFacts  # The checkpoint, or the last one of a series
    steps: dict[str, int | None]  # Name -> step of every checkpoint of the series, oldest first
    results: dict[str, Path] = field(default_factory=dict)  # What was measured -> where it is stored
    page: Path | None = None  # The report; None where nothing was measured
    advice: str = ""  # What to type next


def inspect(
    path: str,
    *,
    model: str | None = None,
    model_options: dict[str, Any] | None = None,
    prefix: str | None = None,
    data: str | None = None,
    data_options: dict[str, Any] | None = None,
    loss: str = "cross_entropy",
    folder: str | None = None,
    measures: list[str] | None = None,
    points: tuple[int, int] = (25, 25),
    risk: RiskSpec = RiskSpec(),
    engine: str = "serial",
    threads: int | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> Inspection:
    """Say what a checkpoint or a series of them is; given data, also measure path, surface, curvature and robustness.

    Files are only read, never executed; nothing is fetched. What is stored already is not measured again.

    Args:
        path: A file (.safetensors, .pt, .pth, .bin, .ckpt of Lightning, .t7), a Hugging Face folder, or a folder with a
            series of these, which are put in the order of the numbers in their names.
        model: A known name, or module:callable that returns a torch.nn.Module; a Hugging Face folder needs none.
        model_options: Keyword arguments of that callable.
        prefix: Where the model stands in the checkpoint (such as net. in a LightningModule); none finds it out.
        data: A known name, or module:callable that returns a data set, a loader, DataSplits, or these by part; none
            measures nothing.
        data_options: Keyword arguments of that callable.
        loss: Which loss is measured: cross_entropy, mse, or module:callable.
        folder: Where results go; none takes runs/NAME after the path.
        measures: What is measured: path (of a series), surface, curvature, robustness; none measures all.
        points: Points of the surface along x and along y, such as 25 or 25x15; only those that it needs are measured.
        risk: On which data.
        engine: Who computes points: serial, processes:N, ray or ray://HOST:PORT.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        What it is, and what was measured.

    Raises:
        InputError: If an argument breaks a rule, or there is no checkpoint; nothing is written.
        CheckpointError: If a file is damaged, or needs code to be read.

    Example:
        >>> inspect("nowhere.pt")
        Traceback (most recent call last):
        lowland.core.errors.InputError: `path` must exist (got 'nowhere.pt')
    """
    check_positive(points=min(points), threads=threads)
    check_engine(engine)
    for part in measures or ():
        if part not in _PARTS:
            raise unknown("measures", part, _PARTS)
    members = series_of(Path(path))
    subject = None if data is None else _subject(members[-1], path, folder, locals())
    if (members[-1] / SPEC).is_file():
        check_run(members[-1])
        raise InputError("path", "must be no run of Lowland", path, f"lowland report {path} shows it")
    facts = facts_of(members[-1])
    steps = {member.name: step_of(member) for member in members}
    if subject is None:
        return Inspection(facts, steps, advice=_advice(facts, path))
    if facts.kind == "PEFT adapter":
        advice = "merge it into its base first: model.merge_and_unload().save_pretrained(folder)"
        raise InputError("path", "must hold whole weights to be measured", path, advice)
    wanted = measures or [part for part in _PARTS if part != "path" or len(members) > 1]
    survey = SurveyOptions(risk=risk, engine=engine, threads=threads)
    shows = {"on_event": on_event, "progress": progress}
    results = dict(_measured(subject, path, wanted, points, survey, shows))
    run = importlib.import_module("lowland.opening").open_run(Path(subject.folder))
    page = Path(subject.folder) / "report.html"
    run.report(page)
    return Inspection(facts, steps, results, page)


def _measured(
    subject: SubjectSpec,
    path: str,
    wanted: Collection[str],
    points: tuple[int, int],
    survey: SurveyOptions,
    shows: Mapping[str, Any],
) -> Iterator[tuple[str, Path]]:
    """Yield what is measured, and where it is stored, by the commands that measure one thing."""
    risk, shared = survey.risk, {"threads": survey.threads, **shows}
    if "path" in wanted:
        end = replace(risk, weights="last", batch_norm="recalibrated")
        yield "path", trajectory(subject, checkpoints=path, risk=end, **shared)[1]
    if "surface" in wanted:
        yield "surface", surface(subject, survey, points=points, refine=True, **shows)[1]
    if "curvature" in wanted:
        yield "curvature", curvature(subject, risk=risk, **shared)[1]
    if "robustness" in wanted:
        yield "robustness", robustness(subject, risk=risk, engine=survey.engine, **shared)[1]


def _subject(last: Path, path: str, folder: str | None, given: dict[str, Any]) -> SubjectSpec:
    """Return what the other commands measure; refuse what cannot be, before anything heavy is imported."""
    names = ("model", "prefix", "data", "loss")
    options: dict[str, Any] = {name: given[name] or {} for name in ("model_options", "data_options")}
    options |= {name: given[name] for name in names}
    place = folder or str(Path("runs") / (Path(path).resolve().stem or "inspected"))
    subject = SubjectSpec(checkpoint=str(last), folder=place, **options)
    if (Path(place) / SPEC).is_file():
        raise InputError("folder", "must be no run of Lowland", place, "name another by --folder")
    if subject.model is None and not (last / "config.json").is_file():
        advice = "a known name, or module:callable; only a Hugging Face folder says by itself what its model is"
        raise InputError("model", "must be given for this checkpoint", str(last), advice)
    return subject


def _advice(facts: CheckpointFacts, path: str) -> str:
    own = "" if facts.kind == "Hugging Face folder" else " --model module:callable"
    return f"To measure it: lowland inspect {path}{own} --data module:callable"
