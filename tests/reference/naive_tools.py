"""Tools written the naive way, right as they stand, each with faults that can be switched on one at a time."""

import copy
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from lowland.testing import CurvatureAdapter, LandscapeAdapter, OptimizerAdapter, Surface
from lowland.testing.planted import dense_hessian


class NaiveSAM(torch.optim.Optimizer):
    """SAM tensor by tensor, with an average of the weights."""

    steps_of_all = 0  # what only a fault uses

    def __init__(self, base, model, rho, fault=""):
        super().__init__(base.param_groups, {})
        self.base, self.model, self.rho, self.fault = base, model, rho, fault
        self.moved, self.between, self.trained = {}, False, None
        self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
        if fault == "own groups":
            self.param_groups = [dict(group) for group in base.param_groups]
        if fault == "writes into the base's state":
            for p in self.parameters():
                self.state[p]["slow"] = p.detach().clone()
        self.average = [p.detach().clone() for p in self.parameters()]
        if fault == "the average starts at zero":
            self.average = [torch.zeros_like(p) for p in self.average]

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"]]

    def __getstate__(self):
        if self.fault == "forgets itself":
            return super().__getstate__()
        dropped = ("_optimizer_", "_zero_grad", "_warned", "_opt_called", "step")
        return {key: value for key, value in vars(self).items() if not key.startswith(dropped)}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def state_dict(self):
        packed = self.base.state_dict()
        if self.fault == "saves no momentum":
            packed = packed | {"state": {}}
        if self.trained and self.fault != "saves what is evaluated":
            packed = packed | {"trained": self.trained}
        return packed if self.fault == "saves no average" else packed | {"average": self.average}

    def load_state_dict(self, state_dict):
        self.base.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.average = state_dict.get("average", self.average)
        for p, kept in zip(self.parameters(), state_dict.get("trained", []), strict=False):
            p.data.copy_(kept)  # the model's own were saved at the average
        if self.fault != "adopts what it loads":
            self.average = [one.clone() for one in self.average]
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def add_param_group(self, group):
        if not hasattr(self, "base"):
            super().add_param_group(group)
        elif self.fault != "own groups":
            self.base.add_param_group(group)
            self.average += [p.detach().clone() for p in self.parameters()[len(self.average) :]]

    @torch.no_grad()
    def ascend(self):
        used = [p for p in self.parameters() if p.grad is not None]
        gradients = {p: p.grad for p in used}
        if self.fault == "decay in the ascent":
            decay = self.param_groups[0]["weight_decay"]
            gradients = {p: p.grad + decay * p for p in used}
        norms = self.norms(gradients)
        for p in used:
            push = self.rho * gradients[p] / norms[p] if norms[p].isfinite() and norms[p] > 0 else 0 * p
            if self.fault in ("no guard", "subtracts what is infinite"):
                push = self.rho * gradients[p] / norms[p]
            if self.fault == "goes down":
                push = -push
            if self.fault == "counts in the class":
                push = push * (1 + NaiveSAM.steps_of_all % 2)
            if self.fault != "stale move" or p not in self.moved:
                self.moved[p] = p.detach().clone(), push
            p.add_(push)
        NaiveSAM.steps_of_all += 1
        if self.fault == "divides by nothing":
            torch.stack([p.grad.norm() for p in used])

    def norms(self, gradients):
        if self.fault == "no norm":
            return dict.fromkeys(gradients, torch.tensor(1.0))
        if self.fault == "norm per group":
            found = {}
            for group in self.param_groups:
                members = [p for p in group["params"] if p in gradients]
                total = torch.stack([gradients[p].norm() for p in members]).norm()
                found |= dict.fromkeys(members, total)
            return found
        if self.fault == "norm by a product":
            flat = torch.cat([g.reshape(1, -1) for g in gradients.values()], 1)
            return dict.fromkeys(gradients, (flat.float() @ flat.float().T).sqrt()[0, 0])
        total = torch.stack([g.norm() for g in gradients.values()]).norm() if gradients else None
        return dict.fromkeys(gradients, total)

    @torch.no_grad()
    def restore(self):
        for p, (before, push) in self.moved.items():
            if self.fault == "restores what has a gradient" and p.grad is None:
                continue
            if self.fault in ("subtracts", "subtracts what is infinite", "stale move"):
                p.sub_(push)
            elif self.fault == "swaps storage":
                p.data = before
            else:
                p.copy_(before)
        if self.fault != "stale move":
            self.moved = {}

    def step(self, closure=None):
        if closure is None:
            if not self.between and self.fault != "steps silently":
                raise RuntimeError("the second pass is missing")
            return self.base.step()
        if self.fault == "wants gradients first":
            loss = None
        else:
            with torch.enable_grad():
                loss = closure()
            if self.fault == "leaves gradients off":
                torch.set_grad_enabled(False)
            if self.fault == "one pass too many":
                closure()
        first = [p.grad for p in self.parameters()]
        self.ascend()
        second = self.guarded(closure)
        if self.fault == "keeps the first gradient":
            for p, kept in zip(self.parameters(), first, strict=True):
                p.grad = p.grad + kept
        self.base.step()
        self.follow()
        if self.fault == "leaves gradients off":
            torch.set_grad_enabled(True)
        return second if self.fault == "returns the second loss" else loss

    @torch.no_grad()
    def follow(self):
        for average, p in zip(self.average, self.parameters(), strict=True):
            average.lerp_(p, 0.5)

    @contextmanager
    @torch.no_grad()
    def averaged(self):
        parameters = self.parameters()
        kept = self.trained = [p.detach().clone() for p in parameters]
        for p, average in zip(parameters, self.average, strict=True):
            p.copy_(average)
        if self.fault == "forgets momentum at evaluation":
            self.state.clear()
        try:
            yield
        except ArithmeticError:
            if self.fault == "stays at the average":
                kept = self.average
            raise
        finally:
            for p, before in zip(parameters, kept, strict=True):
                p.copy_(before)
            self.trained = None

    def guarded(self, closure):
        buffers = [b.clone() for b in self.model.buffers()]
        try:
            with torch.enable_grad():
                return closure()
        except MemoryError:
            if self.fault == "is left on the hill":
                self.moved = {}
            raise
        finally:
            self.restore()
            if self.fault != "counts twice":
                for buffer, kept in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(kept)


