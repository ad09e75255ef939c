from __future__ import annotations

import importlib
import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import nn

from lowland import losses, optim
from lowland.core.contexts import same_bits
from lowland.core.errors import CheckpointError, InputError, LowlandError, StoreError
from lowland.core.per_sample import accuracy
from lowland.core.ranks import Ranks
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import critical_sharpness, measurement_interval
from lowland.data import DataSplits, TensorData
from lowland.optim.rates import decay_of
from lowland.results import Run
from lowland.results.files import write_atomically
from lowland.results.folders import open_run_folder
from lowland.training import CheckpointFolder, CurvatureCurve, Schedule, fit, read_weights, setup
from lowland.training.checkpoint import decode_safetensors, random_state, restore_random_state, to_safetensors
from lowland.training.evaluation import Evaluation, RunningTerms, totals
from lowland.training.hooks import FitState
from lowland.training.metrics import better, chosen_row, write_metrics, write_result
from lowland.training.setup import history_of


def test_cosine_with_warm_up_rises_linearly_then_falls_to_the_floor_which_is_nothing_by_default() -> None:
    schedule, step = Schedule("cosine", warmup=2, floor=0.1), 0.25
    values = [schedule(i * step, step, 10) for i in range(40)]
    assert values[:8] == pytest.approx([(i + 1) / 8 for i in range(8)])
    assert schedule(6, step, 10) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule(10, step, 10) == pytest.approx(0.1)
    assert [Schedule("cosine")(epoch, step, 4) for epoch in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
    assert all(a >= b for a, b in zip(values[8:], values[9:], strict=False))
    assert Schedule("constant", warmup=0.5)(0.0, 1.0, 4) == 1.0  # a step longer than the warm-up


def test_step_drops_at_each_milestone_and_constant_stays() -> None:
    schedule = Schedule("step", milestones=(2, 3), factor=0.5)
    assert [schedule(p, 1.0, 4) for p in (0, 1.9, 2, 3, 3.9)] == [1, 1, 0.5, 0.25, 0.25]
    assert Schedule("constant")(3.0, 1.0, 4) == Schedule()(0.0, 0.1, 4) == 1.0


@pytest.mark.parametrize(
    "options",
    [{"kind": "cosin"}, {"warmup": -1}, {"kind": "step"}, {"factor": 0.0}, {"floor": 2.0}, {"warmup": math.inf}],
)
def test_bad_schedules_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Schedule(**options)  # type: ignore[arg-type]


def test_best_is_the_highest_validation_accuracy_and_ties_go_to_the_earlier_epoch() -> None:
    rows = [{"epoch": e, "validation_accuracy": a} for e, a in enumerate((0.5, math.nan, 0.8, 0.8), 1)]
    assert chosen_row(rows, "best")["epoch"] == 3
    assert chosen_row(rows, "last")["epoch"] == 4
    assert better({"validation_loss": 1.0}, {"validation_loss": 2.0})
    assert not better({"validation_loss": math.nan}, {"validation_loss": 2.0})
    assert better({"validation_loss": 2.0}, {"validation_loss": math.nan})


def test_metrics_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"epoch": 1, "step": 3, "train_loss": 0.1 + 0.2},
        {"epoch": 2, "step": 6, "train_loss": 1e-30, "slope": 0.25},
    ]
    write_metrics(tmp_path / "metrics.csv", rows)
    assert Run(tmp_path).metrics == tuple(rows)
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,what\n")
    with pytest.raises(InputError, match=r"metrics\.csv"):
        _ = Run(tmp_path).metrics


def test_results_hold_numbers_that_json_cannot(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", {"loss": math.inf, "parts": [{"x": math.nan}]})
    assert json.loads((tmp_path / "result.json").read_text()) == {"loss": "inf", "parts": [{"x": "nan"}]}


def saved(folder: Path) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder)
    weights = {"w": torch.arange(3.0), "tied": torch.ones(2)}
    weights["tied too"] = weights["tied"]
    state = {"rng": random_state(), "rows": [{"epoch": 1.0}], "none": None, "pair": (1, "a")}
    checkpoints.save(7, weights, state, best=(5, {"w": torch.zeros(3)}))
    return checkpoints


