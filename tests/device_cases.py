"""What must give the processor's numbers on another device: every room's calls, on one small network with everything.

Each case takes a device and gives numbers, as a flat list of floats; the last entry of its row is the relative
tolerance towards the processor (the kernels of an accelerator sum in another order).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from tests.optim_cases import COMPOSED, METHODS, VARIANTS
from torch import Tensor, nn

import lowland as ll
from lowland import curvature, landscape, losses
from lowland.core.types import Batch

BATCHES: Final = 4
Quiet: TypeAlias = Callable[[], AbstractContextManager[None]]
"""What is entered around all that may not wait for the device."""
Case: TypeAlias = Callable[[torch.device, Quiet], list[float]]


class Net(nn.Module):
    """Convolution, batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


def network(device: torch.device, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype).to(device)


def batches(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCHES, 6, 1, 5, 5, generator=generator).to(dtype)
    y = torch.randint(3, (BATCHES, 6), generator=generator)
    rows = torch.arange(6 * BATCHES).reshape(BATCHES, 6)
    return [Batch(x[k].to(device), y[k].to(device), rows[k].to(device)) for k in range(BATCHES)]


def numbers(value: Any) -> list[float]:
    """Return everything that is a number, in order."""
    if isinstance(value, Tensor):
        return [float(entry) for entry in value.detach().double().cpu().reshape(-1)]
    if isinstance(value, Mapping):
        return [entry for key in sorted(value) for entry in numbers(value[key])]
    if isinstance(value, list | tuple):
        return [entry for part in value for entry in numbers(part)]
    return [float(value)]


def trained(
    make: Callable[..., Any],
    device: torch.device,
    base: Callable[..., Any],
    quiet: Quiet = nullcontext,
) -> list[float]:
    """Weights, buffers and averages after some steps; ``quiet`` is around what may not wait for the device."""
    model = network(device)
    optimizer = make(base(model.parameters()), model=model)
    for step, batch in enumerate(batches(device) * 2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.input), batch.target).backward()
        with quiet() if step > 1 else nullcontext():
            asked = optimizer.needs_perturbation()
        if asked:
            with quiet() if step > 1 else nullcontext():
                moved = optimizer.perturb()
                moved.__enter__()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            with quiet() if step > 1 else nullcontext():
                moved.__exit__(None, None, None)
        with quiet() if step > 1 else nullcontext():
            optimizer.step()
    optimizer.eval()
    return numbers([dict(model.named_parameters()), dict(model.named_buffers())])


BASES: Final[Mapping[str, Callable[..., Any]]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
}
OPTIMIZERS: Final = METHODS | COMPOSED | VARIANTS


LOSSES: Final[Mapping[str, Callable[[Any], losses.TrainingLoss]]] = {
    "LLR": lambda criterion: losses.LLR(criterion, initial_loss=1.2, start=1),
    "LLR of its first epoch": lambda criterion: losses.LLR(criterion, initial_loss="first_epoch", start=1),
    "SAF": lambda criterion: losses.SAF(criterion, start=1, look_back=1, precision="float32"),
    "SAF int8": lambda criterion: losses.SAF(criterion, start=1, look_back=1, precision="int8"),
    "SAF on the host": lambda criterion: losses.SAF(criterion, start=1, look_back=1, placement="host"),
    "MESA": lambda criterion: losses.MESA(criterion, start=1, half_life=0.5),
    "MESA bfloat16": lambda criterion: losses.MESA(criterion, start=1, half_life=0.5, teacher_precision="bfloat16"),
    "LLR on SAF": lambda criterion: losses.LLR(losses.SAF(criterion, start=1, look_back=1), initial_loss=1.2, start=1),
}


