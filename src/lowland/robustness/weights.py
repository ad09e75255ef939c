"""The parts of a card that change the weights: rounding, noise, the worst direction, a fine-tune and back, merging."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.core.batches import joined, take
from lowland.core.contexts import has_running_statistics
from lowland.core.errors import InputError, require
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import generator
from lowland.core.settings import RobustnessOptions
from lowland.core.types import Batch
from lowland.curvature import Hessian, top_eigenvalues, worst_case_sharpness
from lowland.engine import Engine
from lowland.landscape import Grid, Plane, evaluate, line_between, match_weights, random_line
from lowland.landscape.checkpoints import Weights
from lowland.landscape.normalize import Normalization
from lowland.robustness.paired import ALL, QUANTILES, SUBSET, Outcome, PairedRisk, paired_risk
from lowland.robustness.rounding import rounded

Risks = Mapping[str, EmpiricalRisk]
_METRICS: Final = ("loss", "accuracy")
_QUANTIZED: Final = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_CANDIDATE: Final = 0.02
"""Residual, over the scale, of the eigenvector that the search for the worst direction is compared with."""
_KEPT: Final = 1 << 30
"""Bytes of directions kept in memory; beyond that they are drawn again for every point."""


def rounding(risks: Risks, options: RobustnessOptions, trace: float) -> list[Outcome]:
    """Round the weights to each number of bits: by channel and by group, symmetric and asymmetric."""
    ways = list(itertools.product(options.bits, (None, options.group), (True, False)))

    def values(paired: PairedRisk) -> Iterator[list[Tensor]]:
        for bits, group, symmetric in ways:
            yield [
                w if rule.kind == "fixed" else rounded(w, bits, rule=rule, group=group, symmetric=symmetric)
                for w, rule in zip(paired.base, paired.space.rules, strict=True)
            ]

    with paired_risk(risks, trace) as paired:
        rows = [
            paired.outcome(weights, part="rounding", name=_way(*way), size=float(way[0]))
            for way, weights in zip(ways, values(paired), strict=True)
        ]
        return paired.with_predictions(rows, values(paired))


def _way(bits: int, group: int | None, symmetric: bool) -> str:
    unit = "channel" if group is None else f"group of {group}"
    return f"INT{bits} per {unit}, {'symmetric' if symmetric else 'asymmetric'}"


def rounded_names(model: nn.Module) -> list[str]:
    """Return the tensors that rounding and noise change, or refuse a model that has none."""
    advice = "measure the model before it is quantized; biases and norm parameters are left alone"
    packed = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith(_QUANTIZED)}
    rule = "must not have quantized layers, whose weights are no parameters"
    require(not packed, "model", rule, sorted(packed), advice)
    names = [name for name, _, rule in ParameterSpace(model) if rule.kind != "fixed"]
    require(names, "model", "must have floating-point weight matrices to be rounded", type(model).__name__, advice)
    return names


def profile(
    risks: Risks,
    options: RobustnessOptions,
    trace: float,
    *,
    engine: str | Engine = "serial",
    store: Path | None = None,
) -> list[Outcome]:
    """Measure random directions at all radii: normalized by filter, and of one deviation for all weights."""
    rows = []
    for kind, name in (("filter", "per filter"), ("none", "absolute")):
        place = None if store is None else store.with_name(f"{store.stem}-noise-{name.replace(' ', '-')}.zarr")
        rows += _noise(risks, options, trace, kind, name, engine, place)  # type: ignore[arg-type]
    return rows


def _noise(
    risks: Risks,
    options: RobustnessOptions,
    trace: float,
    kind: Normalization,
    name: str,
    engine: str | Engine,
    store: Path | None,
) -> list[Outcome]:
    model, seeds = risks[ALL].model, range(options.seed, options.seed + options.directions)
    kept = ParameterSpace(model).numel * options.directions * 4 <= _KEPT
    lines = [random_line(model, seed, normalization=kind, stored=kept) for seed in seeds]
    with paired_risk(risks, trace) as paired:
        # the whole step has the length rho ||w||: by filter in any case, absolute up to a part in sqrt(n)
        units = 1.0 if kind == "filter" else paired.norm / float(np.mean([line.norms[0] for line in lines]))
        steps = ((line.axes[0].tensors(paired.space, paired.base)) for line in lines)
        slopes = np.array(paired.parabolas(steps))
        plain = paired.plain
        noise = [paired.like_noise(paired.norm * radius) for radius in options.radii]
    places = units * np.array(options.radii)
    found = _surveyed(risks, lines, places, engine, store)
    lengths = float(np.mean([line.norms[0] for line in lines])) * places
    rows = []
    for k, (place, length) in enumerate(zip(places, lengths, strict=True)):
        loss = _of(found, "loss", ALL)[:, k]
        row = Outcome(part="noise", name=name, size=options.radii[k], distance=float(length), trace=noise[k])
        row = replace(row, **_summed(found, plain[ALL], k), **_spread(loss - plain[ALL]["loss"].value, options.seed))
        subset = _of(found, "loss", SUBSET)[:, k].mean() - plain.get(SUBSET, plain[ALL])["loss"].value
        first, second = float(slopes[:, 0].mean() * place), float(slopes[:, 1].mean() * place**2)
        rows.append(replace(row, compared=float(subset), first=first, second=second))
    return rows


def _surveyed(
    risks: Risks, lines: Sequence[Plane], places: NDArray[np.float64], engine: str | Engine, store: Path | None
) -> xr.Dataset:
    named = risks if len(risks) > 1 else risks[ALL]
    return evaluate(named, lines, Grid(places), engine=engine, store=store, paired=_METRICS)


def _of(found: xr.Dataset, name: str, split: str) -> NDArray[np.float64]:
    """Return a variable of one set of samples, shape [directions, places]."""
    values = found[name]
    values = values.sel(split=split) if "split" in values.dims else values
    return np.asarray(values.transpose(..., "x").values, dtype=np.float64).reshape(-1, found.sizes["x"])


def _summed(found: xr.Dataset, plain: Mapping[str, Any], place: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name in _METRICS:
        if name in found:
            value = float(_of(found, name, ALL)[:, place].mean())
            numbers |= {name: value, f"{name}_change": value - plain[name].value}
        if f"{name}_difference_se" in found:
            numbers[f"{name}_change_se"] = float(_of(found, f"{name}_difference_se", ALL)[:, place].mean())
    return numbers


def _spread(changes: NDArray[np.float64], seed: int) -> dict[str, Any]:
    """Return quantiles of the change over directions, and standard errors over directions."""
    count = len(changes)
    rows = generator(seed, "bootstrap", "profile").integers(count, size=(400, count))
    again = np.quantile(changes[rows], QUANTILES, axis=1)
    return {
        "draws": count,
        "draw_se": float(changes.std(ddof=1) / count**0.5),
        "quantiles": tuple(map(float, np.quantile(changes, QUANTILES))),
        "quantile_se": tuple(map(float, again.std(axis=1, ddof=1))),
    }


def worst(risks: Risks, options: RobustnessOptions, trace: float) -> list[Outcome]:
    """Walk in the worst direction that is found on the subset, at the lengths of the noise."""
    subset = risks.get(SUBSET, risks[ALL])
    with Hessian(subset, check=False) as hessian:
        found = top_eigenvalues(hessian, 1, tolerance=_CANDIDATE, max_products=20, check=False, seed=options.seed)
        top = {name: part.clone() for name, part in hessian.split(found.vectors[:, 0]).items()}
    rows, steps = [], []
    with paired_risk(risks, trace) as paired:
        for radius in options.radii:
            rho = radius * paired.norm
            case = worst_case_sharpness(subset, rho=rho, steps=options.worst_steps, per_batch=False, eigenvector=top)
            assert case.step is not None
            steps.append(paired.space.order(case.step))
            weights = [b + d for b, d in zip(paired.base, steps[-1], strict=True)]
            rows.append(paired.outcome(weights, part="worst", name=f"worst direction ({case.winner})", size=radius))
        moved = ([b + d for b, d in zip(paired.base, step, strict=True)] for step in steps)
        return paired.with_predictions(rows, moved)


def forgetting(risks: Risks, other: EmpiricalRisk, options: RobustnessOptions, trace: float) -> list[Outcome]:
    """Fine-tune on other data and back, by AdamW in evaluation mode, and measure the own data on the way."""
    require(other.model is risks[ALL].model, "finetune", "must be a risk of the same model on other data")
    marks = sorted({round(options.finetune_steps * share) for share in (0.25, 0.5, 1.0)} - {0})
    rows, weights = [], []
    with ExitStack() as stack:
        paired = stack.enter_context(paired_risk(risks, trace))
        stack.enter_context(other.prepared())
        for rate in options.learning_rates:
            paired.space.write(paired.base)
            optimizer = torch.optim.AdamW(paired.space.tensors, lr=rate, weight_decay=0.0)
            for way, risk in (("away", other), ("back", risks[ALL])):
                done = 0
                for mark in marks:
                    _train(paired, optimizer, risk, range(done, mark), options, way)
                    done = mark
                    weights.append(paired.space.copy())
                    size = float(mark if way == "away" else options.finetune_steps + mark)
                    row = paired.outcome(weights[-1], part="forgetting", name=f"AdamW {rate:g}, {way}", size=size)
                    rows.append(replace(row, other_loss=other.estimates()["loss"].value))
        return paired.with_predictions(rows, weights)


def _train(
    paired: PairedRisk,
    optimizer: torch.optim.Optimizer,
    risk: EmpiricalRisk,
    steps: range,
    options: RobustnessOptions,
    way: str,
) -> None:
    everything: Batch = joined(list(risk.batches()))
    count = min(options.batch_size, everything.size)
    for step in steps:
        stream = generator(options.seed, "order", "fine-tune", way, step)
        rows = torch.as_tensor(stream.choice(everything.size, count, replace=False))
        loss, weight = risk.loss_terms(replace(take(everything, rows), number=2))  # not looked at as a first batch
        gradients = torch.autograd.grad(loss / weight, paired.space.tensors, allow_unused=True, materialize_grads=True)
        for parameter, gradient in zip(paired.space.tensors, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()


def ways_to(risk: EmpiricalRisk, second: Weights, seed: int) -> tuple[dict[str, Plane], str]:
    """Return the line to other weights, the one after matching, and why there is none of these where there is none."""
    running, why = risk.batch_norm == "running", ""
    lines = {"line": line_between(risk.model, second, move_statistics=running)}
    try:
        matched = match_weights(risk.model, second, next(iter(risk.batches())), seed=seed).model
        lines["matched line"] = line_between(risk.model, matched, move_statistics=running)
        if running and has_running_statistics(risk.model):
            lines["matched line, statistics renewed"] = line_between(risk.model, matched, move_statistics=False)
    except InputError as error:
        why = f"no matching: {error}"
    return lines, why


def merging(risks: Risks, second: Weights, options: RobustnessOptions, trace: float) -> list[Outcome]:
    """Walk to other weights, on the straight line and after matching."""
    lines, _ = ways_to(risks[ALL], second, options.seed)
    rows = []
    with paired_risk(risks, trace) as paired:
        plain = paired.plain
        slopes = paired.parabolas(line.axes[0].tensors(paired.space, paired.base) for line in lines.values())
        noise = [[paired.like_noise(line.norms[0] * share) for share in options.shares] for line in lines.values()]
    places = np.union1d(options.shares, [1.0])
    for (name, line), (first, second_order), like in zip(lines.items(), slopes, noise, strict=True):
        on = {k: _renewed(risk) for k, risk in risks.items()} if name.endswith("renewed") else risks
        found = _surveyed(on, [line], places, "serial", None)
        for share, trace_part in zip(options.shares, like, strict=True):
            place = int(np.searchsorted(places, share))
            ends = (1 - share) * plain[ALL]["loss"].value + share * float(_of(found, "loss", ALL)[0, -1])
            subset = float(_of(found, "loss", SUBSET)[0, place]) - plain.get(SUBSET, plain[ALL])["loss"].value
            rows.append(
                Outcome(
                    part="merging",
                    name=name,
                    size=share,
                    distance=line.norms[0] * share,
                    first=first * share,
                    second=second_order * share**2,
                    trace=trace_part,
                    compared=subset,
                    other_loss=ends,
                    **_summed(found, plain[ALL], place),
                )
            )
    return rows


def _renewed(risk: EmpiricalRisk) -> EmpiricalRisk:
    other = risk.replaced()
    other.batch_norm = "recalibrated"
    return other
