"""What the operators of a risk share: the model's state, graphs kept between products, exact weights, memory.

The risk is ``sum_b L_b / sum_b W_b`` over its batches b, so that an operator of it is ``sum_b A_b / sum_b W_b``: the
same for every batching. The first-order graph of a batch is built once and kept for all products at the same weights;
batches beyond the memory allowed are built anew for each call, and shared by all vectors of that call.
"""

from __future__ import annotations

import gc
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from typing_extensions import override

from lowland.core.contexts import differentiable_kernels
from lowland.core.errors import InputError, LowlandWarning, require
from lowland.core.moments import wide_type
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import rademacher
from lowland.core.types import Batch, forward
from lowland.curvature.graph import graph_bytes
from lowland.curvature.memory import halves, out_of_memory
from lowland.curvature.operator import AbstractOperator

_KEPT_BYTES: Final = 2 << 30
"""Memory of kept graphs by default; a fixed number, so that results do not depend on what else runs."""


@dataclass(slots=True)
class BatchGraph:
    """The graph of one batch, ready for products: the last of its backward passes is the same for every operator."""

    tensors: Sequence[Tensor]  # The parameters, in order
    weight: Tensor  # Total of the denominators of the batch, a scalar
    sources: Sequence[Tensor] = ()  # The parameters whose part of a vector counts; without any, products are zero
    outputs: Sequence[Tensor] = ()  # What is differentiated last
    roots: Sequence[Tensor] = ()  # What the graph hangs on
    along: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list  # Parts of a vector -> what multiplies the outputs

    def product(self, parts: Sequence[Tensor], *, keep: bool) -> list[Tensor]:
        """Multiply one vector, given and returned as one tensor per parameter; the graph stays usable if asked to."""
        found: dict[int, Tensor] = {}
        if self.sources:
            place = {id(p): part for p, part in zip(self.tensors, parts, strict=True)}
            active = [p for p in self.tensors if p.requires_grad]
            outer = self.along([place[id(p)] for p in self.sources])
            options = {"retain_graph": keep, "allow_unused": True, "materialize_grads": True}
            found = dict(zip(map(id, active), torch.autograd.grad(self.outputs, active, outer, **options), strict=True))
        return [found[id(p)] if id(p) in found else torch.zeros_like(p) for p in self.tensors]


