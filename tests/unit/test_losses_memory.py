"""The output memory: what it holds, what it reports as missing, its precision, its size, and its errors."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from lowland.core.errors import CheckpointError, InputError
from lowland.losses import OutputMemory, memory_bytes
from lowland.losses.divergence import tempered_divergence
from lowland.losses.records import RecordFormat, SampleRows, last_of_each
from lowland.losses.tables import FileTable, Table, available_bytes


def build(tmp_path, placement="device", **options) -> OutputMemory:
    path = tmp_path / "outputs" if placement == "file" else None
    return OutputMemory(**{"look_back": 2, "samples": 10, "placement": placement, "path": path, **options})


def put(memory: OutputMemory, epoch: int, ids: list[int], outputs: torch.Tensor) -> None:
    memory.begin(epoch, recording=True, reading=True)
    memory.record(memory.locate(torch.tensor(ids), outputs), outputs)


def get(memory: OutputMemory, epoch: int, ids: list[int], width: int = 3) -> tuple[torch.Tensor, list[bool]]:
    memory.begin(epoch, recording=True, reading=True)
    like = torch.zeros(len(ids), width)
    values, hit = memory.recall(memory.locate(torch.tensor(ids), like), like)
    return values, hit.tolist()


@pytest.mark.parametrize("placement", ["device", "host", "file"])
@pytest.mark.parametrize("precision, error", [("float64", 0), ("float32", 0), ("float16", 2e-3), ("int8", 0.02)])
def test_gives_back_what_it_was_given(tmp_path, placement, precision, error):
    memory = build(tmp_path, placement, precision=precision)
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 2  # up to 4.4: half an ulp is 2e-3
    put(memory, 0, [3, 9, 0, 5], outputs)
    values, hit = get(memory, 2, [5, 1, 3])
    assert hit == [True, False, True]
    assert (values[[0, 2]] - outputs[[3, 0]]).abs().max() <= error
    assert values[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("placement", ["device", "file"])
def test_rows_never_seen_or_stale_are_missing(tmp_path, placement):
    memory = build(tmp_path, placement, look_back=1)
    put(memory, 0, [1, 2], torch.ones(2, 3))
    put(memory, 1, [2], torch.full((1, 3), 2.0))
    assert get(memory, 1, [1, 2, 3])[1] == [True, True, False]
    values, hit = get(memory, 2, [1, 2, 3])
    assert hit == [False, True, False] and values[1].tolist() == [2, 2, 2]
    assert get(memory, 3, [1, 2])[1] == [False, False]  # slot of epoch 1 holds nothing of epoch 2


@pytest.mark.parametrize("look_back", [1, 2, 3])
def test_nothing_is_a_hit_before_anything_can_be(tmp_path, look_back):
    memory = build(tmp_path, look_back=look_back)
    for epoch in range(look_back):
        assert get(memory, epoch, [0, 4])[1] == [False, False]


def test_what_an_epoch_reads_is_never_what_it_writes(tmp_path):
    memory = build(tmp_path, look_back=2)
    for epoch in range(9):
        put(memory, epoch, [4, 7], torch.full((2, 3), float(epoch)))
        if epoch >= 2:
            assert get(memory, epoch, [4])[0].tolist() == [[epoch - 2.0] * 3]


def test_the_last_of_a_repeated_sample_is_kept(tmp_path):
    memory = build(tmp_path, look_back=1)
    put(memory, 0, [4, 4, 6, 4], torch.arange(12.0).reshape(4, 3))
    values, hit = get(memory, 1, [4, 6, 4])
    assert hit == [True] * 3 and values.tolist() == [[9, 10, 11], [6, 7, 8], [9, 10, 11]]


def test_last_of_each_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        rows = torch.randint(-1, 6, (12,), generator=generator)
        expected = [row if row not in rows[i + 1 :].tolist() else -1 for i, row in enumerate(rows.tolist())]
        assert last_of_each(rows).tolist() == expected


def test_ids_of_any_kind_find_their_rows(tmp_path):
    memory = OutputMemory(look_back=1, samples=torch.tensor([2**61, 5, 77]))
    put(memory, 0, [77, 2**61], torch.tensor([[1.0], [2.0]]))
    values, hit = get(memory, 1, [2**61, 5, 77], 1)
    assert hit == [True, False, True] and values[:, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("placement", ["device", "file"])
def test_ids_unknown_beforehand_are_numbered_as_they_come(tmp_path, placement):
    memory = build(tmp_path, placement, samples=None, look_back=1)
    ids = [2**60 + 7 * i for i in range(40)]
    for start in range(0, 40, 4):
        put(memory, 0, ids[start : start + 4], torch.arange(start, start + 4.0)[:, None])
    state = copy.deepcopy(memory.state_dict())
    again = build(tmp_path, placement, samples=None, look_back=1)
    again.check_state(state)
    again.load_state_dict(state)
    for each in (memory, again):
        values, hit = get(each, 1, [*ids[::-1], 3], 1)
        assert hit == [True] * 40 + [False] and values[:40, 0].tolist() == list(range(40))[::-1]


def test_growth_beyond_the_room_is_refused_too(tmp_path, monkeypatch):
    memory = build(tmp_path, samples=None, precision="float32")
    put(memory, 0, [0], torch.zeros(1, 3))
    monkeypatch.setattr("lowland.losses.memory.available_bytes", lambda device, path: 20_000)
    with pytest.raises(InputError, match="must leave room"):
        put(memory, 0, list(range(1, 2000)), torch.zeros(1999, 3))


@pytest.mark.parametrize("shape", [(3,), (3, 4, 2), ()])
def test_outputs_of_any_shape(tmp_path, shape):
    memory = build(tmp_path, look_back=1, precision="int8")
    outputs = torch.randn(2, *shape)
    memory.begin(0, recording=True, reading=False)
    memory.record(memory.locate(torch.tensor([1, 2]), outputs), outputs)
    memory.begin(1, recording=True, reading=True)
    values, hit = memory.recall(memory.locate(torch.tensor([2, 1]), outputs), outputs)
    assert hit.all() and values.shape == outputs.shape
    torch.testing.assert_close(values, outputs.flip(0), atol=0.03, rtol=0)


def test_int8_error_of_the_tempered_divergence():
    generator = torch.Generator().manual_seed(0)
    for span, allowed in [(10.0, 1e-5), (35.0, 1e-4)]:
        logits = torch.randn(200, 1000, generator=generator, dtype=torch.float64)
        low, high = logits.aminmax(dim=1, keepdim=True)
        logits = (logits - low) / (high - low) * span
        kept = RecordFormat("int8", (1000,))
        values = kept.decode(kept.encode(logits, 0))
        assert float((values - logits).abs().max()) <= span / 254 / 2 * (1 + 1e-4)
        assert float(tempered_divergence(logits, values.double(), 5.0).mean()) <= allowed


def test_constant_and_extreme_outputs_survive():
    for precision in ("int8", "float16"):
        kept = RecordFormat(precision, (4,))
        for value in (0.0, 7.25, -1e4, 3e4):
            outputs = torch.full((2, 4), value)
            torch.testing.assert_close(kept.decode(kept.encode(outputs, 0)), outputs, rtol=1e-3, atol=0)
    wide = torch.tensor([[-1e38, 1e38, 0.0, 1e38]])
    assert torch.isfinite(RecordFormat("float16", (4,)).decode(RecordFormat("float16", (4,)).encode(wide, 0))).all()


def test_pairs_match_only_the_same_pair_and_share(tmp_path):
    memory = build(tmp_path, look_back=1, pairs=True)
    ids, outputs = torch.tensor([0, 1, 2]), torch.eye(3)
    memory.begin(0, recording=True, reading=True)
    partner, share = torch.tensor([1, 2, -1]), torch.tensor([0.3, 0.5, 1.0])
    memory.record(memory.locate(ids, outputs), outputs, partner, share)
    memory.begin(1, recording=True, reading=True)
    for asked, own, expected in [
        (partner, share, [True, True, True]),
        (partner, share + torch.tensor([0.04, 0.06, 0.0]), [True, False, True]),
        (torch.tensor([2, 2, 0]), share, [False, True, False]),
        (None, None, [False, False, True]),
    ]:
        assert memory.recall(memory.locate(ids, outputs), outputs, asked, own)[1].tolist() == expected


@pytest.mark.parametrize(
    "ids, outputs, message",
    [
        (torch.tensor([0, 10]), torch.zeros(2, 3), "10 samples"),
        (torch.tensor([0, -1]), torch.zeros(2, 3), "10 samples"),
        (None, torch.zeros(2, 3), "Indexed"),
        (torch.tensor([0.0, 1.0]), torch.zeros(2, 3), "int64"),
        (torch.tensor([0]), torch.zeros(2, 3), "int64 of shape"),
        (torch.tensor([0, 1]), torch.zeros(2, 4), "keep its shape"),
        (torch.tensor([0, 1]), torch.tensor([[0.0, 1, 2], [0, float("nan"), 0]]), "finite"),
        (torch.tensor([0, 1]), torch.tensor([[0.0, 1, 2], [0, float("inf"), 0]]), "finite"),
    ],
)
@pytest.mark.parametrize("placement", ["device", "file"])
def test_bad_batches_leave_what_is_kept(tmp_path, placement, ids, outputs, message):
    memory = build(tmp_path, placement)
    put(memory, 0, [0, 1, 2], torch.ones(3, 3))
    memory.begin(1, recording=True, reading=True)
    with pytest.raises(InputError, match=message):
        memory.record(memory.locate(ids, outputs), outputs)
    values, hit = get(memory, 2, list(range(10)))
    assert hit == [True] * 3 + [False] * 7 and values[:3].tolist() == [[1, 1, 1]] * 3


def test_an_accelerator_reports_at_the_end_of_the_epoch(tmp_path, monkeypatch):
    # the flags that a device collects, made visible on the CPU by taking its immediate report away
    memory = build(tmp_path)
    put(memory, 0, [0, 1], torch.ones(2, 3))

    def collect(kind: str, wrong: torch.Tensor) -> None:
        memory._noticed[kind] = wrong.any() | memory._noticed.get(kind, torch.tensor(False))

    monkeypatch.setattr(memory, "_report", collect)
    outputs = torch.tensor([[2.0, 2, 2], [float("nan"), 0, 0], [3, 3, 3]])
    put(memory, 1, [0, 1, 99], outputs)
    values, hit = get(memory, 3, list(range(10)))
    assert hit == [True] + [False] * 9 and values[0].tolist() == [2, 2, 2]
    with pytest.raises(InputError, match=r"finite|samples"):
        memory.raise_noticed()
    memory.raise_noticed()  # once is enough


@pytest.mark.parametrize(
    "change",
    [{"samples": 11}, {"look_back": 3}, {"precision": "float16"}, {"pairs": True}, {"samples": None}],
    ids=str,
)
def test_a_state_of_other_size_is_refused(tmp_path, change):
    memory = build(tmp_path)
    put(memory, 0, [0, 1], torch.ones(2, 3))
    other = build(tmp_path, **change)
    with pytest.raises(CheckpointError, match=r"does not fit.*nothing was loaded"):
        other.check_state(memory.state_dict())
    fits, wider = build(tmp_path), build(tmp_path)
    put(wider, 0, [0], torch.ones(1, 4))
    fits.check_state(memory.state_dict())
    with pytest.raises(CheckpointError, match="shape"):
        wider.check_state(memory.state_dict())
    with pytest.raises(CheckpointError, match="lacks"):
        fits.check_state({})


def test_a_file_resumes_in_mid_epoch_and_refuses_what_it_has_lost(tmp_path):
    memory = build(tmp_path, "file", look_back=1)
    put(memory, 0, [0, 1, 2], torch.zeros(3, 3))
    put(memory, 1, [0], torch.ones(1, 3))
    state = memory.state_dict()
    put(memory, 1, [1], torch.ones(1, 3))  # after the checkpoint, lost in the crash
    again = build(tmp_path, "file", look_back=1)
    again.check_state(state)
    again.load_state_dict(state)
    assert get(again, 1, [0, 1, 2])[1] == [True] * 3
    put(again, 1, [1, 2], torch.full((2, 3), 2.0))
    assert get(again, 2, [0, 1, 2])[0][:, 0].tolist() == [1, 2, 2]
    late = build(tmp_path, "file", look_back=1)
    late.load_state_dict(state)
    with pytest.raises(CheckpointError, match="gone on to epoch 2"):
        late.begin(1, recording=True, reading=True)
    late.begin(2, recording=True, reading=True)


def test_another_run_s_file_is_not_taken_for_one_s_own(tmp_path):
    memory = build(tmp_path, "file")
    put(memory, 0, [0], torch.zeros(1, 3))
    state = memory.state_dict()
    put(build(tmp_path, "file"), 0, [0], torch.zeros(1, 3))  # a new run begins the file anew
    late = build(tmp_path, "file")
    with pytest.raises(CheckpointError, match="not the output memory"):
        late.load_state_dict(state)
    (tmp_path / "outputs").write_text("a user's file")
    with pytest.raises(InputError, match="path"):
        put(build(tmp_path, "file"), 0, [0], torch.zeros(1, 3))
    assert (tmp_path / "outputs").read_text() == "a user's file"


def test_size_is_known_beforehand_and_too_much_is_refused(tmp_path, monkeypatch):
    assert memory_bytes(50_000, 100, precision="float16") == 50_000 * 4 * (4 + 200)
    assert memory_bytes(1_281_167, 1000, precision="int8") <= 5.2e9
    memory = build(tmp_path, samples=10**9)
    with pytest.raises(InputError) as error:
        put(memory, 0, [0], torch.zeros(1, 1000))
    for part in ("12012.00 GB", "GB free", "int8", "file", "MESA"):
        assert part in str(error.value)
    assert memory.state_dict()["shelf"] is None
    monkeypatch.setattr("lowland.losses.memory.available_bytes", lambda device, path: 100)
    with pytest.raises(InputError, match="file system"):
        put(build(tmp_path, "file"), 0, [0], torch.zeros(1, 3))
    assert not (tmp_path / "outputs").exists()
    size = memory_bytes(4, 3, precision="float32", look_back=2)
    monkeypatch.setattr("lowland.losses.memory.available_bytes", lambda device, path: size / 0.9)
    put(build(tmp_path, samples=4, precision="float32", look_back=2), 0, [0], torch.zeros(1, 3))  # nine tenths fit
    monkeypatch.undo()
    assert available_bytes(torch.device("cpu"), None) > 0 < available_bytes(torch.device("cpu"), tmp_path / "a" / "b")


@pytest.mark.parametrize("planned", [True, False])
def test_one_of_several_processes_makes_room_for_what_it_is_planned_to_meet(planned, monkeypatch):
    monkeypatch.setattr("lowland.losses.memory.rank_and_world", lambda: (0, 2))
    memory = OutputMemory(look_back=2)
    memory.configure(10, (lambda epoch: torch.tensor([7, 2]) + epoch) if planned else None)
    memory.begin(1, recording=True, reading=False)
    assert memory.locate(torch.tensor([8, 3]), torch.zeros(2, 3)).tolist() == [8, 3]
    if planned:
        with pytest.raises(InputError, match="every id that this process meets"):
            memory.locate(torch.tensor([8, 2]), torch.zeros(2, 3))
    else:
        assert memory.locate(torch.tensor([8, 2]), torch.zeros(2, 3)).tolist() == [8, 2]


def records(form, values):
    outputs = torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, *form.shape)
    return form.encode(outputs, 0)


def test_a_file_takes_only_the_room_that_was_written(tmp_path):
    form = RecordFormat("float32", (250,))
    table = FileTable(tmp_path / "rows", form, 10**7, {})
    table.write(torch.tensor([10**7 - 1, 3, -1]), records(form, [7.0, 8.0, 9.0]))
    found = table.read(torch.tensor([3, 4, 10**7 - 1, -1]))
    assert found["stamp"].tolist() == [1, 0, 1, 0] and found["output"][[0, 2], 0].tolist() == [8, 7]
    assert (tmp_path / "rows").stat().st_blocks * 512 < 10**6
    table.grow(2 * 10**7)
    assert table.read(torch.tensor([10**7 - 1, 2 * 10**7 - 1]))["stamp"].tolist() == [1, 0]


def test_what_was_read_and_written_in_a_file_does_not_stay_resident(tmp_path):
    form, count = RecordFormat("float32", (1023,)), 16_000  # 65 MB
    table = FileTable(tmp_path / "rows", form, count, {})
    outputs = form.encode(torch.ones(100, 1023), 0)
    table.write(torch.arange(100), outputs)
    before = psutil.Process().memory_info().rss
    for start in range(0, count, 100):
        table.write(torch.arange(start, start + 100), outputs)
        assert table.read(torch.arange(start, start + 100))["stamp"].eq(1).all()
    assert psutil.Process().memory_info().rss - before < 16 << 20


@pytest.mark.parametrize("precision", ["float32", "int8", "float64"])
def test_a_killed_process_leaves_what_it_wrote(tmp_path, precision):
    code = f"""
