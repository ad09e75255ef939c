"""What every optimizer and every loss does in some steps, as nested mappings of tensors and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.golden import parts
from torch import nn

import lowland as ll

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.05),
}

METHODS: dict[str, Callable[[Any, nn.Module], torch.optim.Optimizer]] = {
    "plain": lambda base, model: base,
    "sam": lambda base, model: ll.optim.SAM(base, rho=0.1, model=model),
    "sam_block": lambda base, model: ll.optim.SAM(base, rho=0.1, model=model),
    "sam_options": lambda base, model: ll.optim.SAM(
        base, rho=0.1, model=model, batch_norm="both", norm="tensor", weight_decay="included", interval=2, start=3
    ),
    "sam_micro_batches": lambda base, model: ll.optim.SAM(base, rho=0.1, model=model, ascent="micro-batch"),
    "asam": lambda base, model: ll.optim.ASAM(base, rho=0.5, model=model),
    "asam_all": lambda base, model: ll.optim.ASAM(base, rho=0.5, scaled="all", model=model),
    "gsam": lambda base, model: ll.optim.GSAM(base, rho=0.2, rho_min=0.05, alpha=0.4, rate_max=0.1, model=model),
    "looksam": lambda base, model: ll.optim.LookSAM(base, rho=0.1, period=3, model=model),
    "looksam_tensor": lambda base, model: ll.optim.LookSAM(base, rho=0.1, period=3, projection="tensor", model=model),
    "msam": lambda base, model: ll.optim.MSAM(base, rho=0.3, model=model),
    "fsam": lambda base, model: ll.optim.FSAM(base, rho=0.1, model=model),
    "wsam": lambda base, model: ll.optim.WSAM(base, rho=0.1, model=model),
    "late_sam": lambda base, model: ll.optim.LateSAM(base, rho=0.1, total=30, share=0.7, model=model),
    "sala": lambda base, model: ll.optim.SALA(base, rho=0.1, period=2, model=model),
    "sala_lazy": lambda base, model: ll.optim.SALA(base, rho=0.1, period=3, slow_weights="lazy", model=model),
    "lookahead": lambda base, model: ll.optim.Lookahead(base, period=3, model=model),
    "lookahead_lazy": lambda base, model: ll.optim.Lookahead(base, period=3, slow_weights="lazy", model=model),
    "ema": lambda base, model: ll.optim.EMA(base, decay=0.9, model=model),
    "swa": lambda base, model: ll.optim.SWA(base, start=5, interval=2, model=model),
}

BASES_OF = {"msam": ("sgd",)}  # it needs a momentum buffer

CE = nn.CrossEntropyLoss

RESHAPERS: dict[str, Callable[[], Any]] = {
    "sech": lambda: ll.losses.Sech(a=2.5, b=0.4, base=0.1),
    "shifted_bump": ll.losses.ShiftedBump,
    "arctangent": ll.losses.Arctangent,
    "log_exponential": ll.losses.LogExponential,
    "linear_window": ll.losses.LinearWindow,
    "cyclic": lambda: ll.losses.Cyclic(ll.losses.Sech(a=2.5, b=0.2), rise=0.5, period=2),
    "linear_quadratic": lambda: ll.losses.linear_quadratic(0.5),
    "linear_exponential": lambda: ll.losses.linear_exponential(0.5, 0.7),
}

LOSSES: dict[str, Callable[[], Any]] = {
    "ce": CE,
    **{
        f"llr_{name}": lambda make=make: ll.losses.LLR(CE(), make(), initial_loss=1.1, start=1)
        for name, make in RESHAPERS.items()
    },
    "llr_first_epoch": lambda: ll.losses.LLR(CE(), initial_loss="first_epoch", start=1, calm_down=1),
    "saf": lambda: ll.losses.SAF(CE(), start=2, look_back=1, weight=1.0, temperature=2.0),
    "saf_int8": lambda: ll.losses.SAF(CE(), start=2, look_back=2, precision="int8"),
    "mesa": lambda: ll.losses.MESA(CE(), start=1, half_life=0.5),
    "mesa_decay": lambda: ll.losses.MESA(CE(), start=2, decay=0.8, warm_up=False, temperature_squared=False),
    "saf_on_mesa": lambda: ll.losses.SAF(ll.losses.MESA(CE(), start=2, half_life=0.5), start=3, look_back=2),
    "llr_on_saf": lambda: ll.losses.LLR(ll.losses.SAF(CE(), start=2, look_back=1), initial_loss=1.1, start=2),
}


def tensors_of(model: nn.Module) -> dict[str, Any]:
    return {"parameters": dict(model.named_parameters()), "buffers": dict(model.named_buffers())}


def optimizer_run(
    method: str, base: str, dtype: torch.dtype, count: int = 30, *, state: dict[str, Any] | None = None, done: int = 0
) -> dict[str, Any]:
    """Train some steps, and return what the method has made of the weights, its state, and what evaluation sees.

    With a state (of the model and of the optimizer, after so many steps done) the run goes on from it.
    """
    model = parts.seeded(0, dtype)
    optimizer = METHODS[method](BASES[base](model.parameters()), model)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    losses = []
    for batch in list(parts.steps(dtype, count))[done:]:

        def closure(batch: ll.Batch = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch.input), batch.target)
            loss.backward()
            return loss

        if method == "sam_block":
            losses.append(closure().item())
            with optimizer.perturb():  # type: ignore[attr-defined]
                nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
        else:
            losses.append(optimizer.step(closure).item())  # type: ignore
    made = {"losses": losses, **tensors_of(model), "state": optimizer.state_dict()}
    if hasattr(optimizer, "eval"):
        optimizer.eval()
        model.eval()
        made["evaluated"] = tensors_of(model)
        optimizer.train()
    return made


def as_rows(state: Any) -> Any:
    """Return a loss's state with its memory as version 0.1.0 kept it: the fields of a record side by side, as bytes."""
    if not isinstance(state, dict):
        return state
    if set(state) >= {"stamp", "output"}:
        parts = [value.contiguous().view(torch.uint8).reshape(len(value), -1) for value in state.values()]
        return {"table": torch.cat(parts, dim=1)}
    return {name: as_rows(value) for name, value in state.items()}