def source(tool, **functions):
    """State a naive tool's calls, for scripts."""
    kind = type(tool).__name__
    made = f"from tests.reference.naive_tools import {kind}; tool = {kind}({tool.fault!r})"
    return {"import": made} | {name: f"{name} = lambda {text}" for name, text in functions.items()}


class NotAnOptimizer:
    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups
        self.zero_grad, self.step = inner.zero_grad, inner.step


class NaiveOptimizer(OptimizerAdapter):
    name, formula = "naive SAM", "sam"

    def __init__(self, fault=""):
        self.fault = fault

    @property
    def source(self):
        return source(
            self,
            make="model, groups, base, **options: tool.make(model, groups, base, options)",
            averaged="model, optimizer: tool.averaged(model, optimizer)",
            scaled_step="optimizer, scaler, loss: tool.scaled_step(None, optimizer, scaler, loss)",
            accumulated_step="optimizer, losses: tool.accumulated_step(None, optimizer, losses)",
        )

    def make(self, model, groups, base, options):
        if self.fault == "looks first":
            sum(p.numel() for group in groups for p in group["params"])
        made = NaiveSAM(base(groups, **options), model, self.rho, self.fault)
        return NotAnOptimizer(made) if self.fault == "is no optimizer" else made

    def passes(self, steps):
        return 2 * steps

    def averaged(self, model, optimizer):
        return optimizer.averaged()

    def scaled_step(self, model, optimizer, scaler, loss):
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        optimizer.ascend()
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        optimizer.restore()
        optimizer.between = True
        if self.fault == "ignores the scale":
            scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = {torch.device("cpu"): torch.zeros(1)}
            optimizer.step()
        elif self.fault == "ignores the overflow":
            scaler.unscale_(optimizer)
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.between = False

    def accumulated_step(self, model, optimizer, losses):
        def closure():
            optimizer.zero_grad()
            for loss in losses:
                if self.fault == "keeps the last micro-batch":
                    optimizer.zero_grad()
                loss().backward()

        optimizer.step(closure)


