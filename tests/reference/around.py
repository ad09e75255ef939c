"""Slow twins of what goes around a method, and of a base with two sets of weights; they compose as functions do.

A twin of a method ends in `loop.descend`. Slow weights replace that function by one that does more; an average looks at
`loop.evaluated()` after the step, and replaces it. So a composition of twins is written once for all pairs.
"""

import torch
from tests.reference import sam as twins


class Driven(twins.Loop):
    """A loop around torch optimizers that are handed the gradients."""

    def __init__(self, model, batches, loss, bases):
        super().__init__(model, batches, loss, lr=0.0, momentum=0.0, weight_decay=0.0, adam=False)
        self.bases = bases

    def descend(self, gradients):
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        for base in self.bases:
            base.step()


def evaluated_of(loop, method):
    """What a method evaluates where nothing is around it."""
    loop.evaluated = (lambda: loop.slow) if method == "SALA" else loop.weights


def lookahead(loop, period=3, alpha=0.5):
    inner, slow, count = loop.descend, loop.weights(), 0

    def descend(gradients):
        nonlocal slow, count
        inner(gradients)
        count += 1
        if count % period == 0:
            slow = twins.combine((1 - alpha, slow), (alpha, loop.weights()))
            loop.put(slow)

    loop.descend, loop.evaluated = descend, lambda: slow


def msam(loop, rho=0.3):
    inner, plain = loop.descend, loop.weights()

    def descend(gradients):
        nonlocal plain
        loop.put(plain)
        inner(gradients)
        plain = loop.weights()
        loop.put(twins.combine((1, plain), (-rho / twins.length(loop.first), loop.first)))

    loop.descend, loop.evaluated = descend, lambda: plain


def average(loop, weight):
    """An average that moves by `weight(step, count)` towards the weights; None: it is the weights, and nothing counts."""
    inside, mean, count = loop.evaluated, None, 0

    def look(step):
        nonlocal mean, count
        share = weight(step, count)
        mean = inside() if share is None or mean is None else twins.combine((1 - share, mean), (share, inside()))
        count += share not in (None, 0.0)

    loop.look, loop.evaluated = look, lambda: mean


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-Free SGD as its paper writes it: y to train at, x to evaluate, z that steps; a stand-in for the package."""

    def __init__(self, parameters, lr=0.1, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta, "train_mode": True, "count": 0})

    @torch.no_grad()
    def _turn(self, training):
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] is not training else ():
                z, beta = self.state[p].setdefault("z", p.clone()), group["beta"]
                p.copy_((1 - beta) * z + beta * p if training else (p - (1 - beta) * z) / beta)
            group["train_mode"] = training

    def train(self):
        self._turn(True)

    def eval(self):
        self._turn(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "not in train mode"
            group["count"] += 1
            for p in group["params"]:
                z, beta = self.state[p].setdefault("z", p.clone()), group["beta"]
                x = (p - (1 - beta) * z) / beta
                z.sub_(group["lr"] * p.grad)
                x += (z - x) / group["count"]
                p.copy_((1 - beta) * z + beta * x)