def loss_run(name: str, dtype: torch.dtype, *, method: str = "plain", epochs: int = 5) -> dict[str, Any]:
    """Train some epochs with a loss, and return its values, logs and state, and the weights."""
    model, loss = parts.seeded(0, dtype), LOSSES[name]()
    ours = isinstance(loss, ll.losses.TrainingLoss)
    optimizer = METHODS[method](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8), model)
    if ours:
        loss.prepare(model=model, epochs=epochs, steps_per_epoch=3, samples=48)
    values, logs = [], []
    for epoch in range(epochs):
        if ours:
            loss.epoch = epoch
        for batch in parts.batches(dtype, epoch):

            def closure(batch: ll.Batch = batch) -> torch.Tensor:
                optimizer.zero_grad()
                value: torch.Tensor = loss(model(batch.input), batch if ours else batch.target)
                value.backward()
                return value

            values.append(optimizer.step(closure).item())  # type: ignore
            if ours:
                loss.after_step()
        if ours:
            logs.append(dict(loss.epoch_log()))
    state = as_rows(loss.state_dict()) if ours else {}
    return {"values": values, "logs": logs, "state": state, **tensors_of(model)}


def reshapers(dtype: torch.dtype) -> dict[str, Any]:
    u = torch.linspace(0, 3, 61, dtype=dtype)
    made = {name: make() for name, make in RESHAPERS.items() if name != "cyclic"}
    return {name: {"value": one.value(u), "slope": one.slope(u)} for name, one in made.items()}