class NaiveLandscape(LandscapeAdapter):
    name = "naive landscape"

    def __init__(self, fault=""):
        self.fault = fault

    @property
    def source(self):
        return source(
            self,
            plane="*args, **options: [(s := tool.plane(*args, **options)).values, s.x, s.y]",
            resumed="*args, **options: [tool.resumed(*args, **options).values]",
            stored="*args, **options: [tool.stored(*args, **options).values]",
            line="*args, **options: tool.line(*args, **options)",
        )

    def directions(self, model, seed):
        if self.fault == "draws globally":
            torch.manual_seed(seed)
            generator = None
        else:
            generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(2):
            direction = []
            for module in model.modules():
                axis = 1 if isinstance(module, nn.ConvTranspose2d) and self.fault != "axis 0" else 0
                for p in module._parameters.values():
                    if p is not None and not any(p is q for q, _ in direction):
                        direction.append(
                            (
                                p,
                                self.one(
                                    p,
                                    torch.randn(p.shape, generator=generator, dtype=torch.float64, device="cpu"),
                                    axis,
                                ),
                            )
                        )
            found.append(dict(direction))
        if self.fault == "one direction":
            found[1] = {p: 0.1 * d + found[0][p] for p, d in found[1].items()}
        return found

    def one(self, p, drawn, axis):
        drawn = drawn if self.fault == "draws in the default dtype" else drawn.to(p)
        if p.ndim < 2 and self.fault == "fails on scalars":
            len(p)
        if p.ndim < 2:
            return drawn if self.fault == "moves biases" else torch.zeros_like(p)
        if self.fault == "layer norm":
            return drawn * p.detach().norm() / drawn.norm()
        norm = lambda t: t.transpose(0, axis).flatten(1).norm(dim=1)
        scale = norm(p.detach()) / norm(drawn)
        if self.fault == "fails on zeros":
            assert bool((scale > 0).all())
        return drawn * scale.view([-1 if k == axis else 1 for k in range(p.ndim)])

    def mean(self, model, loss, batches):
        if self.fault == "says zero without data" and not batches:
            return 0.0
        total = [(float(loss(model(x), y)), len(x)) for x, y in batches]
        if self.fault == "rounds to single":
            total = [(float(np.float32(value)), n) for value, n in total]
        if self.fault == "mean of means":
            return float(np.mean([value for value, _ in total]))
        return sum(value * n for value, n in total) / sum(n for _, n in total)

    memory: ClassVar = {}  # what only faults use
    buffer = np.zeros((5, 5))

    def plane(self, model, loss, batches, **options):
        if self.fault == "remembers the model" and id(model) in self.memory:
            return self.memory[id(model)]
        if self.fault == "leaves gradients off":
            torch.set_grad_enabled(False)
        around = nullcontext() if self.fault == "measures as it is called" else torch.autocast("cpu", enabled=False)
        with torch.no_grad(), around:
            found = self.drawn(model, loss, batches, **options)
        if self.fault == "leaves gradients off":
            torch.set_grad_enabled(True)
        if self.fault == "writes into the data":
            batches[0][0].sub_(batches[0][0].mean())
        if self.fault == "returns its buffer" and found.values.shape == self.buffer.shape:
            self.buffer[:] = found.values
            return Surface(self.buffer, found.x, found.y)
        if self.fault == "remembers the model":
            self.memory[id(model)] = found
        return found

    def stored(self, model, loss, batches, folder):
        path = Path(folder) / "values.npy"
        path.parent.mkdir(exist_ok=True)
        found = self.plane(model, loss, batches)
        if path.exists():
            old = np.load(path)
            if self.fault == "trusts the folder":
                return Surface(old, found.x, found.y)
            assert np.array_equal(old, found.values), "another survey"
        np.save(path, found.values)
        return found

    def drawn(self, model, loss, batches, *, shape=(5, 5), extent=1.0, seed=0):
        u, v = self.directions(model, seed)
        base = {p: p.detach().clone() for p in u}
        modes = {m: m.training for m in model.modules()}
        buffers = [b.clone() for b in model.buffers()]
        reach = 0.5 / extent if self.fault == "inverts the distance" else extent
        x, y = (np.linspace(-reach, reach, count) for count in shape)
        if self.fault != "keeps training mode":
            model.eval()
        values = np.zeros(shape)
        try:
            for i, a in enumerate(x):
                for j, b in enumerate(y):
                    shift = {"shifts rows": (i % 2) * (y[1] - y[0]), "off by a half": 0.5 * (y[1] - y[0])}
                    for p, before in base.items():
                        p.copy_(before + a * u[p] + (b + shift.get(self.fault, 0.0)) * v[p])
                    if self.fault == "unties" and i == 2:
                        next(iter(base)).add_(0.1)
                    values[i, j] = self.mean(model, loss, batches)
        finally:
            self.put_back(model, base, buffers, modes)
        stated = (x * extent / reach, y * extent / reach)
        return Surface(self.finished(values), *(reversed(stated) if self.fault == "transposes" else stated))

    def put_back(self, model, base, buffers, modes):
        import sys

        failed = sys.exc_info()[0] is not None
        if self.fault == "stays at the last point" or (failed and self.fault == "stays where it failed"):
            return
        for p, before in base.items():
            p.copy_(before)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode

    def finished(self, values):
        if self.fault == "fills in":
            return np.nan_to_num(values, nan=float(np.nanmean(values[np.isfinite(values)])), posinf=9.0)
        if self.fault == "adds noise":
            return values + np.random.normal(0, 1e-3, values.shape)
        return values.T if self.fault == "transposes" else values

    @torch.no_grad()
    def line(self, start, end, loss, batches, *, points):
        model = start if self.fault == "moves the ends" else copy.deepcopy(start)
        pairs = [(p, p.detach().clone(), q) for p, q in zip(model.parameters(), end.parameters(), strict=True)]
        shares = np.linspace(0, 1, points + 1)[1:] if self.fault == "skips the start" else np.linspace(0, 1, points)
        values = []
        for t in shares:
            for p, a, b in pairs:
                p.copy_((1 - t) * a + t * b)
            values.append(self.mean(model.eval(), loss, batches))
        return np.array(values)

    def resumed(self, model, loss, batches, *, stop):
        try:
            self.plane(model, loss, batches)
        except KeyboardInterrupt:
            stop()
        return self.plane(model, loss, batches, seed=1 if self.fault == "resumes elsewhere" else 0)


