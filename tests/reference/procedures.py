"""The papers' own procedures over a whole run, written from their descriptions: one loop each, no code of the package.

Every run trains a small convolutional network with batch norm in float64 on batches that are drawn anew in each epoch.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

SAMPLES, CLASSES, BATCH, EPOCHS = 48, 3, 12, 10


def network():
    torch.manual_seed(5)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(36, CLASSES)).double()


def data():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(SAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def shuffled(count=EPOCHS):
    """Return epochs of batches (input, target, sample ids): another order and another view of each sample every time."""
    (x, y), generator = data(), torch.Generator().manual_seed(3)
    epochs = []
    for _ in range(count):
        order = torch.randperm(SAMPLES, generator=generator)
        view = x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        epochs.append([(view[i], y[i], i) for i in order.split(BATCH)])
    return epochs


def plain():
    x, y = data()
    return [(x[i], y[i]) for i in torch.arange(SAMPLES).split(BATCH)]


def cosine(rate, epoch, epochs):
    return rate / 2 * (1 + math.cos(math.pi * epoch / epochs))


def slopes(model, loss):
    return [g.clone() for g in torch.autograd.grad(loss, list(model.parameters()))]


def size(tensors):
    return math.sqrt(sum(float((t**2).sum()) for t in tensors))


class Momentum:
    """SGD with heavy-ball or Nesterov momentum and coupled weight decay."""

    def __init__(self, model, momentum=0.9, decay=0.0, nesterov=False):
        self.weights, self.momentum, self.decay, self.nesterov = list(model.parameters()), momentum, decay, nesterov
        self.velocity = None

    def step(self, gradients, rate):
        full = [g + self.decay * w.detach() for g, w in zip(gradients, self.weights, strict=True)]
        if self.velocity is None:
            self.velocity = [g.clone() for g in full]
        else:
            self.velocity = [self.momentum * v + g for v, g in zip(self.velocity, full, strict=True)]
        for w, v, g in zip(self.weights, self.velocity, full, strict=True):
            w.data -= rate * (g + self.momentum * v if self.nesterov else v)


def sam(model, epochs, *, rho=0.05, lr=0.1, decay=5e-4, clip=5.0):
    """Foret et al. as their code trains: L2 inside the loss of both passes, statistics of the first, clipped by norm."""
    weights, optimizer = list(model.parameters()), Momentum(model)

    def slope(x, y):
        penalty = sum((w**2).sum() for w in weights)
        return slopes(model, F.cross_entropy(model(x), y) + decay / 2 * penalty)

    for epoch, batches in enumerate(epochs):
        for x, y, _ in batches:
            g = slope(x, y)
            here, statistics = [w.detach().clone() for w in weights], [b.clone() for b in model.buffers()]
            for w, part in zip(weights, g, strict=True):
                w.data += rho * part / size(g)
            g = slope(x, y)
            for old, new in zip([*here, *statistics], [*weights, *model.buffers()], strict=True):
                new.data.copy_(old)
            optimizer.step([part * min(1.0, clip / size(g)) for part in g], cosine(lr, epoch, len(epochs)))


def sala(model, epochs, groups, *, rho=0.2, period=2, alpha=0.5, lr=0.05, decay=5e-4):
    """Tan et al. with the settings of their run script; returns the slow weights and the share of stage two."""
    fast, optimizer = list(model.parameters()), Momentum(model, decay=decay, nesterov=True)
    places = [[next(k for k, w in enumerate(fast) if w is p) for p in group] for group in groups]
    slow, distance, steps, ascents = None, 0.0, 0, 0
    for epoch, batches in enumerate(epochs):
        for x, y, _ in batches:
            g = slopes(model, F.cross_entropy(model(x), y))
            steps += 1
            if steps % period == 0:
                if distance < rho:
                    ascents += 1
                    for group in places:
                        norm = size([g[k] for k in group]) + 1e-12
                        for k in group:
                            fast[k].data += rho * g[k] / norm
                    g = slopes(model, F.cross_entropy(model(x), y))
                for w, s in zip(fast, slow, strict=True):
                    w.data.copy_(s)
            optimizer.step(g, cosine(lr, epoch, len(epochs)))
            if steps % period == period - 1:
                slow = [w.detach().clone() for w in fast] if slow is None else slow
                distance = (1 - alpha) * size([w.detach() - s for w, s in zip(fast, slow, strict=True)])
                slow = [s + alpha * (w.detach() - s) for w, s in zip(fast, slow, strict=True)]
                if distance < rho:
                    for w, s in zip(fast, slow, strict=True):
                        w.data.copy_(s)
    return slow, ascents / (steps // period)


def divergence(past, now, temperature):
    """Mean over samples of KL(softmax(past / T) || softmax(now / T))."""
    p, q = torch.softmax(past / temperature, 1), torch.softmax(now / temperature, 1)
    return (p * (p.log() - q.log())).sum() / len(now)


def saf(model, epochs, *, weight=0.3, temperature=5.0, look_back=3, after=5, factor=25.0, lr=0.1, decay=1e-4):
    """Du et al. as their code trains on one device: slots of outputs by sample, the divergence after epoch `after`."""
    slots, optimizer = look_back + 1, Momentum(model, decay=decay)
    memory = torch.zeros(slots, SAMPLES, CLASSES, dtype=torch.float64)
    for epoch, batches in enumerate(epochs):
        for x, y, i in batches:
            z = model(x)
            loss = F.cross_entropy(z, y)
            if epoch > after:
                loss = loss + weight * factor * divergence(memory[(epoch - look_back) % slots, i], z, temperature)
            memory[epoch % slots, i] = z.detach()
            optimizer.step(slopes(model, loss), cosine(lr, epoch, len(epochs)))


def mesa(
    model, epochs, *, weight=0.8, temperature=5.0, after=5, factor=25.0, beta=0.9998, lr=0.1, decay=1e-4, early=""
):
    """The same with an average of the weights as teacher, renewed after the step; early: before the step or the loss."""
    teacher, optimizer = network().eval(), Momentum(model, decay=decay)
    teacher.load_state_dict(model.state_dict())

    def renew():
        for old, new in zip(teacher.state_dict().values(), model.state_dict().values(), strict=True):
            old.copy_(beta * old + (1 - beta) * new if old.is_floating_point() else new)

    for epoch, batches in enumerate(epochs):
        for x, y, _ in batches:
            if early == "before the loss":
                renew()
            z = model(x)
            loss = F.cross_entropy(z, y)
            if epoch > after:
                with torch.no_grad():
                    past = teacher(x)
                loss = loss + weight * factor * divergence(past, z, temperature)
            g = slopes(model, loss)
            if early == "before the step":
                renew()
            optimizer.step(g, cosine(lr, epoch, len(epochs)))
            if not early:
                renew()


def llr(model, epochs, *, a=2.5, b=0.15, rise=0.0, period=1, calm=0, lr=0.1, decay=5e-4):
    """Chen et al.: L0 f(L / L0) with the sech of their CIFAR code and L0 in evaluation mode; returns the losses' values."""
    c, optimizer, values = math.asinh(1), Momentum(model, decay=decay), []
    model.eval()
    with torch.no_grad():
        first = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in plain()) / SAMPLES
    model.train()
    for epoch, batches in enumerate(epochs):
        width = (
            b + rise * ((epoch + period - 1) % period) / period
        )  # the saw-tooth of the main loop: it begins at its top
        for x, y, _ in batches:
            loss = F.cross_entropy(model(x), y)
            if epoch < len(epochs) - calm:
                loss = -first * a * width / (c * torch.cosh(c * loss / first / width))
            values.append(loss.item())
            optimizer.step(slopes(model, loss), cosine(lr, epoch, len(epochs)))
    return values


