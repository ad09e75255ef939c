from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowland import optim
from lowland.core.errors import CheckpointError, InputError
from lowland.core.types import Batch
from lowland.data import DataSplits, Indexed, TensorData
from lowland.losses import TrainingLoss
from lowland.results import Run, SnapshotReader
from lowland.training import FitResult, FitState, Hook, Schedule, Snapshots, fit

Options = dict[str, Any]


def splits(loader: bool = False) -> DataSplits:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(90, 5, generator=random)
    y = (x[:, 0] + 0.5 * torch.randn(90, generator=random) > 0).long()
    part = [TensorData(x[a:b], y[a:b], torch.arange(a, b)) for a, b in ((0, 40), (40, 65), (65, 90))]
    train: Any = part[0]
    if loader:
        train = DataLoader(Indexed(list(zip(x[:40], y[:40], strict=True))), batch_size=8, shuffle=True)
    return DataSplits("blobs", train, part[1], part[2], classes=2, shape=(5,))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


class Remembering(TrainingLoss):
    """A loss with a memory: plain cross entropy times a weight that grows with every step."""

    def __init__(self) -> None:
        super().__init__(nn.CrossEntropyLoss())
        self.weight = 1.0
        self.seen: list[int] = []

    def _settings(self) -> dict[str, Any]:
        return {}

    def _training(self, output: Tensor, batch: Batch) -> Tensor:
        self.seen.append(self.epoch)
        assert batch.index is not None
        self._totals.add("weight", torch.tensor(self.weight), batch.size)
        return self._inner(output, batch) * self.weight

    def _after_step(self) -> None:
        self.weight *= 1.01

    def _state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def _load(self, state: Any) -> None:
        self.weight = state["weight"]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
    "sam": lambda p: optim.SAM(torch.optim.SGD(p, lr=0.1, momentum=0.9), rho=0.05, interval=2),
    "sala": lambda p: optim.SALA(torch.optim.SGD(p, lr=0.1, momentum=0.9), period=3, alpha=0.5, rho=0.2),
    "ema": lambda p: optim.EMA(torch.optim.AdamW(p, lr=0.01), decay=0.8),
}


def run(
    folder: Path | None = None, *, optimizer: str = "sgd", loader: bool = False, loss: Any = None, **options: Any
) -> FitResult:
    model = network()
    made = OPTIMIZERS[optimizer](model.parameters())
    options = {"epochs": 4, "batch_size": 8, "seed": 3, **options}
    return fit(model, made, loss or Remembering(), splits(loader), folder=folder, **options)


def assert_same(first: FitResult, second: FitResult) -> None:
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    drop = {"seconds"}
    rows = [[{k: v for k, v in row.items() if k not in drop} for row in r.rows] for r in (first, second)]
    assert rows[0] == rows[1]
    assert (first.epoch, first.test, first.passes) == (second.epoch, second.test, second.passes)


class Killed(Exception):
    pass


class KillAt(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: FitState) -> None:
        if run.step == self.step:
            raise Killed


@pytest.mark.parametrize("optimizer", ["adam", "sam", "sala", "ema"])
@pytest.mark.parametrize("loader", [False, True], ids=["resident", "loader"])
@pytest.mark.parametrize(("kill", "every"), [(3, None), (12, None), (13, 3)])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, optimizer: str, loader: bool, kill: int, every: int | None
) -> None:
    whole = run(tmp_path / "whole", optimizer=optimizer, loader=loader, checkpoint_every_steps=every, hooks=[Hook()])
    options: Options = {"optimizer": optimizer, "loader": loader, "checkpoint_every_steps": every}
    with pytest.raises(Killed):
        run(tmp_path / "cut", hooks=[KillAt(kill)], **options)
    torch.manual_seed(99)  # the global generator must not matter
    steps: list[int] = []

    class Count(Hook):
        def on_step_end(self, run: FitState) -> None:
            steps.append(run.step)

    assert_same(whole, run(tmp_path / "cut", hooks=[Count()], **options))
    lost = kill - steps[0] + 1 if kill >= 5 or every else kill
    assert lost <= (every or 5), "more was lost than promised"


def test_a_finished_run_returns_its_result_without_training(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    files = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").iterdir() if path.is_file()
    }
    second = run(tmp_path / "run")
    assert_same(first, second)
    assert second.seconds == first.seconds
    kept = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "run").iterdir() if path.is_file()
    }
    assert kept == files


