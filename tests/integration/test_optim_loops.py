"""The same trajectory, bit for bit, in Lightning, Hugging Face Trainer, Accelerate, Fabric and a hand-written loop.

The integrations here are as short as a user would write them.
"""

import warnings
from contextlib import nullcontext

import pytest
import torch
from tests.optim_cases import COMPOSED, COMPOSITIONS, METHODS
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import MissingPass

MEMBERS = METHODS | COMPOSITIONS
methods = pytest.mark.parametrize("method", [*METHODS, *COMPOSED])
bases = pytest.mark.parametrize("base", ["sgd", "adamw"])
cases = pytest.mark.parametrize(("base", "micro_batches"), [("sgd", 1), ("sgd", 2), ("adamw", 1), ("adamw", 2)])
loss_of = nn.CrossEntropyLoss()


def build(method, base="sgd", **options):
    if method == "MSAM" and base == "adamw":
        pytest.skip("MSAM wants a momentum buffer")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    }[base]
    return model, MEMBERS[method](make(model.parameters()), model=model, **options)


def data(count=8):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(4, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(count)
    ]


def plain_loop(model, optimizer, *, micro_batches=1, cast=nullcontext, scaler=None):
    """What everything is compared with; the ascent is per micro-batch where there are several."""
    batches = data()
    optimizer.use_scaler(scaler)
    for start in range(0, len(batches), micro_batches):
        optimizer.zero_grad()
        for x, y in batches[start : start + micro_batches]:

            def backward(x=x, y=y):
                with cast():
                    loss = loss_of(model(x), y) / micro_batches
                (loss if scaler is None else scaler.scale(loss)).backward()

            with optimizer.first_pass() if isinstance(optimizer, optim.Ascent) else nullcontext():
                backward()
            if optimizer.needs_perturbation():
                with optimizer.perturb():
                    backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return model


def assert_same(first, second):
    assert same_bits([*first.parameters(), *first.buffers()], [*second.parameters(), *second.buffers()])


# Fabric.


@methods
@cases
def test_fabric(method, base, micro_batches):
    from lightning_fabric import Fabric

    expected = plain_loop(*build(method, base, ascent="micro-batch"), micro_batches=micro_batches)
    mine, wrapper = build(method, base, ascent="micro-batch")
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(mine, wrapper)
    for index, (x, y) in enumerate(data()):
        if index % micro_batches == 0:
            optimizer.zero_grad()
        last = (index + 1) % micro_batches == 0
        with fabric.no_backward_sync(model, enabled=not last):
            with optimizer.first_pass() if isinstance(wrapper, optim.Ascent) else nullcontext():
                fabric.backward(loss_of(model(x), y) / micro_batches)
            if optimizer.needs_perturbation():
                with optimizer.perturb():
                    fabric.backward(loss_of(model(x), y) / micro_batches)
        if last:
            optimizer.step()
    assert_same(expected, mine)


# Accelerate.