def test_a_checkpoint_comes_back_whole_and_the_one_before_is_gone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    checkpoints.save(9, {"w": torch.ones(3)}, {"rows": []}, best=(5, {"w": torch.zeros(3)}))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-00000005.safetensors", "index.json", "step-00000009.safetensors", "step-00000009.state"]
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded[0]["w"].tolist() == [1, 1, 1] and loaded[1]["rows"] == [] and loaded[2] is not None
    assert CheckpointFolder(tmp_path / "elsewhere").load() is None


@pytest.mark.parametrize(
    "name", ["step-00000007.safetensors", "step-00000007.state", "best-00000005.safetensors", "index.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints = saved(tmp_path)
    path = tmp_path / "checkpoints" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
        if name == "index.json":
            assert checkpoints.load() is None
            return
    else:
        path.write_bytes(
            content[: len(content) // 2] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1])
        )
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load()
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("/tmp/lowland_was_here", "w")[:1]  # type: ignore[return-value]


def test_weights_are_read_from_the_usual_files_without_executing_code(tmp_path: Path) -> None:
    weights = {"w": torch.arange(3.0)}
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "c.pth")
    saved(tmp_path)
    for name in ("a.safetensors", "b.pt", "c.pth"):
        assert torch.equal(read_weights(tmp_path / name)["w"], weights["w"])
    assert read_weights(tmp_path)["w"].tolist() == [0, 0, 0]  # of a run: the best
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("evil.pt", "text.pt", "short.safetensors", "list.pt", "absent.pt"):
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_weights(tmp_path / "empty")


def test_every_random_generator_comes_back() -> None:
    import random

    import numpy as np

    state = random_state()
    first = (torch.rand(2).tolist(), np.random.rand(), random.random(), random.gauss(0, 1))
    restore_random_state(state)
    assert (torch.rand(2).tolist(), np.random.rand(), random.random(), random.gauss(0, 1)) == first


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for path in (tmp_path, tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(InputError, match="`folder`"):
            open_run_folder(path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    open_run_folder(tmp_path / "new")
    (tmp_path / "new" / "spec.yaml").write_text("")
    open_run_folder(tmp_path / "new")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_extra_state_of_a_module_travels_with_the_checkpoint() -> None:
    class Counter(nn.Module):
        def get_extra_state(self) -> int:
            return 3

    from lowland.training.checkpoint import split_state

    tensors, extra = split_state(nn.Sequential(nn.Linear(1, 1), Counter()))
    assert set(tensors) == {"0.weight", "0.bias"} and list(extra.values()) == [3]


@pytest.mark.parametrize("data", [[], None])
def test_data_that_are_no_parts_are_refused_with_the_way_to_make_them(data):
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="`data` must be lowland.data.DataSplits, or a mapping of train"):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data, epochs=1)


def test_three_parts_may_come_by_name():
    part = [(torch.eye(4), torch.arange(4))]
    given = {"train": part, "validation": part, "test": part}
    results = []
    for data in (given, DataSplits("parts", **given, classes=4, shape=(4,))):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        results.append(fit(model, optimizer, nn.CrossEntropyLoss(), data, epochs=1).test)
    assert results[0] == results[1]
    with pytest.raises(InputError, match="`data` must hold train, validation, test .*'train'"):
        fit(model, optimizer, nn.CrossEntropyLoss(), {"train": part}, epochs=1)


def test_an_epoch_adds_up_what_its_batches_say() -> None:
    terms = [
        (torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0), 4),
        (torch.tensor(1.0), torch.tensor(1.0), torch.tensor(2.0), 2),
        (torch.tensor(5.0), None, None, 1),
    ]
    assert totals(terms, torch.device("cpu")).tolist() == [2 * 4 + 1 * 2 + 5 * 1, 4, 6, 7]


def test_an_interval_of_the_curve_pays_for_it() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    hook = CurvatureCurve(samples=100, products=6, share=0.03)
    found = hook.interval(optimizer, samples=1000, steps_per_epoch=50, epochs=400)
    assert found == measurement_interval(steps=20_000, batch_size=20, samples=100, products=6, share=0.03)


def test_a_decay_goes_from_one_to_its_floor() -> None:
    for name in ("linear", "cosine", "1-sqrt"):
        fall = decay_of(name, 0.2)
        assert fall(0.0) == pytest.approx(1.0) and fall(1.0) == pytest.approx(0.2)


def test_weights_of_any_layout_and_sharing_are_written_as_they_read() -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    given = {"plain": weight, "turned": weight.T, "tied": weight, "part": weight[:, 1]}
    found = decode_safetensors(to_safetensors(given), Path("w"))
    assert all(torch.equal(found[name], value) for name, value in given.items()) and len(found) == 4


@pytest.mark.parametrize("number", [0, 1])
def test_what_fails_on_the_first_rank_is_told_to_all(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    monkeypatch.setattr(ranks, "group", object())
    monkeypatch.setattr(ranks, "count", 2)
    monkeypatch.setattr(ranks, "number", number)
    told: list[object] = []

    def gather(value: object) -> list[object]:
        told.append(value)
        return ["OSError: disk full", None]

    def fails() -> int:
        raise OSError("disk full")

    monkeypatch.setattr(ranks, "gather", gather)
    with pytest.raises(OSError if number == 0 else LowlandError, match="disk full"):
        ranks.by_first(fails)
    assert told == (["OSError: disk full"] if number == 0 else [None])


def state_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> FitState:
    known: dict[str, Any] = {"folder": None, "epochs": 2, "steps_per_epoch": 3, "seed": 0}
    return FitState(model, optimizer, torch.nn.MSELoss(), SimpleNamespace(recipe={}), **known)  # type: ignore[arg-type]


def test_a_run_begins_at_nothing_and_methods_that_begin_late_are_told() -> None:
    model = torch.nn.Linear(2, 1)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    run = state_of(base, model)
    done = ("rank", "epoch", "step", "passes", "evaluation_passes", "seconds")
    assert [getattr(run, name) for name in done] == [0] * 6 and not (run.stop or run.rows or run.row)
    assert history_of(run) == history_of(state_of(optim.SAM(base), model)) == {"begins": {}}
    assert history_of(state_of(optim.SAM(base, start=4), model)) == {"begins": {"SAM": 4}}


def test_measuring_keeps_no_tensor_for_a_backward_pass() -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    data, loss = [(x, torch.arange(8) % 2)], torch.nn.CrossEntropyLoss()
    risk, update = EmpiricalRisk(model, loss, data), [torch.ones_like(p) for p in model.parameters()]
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        risk.evaluate()
        critical_sharpness(risk, update, start=0.1)
        Evaluation(SimpleNamespace(device=torch.device("cpu")), model, loss, 4)(data)
    assert saved == []


class OneOfTwo(Fabric):
    world_size = 2  # type: ignore[assignment]


def test_a_checkpoint_holds_every_process_s_part_and_another_number_of_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = TensorData(torch.eye(4), torch.arange(4), torch.arange(4))

    def run() -> None:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), distributed="local")
        data = {"train": part, "validation": part, "test": part}
        fit(model, optimizer, nn.CrossEntropyLoss(), data, epochs=1, folder=tmp_path)

    def gather(into: list[Any], value: Any) -> None:
        into[:] = [(rank, *value) for rank in range(len(into))]

    with monkeypatch.context() as two:
        two.setattr("lowland.training.setup._fabric", lambda: OneOfTwo)
        two.setattr(torch.distributed, "all_gather_object", gather)
        run()
    found = CheckpointFolder(tmp_path).load()
    assert found is not None and [rank for rank, *_ in found[1]["own"]] == [0, 1]
    with pytest.raises(CheckpointError, match=r"is 2 and here 1, and a local ascent"):
        run()