def test_equal_seeds_give_equal_numbers_and_other_seeds_other_numbers() -> None:
    first = run()
    torch.manual_seed(5)
    assert_same(first, run())
    other = run(seed=4)
    assert other.rows[-1]["train_loss"] != first.rows[-1]["train_loss"]


def test_every_pass_is_counted_and_asked_for_only_when_wanted() -> None:
    assert run(optimizer="sgd").passes == 4 * 5
    two = run(optimizer="sam")
    assert two.passes == 4 * 5 + 10
    assert two.rows[0]["passes"] == 5 + 3
    assert two.rows[-1]["evaluation_passes"] == 4 * 4


def test_a_loss_with_a_memory_is_told_epochs_and_steps_and_its_plain_value_is_logged() -> None:
    loss = Remembering()
    result = run(loss=loss, schedule="constant")
    assert sorted(set(loss.seen)) == [0, 1, 2, 3]
    assert loss.weight == pytest.approx(1.01**20)
    assert result.rows[-1]["loss_weight"] == pytest.approx(1.01**15 * (1.01**5 - 1) / 0.01 / 5)
    plain = run(loss=nn.CrossEntropyLoss(), schedule="constant")
    assert plain.rows[0]["train_loss"] == pytest.approx(result.rows[0]["train_loss"], rel=0.05)


def test_the_loop_takes_the_steps_of_a_bare_loop() -> None:
    model, data = network(), splits()
    model[3] = nn.Identity()  # type: ignore[operator]
    twin = copy.deepcopy(model)
    schedule = Schedule("cosine", warmup=1)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    step = 0
    for epoch in range(2):
        for batch in data.train.batches(8, seed=3, shuffle=True).batches(epoch):
            optimizer.param_groups[0]["lr"] = 0.1 * schedule(step / 5, 1 / 5, 2)
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(batch.input), batch.target).backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
            step += 1
    result = fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        data,
        epochs=2,
        batch_size=8,
        seed=3,
        schedule=schedule,
        clip=0.5,
        select="last",
    )
    for ours, theirs in zip(result.model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def plain_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def double_splits() -> DataSplits:
    data = splits()
    parts = [replace(part, input=part.input.double()) for part in (data.train, data.validation, data.test)]
    return replace(data, train=parts[0], validation=parts[1], test=parts[2])


@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_micro_batches_add_up_to_the_step_of_the_whole_batch(method: str) -> None:
    ends = []
    for parts in (1, 3, 100):
        model = plain_network()
        optimizer = OPTIMIZERS[method](model.parameters())
        result = fit(
            model, optimizer, nn.CrossEntropyLoss(), double_splits(), epochs=2, batch_size=16, micro_batches=parts
        )
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert result.passes == (6 if method == "sgd" else 9)
        assert result.rows[0]["train_loss"] == pytest.approx(0.7, abs=0.2)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-12)


