"""Surveys: plan, run on an engine, resume, report progress."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from lowland.core.pace import OnEvent, shown
from lowland.core.ranks import Ranks
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import STATUS_MEASURED
from lowland.engine.base import Engine
from lowland.engine.select import select
from lowland.landscape.autotune import BatchSize, Precision, autotune
from lowland.landscape.grid import Grid
from lowland.landscape.plan import as_splits, check_ranks, check_survey, make_recipe, make_template, preflight
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe
from lowland.landscape.progress import SurveyRun
from lowland.landscape.surface_task import ComputeSettings, Request, SurfaceTask
from lowland.landscape.tolerance import Tolerance
from lowland.landscape.verify import check_stored
from lowland.results.dataset import SurfaceWriter, writer

if TYPE_CHECKING:
    import xarray as xr


def evaluate(
    risk: EmpiricalRisk | Mapping[str, EmpiricalRisk],
    plane: Plane | Sequence[Plane] | Mapping[str, Plane],
    grid: Grid,
    *,
    engine: str | Engine = "serial",
    store: str | Path | None = None,
    probes: Sequence[Probe] = (),
    refined: Tolerance | None = None,
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    chunk: int = 1,
    paired: bool | tuple[str, ...] = True,
    verify: bool = True,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Measure a risk at every point of a grid on a line or plane.

    With the defaults the value at the origin is that of ``risk.evaluate()`` to the last bit. The model is restored bit
    for bit, also after an exception or Ctrl-C. A point that fails is marked and leaves the others alone; the next run
    tries it again. Where ranks share the data of the risk, all of them make the same call and get the same surface; the
    first one alone writes the store.

    Memory: 3 sets of weights on a plane, 2 on a line, 1 where directions are not stored, and the activations of a batch
    without a graph; what probes take comes on top.

    Args:
        risk: What is measured, or several splits by name (``{"train": ..., "test": ...}``) of the same model.
        plane: The line or plane, made at the model's present weights; or several of them, compared in one result; by
            name, each is drawn by itself instead of as a band.
        grid: Where on it.
        engine: Where points are computed. Default ``"serial"``: in this process.
        store: Folder of a Zarr store; a second run on it goes on where the first stopped. None keeps the result in
            memory alone.
        probes: What is measured beyond the risk's own metrics, such as `GradientNorm`.
        refined: Measure only as many points as this tolerance asks for, interpolate the rest (status 2) and check it;
            what was found is in the attribute ``refinement``. Numbers of probes stay NaN at interpolated points.
            Default None: measure every point.
        precision: ``"float32"`` (default) computes in the model's own type; ``"bfloat16"``; or ``"auto"``: bfloat16
            where it is faster and stays within half of ``refined`` (or of the default tolerance).
        batch_size: Samples per forward pass. None (default) keeps the risk's batches; ``"auto"`` tries sizes, memory
            layouts and batch norms folded into convolutions, which change the last bits (1e-6 relative).
        chunk: Points handed out together; with data that stream from a loader, one pass serves a chunk. Default 1, or
            as many as take a hundredth of a second, at most 16, with ``batch_size="auto"``.
        paired: Also store ``loss_difference_se``, the standard error of the difference to the loss at the origin: much
            smaller than that of the loss, since most of the error is common. Names of metrics, such as
            ``("loss", "accuracy")``, store it for each of these. Default True; costs one pass.
        verify: Measure two stored points again before a store is continued or returned, and refuse it where they are
            others: a changed loss, activation or data object cannot pass, whatever its name. Default True; False skips
            it, and the attribute ``verified`` says so.
        on_event: Receives progress, see `lowland.engine.Event`; the first event has an estimate of the total time.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Returns:
        A surface of schema 2; every metric has ``NAME_se`` (standard error as an estimate of a population) and
        ``NAME_skew`` (skewness: the plain interval is unreliable for n < 25 skew^2), both NaN at interpolated points.

    Raises:
        InputError: If arguments do not fit together.
        NotDeterministic: If data or outputs differ between two passes.
        StoreError: If the store holds something else, is in use, damaged or not writable; finished points are kept.
    """
    risks = as_splits(risk)
    listed = {"0": plane} if isinstance(plane, Plane) else plane
    named = listed if isinstance(listed, Mapping) else {str(number): one for number, one in enumerate(listed)}
    planes = tuple(named.values())
    request = Request(batch_size, precision, refined)
    check_survey(risks, planes, grid, tuple(probes), request)
    runner, ranks = select(engine), next(iter(risks.values())).ranks
    size = batch_size if isinstance(batch_size, int) else None
    survey = SurfaceTask(risks, planes, tuple(probes), ComputeSettings(chunk=chunk, batch_size=size), paired)
    if not ranks.alone:
        check_ranks(survey, request, runner.name, store)
    seen = preflight(survey)
    template = make_template(survey, grid, seen, make_recipe(survey, grid, request), list(named))
    template.attrs["threads"] = runner.worker_threads
    with shown(progress and ranks.number == 0, "survey", on_event) as told, _kept(store, template, ranks) as keeper:
        known = bool((keeper.status == STATUS_MEASURED).any())
        exactly = all(ranks.gather(all(keeper.dataset.attrs.get(name) == template.attrs[name] for name in _BITS)))
        survey = _decided(survey, grid, keeper, runner, request)
        with runner.open(survey.setup, device=survey.device) as workers:
            run = SurveyRun(survey, grid, keeper, workers, told, seen.seconds)
            if known and verify:
                names = [name for probe in probes for name in probe.names]
                check_stored(run, keeper, grid, exactly=exactly, probes=names)
            elif known:
                keeper.annotate({"verified": False})
            if refined is None:
                run.measure(np.arange(len(planes) * grid.size))
            else:
                run.refine(refined)
        run.finish()
    return keeper.dataset