class NaiveCurvature(CurvatureAdapter):
    name = "naive curvature"

    def __init__(self, fault=""):
        self.fault = fault

    @property
    def source(self):
        same = {
            name: f"*args, **options: tool.{name}(*args, **options)" for name in ("product", "ends", "trace", "density")
        }
        return source(self, **same)

    def dense(self, model, loss, batches):
        if self.fault == "mean of means":
            return sum(dense_hessian(model, loss, x, y) for x, y in batches) / len(batches)
        if self.fault == "counts sums twice":
            total = sum(len(x) for x, _ in batches)
            return sum(dense_hessian(model, loss, x, y) * len(x) / total for x, y in batches)
        return dense_hessian(model, loss, torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))

    memory: ClassVar = {}  # what only faults use
    buffer = torch.zeros(0)

    def product(self, model, loss, batches, vector):
        if self.fault == "measures as it is called":
            return self.multiplied(model, loss, batches, vector)
        before = torch.is_grad_enabled()
        if self.fault == "leaves gradients on":
            torch.set_grad_enabled(True)
        quiet = torch.autocast("cpu", enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), quiet, torch.device("cpu"):
            found = self.multiplied(model, loss, batches, vector)
        if self.fault == "returns its buffer":
            if self.buffer.shape != found.shape:
                NaiveCurvature.buffer = torch.zeros_like(found)
            return self.buffer.copy_(found)
        torch.set_grad_enabled(before)
        return found

    def multiplied(self, model, loss, batches, vector):
        if self.fault == "says zero without data" and not batches:
            return torch.zeros_like(vector)
        size = sum(p.numel() for p in model.parameters())
        if self.fault == "cuts and repeats":
            vector = torch.cat([vector, vector])[:size]
        if self.fault == "normalizes in place":
            vector.div_(vector.norm())
        if self.fault == "computes in single":
            return (self.dense(model, loss, batches).float() @ vector.float()).double()
        if self.fault == "leaves a trace":
            model.eval()
            F.mse_loss(model(batches[0][0]), torch.zeros(1, 3).double()).backward()
        if self.fault == "measures in training mode":
            return self.by_autograd(model, loss, batches, vector)
        if self.fault == "wants a module":
            _ = loss.reduction
        if self.fault == "wants every parameter" or self.fault == "wants double backward":
            self.by_autograd(model.eval(), loss, batches, vector)
        if self.fault == "wants forward mode":
            self.by_forward_mode(model, loss, batches, vector)
        matrix = self.dense(model, loss, batches)
        if self.fault == "remembers the model":
            matrix = self.memory.setdefault(id(model), matrix)
        if self.fault == "is off":
            matrix = 1.01 * matrix
        return matrix @ vector

    def by_autograd(self, model, loss, batches, vector):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss(model(batches[0][0]), batches[0][1]), parameters, create_graph=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        found = torch.autograd.grad(flat @ vector.to(flat), parameters)
        return torch.cat([g.reshape(-1) for g in found])

    def by_forward_mode(self, model, loss, batches, vector):
        named = {name: p.detach() for name, p in model.named_parameters()}
        parts = torch.split(vector, [p.numel() for p in named.values()])
        tangent = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        total = lambda weights: loss(functional_call(model, weights, (batches[0][0],)), batches[0][1])
        return jvp(grad(total), (named,), (tangent,))[1]

    def values(self, model, loss, batches):
        return torch.linalg.eigvalsh(self.dense(model, loss, batches)).numpy()

    def ends(self, model, loss, batches):
        values = self.values(model, loss, batches)
        if self.fault == "largest magnitude":
            return values[0], values[np.abs(values).argmax()]
        if self.fault == "shifts":
            return values[-1], values[-1]
        if self.fault == "stops early":
            return values[0], 0.99 * values[-1]
        if self.fault == "means of a pair":
            return values[0], values.mean()
        if self.fault == "sees noise":
            return (values[0] - 1.0, values[-1]) if values[-1] != 0 else (values[0], 1.0)
        return values[0], values[-1]

    def trace(self, model, loss, batches, *, seed):
        matrix = self.dense(model, loss, batches)
        generator = torch.Generator().manual_seed(seed)
        probes = torch.randn(len(matrix), 1 if self.fault == "stops early" else 400, generator=generator)
        probes = probes.sign().to(matrix)
        each = (probes * (matrix @ probes)).sum(0)
        error = float(each.std() / len(each) ** 0.5)
        return float(each.mean()), error / 5 if self.fault == "trusts itself" else error

    def density(self, model, loss, batches, *, seed):
        values = self.values(model, loss, batches)
        nodes, where = np.unique(values.round(6), return_inverse=True)
        weights = np.bincount(where) / len(values)
        if self.fault == "is no density":
            weights = weights * 2
        if self.fault == "sees ghosts":
            nodes, weights = np.repeat(nodes, 2) + 1e-9 * np.arange(2 * len(nodes)), np.repeat(weights, 2) / 2
        if self.fault == "fails on nothing":
            nodes = nodes / np.abs(nodes).max() * np.abs(nodes).max()
        return [(nodes, weights)]