def test_an_ascent_per_micro_batch_is_another_algorithm_and_equals_a_loop_by_hand() -> None:
    ends = []
    for ascent in ("step", "micro-batch"):
        model = plain_network()
        optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.5), rho=0.5, ascent=ascent)
        fit(
            model,
            optimizer,
            nn.CrossEntropyLoss(),
            double_splits(),
            epochs=1,
            batch_size=40,
            micro_batches=2,
            schedule="constant",
            select="last",
        )
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    model, batch = plain_network(), next(double_splits().train.batches(40, seed=0, shuffle=True).batches(0))
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for rows in (slice(0, 20), slice(20, 40)):

        def gradient(rows: slice = rows) -> list[Tensor]:
            loss = nn.functional.cross_entropy(model(batch.input[rows]), batch.target[rows])
            return list(torch.autograd.grad(loss, parameters))

        first = gradient()
        norm = torch.stack([g.norm() for g in first]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p += 0.5 * g / norm
            second = [g.clone() for g in torch.enable_grad()(gradient)()]
            for p, g, t, s in zip(parameters, first, total, second, strict=True):
                p -= 0.5 * g / norm
                t += s / 2
    expected = torch.cat([(p.detach() - 0.5 * t).flatten() for p, t in zip(parameters, total, strict=True)])
    torch.testing.assert_close(ends[1], expected, rtol=1e-9, atol=1e-12)
    assert (ends[0] - ends[1]).abs().max() > 1e-6


def test_averaged_weights_are_chosen_tested_and_have_their_own_batch_norm_statistics() -> None:
    model = network()
    optimizer = optim.EMA(torch.optim.SGD(model.parameters(), lr=0.1), decay=0.9)
    seen: list[dict[str, Tensor]] = []

    class Watch(Hook):
        def on_epoch_end(self, run: FitState) -> None:
            seen.append({k: v.clone() for k, v in run.model.state_dict().items()})

    result = fit(
        model, optimizer, nn.CrossEntropyLoss(), splits(), epochs=3, batch_size=8, hooks=[Watch()], select="last"
    )
    state = result.model.state_dict()
    assert all(torch.equal(state[key], seen[-1][key]) for key in state)  # hooks saw the averaged weights
    hidden = splits().train.input @ state["0.weight"].T + state["0.bias"]
    torch.testing.assert_close(state["1.running_mean"], hidden.mean(0), rtol=1e-4, atol=1e-5)
    assert result.rows[-1]["evaluation_passes"] == 3 * (4 + 5)


def test_the_chosen_epoch_is_the_best_on_validation_and_its_weights_are_those_tested() -> None:
    seen: dict[int, dict[str, Tensor]] = {}

    class Watch(Hook):
        def on_epoch_end(self, run: FitState) -> None:
            seen[run.epoch] = {k: v.clone() for k, v in run.model.state_dict().items()}

    result = run(epochs=8, hooks=[Watch()])
    accuracies = [row["validation_accuracy"] for row in result.rows]
    assert result.epoch == accuracies.index(max(accuracies)) + 1
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, seen[result.epoch][key])
    data = splits().test
    hits = (result.model.eval()(data.input).argmax(1) == data.target).float().mean()
    assert result.test["accuracy"] == pytest.approx(float(hits), abs=1e-6)
    last = run(epochs=8, select="last")
    assert last.epoch == 8


def test_snapshots_follow_the_trajectory_and_survive_a_kill(tmp_path: Path) -> None:
    class Keep(Hook):
        def __init__(self) -> None:
            self.weights: dict[int, Tensor] = {}

        def on_step_end(self, run: FitState) -> None:
            self.weights[run.step] = run.model[0].weight.detach().clone()  # type: ignore[index]

    keep = Keep()
    run(tmp_path / "whole", hooks=[Snapshots(every_steps=3), keep])
    with pytest.raises(Killed):
        run(tmp_path / "cut", hooks=[Snapshots(every_steps=3), KillAt(14)])
    run(tmp_path / "cut", hooks=[Snapshots(every_steps=3), Hook()])
    whole, cut = (SnapshotReader(tmp_path / name / "snapshots") for name in ("whole", "cut"))
    assert whole.steps == cut.steps == (0, 3, 5, 6, 9, 10, 12, 15, 18, 20)
    for step in whole.steps:
        first, second = whole.read(step), cut.read(step)
        assert all((first[name] == second[name]).all() for name in first)
        if step:
            assert (torch.as_tensor(first["0.weight"]) == keep.weights[step]).all()
    assert whole.info(5)["epoch"] == 1.0


