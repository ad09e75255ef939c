"""Slow twins of the two-pass methods and of slow weights: one tensor at a time, no shared code with the package.

Every twin is a function of the loop: it gets `slope(batch)`, the gradients at the present weights, and `descend`, one
step of the base optimizer with given gradients.
"""

import copy

import torch


class Loop:
    """A model, its batches, and a hand-written SGD or AdamW."""

    def __init__(self, model, batches, loss, *, lr, momentum, weight_decay, adam):
        self.model, self.batches, self.loss = model, batches, loss
        self.lr, self.momentum, self.weight_decay, self.adam = lr, momentum, weight_decay, adam
        self.parameters = list(model.parameters())
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.count, self.passes = 0, 0

    def slope(self, step):
        self.passes += 1
        x, y = self.batches[step % len(self.batches)]
        found = torch.autograd.grad(self.loss(self.model(x), y), self.parameters)
        return [g.detach().clone() for g in found]

    def weights(self):
        return [p.detach().clone() for p in self.parameters]

    def put(self, values):
        for p, value in zip(self.parameters, values, strict=True):
            p.data = value.clone()

    def slope_elsewhere(self, step, values):
        """Gradients at other weights; weights and buffers come back."""
        here, buffers = self.weights(), copy.deepcopy(dict(self.model.named_buffers()))
        self.put(values)
        found = self.slope(step)
        self.put(here)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
        return found

    def descend(self, gradients):
        self.count += 1
        for i, p in enumerate(self.parameters):
            if self.adam:
                p.data = p.data * (1 - self.lr * self.weight_decay)
                self.first[i] = 0.9 * self.first[i] + (1 - 0.9) * gradients[i]
                self.second[i] = 0.999 * self.second[i] + (1 - 0.999) * gradients[i] ** 2
                m, v = self.first[i] / (1 - 0.9**self.count), self.second[i] / (1 - 0.999**self.count)
                p.data = p.data - self.lr * m / (v.sqrt() + 1e-8)
            else:
                g = gradients[i] + self.weight_decay * p.data
                self.first[i] = g if self.count == 1 else self.momentum * self.first[i] + g
                p.data = p.data - self.lr * self.first[i]


def dot(first, second):
    return sum((a * b).sum() for a, b in zip(first, second, strict=True))


def length(values):
    return dot(values, values).sqrt()


def combine(*terms):
    """Sum of (number, tensors) pairs."""
    return [sum(number * values[i] for number, values in terms) for i in range(len(terms[0][1]))]


def sam(loop, step, rho=0.05):
    g = loop.slope(step)
    loop.descend(loop.slope_elsewhere(step, combine((1, loop.weights()), (rho / length(g), g))))


def asam(loop, step, rho=0.5, eta=0.01, everywhere=False):
    g, w = loop.slope(step), loop.weights()
    t = [p.abs() + eta if everywhere or p.ndim > 1 else torch.ones_like(p) for p in w]
    tg = [a * b for a, b in zip(t, g, strict=True)]
    direction = [a * b for a, b in zip(t, tg, strict=True)]
    loop.descend(loop.slope_elsewhere(step, combine((1, w), (rho / length(tg), direction))))


def gsam(loop, step, rho=0.1, rho_min=0.02, alpha=0.4, rate_max=0.2):
    g, w = loop.slope(step), loop.weights()
    radius = rho_min + (rho - rho_min) * loop.lr / rate_max
    perturbed = loop.slope_elsewhere(step, combine((1, w), (radius / length(g), g)))
    parallel = combine((dot(g, perturbed) / dot(perturbed, perturbed), perturbed))
    orthogonal = combine((1, g), (-1, parallel))
    loop.descend(combine((1, perturbed), (-alpha, orthogonal)))


def looksam(loop, step, rho=0.05, period=4, alpha=0.7):
    g = loop.slope(step)
    if step % period == 0:
        perturbed = loop.slope_elsewhere(step, combine((1, loop.weights()), (rho / length(g), g)))
        cosine = dot(g, perturbed) / (length(g) * length(perturbed))
        loop.kept = combine((1, perturbed), (-length(perturbed) * cosine / length(g), g))
        loop.descend(perturbed)
    else:
        loop.descend(combine((1, g), (alpha * length(g) / length(loop.kept), loop.kept)))


