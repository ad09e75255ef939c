"""States that every version left of memories and losses: they go on to the bits of a run that was not stopped."""

from __future__ import annotations

import pytest
import torch
from tests.golden import memories
from tests.golden.stores import FILES

from lowland.core.errors import CheckpointError
from lowland.losses import sharing
from lowland.losses.records import RecordFormat
from lowland.losses.tables import Table

KEPT = {file.parent.name: torch.load(file, weights_only=True) for file in sorted(FILES.glob("*/memories.pt"))}


@pytest.fixture(params=KEPT)
def old(request):
    return KEPT[request.param]


FORMS = pytest.mark.parametrize("precision, pairs", memories.FORMS)


def kept_of(old, precision, pairs):
    return old["memories"][f"{precision}{'-pairs' * pairs}"]


def assert_found(memory, kept):
    for epoch, (values, hit) in zip((2, 3), kept["found"], strict=True):
        now, now_hit = memories.recalled(memory, epoch)
        assert torch.equal(now, values) and torch.equal(now_hit, hit) and now.dtype == values.dtype
        assert hit.sum() == 5


def assert_same_records(old, new):
    assert old.keys() == new.keys()
    for name in old:
        assert torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype, name


@FORMS
def test_a_memory_goes_on(old, precision, pairs):
    kept = kept_of(old, precision, pairs)
    memory = memories.new_memory(precision, pairs, None)
    memory.check_state(kept["memory"])
    memory.load_state_dict(kept["memory"])
    today = memories.filled(precision, pairs).state_dict()
    assert_same_records(memory.state_dict()["shelf"], today["shelf"])
    assert memory.state_dict()["layout"] == today["layout"] == kept["memory"]["layout"]
    assert_found(memory, kept)


@FORMS
def test_a_file_goes_on_and_is_written_as_it_was(old, precision, pairs, tmp_path):
    kept, path = kept_of(old, precision, pairs), tmp_path / "outputs"
    path.write_bytes(kept["written"])
    memory = memories.new_memory(precision, pairs, path)
    memory.check_state(kept["file"])
    memory.load_state_dict(kept["file"])
    assert_found(memory, kept)
    memories.filled(precision, pairs, tmp_path / "today")
    today = (tmp_path / "today").read_bytes()
    assert len(today) == len(kept["written"]) and today[4096:] == kept["written"][4096:]


@FORMS
def test_what_a_process_among_others_held_goes_on(precision, pairs, monkeypatch):
    today = Table(RecordFormat(precision, (2, 3), pairs), 18, "cpu")
    today.load_state_dict(memories.filled(precision, pairs).state_dict()["shelf"])
    monkeypatch.setattr("lowland.losses.memory.rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(sharing, "rank_and_world", lambda: (1, 2))
    table = kept_of(KEPT["0.1.0"], precision, pairs)["memory"]["shelf"]["table"]
    owned, recorded = torch.cat([table[:9], table[-1:]]), torch.cat([table[3:6], table[-1:]])
    others = {"rows": torch.tensor([1, 2, 5]), "order": torch.tensor([0, 2, -1]), "passed": 3, "epoch": 2}
    held = {"owned": owned, "recorded": recorded, **others}
    memory = memories.new_memory(precision, pairs, None)
    state = {**kept_of(KEPT["0.1.0"], precision, pairs)["memory"], "process": (1, 2), "shelf": held}
    memory.check_state(state)
    memory.load_state_dict(state)
    found = memory.state_dict()["shelf"]
    assert (found["passed"], found["epoch"]) == (3, 2)
    assert torch.equal(found["rows"], others["rows"]) and torch.equal(found["order"], others["order"])
    for name, places in (("owned", range(9)), ("recorded", range(3, 6))):
        kept = {field: values[:-1] for field, values in found[name].items()}
        assert_same_records(kept, today.read(torch.tensor(places)))


def test_ids_that_were_numbered_as_they_came_go_on(old):
    memory = memories.new_memory("float32", False, None, samples=None)
    memory.check_state(old["met"])
    memory.load_state_dict(old["met"])
    today = memories.filled("float32", False, samples=None)
    assert memory.state_dict()["met"] == today.state_dict()["met"]
    for epoch in (2, 3):
        for a, b in zip(memories.recalled(memory, epoch), memories.recalled(today, epoch), strict=True):
            assert torch.equal(a, b)


def test_a_state_of_another_size_is_refused_as_ever(old):
    memory = memories.new_memory("float32", True, None)
    with pytest.raises(CheckpointError, match="precision float64 instead of float32"):
        memory.check_state(kept_of(old, "float64", True)["memory"])


@pytest.mark.parametrize("name", memories.LOSSES)
def test_a_loss_goes_on_from_its_state(old, name):
    state = old["losses"][name]
    later = memories.gone_on(name, state=state)["values"]
    assert len(later) == 15 - memories.STOPPED
    assert later == pytest.approx(state["later"], rel=1e-9)