def test_an_epoch_s_row_holds_what_the_loss_tells_and_the_time_that_training_took() -> None:
    part = TensorData(torch.eye(4), torch.arange(4), torch.arange(4))
    model = nn.Linear(4, 4)
    loss = losses.SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    data = {"train": part, "validation": part, "test": part}
    rows = fit(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, data, epochs=3, batch_size=2).rows
    assert [row["loss_saf_hit_rate"] for row in rows[1:]] == [1.0, 1.0] and "loss_criterion" not in rows[0]
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"] < rows[2]["seconds"] < 60


def test_parts_of_a_batch_count_by_their_samples() -> None:
    part = TensorData(torch.randn(5, 4), torch.arange(5) % 4, torch.arange(5))
    weights = []
    for micro_batches in (1, 2):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        data = {"train": part, "validation": part, "test": part}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, optimizer, nn.CrossEntropyLoss(), data, epochs=1, micro_batches=micro_batches)
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_only_steps_are_timed_also_between_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        now[0] += 1.0
        return nn.functional.cross_entropy(output, target)

    monkeypatch.setattr(sys.modules["lowland.training.fit"], "time", SimpleNamespace(perf_counter=lambda: now[0]))
    part = TensorData(torch.eye(4), torch.arange(4), torch.arange(4))
    model = nn.Linear(4, 4)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 1, "folder": tmp_path, "checkpoint_every_steps": 3}
    data = {"train": part, "validation": part, "test": part}
    result = fit(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, data, **options)
    per_step = [row["seconds"] / row["step"] for row in result.rows]
    assert per_step[0] == per_step[1] >= 1.0
    with pytest.raises(InputError, match="`augment` must be None for loaders"):
        loaders = {name: [(torch.eye(4), torch.arange(4))] for name in data}
        fit(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            loss,
            loaders,
            epochs=1,
            augment=lambda batch, draws: batch,
        )


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_limit_on_gradients_that_would_stop_or_turn_them_is_refused(clip: float) -> None:
    part, model = [(torch.eye(4), torch.arange(4))], nn.Linear(4, 4)
    data = {"train": part, "validation": part, "test": part}
    with pytest.raises(InputError, match="`clip` must be positive or None"):
        fit(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data, epochs=1, clip=clip)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_trains_alike_where_a_notebook_has_switched_gradients_off(mode: Any) -> None:
    part = [(torch.eye(4), torch.arange(4))]
    data, weights = {"train": part, "validation": part, "test": part}, []
    for around in (nullcontext, mode):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with around():
            fit(model, optimizer, nn.CrossEntropyLoss(), data, epochs=1)
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_steps_are_as_long_as_a_limit_below_one_lets_them_be() -> None:
    part, model = [(torch.eye(4), torch.arange(4))], nn.Linear(4, 4)
    before = [p.detach().clone() for p in model.parameters()]
    data = {"train": part, "validation": part, "test": part}
    fit(model, torch.optim.SGD(model.parameters(), lr=1.0), nn.CrossEntropyLoss(), data, epochs=1, clip=0.125)
    moves = [(p.detach() - b).reshape(-1) for p, b in zip(model.parameters(), before, strict=True)]
    assert float(torch.cat(moves).norm()) == pytest.approx(0.125, rel=1e-4)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=1)])
