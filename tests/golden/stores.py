"""The surveys whose stores every version left in its ``stores``; weights and data are the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.golden import ground

import lowland as ll

FILES = Path(__file__).parent / "files"


def plane(**options: Any) -> Any:
    model, risk = ground.start(torch.float64)
    place = ll.landscape.random_plane(model, 3)
    return ll.landscape.evaluate(
        risk, place, ll.landscape.grid(5, 4), probes=[ll.landscape.GradientNorm()], chunk=3, **options
    )


def line(**options: Any) -> Any:
    model, risk = ground.start(torch.float64)
    lines = [ll.landscape.random_line(model, seed) for seed in range(2)]
    return ll.landscape.evaluate(risk, lines, ll.landscape.grid(7), **options)


def convexity(**options: Any) -> Any:
    model, risk = ground.start(torch.float64)
    probes = [ll.curvature.Convexity(max_products=60, check_share=0.0)]
    place = ll.landscape.random_plane(model, 0)
    return ll.landscape.evaluate(risk, place, ll.landscape.grid(4, 3), probes=probes, **options)


def refined(**options: Any) -> Any:
    model, risk = ground.start(torch.float64)
    tolerance = ll.landscape.Tolerance(checks=20)
    place = ll.landscape.random_plane(model, 3)
    return ll.landscape.evaluate(risk, place, ll.landscape.grid(17, 13), refined=tolerance, **options)


SURVEYS: dict[str, Callable[..., Any]] = {"plane": plane, "line": line, "convexity": convexity, "refined": refined}


class Stopped(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


def stop_after(count: int) -> Callable[[Any], None]:
    def receive(event: Any) -> None:
        if event.done >= count:
            raise Stopped

    return receive
