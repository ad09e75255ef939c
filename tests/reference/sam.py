"""Slow twin of SAM: one tensor at a time, formula by formula, no shared code with the package."""

import copy

import torch


def train(model, batches, loss, *, lr, momentum, weight_decay, rho, steps, adam=False):
    """Run SAM by hand and return the parameters after every step."""
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    path = []
    for step in range(steps):
        gradients = gradients_at(model, parameters, batches[step % len(batches)], loss)
        norm = sum((g**2).sum() for g in gradients).sqrt()
        start = [p.detach().clone() for p in parameters]
        buffers = copy.deepcopy(dict(model.named_buffers()))
        for p, g in zip(parameters, gradients, strict=True):
            p.data = p.data + rho * g / norm
        gradients = gradients_at(model, parameters, batches[step % len(batches)], loss)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for p, before in zip(parameters, start, strict=True):
            p.data = before
        base = adamw if adam else sgd
        base(parameters, gradients, first, second, step, lr, momentum, weight_decay)
        path.append([p.detach().clone() for p in parameters])
    return path


def gradients_at(model, parameters, batch, loss):
    return [g.detach().clone() for g in torch.autograd.grad(loss(model(batch[0]), batch[1]), parameters)]


def sgd(parameters, gradients, buffers, _, step, lr, momentum, weight_decay):
    for i, p in enumerate(parameters):
        g = gradients[i] + weight_decay * p.data
        buffers[i] = g if step == 0 else momentum * buffers[i] + g
        p.data = p.data - lr * buffers[i]


def adamw(parameters, gradients, first, second, step, lr, _, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    for i, p in enumerate(parameters):
        p.data = p.data * (1 - lr * weight_decay)
        first[i] = beta1 * first[i] + (1 - beta1) * gradients[i]
        second[i] = beta2 * second[i] + (1 - beta2) * gradients[i] ** 2
        m = first[i] / (1 - beta1 ** (step + 1))
        v = second[i] / (1 - beta2 ** (step + 1))
        p.data = p.data - lr * m / (v.sqrt() + eps)