def filter_normalized(direction, weights, *, ignore=True):
    """Li et al.: rows of axis 0 get the norms of the weights' rows; tensors of one axis are 0, or the weights themselves."""
    made = []
    for d, w in zip(direction, weights, strict=True):
        if w.dim() <= 1:
            made.append(torch.zeros_like(w) if ignore else w.clone())
        else:
            made.append(
                torch.stack([row * (kept.norm() / (row.norm() + 1e-10)) for row, kept in zip(d, w, strict=True)])
            )
    return made


@torch.no_grad()
def surface(model, batches, first, second, axis):
    """Losses [x, y] and accuracies in per cent over a square grid, in evaluation mode."""
    model.eval()
    weights = list(model.parameters())
    here, found = [w.clone() for w in weights], torch.zeros(2, len(axis), len(axis), dtype=torch.float64)
    for i, a in enumerate(axis):
        for j, b in enumerate(axis):
            for w, w0, d, e in zip(weights, here, first, second, strict=True):
                w.copy_(w0 + a * d + b * e)
            for x, y in batches:
                scores = model(x)
                found[0, i, j] += F.cross_entropy(scores, y) * len(y) / SAMPLES
                found[1, i, j] += 100 * int((scores.argmax(1) == y).sum()) / SAMPLES
    for w, w0 in zip(weights, here, strict=True):
        w.copy_(w0)
    return found.numpy()


def eigenvalues(model, batches):
    """Both ends of the Hessian as Li et al.'s tool takes it: of the batches' means added up, weights of several axes alone."""
    model.eval()
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    parts = [dict(model.named_parameters())[name].detach() for name in names]

    def total(flat):
        cut = [piece.view_as(p) for piece, p in zip(flat.split([p.numel() for p in parts]), parts, strict=True)]
        named = dict(zip(names, cut, strict=True))
        return sum(F.cross_entropy(torch.func.functional_call(model, named, (x,)), y) for x, y in batches)

    dense = torch.autograd.functional.hessian(total, torch.cat([p.reshape(-1) for p in parts]))
    values = torch.linalg.eigvalsh(dense)
    return float(values[0]), float(values[-1])