def fsam(loop, step, rho=0.2, sigma=1.0, decay=0.6):
    g, w = loop.slope(step), loop.weights()
    d = g if step == 0 else combine((1, g), (-sigma, loop.average))
    perturbed = loop.slope_elsewhere(step, combine((1, w), (rho / length(d), d)))
    loop.average = g if step == 0 else combine((decay, loop.average), (1 - decay, g))
    loop.descend(perturbed)


def wsam(loop, step, rho=0.05, gamma=0.9, decoupled=True):
    g, w, alpha = loop.slope(step), loop.weights(), gamma / (1 - gamma)
    perturbed = loop.slope_elsewhere(step, combine((1, w), (rho / length(g), g)))
    if not decoupled:
        loop.descend(combine((1 - alpha, g), (alpha, perturbed)))
        return
    loop.descend(g)
    loop.put(combine((1, loop.weights()), (-loop.lr * alpha, perturbed), (loop.lr * alpha, g)))


def late_sam(loop, step, rho=0.05, total=50, share=0.3, decay=lambda done: 1 - done, floor=0.0):
    tail = step - (total - round(share * total))
    if step == 0:
        loop.rate = loop.lr
    if tail < 0:
        loop.descend(loop.slope(step))
        return
    loop.lr = loop.rate * (floor + (1 - floor) * decay(tail / round(share * total)))
    sam(loop, step, rho)


def swa_in_cycles(loop, step, start, interval, high, low):
    if step == 0:
        loop.rate, loop.seen = loop.lr, []
    if step == start:
        loop.seen.append(loop.weights())
    if step >= start:
        share = ((step - start) % interval + 1) / interval
        loop.lr = loop.rate * ((1 - share) * high + share * low)
    loop.descend(loop.slope(step))
    if step >= start and (step + 1 - start) % interval == 0:
        loop.seen.append(loop.weights())
    if loop.seen:
        loop.slow = combine(*[(1 / len(loop.seen), weights) for weights in loop.seen])


def sampa(loop, step, previous, rho=0.1, mix=0.2):
    """With x in the model; the gradient uphill is of the batch before, the one ahead of the present batch."""
    x = loop.weights()
    if step == 0:
        uphill = ahead = loop.slope(step)
    else:
        uphill = loop.slope_elsewhere(previous, combine((1, x), (rho / length(loop.ahead), loop.ahead)))
        ahead = loop.slope_elsewhere(step, combine((1, x), (-loop.lr, loop.ahead)))
    loop.ahead = ahead
    loop.descend(combine((1 - mix, uphill), (mix, ahead)))


def msam(loop, step, rho=3.0):
    shifted = loop.weights()
    g = loop.slope(step)
    if step:
        loop.put(loop.plain)
    loop.descend(g)
    loop.plain = loop.weights()
    loop.put(combine((1, loop.plain), (-rho / length(loop.first), loop.first)))
    del shifted


def lookahead(loop, step, period=5, alpha=0.5, lazy=False):
    if step == 0:
        loop.slow = loop.weights()
    loop.descend(loop.slope(step))
    if (step + 1) % period == 0:
        if lazy and step + 1 == period:
            loop.slow = loop.weights()
        loop.slow = combine((1 - alpha, loop.slow), (alpha, loop.weights()))
        loop.put(loop.slow)


def sala(loop, step, rho=0.2, period=2, alpha=0.5, lazy=False):
    """Step by step as the official code runs, with one norm over all groups."""
    if step == 0:
        loop.slow, loop.distance, loop.ascents, loop.periods = loop.weights(), 0.0, 0, 0
    s = step + 1
    g = loop.slope(step)
    if s % period == 0:
        loop.periods += 1
        if loop.distance < rho:
            loop.ascents += 1
            g = loop.slope_elsewhere(step, combine((1, loop.weights()), (rho / length(g), g)))
        loop.put(loop.slow)
    loop.descend(g)
    if s % period == period - 1:
        if lazy and s < period:
            loop.slow = loop.weights()
        gap = combine((1, loop.weights()), (-1, loop.slow))
        loop.distance = (1 - alpha) * length(gap)
        loop.slow = combine((1, loop.slow), (alpha, gap))
        if loop.distance < rho:
            loop.put(loop.slow)