def test_hits_counted_together_are_those_of_each_batch(criterion, monkeypatch) -> None:
    random = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 3, 2, generator=random), torch.randint(3, (n, 2), generator=random)) for n in (4, 4, 1)]
    expected = torch.zeros(2)
    for output, target in batches:
        found = accuracy(output, target, criterion)
        assert found is not None
        expected += torch.stack([part.sum() for part in found])
    for most in (0, 1 << 18):  # counted after every batch, and once
        monkeypatch.setattr("lowland.training.evaluation._OPEN", most)
        terms, memory = RunningTerms(criterion, reused=True), torch.zeros(4, 2, dtype=torch.int64)
        for output, target in batches:
            same = memory[: len(target)].copy_(target)  # a loader that writes every target into the same memory
            terms.add(output.requires_grad_(), torch.tensor(1.0), same, len(target))
        kept = RunningTerms(criterion, reused=True)
        kept.put(terms.taken())
        assert totals(kept.taken(), torch.device("cpu")).tolist() == [9, *expected.tolist(), 9]
        assert not any(isinstance(t, torch.Tensor) and t.requires_grad for entry in kept.taken() for t in entry)


@pytest.mark.parametrize("method", [None, optim.SAM])
def test_what_fabric_only_hands_on_may_be_called_directly(method, monkeypatch) -> None:
    def trained() -> tuple[list[torch.Tensor], object]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        part = TensorData(torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5), torch.arange(20))
        options = {"epochs": 2, "batch_size": 8, "micro_batches": 2, "clip": 1.0}
        data = {"train": part, "validation": part, "test": part}
        result = fit(model, method(optimizer) if method else optimizer, nn.CrossEntropyLoss(), data, **options)
        return [*model.state_dict().values()], [{**row, "seconds": 0} for row in result.rows]

    direct, rows = trained()
    monkeypatch.setattr("lowland.training.setup.hands_on", lambda fabric: False)
    wrapped, others = trained()
    assert same_bits(direct, wrapped) and rows == others


def test_what_is_changed_of_another_package_while_fabric_is_imported_is_put_back() -> None:
    imports = importlib.import_module("lightning_utilities.core.imports")
    before = imports.compare_version
    assert setup._fabric() is Fabric and imports.compare_version is before
