"""The robustness card: what curvature says of a checkpoint, beside what happens when it is rounded, moved, trained on.

After each part the card is written to its store, so that an interrupted one goes on with the next part. Each part
leaves the model as it was, to the bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, MissingExtra, StoreError, require
from lowland.core.moments import Estimate
from lowland.core.pace import Clock, OnEvent, shown
from lowland.core.params import model_fingerprint
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_robustness
from lowland.core.settings import PARTS_OF_CARD, RobustnessOptions
from lowland.curvature import filter_weighted_trace
from lowland.curvature.protocol import protocol_risk
from lowland.data import DataSplits
from lowland.engine import Engine
from lowland.landscape.checkpoints import Weights, as_model
from lowland.results import open as open_store
from lowland.results import save
from lowland.robustness import weights
from lowland.robustness.attacks import adversarial, attack_library
from lowland.robustness.noise import noise
from lowland.robustness.paired import ALL, QUANTILES, SUBSET, Outcome, paired_risk
from lowland.robustness.pixels import scaled, test_part

_TRACE_DIRECTIONS: Final = 12
_CLOSE: Final = 1e-6


def card(
    risk: EmpiricalRisk,
    options: RobustnessOptions = RobustnessOptions(),
    *,
    finetune: EmpiricalRisk | None = None,
    second: Weights | None = None,
    data: DataSplits | None = None,
    engine: str | Engine = "serial",
    store: str | Path | None = None,
    attrs: Mapping[str, Any] | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Measure what changes of weights and inputs do to a model, each beside what curvature predicts.

    For a change d of the weights the prediction is ``g.d + d'Hd / 2`` on a subset of the samples, and the ratio is what
    was measured on the same samples over it. Changes of the loss and of accuracy are paired sample by sample with the
    plain weights, so that their standard errors are those of the difference.

    Memory: 30 sets of weights, which predictions and the worst direction take; without them 4.

    Args:
        risk: What is measured, at the model's present weights; the model is restored bit for bit.
        options: Which parts, and how finely.
        finetune: The same model on other data, for forgetting.
        second: Other weights of the same architecture, for merging: a network, a state dict, or a checkpoint.
        data: Images with class labels, for noise on inputs and (with foolbox) attacks; the test part is used.
        engine: Who computes the random directions. Default ``"serial"``.
        store: Folder of a Zarr store; a second call on it goes on where the first stopped. The random directions lie
            beside it, as surfaces. None keeps the card in memory.
        attrs: Further plain values to keep with it.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Returns:
        A Dataset of kind robustness: a row for each `Outcome`.

    Raises:
        InputError: If a part lacks what it needs, or the model cannot be rounded; nothing is written.
        StoreError: If the store holds another card.

    Example:
        >>> import torch
        >>> risk = EmpiricalRisk(torch.nn.Linear(4, 4), torch.nn.CrossEntropyLoss(), [(torch.eye(4), torch.arange(4))])
        >>> found = card(risk, RobustnessOptions(parts=["rounding"], bits=[8]))
        >>> [str(name) for name in found.name.values][:2]
        ['INT8 per channel, symmetric', 'INT8 per channel, asymmetric']
    """
    given = {"forgetting": finetune, "merging": second, "inputs": data}
    parts = _parts(options, given)
    facts = {"rounded": weights.rounded_names(risk.model)} | _checked(risk, parts, options, finetune, second, data)
    risk.check_deterministic(once=True)
    known: list[Outcome] = []
    recipe = _recipe(risk, parts, options, finetune, second, data)
    place = None if store is None else Path(store)
    risks = _risks(risk, options)
    with paired_risk(risks) as paired:
        plain, norm = paired.plain[ALL], paired.norm
    if place is not None and place.exists():
        known, facts = _continued(place, recipe, plain["loss"].value)
    else:
        facts |= _measured(risk, risks, plain, options)
        facts |= {"weight_norm": norm, "parts": parts, "recipe": recipe, **provenance(), **(attrs or {})}
    slope = float(facts["filter_trace"])
    work: dict[str, Callable[[], list[Outcome]]] = {
        "rounding": lambda: weights.rounding(risks, options, slope),
        "noise": lambda: weights.profile(risks, options, slope, engine=engine, store=place),
        "worst": lambda: weights.worst(risks, options, slope),
        "forgetting": lambda: weights.forgetting(risks, finetune, options, slope),  # type: ignore[arg-type]
        "merging": lambda: weights.merging(risks, second, options, slope),  # type: ignore[arg-type]
        "inputs": lambda: inputs(risk, data, options),  # type: ignore[arg-type]
    }
    with shown(progress, "robustness", on_event) as told:
        return _filled(known, facts, {part: work[part] for part in parts}, place, told)


def _filled(
    known: list[Outcome],
    facts: Mapping[str, Any],
    work: Mapping[str, Callable[[], list[Outcome]]],
    place: Path | None,
    told: OnEvent | None,
) -> xr.Dataset:
    """Return the card with every part, writing it after each that it lacked."""
    made, clock = _dataset(known, facts), Clock(math.inf, 0, told)  # parts take very different times
    clock.tell("started", 0, total=len(work))
    for number, (part, measure) in enumerate(work.items(), 1):
        if all(row.part != part for row in known):
            known += measure()
            made = _dataset(known, facts)
            if place is not None:
                save(made, place, overwrite=True)
        clock.tell("progress", number, total=len(work))
    clock.tell("done", len(work), total=len(work))
    return made