class AbstractRiskOperator(AbstractOperator):
    """An operator of an empirical risk at the model's present weights."""

    # Inside ``with operator:`` the model is in the state that is measured (evaluation mode, the risk's
    # batch-norm mode, kernels with second derivatives); at the end it is restored bit for bit. Weights may be
    # changed inside: the graphs are then built anew. Do not train inside.

    def __init__(
        self,
        risk: EmpiricalRisk,
        *,
        modules: Sequence[str] | None = None,
        trainable: bool = True,
        dtype: torch.dtype | None = None,
        memory: int = _KEPT_BYTES,
        check: bool = True,
        on_product: Callable[[int], None] | None = None,
    ) -> None:
        require(isinstance(risk, EmpiricalRisk), "risk", "must be an EmpiricalRisk", type(risk).__name__)
        if check:
            risk.check_deterministic()
        self.risk, self.modules, self.trainable, self.memory = risk, modules, trainable, memory
        with risk.prepared():
            space = ParameterSpace(risk.model, modules=modules, trainable=trainable)
        self.rules = dict(zip(space.names, space.rules, strict=True))
        super().__init__(
            space.numel,
            dtype=dtype or _working_type(space),
            device=space.tensors[0].device,
            shapes={name: parameter.shape for name, parameter, _ in space},
            on_product=on_product,
        )
        self._stack = ExitStack()
        self._space = space
        self._graphs: dict[int, BatchGraph] = {}
        self._complete = False
        self.built = 0
        """Number of graphs built so far."""
        self.kinks: tuple[str, ...] = ()
        """Functions with kinks in the first graph built, which second derivatives do not see."""
        self._state: tuple[tuple[int, int], ...] = ()
        self._splits, self._kept_bytes = 0, 0

    @property
    def space(self) -> ParameterSpace:
        """The parameters, as the layers use them; valid inside a ``with`` block."""
        return self._space

    @abstractmethod
    def build(self, batch: Batch, space: ParameterSpace) -> BatchGraph:
        """Build the graph of one batch, or a part of it, at the present weights of the parameters of a space."""

    @override
    def open(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(self.risk.prepared())
            stack.enter_context(differentiable_kernels(self.risk.model))
            present = {id(parameter): parameter for parameter in self.risk.model.parameters()}
            if not all(id(parameter) in present for parameter in self._space.tensors):
                # effective weights of parametrized layers are new tensors each time; all others stay the same ones
                self._space = ParameterSpace(self.risk.model, modules=self.modules, trainable=self.trainable)
            chosen = {id(parameter) for parameter in self._space.tensors}
            for number, parameter in present.items():  # shorter graphs; `prepared` restores the flags
                if number not in chosen:
                    parameter.requires_grad_(False)
            self._state = ()
            self._stack = stack.pop_all()

    @override
    def close(self) -> None:
        self._drop()
        self._stack.close()

    @override
    def multiply(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        with self.risk.ranks.together():
            sums, weight = self._sums(vectors)
        self.risk.ranks.sum([*sums, weight])
        return [total / weight.to(self.dtype) for total in sums]

    def _sums(self, vectors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        # the numerators of products and the denominator, with as much memory as there is
        while True:
            self._refresh()
            try:
                return self._multiply(vectors)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    _explain(error)
                    raise
                reason = f"{error}".partition("\n")[0]
            self._shrink(reason)

    def _multiply(self, vectors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        parts = [self._cut(vector) for vector in vectors]
        sums = [torch.zeros(self.size, dtype=self.dtype, device=self.device) for _ in vectors]
        weight = torch.zeros((), dtype=wide_type(self.device), device=self.device)
        for graph, kept in self._all_graphs():
            weight = weight + graph.weight
            for number, (total, part) in enumerate(zip(sums, parts, strict=True), 1):
                result = graph.product(part, keep=kept or number < len(parts))
                total.add_(torch.cat([piece.reshape(-1).to(self.dtype) for piece in result]))
            del graph  # a graph that is not kept must be gone before the next one is built
        return sums, weight

    @override
    def rounding(self) -> float:
        # The second derivative of a loss by outputs is a difference of terms that may cancel to nothing (softmax that
        # is sure of itself: p - p^2), each right to a rounding unit. That moves ``v^T J^T (...) J v`` by up to a
        # unit times the mean of ||J_i||^2 over samples, estimated by one backward pass of outputs with random signs.
        with self.risk.ranks.together():
            mine = self._slopes()
        total, weight = map(sum, zip(*self.risk.ranks.gather(mine), strict=True))
        return max(torch.finfo(p.dtype).eps for p in self._space.tensors) * total / weight if weight else 0.0

    def _slopes(self) -> tuple[float, float]:
        # the sum of ||J_i||^2 over samples, and the denominator
        total, weight = 0.0, 0.0
        for batch in self.risk.batches() if self.risk.loss is not None else ():
            output = forward(self.risk.model, batch)
            if not isinstance(output, Tensor) or not output.requires_grad:
                return 0.0, 0.0
            flips = rademacher(output.detach(), 0, "probe", "rounding", batch.number or 0)
            active = [p for p in self._space.tensors if p.requires_grad]
            slopes = torch.autograd.grad(output, active, flips, allow_unused=True)
            total += sum(float(slope.double().square().sum()) for slope in slopes if slope is not None)
            weight += float(self.risk.loss_terms(batch)[1])
        return total, weight

    def _cut(self, vector: Tensor) -> list[Tensor]:
        pieces = self._space.unflatten(vector)
        return [piece.to(p.dtype) for piece, p in zip(pieces, self._space.tensors, strict=True)]

    def _all_graphs(self) -> Iterator[tuple[BatchGraph, bool]]:
        """Yield the graph of every piece of data, and whether it is kept."""
        if self._complete:
            yield from ((graph, True) for graph in self._graphs.values())
            return
        pieces = (piece for batch in self.risk.batches() for piece in halves(batch, self._splits))
        count = 0
        for index, piece in enumerate(pieces):
            count += 1
            if index in self._graphs:
                yield self._graphs[index], True
            else:
                graph = self.build(piece, self._space)
                self.built += 1
                yield graph, self._keep(index, graph)
                del graph
        self._complete = len(self._graphs) == count

    def _keep(self, index: int, graph: BatchGraph) -> bool:
        """Return whether a graph is kept: if a block is open beyond this call and the memory allowed holds it."""
        if self._depth < 2:
            return False
        size = graph_bytes(graph.roots, self._space.tensors) if self.memory > 0 else 1
        if self._kept_bytes + size <= self.memory:
            self._graphs[index] = graph
            self._kept_bytes += size
        return index in self._graphs

    def _refresh(self) -> None:
        """Drop the graphs if weights or statistics have changed since they were built."""
        if not self._state or self._state != self._versions():
            self._drop()
            self.risk.recalibrate()
            self._state = self._versions()

    def _versions(self) -> tuple[tuple[int, int], ...]:
        model = self.risk.model
        tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
        return tuple((id(tensor), tensor._version) for tensor in tensors)

    def _drop(self) -> None:
        self._graphs, self._kept_bytes, self._complete = {}, 0, False

    def check_reached(self) -> None:
        """Refuse a loss that no parameter reaches; it may reach none of some chosen modules."""
        require(self.modules is not None, "risk", "must depend on the parameters by differentiable operations")

    def _shrink(self, reason: str) -> None:
        """After running out of memory: keep nothing, and from the second time on halve the batches."""
        kept_something = bool(self._graphs)
        self._drop()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if kept_something and self.memory > 0:
            self.memory = 0
            done = "graphs are no longer kept between products"
        else:
            self._halve(reason)
            done = f"batches are cut into {2**self._splits} parts"
        warnings.warn(f"out of memory in a product ({reason}): {done}", LowlandWarning, stacklevel=4)

    def _halve(self, reason: str) -> None:
        if self.risk.batch_norm == "batch":
            rule = f"must fit into memory one by one with batch statistics ({reason})"
            raise InputError("batches", rule, advice="use smaller batches")
        if 2**self._splits >= max(batch.size for batch in self.risk.batches()):
            raise InputError("batches", f"do not fit into memory one sample at a time ({reason})")
        self._splits += 1


def _working_type(space: ParameterSpace) -> torch.dtype:
    return max((torch.promote_types(p.dtype, torch.float32) for p in space.tensors), key=lambda kind: kind.itemsize)


def _explain(error: BaseException) -> None:
    """Turn torch's ways of saying that a second derivative is missing into one error."""
    text = f"{error}".partition("\n")[0]
    signs = ("once_differentiable", "is not implemented", "not twice differentiable", "double backward")
    if any(sign in text for sign in signs):
        rule, advice = f"must have a second derivative ({text})", "replace the operation that has none"
        raise InputError("risk", rule, advice=advice) from error