import os, signal, sys, torch
from lowland.losses.records import RecordFormat
from lowland.losses.tables import FileTable
form = RecordFormat({precision!r}, (3,), True)
table = FileTable(__import__("pathlib").Path(sys.argv[1]), form, 10, {{}})
table.write(torch.tensor([9, 2]), form.encode(torch.tensor([[1.0, 2, 3], [4, 5, 6]]), 6))
print(table.key, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows")], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    form = RecordFormat(precision, (3,), True)
    found = FileTable(tmp_path / "rows", form, 10, {}, key=done.stdout.strip()).read(torch.tensor([2, 9, 0]))
    assert found["stamp"].tolist() == [7, 7, 0]
    torch.testing.assert_close(
        form.decode(found)[:2].float(), torch.tensor([[4.0, 5, 6], [1, 2, 3]]), atol=0.01, rtol=0
    )


def test_tables_drop_what_has_no_place():
    form = RecordFormat("float32", ())
    table = Table(form, 3, "cpu")
    table.write(torch.tensor([-1, 2, -1]), form.encode(torch.tensor([1.0, 2, 3]), 0))
    table.grow(5)
    found = table.read(torch.tensor([0, 1, 2, 3, 4, -1]))
    assert found["stamp"].tolist() == [0, 0, 1, 0, 0, 0] and found["output"][2] == 2


@pytest.mark.parametrize(
    "options, argument",
    [
        ({"precision": "int4"}, "precision"),
        ({"placement": "disk"}, "placement"),
        ({"placement": "file"}, "path"),
        ({"path": "somewhere"}, "path"),
        ({"samples": 0}, "samples"),
        ({"samples": torch.tensor([1, 1])}, "samples"),
        ({"samples": torch.tensor([1.0])}, "samples"),
    ],
)
def test_bad_settings_are_refused(options, argument):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        OutputMemory(**options)


def test_rows_of_consecutive_ids_need_no_table():
    assert SampleRows(torch.arange(5).flip(0)).known is None
    assert SampleRows(5).of(torch.tensor([4, 5, -1])).tolist() == [4, -1, -1]


def test_unknown_ids_have_no_row():
    rows = SampleRows(torch.tensor([2**61, 5, 77]))
    assert rows.of(torch.tensor([0, 5, 6, 77, 2**61, 2**61 + 1, -1])).tolist() == [-1, 0, -1, 1, 2, -1, -1]
