"""Our methods beside the papers' own procedures over whole runs: how far apart they end, and why.

``python -m tests.reference.deviations`` writes the table of docs/conformance.md. A distance is that of the weights at
the end, as a share of the way that the procedure went; for a surface, of the range of its losses.
"""

import sys
from pathlib import Path

import torch
from tests.reference import procedures as papers
from torch import nn
from torch.nn import functional as F

import lowland as ll
from lowland.core.seeds import normal

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- begin of the procedures -->", "<!-- end of the procedures -->"
EXACT = 1e-9
"""What counts as the same run: rounding, and the small constants that the procedures add to norms."""


def apart(model, other, start):
    ours, theirs = ([p.detach() for p in each.parameters()] for each in (model, other))
    way = papers.size([p - s.detach() for p, s in zip(theirs, start.parameters(), strict=True)])
    return papers.size([p - q for p, q in zip(ours, theirs, strict=True)]) / way


def buffers_apart(model, other):
    pairs = [(p, q) for p, q in zip(model.buffers(), other.buffers(), strict=True) if p.is_floating_point()]
    return max(float((p - q).abs().max() / q.abs().max()) for p, q in pairs)


def rated(base, epoch, epochs, lr):
    for group in base.param_groups:
        group["lr"] = papers.cosine(lr, epoch, epochs)


def sgd(parameters, lr, decay, **options):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=decay, **options)


def trained(loss, lr, decay):
    """Return the network after plain SGD on a loss of ours."""
    model, epochs = papers.network(), papers.shuffled()
    loss.prepare(model=model, epochs=len(epochs), samples=papers.SAMPLES, steps_per_epoch=len(epochs[0]))
    if isinstance(loss, ll.losses.LLR):
        loss.measure_initial_loss(model, papers.plain())
    base, values = sgd(model.parameters(), lr, decay), []
    for epoch, batches in enumerate(epochs):
        loss.epoch = epoch
        rated(base, epoch, len(epochs), lr)
        for x, y, i in batches:
            base.zero_grad()
            value = loss(model(x), ll.Batch(x, y, i))
            values.append(value.item())
            value.backward()
            base.step()
            loss.after_step()
    return model, values


def sam_rows():
    def ours(inside, **options):
        model, epochs, decay = papers.network(), papers.shuffled(), 5e-4
        weights = list(model.parameters())
        optimizer = ll.optim.SAM(sgd(weights, 0.1, 0.0 if inside else decay), 0.05, model=model, **options)

        def backward(x, y):
            optimizer.zero_grad()
            penalty = sum((w**2).sum() for w in weights) if inside else 0.0
            (F.cross_entropy(model(x), y) + decay / 2 * penalty).backward()

        for epoch, batches in enumerate(epochs):
            rated(optimizer, epoch, len(epochs), 0.1)
            for x, y, _ in batches:
                backward(x, y)
                with optimizer.perturb():
                    backward(x, y)
                nn.utils.clip_grad_norm_(weights, 5.0)
                optimizer.step()
        return model

    start, theirs = papers.network(), papers.network()
    papers.sam(theirs, papers.shuffled())
    same = ours(inside=True)
    yield "the L2 term in the loss", max(apart(same, theirs, start), buffers_apart(same, theirs))
    included = ours(inside=False, weight_decay="included")
    yield (
        '`weight_decay="included"`: the decay is in the ascent, and taken at w in the step',
        apart(included, theirs, start),
    )
    yield "the base's weight decay, outside the ascent (default)", apart(ours(inside=False), theirs, start)