def reshaped(build: Callable[[Any], Any], device: torch.device, quiet: Quiet = nullcontext) -> list[float]:
    """Weights and values after three epochs with a training loss."""
    model = network(device)
    loss = build(nn.CrossEntropyLoss())
    loss.prepare(model=model, epochs=3, steps_per_epoch=BATCHES, samples=6 * BATCHES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for epoch in range(3):
        loss.epoch = epoch
        for number, batch in enumerate(batches(device)):
            optimizer.zero_grad()
            output = model(batch.input)
            with quiet() if number > 1 else nullcontext():
                value = loss(output, batch)
                value.backward()
            optimizer.step()
            with quiet() if number > 1 else nullcontext():
                loss.after_step()
            values.append(value)
    return numbers([values, dict(model.named_parameters())])


def risk_of(device: torch.device, **options: Any) -> ll.EmpiricalRisk:
    """The risk of a network of float64, whose numbers the order of sums hardly moves."""
    kind = torch.float64
    return ll.EmpiricalRisk(network(device, kind), nn.CrossEntropyLoss(), batches(device, kind), **options)


def surface(device: torch.device, **options: Any) -> list[float]:
    """Losses and standard errors of a small plane."""
    risk = risk_of(device, **options.pop("risk", {}))
    found = landscape.evaluate(risk, landscape.random_plane(risk.model), landscape.grid(3, 3), **options)
    return numbers([found.loss.values.tolist(), found.loss_se.values.tolist()])


def matched(device: torch.device) -> list[float]:
    """The line to another network, plain and with its units matched."""
    risk = risk_of(device)
    torch.manual_seed(5)
    other = Net().double().to(device)
    line = landscape.line_between(risk.model, other)
    return numbers(landscape.evaluate(risk, line, landscape.grid(5, extent=(0, 1))).loss.values.tolist())


def density(device: torch.device) -> list[float]:
    """The mean of the squares under the spectral density."""
    return numbers(curvature.spectral_density(risk_of(device), probes=2, steps=10).mean(lambda x: x**2))


MEASURED: Final[Mapping[str, Callable[[torch.device], list[float]]]] = {
    "evaluate": lambda d: numbers([e.value for e in risk_of(d).evaluate().values()]),
    "evaluate, batch statistics": lambda d: numbers(risk_of(d, batch_norm="batch").evaluate()["loss"].value),
    "evaluate, recalibrated": lambda d: numbers(risk_of(d, batch_norm="recalibrated").evaluate()["loss"].value),
    "data from the processor": lambda d: numbers(
        ll.EmpiricalRisk(network(d), nn.CrossEntropyLoss(), batches(torch.device("cpu"))).evaluate()["loss"].value
    ),
    "gradient": lambda d: numbers(risk_of(d).gradient()),
    "ends": lambda d: numbers(curvature.extreme_eigenvalues(risk_of(d)).lambda_max),
    "top": lambda d: numbers(list(curvature.top_eigenvalues(risk_of(d), 2).values)),
    "trace": lambda d: numbers(curvature.average_case_sharpness(risk_of(d)).value),
    "filter-weighted trace": lambda d: numbers(
        curvature.filter_weighted_trace(risk_of(d), directions=8, chunk=4).value
    ),
    "density": density,
    "worst case": lambda d: numbers(curvature.worst_case_sharpness(risk_of(d)).value),
    "surface": surface,
    "surface, streamed": lambda d: surface(d, risk={"resident": False}),
    "surface, refined": lambda d: surface(d, refined=landscape.Tolerance()),
    "line": matched,
}

READS: Final = {"SALA", "SALA of three", "SALA lazy", "SAF on the host"}
"""Read one number a period, how far the weights have come; and the places of a batch in memory of the host."""


def _training(name: str, base: str) -> Case:
    def case(device: torch.device, quiet: Quiet) -> list[float]:
        return trained(OPTIMIZERS[name], device, BASES[base], nullcontext if name in READS else quiet)

    return case


def _reshaping(name: str) -> Case:
    def case(device: torch.device, quiet: Quiet) -> list[float]:
        return reshaped(LOSSES[name], device, nullcontext if name in READS else quiet)

    return case


ROOMS: Final[Mapping[str, Mapping[str, Case]]] = {
    "optimizers": {
        f"{name} over {base}": _training(name, base)
        for name in OPTIMIZERS
        for base in BASES
        if not ("MSAM" in name and base == "AdamW")  # whose momentum is that of SGD
    },
    "losses": {name: _reshaping(name) for name in LOSSES},
    "measurements": {name: lambda device, _, case=case: case(device) for name, case in MEASURED.items()},
}