def test_the_folder_holds_readable_numbers_and_one_checkpoint(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    rows = Run(tmp_path / "run").metrics
    assert list(rows) == [{k: float(v) for k, v in row.items()} for row in result.rows]
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["epoch"] == result.epoch and summary["test"] == result.test
    assert summary["recipe"]["seed"] == 3 and "torch" in summary["versions"]
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 2


def test_global_generators_are_left_as_they_were() -> None:
    before = torch.get_rng_state()
    model = network()
    torch.set_rng_state(before)
    fit(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), splits(), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_other_precisions_train(precision: str) -> None:
    result = run(precision=precision, epochs=6, loss=nn.CrossEntropyLoss())
    assert result.rows[-1]["train_loss"] < result.rows[0]["train_loss"]


def test_augmentation_reaches_training_batches_only() -> None:
    sizes: list[int] = []

    def shift(batch: Any, draws: Any) -> Any:
        sizes.append(batch.size)
        return replace(batch, input=batch.input + draws.uniform().unsqueeze(1))

    plain, shifted = run(), run(augment=shift)
    assert sum(sizes) == 4 * 40
    assert plain.rows[0]["train_loss"] != shifted.rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "`epochs`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"seed": -1}, "`seed`"),
        ({"clip": 0.0}, "`clip`"),
        ({"micro_batches": 0}, "`micro_batches`"),
        ({"select": "luckiest"}, "`select`"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"checkpoint_every_steps": 0}, "`checkpoint_every_steps`"),
        ({"precision": "31-true"}, "precision` must be what"),
        ({"accelerator": "abacus"}, "abacus"),
        ({"hooks": [Snapshots()]}, "`folder`"),
        ({"loader": True, "augment": lambda b, d: b}, "`augment`"),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(options: Options, words: str, tmp_path: Path) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loader = options.pop("loader", False)
    settings = {"epochs": 1, "batch_size": 8, **options}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if not any(isinstance(hook, Snapshots) for hook in options.get("hooks", ())):
        settings["folder"] = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        fit(model, optimizer, nn.CrossEntropyLoss(), splits(loader), **settings)
    assert not (tmp_path / "run").exists()
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_foreign_optimizers_and_models_are_refused() -> None:
    model = network()
    for optimizer in (torch.optim.SGD(network().parameters(), lr=0.1), object()):
        with pytest.raises(InputError, match="`optimizer`"):
            fit(model, optimizer, nn.CrossEntropyLoss(), splits(), epochs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "another seed"),
        ({"epochs": 5}, "another epochs"),
        ({"optimizer": "adam"}, "another optimizer"),
        ({"schedule": "constant"}, "another schedule"),
        ({"loss": nn.CrossEntropyLoss()}, "another loss"),
        ({"micro_batches": 2}, "another micro_batches"),
        ({"hooks": [Hook()]}, "`hooks`"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_left_alone(tmp_path: Path, change: Options, words: str) -> None:
    run(tmp_path / "run")
    names = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=words):
        run(tmp_path / "run", **change)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == names


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.integration.test_fit import run, Snapshots
import time, torch
from lowland.training import Hook
class Slow(Hook):
    def on_step_end(self, run):
        time.sleep(0.01)
run(Path(sys.argv[1]), hooks=[Snapshots(), Slow()], optimizer="sam", epochs=12, checkpoint_every_steps=2)
"""


def test_sigkill_at_any_moment_loses_little_and_the_same_command_ends_the_same(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    options: Options = {"optimizer": "sam", "epochs": 12, "checkpoint_every_steps": 2}
    whole = run(tmp_path / "whole", hooks=[Snapshots(), Hook()], **options)
    folder = tmp_path / "cut"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-c", SCRIPT.format(root=root), str(folder)]
    kills = 0
    for progress in (3,):  # kill when so many epochs are in the table
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None:
            table = folder / "metrics.csv"
            if table.exists() and len(table.read_text().splitlines()) > progress:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.005)
    assert kills >= 1
    assert_same(whole, run(folder, hooks=[Snapshots(), Hook()], **options))
    assert SnapshotReader(folder / "snapshots").steps == SnapshotReader(tmp_path / "whole" / "snapshots").steps


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off_around_it_change_nothing(around: Any) -> None:
    ends = []
    for switch in (torch.enable_grad, around):
        model = plain_network()
        with switch():
            base = torch.optim.SGD(model.parameters(), lr=0.1)
            fit(model, optim.SAM(base), nn.CrossEntropyLoss(), double_splits(), epochs=2, batch_size=16)
        ends.append(model.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(ends[0].values(), ends[1].values(), strict=True))


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (lambda output, target: {"loss": nn.functional.cross_entropy(output, target)}, "scalar"),
        (nn.CrossEntropyLoss(reduction="none"), "scalar"),
    ],
)
def test_a_loss_that_is_no_number(loss: Any, word: str) -> None:
    model = plain_network()
    with pytest.raises(InputError, match=word):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, double_splits(), epochs=1)


def test_what_cannot_train_is_refused_before_it_starts(tmp_path: Path) -> None:
    lazy = nn.LazyLinear(2)
    with torch.inference_mode():
        made = nn.Linear(5, 2)
    for model, word in ((lazy, "lazy"), (made, "inference")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(InputError, match=word):
            fit(model, optimizer, nn.CrossEntropyLoss(), splits(), epochs=1, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