def sala_rows():
    def grouped(model):
        return [list(model[0].parameters()), [*model[1].parameters(), *model[5].parameters()]]

    def ours(**options):
        model, epochs = papers.network(), papers.shuffled()
        base = sgd([{"params": group} for group in grouped(model)], 0.05, 5e-4, nesterov=True)
        optimizer = ll.optim.SALA(base, model=model, **options)

        def closure(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for epoch, batches in enumerate(epochs):
            rated(optimizer, epoch, len(epochs), 0.05)
            for x, y, _ in batches:
                optimizer.step(lambda x=x, y=y: closure(x, y))
        optimizer.eval()
        return model, optimizer.stage_two_share

    start, theirs = papers.network(), papers.network()
    slow, share = papers.sala(theirs, papers.shuffled(), grouped(theirs))
    assert 0 < share <= 1
    for weight, kept in zip(theirs.parameters(), slow, strict=True):
        weight.data.copy_(kept)
    same, reached = ours(slow_weights="lazy", norm="group", batch_norm="both")
    assert reached == share
    yield (
        '`slow_weights="lazy", norm="group", batch_norm="both"`',
        max(apart(same, theirs, start), buffers_apart(same, theirs)),
    )
    yield "one norm over all groups", apart(ours(slow_weights="lazy")[0], theirs, start)
    yield "slow weights from the initial ones on, one norm (default)", apart(ours()[0], theirs, start)
    once = ours(slow_weights="lazy", norm="group")[0]
    yield (
        "statistics of the first pass alone (default): running means and variances",
        buffers_apart(once, theirs),
    )


def saf_rows():
    def ours(**options):
        settings = {"start": 6, "precision": "float64", **options}
        return trained(ll.losses.SAF(nn.CrossEntropyLoss(), **settings), 0.1, 1e-4)[0]

    start, theirs = papers.network(), papers.network()
    papers.saf(theirs, papers.shuffled())
    yield "`start=6`, outputs kept in float64", apart(ours(), theirs, start)
    yield "outputs kept in float32 (default)", apart(ours(precision="float32"), theirs, start)
    yield "`start=5`, the paper's sixth epoch (default)", apart(ours(start=5), theirs, start)
    yield (
        "`temperature_squared=False`, the paper's formula",
        apart(ours(temperature_squared=False), theirs, start),
    )


def mesa_rows():
    def ours(**options):
        settings = {"start": 6, "decay": 0.9998, "warm_up": False, **options}
        return trained(ll.losses.MESA(nn.CrossEntropyLoss(), **settings), 0.1, 1e-4)[0]

    start, theirs, before, later = (papers.network() for _ in range(4))
    papers.mesa(theirs, papers.shuffled())
    papers.mesa(before, papers.shuffled(), early="before the loss")
    papers.mesa(later, papers.shuffled(), early="before the step")
    yield "`start=6, decay=0.9998, warm_up=False`", apart(ours(), theirs, start)
    yield "the same beside algorithm 1, average renewed before the loss", apart(ours(), before, start)
    yield "the same beside algorithm 1, average renewed between loss and step", apart(ours(), later, start)
    yield "half-life of 2.8 epochs with warm-up (default)", apart(ours(decay=None, warm_up=True), theirs, start)


def llr_rows():
    sech = ll.losses.Sech(b=0.5)  # at the default b so short a run trains nothing
    cyclic = ll.losses.Cyclic(sech, rise=0.3, period=4)
    start, theirs, saw = (papers.network() for _ in range(3))
    values = papers.llr(theirs, papers.shuffled(), b=0.5, calm=2)
    papers.llr(saw, papers.shuffled(), b=0.5, rise=0.3, period=4)
    same, reshaped = trained(ll.losses.LLR(nn.CrossEntropyLoss(), sech, calm_down=2), 0.1, 5e-4)
    yield "`calm_down=2`", apart(same, theirs, start)
    shift = [new - old for new, old in zip(reshaped, values, strict=True)][: -2 * len(papers.shuffled(1)[0])]
    assert max(shift) - min(shift) < EXACT, "values differ by one constant, f(0)"
    ours = trained(ll.losses.LLR(nn.CrossEntropyLoss(), cyclic), 0.1, 5e-4)[0]
    yield "`Cyclic`, whose saw-tooth begins at its bottom", apart(ours, saw, start)


def survey_net():
    """Return a network half trained, and its data."""
    model = papers.network()
    papers.saf(model, papers.shuffled(4))
    return model.eval(), papers.plain()


def drawn(model, seed):
    return [[normal(p.detach(), seed, "direction", axis, n) for n, p in model.named_parameters()] for axis in (0, 1)]


def surface_rows(points=25):
    model, batches = survey_net()
    weights, axis = [p.detach().clone() for p in model.parameters()], torch.linspace(-1, 1, points, dtype=torch.float64)
    risk = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)

    def theirs(**options):
        first, second = (papers.filter_normalized(d, weights, **options) for d in drawn(model, 4))
        return papers.surface(model, batches, first, second, axis.tolist())

    def ours(**options):
        plane = ll.landscape.random_plane(model, 4, **options)
        return ll.landscape.evaluate(risk, plane, ll.landscape.grid(points, points), paired=False)

    def gap(found, expected):
        return float(abs(found["loss"].values - expected[0]).max() / (expected[0].max() - expected[0].min()))

    published, found = theirs(), ours()
    hits = float(abs(100 * found["accuracy"].values - published[1]).max())
    yield f"{points} x {points} points, loss and accuracy", max(gap(found, published), hits)
    yield (
        "`move_fixed=True` beside their biases and norms that move along the weights",
        gap(ours(move_fixed=True), theirs(ignore=False)),
    )


def eigenvalue_rows():
    model, batches = survey_net()
    risk = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    low, high = papers.eigenvalues(model, batches)

    def ours():
        ends = ll.curvature.extreme_eigenvalues(
            risk, tolerance=1e-9, lower_tolerance=1e-9, missed=1e-9, max_products=400
        )
        return ends.lambda_min, ends.lambda_max

    every = ours()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() > 1)
    least, most = ours()
    yield "weights of several axes alone: ratio of smallest to largest", abs(least / most / (low / high) - 1)
    yield (
        f"their eigenvalues are {len(batches)} times ours, one for each batch: what is left",
        abs(high / most / len(batches) - 1),
    )
    yield "all parameters (default): the same ratio", abs(every[0] / every[1] / (low / high) - 1)


ROWS = {
    "SAM": sam_rows,
    "SALA": sala_rows,
    "SAF": saf_rows,
    "MESA": mesa_rows,
    "LLR": llr_rows,
    "surface of Li et al.": surface_rows,
    "eigenvalues of Li et al.": eigenvalue_rows,
}


def shown(value):
    return "same" if value < EXACT else f"{value:.1e}" if value < 1e-3 else f"{float(f'{value:.2g}'):g}"


def table():
    lines = ["| procedure | ours | apart |", "|---|---|---|"]
    lines += [f"| {name} | {what} | {shown(value)} |" for name, rows in ROWS.items() for what, value in rows()]
    return "\n".join(lines)


def main():
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
