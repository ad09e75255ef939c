"""Parallelized sharpness-aware minimization (SAMPa): both gradients of a step at once, each in processes of its own.

Deviations from the official code (LIONS-EPFL/SAMPa):

1. The gradient at y is sent by itself, and not recovered from a sum, so that lambda = 0 keeps its ascent.
2. y is the paper's plain step; the code's goes through the base (momentum, weight decay).
3. Rank 0 is at y, so that its batch-norm statistics are those near the weights; the code's rank 0 is uphill.
4. The first batch of every loader is used for both gradients; the code does so in the first step alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, require
from lowland.optim.moves import add_scaled, copy_all, cut, flattened, is_dense, joint_norm
from lowland.optim.options import Base, check_rho, check_share
from lowland.optim.parts import Held, Part, check_rate, rate_of
from lowland.optim.ranks import world_size
from lowland.optim.wrapper import Wrapper

BatchT = TypeVar("BatchT")


class _SAMPa(Part):
    name: ClassVar[str] = "SAMPa"
    rank: ClassVar[int] = 1
    own: ClassVar[tuple[str, ...]] = ("weights", "slope")
    evaluation: ClassVar[str | None] = "weights"
    exchanges: ClassVar[bool] = True

    def __init__(self, rho: float, mix: float) -> None:
        self.rho, self.mix = check_rho(rho), mix
        check_share("mix", mix)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check_rate(group)

    def check_scaler(self, known: bool) -> None:
        rule = "must not skip steps of some processes alone"
        raise InputError("scaler", rule, "GradScaler", "train in bfloat16 or float32")

    def prepare(self, held: Held) -> None:
        parameters, weights = held.own("weights")
        slopes = held.own("slope")[1]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        dense = all(is_dense(gradient) for gradient in gradients)
        require(dense, "params", "must have dense gradients, to exchange them", advice="use sparse=False")
        mixed, ahead = exchanged(gradients, self.mix)
        copy_all(slopes, ahead)
        for parameter, gradient in zip(parameters, mixed, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        copy_all(parameters, weights)

    def commit(self, held: Held) -> None:
        parameters, weights = held.own("weights")
        copy_all(weights, parameters)
        self._leave(held)

    @torch.no_grad()
    def place(self, held: Held) -> None:
        """Put the weights where this process takes its gradient: ahead along the slope, or uphill."""
        copy_all(*held.own("weights"))
        self._leave(held)

    def _leave(self, held: Held) -> None:
        parameters, slopes = held.own("slope")[0], dict(zip(*held.own("slope"), strict=True))
        if is_uphill():
            add_scaled(parameters, list(slopes.values()), self.rho / joint_norm(list(slopes.values())))
            return
        for group in held.groups():
            moved = [p for p in group["params"] if p in slopes]
            rate = -rate_of(group, 0.0) * (-1.0 if group.get("maximize") else 1.0)
            add_scaled(moved, [slopes[p] for p in moved], torch.full((), rate, dtype=torch.float64, device="cpu"))


def is_uphill() -> bool:
    """Tell whether this process takes the perturbed gradients."""
    return torch.distributed.get_rank() % 2 == 1


def exchanged(gradients: list[Tensor], mix: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return (1 - mix) times the mean gradient uphill and mix times that ahead, and the latter: by one exchange."""
    flat = flattened(gradients)
    if world_size() == 2:  # nothing to sum: each sends its own, which is half of what a sum of both has to move
        theirs, peer = torch.empty_like(flat), 1 - torch.distributed.get_rank()
        send = torch.distributed.P2POp(torch.distributed.isend, flat, peer)
        receive = torch.distributed.P2POp(torch.distributed.irecv, theirs, peer)
        for request in torch.distributed.batch_isend_irecv([send, receive]):
            request.wait()
        ahead, uphill = (theirs, flat) if is_uphill() else (flat, theirs)
    else:
        both = flat.new_zeros(2, flat.numel())
        both[int(is_uphill())] = flat
        torch.distributed.all_reduce(both)
        both /= world_size() / 2
        ahead, uphill = both
    return cut(uphill.lerp_(ahead, mix), gradients), cut(ahead, gradients)


@final
class SAMPa(Wrapper):
    r"""SAM in the time of one pass: half of the processes take the perturbed gradient, the others the plain one.

    .. math:: y_{t+1} = x_t - \eta \nabla f(y_t), \quad
        \tilde x_t = x_t + \rho\, \nabla f(y_t) / \lVert \nabla f(y_t) \rVert, \quad
        x_{t+1} = \text{base}(x_t, (1 - \lambda) \nabla f(\tilde x_t) + \lambda \nabla f(y_{t+1}))

    The gradients do not wait for one another: each process takes one pass per step, of a plain model (no DDP: the
    optimizer exchanges gradients by itself). Its batches come through `batches`, since the perturbed gradient is of the
    batch whose plain gradient the ascent goes along. ``eval()`` puts x into the model.

    Xie, Pethick and Cevher, "SAMPa: Sharpness-aware Minimization Parallelized", NeurIPS 2024 (arXiv 2410.10683).

    Args:
        base: An optimizer instance, or several.
        rho: Length of the ascent. Default 0.1 (official code).
        mix: lambda: weight of the gradient at y. Default 0.2 (official code).
        model: The model, for ``recalibrate``; None meets it in a closure.

    Raises:
        InputError: If processes are not an even number; on one process use `SAM`, whose two passes cost the same.

    Example:
        >>> import torch
        >>> SAMPa(torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1))
        Traceback (most recent call last):
        ...
        lowland.core.errors.InputError: `processes` must be an even number (got 1); on one process use SAM
    """

    def __init__(self, base: Base, rho: float = 0.1, *, mix: float = 0.2, model: nn.Module | None = None) -> None:
        require(world_size() % 2 == 0, "processes", "must be an even number", world_size(), "on one process use SAM")
        plain, kind = not isinstance(model, nn.parallel.DistributedDataParallel), type(model).__name__
        require(plain, "model", "must not average gradients by itself", kind, "pass it plain")
        super().__init__(base, _SAMPa(rho, mix), model=model)

    def batches(self, loader: Iterable[BatchT]) -> Generator[BatchT, None, None]:
        """Yield the batches for this process: those of a loader, or, uphill, each one step later.

        Args:
            loader: Batches of one epoch, the same on every pair of ranks 2k and 2k + 1.

        Yields:
            As many batches as the loader has; the first one on all processes.
        """
        if self.steps:  # a checkpoint holds where rank 0 was
            self._held.parts[0].place(self._held)  # type: ignore[attr-defined]
        before = None
        for batch in loader:
            yield batch if before is None or not is_uphill() else before
            before = batch
