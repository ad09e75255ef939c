"""The answer in plain words, computed from the numbers: does chaos appear, from which depth, what does it depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final

from lowland.report import show
from lowland.results import LOSS_RATIO, comparable
from studies.figure.plan import Net
from studies.figure.record import Entry, Record

__all__ = ["CHAOS", "answer", "chaotic"]

CHAOS: Final = 3
"""Local minima besides the lowest from which a surface is called chaotic; declared before any surface was seen."""


def chaotic(entry: Entry) -> bool:
    """Tell whether a surface of a network that has learned is chaotic."""
    return entry.learned and entry.number("minima") >= CHAOS


def answer(record: Record) -> str:
    """Return the answer."""
    if not record.entries:
        return "Nothing has been measured yet."
    lines = [
        f"A surface is called *chaotic* where it has {CHAOS} or more local minima besides the lowest that its error "
        "cannot have made. That was declared before any surface was seen. Batch norm has running statistics unless it "
        "says otherwise.\n"
    ]
    parts = (_threshold, _depths, _losses, _controls, _conditions)
    lines += [f"- {text}" for part in parts for text in part(record)]
    return "\n".join(lines)


def _depths(record: Record) -> list[str]:
    found = []
    for width in record.size.widths:
        for depth in record.size.depths:
            both = [record.over_seeds(depth, skip, width) for skip in (True, False)]
            if all(both):
                told = [_told(own, words) for own, words in zip(both, ("with", "without"), strict=True)]
                found.append(f"**ResNet-{depth}, width {width}**: {'; '.join(told)}.")
    return found


def _told(entries: Sequence[Entry], words: str) -> str:
    seeds = f"{len(entries)} seed" + ("s" if len(entries) > 1 else "")
    learned = [entry for entry in entries if entry.learned]
    if not learned:
        losses = ", ".join(show(entry.number("center")) for entry in entries)
        return f"{words} shortcuts it did not learn (train loss {losses}, {seeds}): no verdict"
    count = sum(chaotic(entry) for entry in learned)
    bent = ", ".join(f"{entry.number('non_convex'):.0%}" for entry in learned)
    dips = ", ".join(f"{entry.number('minima'):.0f}" for entry in learned)
    kind = "chaotic" if count == len(learned) else "not chaotic" if count == 0 else f"chaotic on {count}"
    return f"{words} shortcuts {kind} ({len(learned)} of {seeds} learned; not convex {bent}; minima {dips})"


def _threshold(record: Record) -> list[str]:
    found = []
    for skip, words in ((False, "Without"), (True, "With")):
        for width in record.size.widths:
            known = {depth: record.over_seeds(depth, skip, width) for depth in record.size.depths}
            learned = {depth: [entry for entry in own if entry.learned] for depth, own in known.items()}
            seen = [depth for depth, own in learned.items() if own and sum(map(chaotic, own)) > len(own) / 2]
            if seen:
                found.append(f"{words} shortcuts chaos appears at width {width} from {min(seen)} layers on.")
            elif any(learned.values()):
                last = max(depth for depth, own in learned.items() if own)
                found.append(
                    f"{words} shortcuts it was not seen at width {width} up to {last} layers, the deepest that learned."
                )
    return found


def _losses(record: Record) -> list[str]:
    """Say where the two sides of a comparison are not equally well trained."""
    found = []
    for width, depth in product(record.size.widths, record.size.depths):
        sides = [[e.number("center") for e in record.over_seeds(depth, s, width) if e.learned] for s in (True, False)]
        if all(sides):
            means = [sum(side) / len(side) for side in sides]
            if not comparable(means):
                found.append(f"{show(means[0])} with and {show(means[1])} without at {depth} layers of width {width}")
    if not found:
        return []
    return [
        f"**Not at equal loss**: the train losses differ by more than a factor {LOSS_RATIO:g}: {'; '.join(found)}. So "
        "the depth at which chaos appears is also one that is harder to train."
    ]


def _controls(record: Record) -> list[str]:
    """Say what a network with shortcuts looks like where its loss is no lower than that of its chaotic twin."""
    plain = {entry.survey.net: entry for entry in record.entries if entry.survey.part == "pairs"}
    found = []
    for entry in record.entries:
        net = entry.survey.net
        twin = plain.get(replace(net, skip=False))
        if entry.survey.part != "length" or not net.skip or twin is None or not chaotic(twin) or not entry.learned:
            continue
        losses = [one.number("center") for one in (entry, twin)]
        if losses[0] >= losses[1]:
            kind = "chaotic too" if chaotic(entry) else f"not chaotic ({_minima(entry.number('minima'))})"
            found.append(
                f"**At a loss that is no lower**: after a third of the training, at {show(losses[0])}, "
                f"ResNet-{net.depth} with shortcuts is {kind}; without them it is, at {show(losses[1])}."
            )
    return found


def _conditions(record: Record) -> list[str]:
    plain = {entry.survey.net: entry for entry in record.entries if entry.survey.part == "pairs"}
    found = []
    inner = [entry for entry in record.entries if entry.survey.part in ("pairs", "width") and chaotic(entry)]
    if inner:
        kept = sum(entry.number("minima_inner") >= CHAOS for entry in inner)
        found.append(
            f"**Range**: {kept} of {len(inner)} chaotic surfaces are chaotic in the inner half of both axes alone."
        )
    words = {
        "batch norm": ("Batch norm", "with the statistics of the batch at every point"),
        "length": ("Training length", "after a third of the training"),
        "directions": ("Directions", "on another pair of directions"),
        "fine": ("More points", f"on {record.size.fine} x {record.size.fine} points"),
    }
    for part, (name, how) in words.items():
        own = [entry for entry in record.entries if entry.survey.part == part and entry.survey.net in plain]
        if own:
            found.append(f"**{name}**: {'; '.join(_changed(entry, plain[entry.survey.net], how) for entry in own)}.")
    return found


def _changed(entry: Entry, plain: Entry, how: str) -> str:
    net: Net = entry.survey.net
    before, after = ((e.number("non_convex"), e.number("minima")) for e in (plain, entry))
    return (
        f"ResNet-{net.depth} {'with' if net.skip else 'without'} shortcuts is not convex at {after[0]:.0%} {how} "
        f"(before {before[0]:.0%}) and has {_minima(after[1])} ({before[1]:.0f})"
        f"{_again(entry, plain)}{_verdict(entry, plain)}"
    )


def _verdict(entry: Entry, plain: Entry) -> str:
    """Say where the condition changes the verdict, or takes it away."""
    if not entry.learned:
        return f", around a network that has not learned (train loss {show(entry.number('center'))}): no verdict"
    if chaotic(entry) == chaotic(plain):
        return ""
    return ", so that it is chaotic" if chaotic(entry) else ", so that it is **not chaotic**"


def _minima(count: float) -> str:
    return f"{count:.0f} {'minimum' if count == 1 else 'minima'}"


def _again(entry: Entry, plain: Entry) -> str:
    """Say that two surveys are of two trainings: processors round otherwise, and training carries that far."""
    losses = [e.content["training"].get("train_loss") for e in (plain, entry)]
    if None in losses or abs(losses[0] - losses[1]) <= 1e-6 * abs(losses[0]):
        return ""
    return f", of the same recipe trained again (train loss {show(losses[1])}, before {show(losses[0])})"
