"""Snapshots: what is written is read, resume repeats, damage is told apart."""

import json

import numpy as np
import pytest

from lowland.core.errors import InputError, StoreError
from lowland.results import SnapshotReader, SnapshotWriter


def arrays(value=1.0):
    return {
        "w": np.full((2, 3), value, np.float32),
        "b": np.float32([value, np.nan]),
        "scalar": np.asarray(value, np.float32),
        "n": np.asarray(7),
    }


def test_snapshots_come_back_bit_for_bit_in_order(tmp_path):
    writer = SnapshotWriter(tmp_path / "s")
    for step in (10, 0, 5):
        writer.write(step, arrays(step), {"epoch": step // 5})
    reader = SnapshotReader(tmp_path / "s")
    assert reader.steps == (0, 5, 10) and len(reader) == 3
    assert reader.info(10) == {"epoch": 2} and reader.rounding(10) == 0.0
    reader.info(10).clear()
    assert reader.info(10) == {"epoch": 2}, "what is handed out is the caller's own"
    for step, found in reader:
        for name, expected in arrays(step).items():
            assert found[name].tobytes() == expected.tobytes() and found[name].shape == expected.shape
        assert list(found) == list(arrays())


def test_writing_a_step_again_replaces_it_and_a_new_writer_goes_on(tmp_path):
    SnapshotWriter(tmp_path).write(1, arrays(1.0))
    writer = SnapshotWriter(tmp_path)
    writer.write(1, arrays(1.0))
    writer.write(2, arrays(2.0))
    assert SnapshotReader(tmp_path).steps == (1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000000001.safetensors",
        "000000002.safetensors",
        "index.json",
    ]


def test_a_file_without_an_index_entry_is_not_a_snapshot(tmp_path):
    SnapshotWriter(tmp_path).write(1, arrays())
    (tmp_path / "000000002.safetensors").write_bytes(b"cut off")
    assert SnapshotReader(tmp_path).steps == (1,)


def test_float16_keeps_its_rounding_and_refuses_overflow(tmp_path):
    writer = SnapshotWriter(tmp_path, "float16")
    writer.write(0, {"w": np.float32([1.0, 0.1])})
    expected = abs(float(np.float32(0.1)) - float(np.float16(0.1)))
    assert SnapshotReader(tmp_path).rounding(0) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(InputError, match="float32"):
        writer.write(1, {"w": np.float32([1e6])})
    assert SnapshotReader(tmp_path).steps == (0,)
    with pytest.raises(StoreError, match="float16"):
        SnapshotWriter(tmp_path, "float32")


def test_transposed_arrays_keep_their_values(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    SnapshotWriter(tmp_path).write(0, {"w": array})
    np.testing.assert_array_equal(SnapshotReader(tmp_path).read(0)["w"], array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text(json.dumps({"schema": "lowland.snapshots/2"})),
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "000000000.safetensors").write_bytes(b"xx"),
        lambda folder: (folder / "000000000.safetensors").unlink(),
    ],
    ids=["torn index", "newer", "no index", "torn file", "no file"],
)
def test_damage_is_a_store_error(tmp_path, damage):
    SnapshotWriter(tmp_path).write(0, arrays())
    damage(tmp_path)
    with pytest.raises(StoreError):
        SnapshotReader(tmp_path).read(0)


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="dtype"):
        SnapshotWriter(tmp_path, "bfloat16")
    with pytest.raises(InputError, match="step"):
        SnapshotWriter(tmp_path).write(-1, arrays())
    SnapshotWriter(tmp_path).write(0, arrays())
    with pytest.raises(InputError, match="step"):
        SnapshotReader(tmp_path).read(3)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        SnapshotWriter(tmp_path / "file" / "below")


def test_one_bit_that_changed_is_damage_and_folders_of_before_are_read(tmp_path):
    SnapshotWriter(tmp_path).write(3, arrays(3.0))
    path = tmp_path / "000000003.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="its bytes have changed since it was written"):
        SnapshotReader(tmp_path).read(3)
    index = json.loads((tmp_path / "index.json").read_text())
    del index["snapshots"]["3"]["sha256"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert set(SnapshotReader(tmp_path).read(3)) == set(arrays())