@methods
@cases
def test_accelerate(method, base, micro_batches):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    expected = plain_loop(*build(method, base, ascent="micro-batch"), micro_batches=micro_batches)
    mine, wrapper = build(method, base, ascent="micro-batch")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
    loader = torch.utils.data.DataLoader(data(), batch_size=None)
    model, optimizer, loader = accelerator.prepare(mine, wrapper, loader)
    for x, y in loader:
        with accelerator.accumulate(model):
            with wrapper.first_pass() if isinstance(wrapper, optim.Ascent) else nullcontext():
                accelerator.backward(loss_of(model(x), y))
            if wrapper.needs_perturbation():
                with wrapper.perturb():
                    accelerator.backward(loss_of(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    assert_same(expected, mine)


@methods
def test_accelerate_closure(method):
    from accelerate import Accelerator

    expected = plain_loop(*build(method))
    mine, wrapper = build(method)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(mine, wrapper)
    for x, y in data():

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            accelerator.backward(loss)
            return loss

        optimizer.step(closure)
    assert_same(expected, mine)


# Hugging Face Trainer: only training_step is overridden.


def hugging_face_trainer(model, wrapper, folder, micro_batches):
    from transformers import Trainer, TrainingArguments

    class SharpnessAwareTrainer(Trainer):
        def training_step(self, model, inputs, *rest):
            optimizer = self.optimizer.optimizer
            if not optimizer.needs_perturbation():
                return super().training_step(model, inputs, *rest)
            with optimizer.first_pass():
                loss = super().training_step(model, inputs, *rest)
            with optimizer.perturb():
                super().training_step(model, inputs, *rest)
            return loss

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": loss_of(logits, labels), "logits": logits}

    samples = [{"x": x[i], "labels": y[i]} for x, y in data() for i in range(len(y))]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        gradient_accumulation_steps=micro_batches,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        lr_scheduler_type="constant",
        disable_tqdm=True,
        logging_strategy="no",
    )

    class InOrder(SharpnessAwareTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(samples)

    trainer = InOrder(
        Classifier(),
        arguments,
        train_dataset=samples,
        optimizers=(wrapper, torch.optim.lr_scheduler.ConstantLR(wrapper, 1.0, 0)),
    )
    trainer.train()


@methods
@cases
def test_hugging_face_trainer(method, base, micro_batches, tmp_path):
    expected = plain_loop(*build(method, base, ascent="micro-batch"), micro_batches=micro_batches)
    mine, wrapper = build(method, base, ascent="micro-batch")
    hugging_face_trainer(mine, wrapper, tmp_path, micro_batches)
    assert_same(expected, mine)


# Lightning: automatic optimization as it is; one overridden method for 16-mixed, two hooks for accumulation.


def lightning_module(model, wrapper, kind):
    import lightning

    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, _):
            return loss_of(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return wrapper

    class Wrapped(Plain):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer.wrap_closure(optimizer_closure))

    class Accumulating(Plain):
        def on_train_batch_start(self, batch, batch_idx):
            self.batch, self.index = batch, batch_idx

        def on_before_backward(self, loss):
            if isinstance(wrapper, optim.Ascent) and wrapper.phase is not optim.Phase.PERTURBED:
                self.mark = wrapper.first_pass()
                self.mark.__enter__()

        def on_after_backward(self):
            if not isinstance(wrapper, optim.Ascent) or wrapper.phase is optim.Phase.PERTURBED:
                return
            self.mark.__exit__(None, None, None)
            if wrapper.needs_perturbation():
                with wrapper.perturb():
                    loss = self.training_step(self.batch, self.index)
                    self.manual_backward_of(loss / self.trainer.accumulate_grad_batches)

        def manual_backward_of(self, loss):
            self.trainer.strategy.backward(loss, None)

    return {"plain": Plain, "wrapped": Wrapped, "accumulating": Accumulating}[kind]()


def fit_with_lightning(model, wrapper, kind="plain", micro_batches=1, plugins=None):
    import lightning

    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, barebones=True, accumulate_grad_batches=micro_batches, plugins=plugins
    )
    loader = torch.utils.data.DataLoader(data(), batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(lightning_module(model, wrapper, kind), loader)


@methods
@bases
@pytest.mark.parametrize("kind", ["plain", "wrapped"])
def test_lightning_automatic_optimization(method, base, kind):
    expected = plain_loop(*build(method, base))
    mine, wrapper = build(method, base)
    fit_with_lightning(mine, wrapper, kind)
    assert_same(expected, mine)


@methods
@bases
def test_lightning_accumulation(method, base):
    expected = plain_loop(*build(method, base, ascent="micro-batch"), micro_batches=2)
    mine, wrapper = build(method, base, ascent="micro-batch")
    fit_with_lightning(mine, wrapper, "accumulating", micro_batches=2)
    assert_same(expected, mine)


def mixed_precision():
    from lightning.pytorch.plugins import MixedPrecision

    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))


@methods
def test_float16_autocast_gives_the_same_bits_however_driven(method):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    def cast():
        return torch.autocast("cpu", dtype=torch.float16)

    expected = plain_loop(*build(method), cast=cast, scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    mine, wrapper = build(method)
    plugin = mixed_precision()
    wrapper.use_scaler(plugin.scaler)
    fit_with_lightning(mine, wrapper, "wrapped", plugins=plugin)
    assert_same(expected, mine)

    other, wrapper = build(method)
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    wrapper.use_scaler(precision.scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=precision)
    model, optimizer = fabric.setup(other, wrapper)
    for x, y in data():
        optimizer.zero_grad()
        fabric.backward(loss_of(model(x), y))
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                fabric.backward(loss_of(model(x), y))
        optimizer.step()
    assert_same(expected, other)


def test_lightning_mixed_precision_without_the_override_says_so():
    mine, wrapper = build("SAM")
    before = [p.clone() for p in mine.parameters()]
    with pytest.raises(MissingPass):
        fit_with_lightning(mine, wrapper, "plain", plugins=mixed_precision())
    assert same_bits(before, list(mine.parameters()))


def test_lightning_accumulation_without_the_hooks_says_so():
    from lowland.core.errors import InputError

    mine, wrapper = build("SAM")
    before = [p.clone() for p in mine.parameters()]
    with pytest.raises(InputError, match="earlier micro-batches"):
        fit_with_lightning(mine, wrapper, "plain", micro_batches=2)
    assert same_bits(before, list(mine.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in COMPOSITIONS if name not in COMPOSED])
def test_compositions_in_trainers_that_accumulate(method, tmp_path):
    expected = plain_loop(*build(method, ascent="micro-batch"), micro_batches=2)
    mine, wrapper = build(method, ascent="micro-batch")
    hugging_face_trainer(mine, wrapper, tmp_path, 2)
    assert_same(expected, mine)
    mine, wrapper = build(method, ascent="micro-batch")
    fit_with_lightning(mine, wrapper, "accumulating", micro_batches=2)
    assert_same(expected, mine)
