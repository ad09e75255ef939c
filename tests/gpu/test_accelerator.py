"""On a real accelerator: the processor's numbers, no waiting inside steps, and what only such a device has."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from tests import device_cases as cases
from torch import nn

from lowland import optim

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is here"),
]
TOLERANCES = {"optimizers": (1e-3, 1e-5), "losses": (1e-3, 1e-5), "measurements": (1e-6, 1e-9)}
CASES = [(room, name) for room, found in cases.ROOMS.items() for name in found]


@contextmanager
def no_reads() -> Generator[None, None, None]:
    """Let torch itself refuse what waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def device() -> torch.device:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", 0)


@pytest.mark.parametrize(("room", "name"), CASES, ids=[f"{room}: {name}" for room, name in CASES])
def test_numbers_of_the_processor_without_waiting(room, name, device):
    case = cases.ROOMS[room][name]
    expected = case(torch.device("cpu"), cases.nullcontext)
    relative, absolute = (2e-2, 2e-3) if "bfloat16" in name else TOLERANCES[room]
    assert case(device, no_reads) == pytest.approx(expected, rel=relative, abs=absolute)


def step(model: nn.Module, optimizer: optim.Wrapper, batch: cases.Batch) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch.input), batch.target).backward()
    if optimizer.needs_perturbation():
        with optimizer.perturb():
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["SAM", "GSAM", "LookSAM", "SALA", "Lookahead", "EMA", "EMA(SAM)"])
def test_a_run_goes_on_on_another_device(name, device):
    make, base = cases.OPTIMIZERS[name], cases.BASES["SGD"]
    weights = []
    for second in (torch.device("cpu"), device):
        model = cases.network(device)
        optimizer = make(base(model.parameters()), model=model)
        for batch in cases.batches(device)[:3]:
            step(model, optimizer, batch)
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model = cases.network(second)
        optimizer = make(base(model.parameters()), model=model)
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        for batch in cases.batches(second):
            step(model, optimizer, batch)
        weights.append(cases.numbers(dict(model.named_parameters())))
    assert weights[1] == pytest.approx(weights[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_and_scaler(kind, device):
    model = cases.network(device)
    optimizer = optim.SAM(cases.BASES["SGD"](model.parameters()), rho=0.05, model=model)
    scaler = torch.amp.GradScaler("cuda", enabled=kind is torch.float16)

    def backward(batch: cases.Batch) -> torch.Tensor:
        with torch.autocast("cuda", dtype=kind):
            loss = nn.functional.cross_entropy(model(batch.input), batch.target)
        scaler.scale(loss).backward()
        return loss.detach()

    values = []
    for batch in cases.batches(device) * 6:
        optimizer.zero_grad()
        values.append(backward(batch))
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                backward(batch)
        scaler.step(optimizer)
        scaler.update()
    assert torch.stack(values[-4:]).mean() < torch.stack(values[:4]).mean()


def test_a_whole_step_in_a_graph_of_the_device(device):
    plain, captured = (cases.network(device).eval() for _ in range(2))
    batch = cases.batches(device)[0]
    optimizers = [optim.SAM(cases.BASES["SGD"](model.parameters()), rho=0.05) for model in (plain, captured)]
    for _ in range(6):
        step(plain, optimizers[0], batch)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step(captured, optimizers[1], batch)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, optimizers[1], batch)
    for _ in range(3):
        graph.replay()
    found, expected = (cases.numbers(dict(model.named_parameters())) for model in (captured, plain))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_two_streams_do_not_meet(device):
    expected = cases.MEASURED["surface"](torch.device("cpu"))
    streams = [torch.cuda.Stream() for _ in range(2)]
    for stream in streams * 2:
        with torch.cuda.stream(stream):
            assert cases.MEASURED["surface"](device) == pytest.approx(expected, rel=1e-6, abs=1e-9)