_BITS: Final = ("threads", "processor", "versions")
"""Attributes that must agree for the bits of a store to be expected again."""


@contextmanager
def _kept(store: str | Path | None, template: xr.Dataset, ranks: Ranks) -> Generator[SurfaceWriter]:
    """Open the store; where ranks share the data the first one does, and the others keep what it holds in memory."""
    with ExitStack() as stack:
        opened: list[SurfaceWriter] = []

        def begin() -> xr.Dataset:
            opened.append(stack.enter_context(writer(store, template)))
            return opened[0].dataset

        surface = ranks.by_first(begin)
        yield opened[0] if opened else SurfaceWriter(surface)


def _precision(survey: SurfaceTask, kernel: ComputeSettings) -> str:
    """Return the type in which forward passes run: the model's own, unless the kernel lowers it."""
    own = {str(p.dtype).removeprefix("torch.") for p in survey.first.model.parameters()}
    return kernel.precision if kernel.precision != "float32" or not own else ", ".join(sorted(own))


def _decided(survey: SurfaceTask, grid: Grid, keeper: SurfaceWriter, runner: Engine, request: Request) -> SurfaceTask:
    """Return the survey with its kernel: the stored one, or a new decision that is stored at once."""
    threads = runner.worker_threads
    if "kernel" in keeper.dataset.attrs:
        if threads != keeper.dataset.attrs["threads"]:  # bits may differ: whoever compares must be able to see it
            keeper.annotate({"resumed_with_threads": threads})
        return replace(survey, kernel=ComputeSettings(**json.loads(keeper.dataset.attrs["kernel"])))
    kernel, report, rows = autotune(survey, grid, request, runner.workers)
    keeper.annotate({"kernel": asdict(kernel), "precision": _precision(survey, kernel), "trial": report})
    if threads == torch.get_num_threads():  # otherwise their last bits would differ from what the workers compute
        for index, row in rows.items():
            keeper.put(index, row.values)
    return replace(survey, kernel=kernel)