def _measured(
    risk: EmpiricalRisk, risks: Mapping[str, EmpiricalRisk], plain: Mapping[str, Estimate], options: RobustnessOptions
) -> dict[str, Any]:
    """Return what is said of the plain weights."""
    trace = filter_weighted_trace(risks.get(SUBSET, risk), directions=_TRACE_DIRECTIONS, seed=options.seed)
    facts = {"filter_trace": trace.value, "filter_trace_se": trace.standard_error, "curvature_kinks": trace.hint}
    facts |= {f"train_{name}": plain[name].value for name in ("loss", "accuracy") if name in plain}
    return facts | {"batch_norm": risk.batch_norm, "samples": plain["loss"].samples}


def finished(found: xr.Dataset) -> bool:
    """Tell whether a card has all of its parts."""
    return set(json.loads(found.attrs["parts"])) <= {str(part) for part in found["part"].values}


def outcomes(found: xr.Dataset) -> list[Outcome]:
    """Return the rows of a card."""
    columns = {field.name: found[field.name].values.tolist() for field in fields(Outcome)}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    made: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return [Outcome(**row) for row in made]


def _dataset(rows: list[Outcome], facts: Mapping[str, Any]) -> xr.Dataset:
    return new_robustness([asdict(row) for row in rows], QUANTILES, attrs=facts)


def _parts(options: RobustnessOptions, given: Mapping[str, Any]) -> list[str]:
    """Return the parts that are measured, in their order; refuse one that lacks what it needs."""
    needs = {"forgetting": "`finetune`, a second data set", "merging": "`second`, other weights", "inputs": "`data`"}
    for part in options.parts or ():
        require(part not in given or given[part] is not None, "parts", f"needs {needs.get(part)} for {part}", part)
    chosen = options.parts or [part for part in PARTS_OF_CARD if given.get(part, part) is not None]
    return [part for part in PARTS_OF_CARD if part in chosen]


def _checked(
    risk: EmpiricalRisk,
    parts: list[str],
    options: RobustnessOptions,
    finetune: EmpiricalRisk | None,
    second: Weights | None,
    data: DataSplits | None,
) -> dict[str, Any]:
    """Refuse what would fail later, before anything is measured or written."""
    notes = []
    if "forgetting" in parts and finetune is not None:
        require(finetune.model is risk.model, "finetune", "must be a risk of the same model on other data")
        if finetune.data_fingerprint() == risk.data_fingerprint():
            raise InputError("finetune", "must be on other data than the risk's own")
        finetune.check_deterministic(once=True)
    if "merging" in parts and second is not None:
        other = as_model(risk.model, second, "second")
        if same_bits(list(other.parameters()), list(risk.model.parameters())):
            raise InputError("second", "must have other weights", "the same weights")
        notes.append(weights.ways_to(risk, second, options.seed)[1])
    if "inputs" in parts and data is not None:
        test_part(data, None, options.seed, images=False)
        if scaled(data):
            try:
                attack_library()
            except MissingExtra as error:
                notes.append(f"No attacks on inputs: {error}")
    return {"notes": [note for note in notes if note]}


def _risks(risk: EmpiricalRisk, options: RobustnessOptions) -> dict[str, EmpiricalRisk]:
    total, count = sum(batch.size for batch in risk.batches()), options.curvature_samples
    if count is None or count >= total:
        return {ALL: risk}
    return {ALL: risk, SUBSET: protocol_risk(risk, samples=count, batch_size=None, seed=options.seed)}


def _recipe(
    risk: EmpiricalRisk,
    parts: list[str],
    options: RobustnessOptions,
    finetune: EmpiricalRisk | None,
    second: Weights | None,
    data: DataSplits | None,
) -> str:
    """Return what must agree for a card to go on."""
    values = {
        "risk": risk.describe(),
        "model": model_fingerprint(risk.model),
        "options": {**asdict(options), "parts": parts},
        "finetune": None if finetune is None else finetune.describe(),
        "second": None if second is None else model_fingerprint(as_model(risk.model, second, "second")),
        "data": None if data is None else data.fingerprint,
    }
    return re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(values, sort_keys=True))


def _continued(place: Path, recipe: str, loss: float) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the rows of an earlier call; refuse a card of something else, or one that is measured otherwise now."""
    found = open_store(place)
    if found.attrs.get("recipe") != recipe:
        raise StoreError(f"{place} holds another card (risk, weights, data or options differ); choose another store")
    stored = float(found.attrs["train_loss"])
    if not np.isclose(stored, loss, rtol=_CLOSE, equal_nan=True):
        raise StoreError(f"{place} holds another card: the plain loss is {stored:.8g} there, {loss:.8g} here")
    return outcomes(found), {name: value for name, value in found.attrs.items() if name != "schema"}


def inputs(risk: EmpiricalRisk, data: DataSplits, options: RobustnessOptions) -> list[Outcome]:
    """Measure accuracy on test inputs with noise, and under attacks where they are images and foolbox is there."""
    found = noise(risk.model, data, deviations=[0.0, *options.deviations], seed=options.seed)
    rows = [("noise on inputs", found[0], row) for row in found[1:]]
    if scaled(data):
        some = options.attack_samples
        few = None if some is None or some >= len(data.test) else some
        with suppress(MissingExtra):
            clean, *attacked = adversarial(risk.model, data, samples=few, seed=options.seed)
            rows += [(row.attack, clean, row) for row in attacked]
    made = []
    for name, clean, row in rows:
        lost = clean.accuracy - row.accuracy
        made.append(
            Outcome(
                part="inputs",
                name=name,
                size=row.size,
                accuracy=row.accuracy,
                accuracy_change=-lost,
                accuracy_change_se=row.change_error,
            )
        )
    return made
