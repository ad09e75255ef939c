"""The memory that docstrings state is what a dispatch mode counts, tensor by tensor, where weights are all there is."""

from __future__ import annotations

import re

import pytest
import torch
from benchmarks import memory

import lowland as ll

WIDTH = 48
OPTIMIZERS = {name.split(",")[0]: name for name in memory.OPTIM if name != "SGD, alone"}
SETS = {
    ("landscape", "evaluate"): "evaluate, random plane",
    ("landscape", "pca_plane"): "pca_plane",
    ("landscape", "project_trajectory"): "project_trajectory",
    ("landscape", "film"): "film",
    ("curvature", "sam_sharpness"): "sam_sharpness",
    ("curvature", "average_case_sharpness"): "average_case_sharpness",
    ("curvature", "fisher_rao_norm"): "fisher_rao_norm",
    **{("optim", name): call for name, call in OPTIMIZERS.items()},
}
CHUNKED = ("filter_weighted_trace", "layer_traces", "diagonal")
EVERY = {name: (call, group == "paths") for group, calls in memory.GROUPS.items() for name, call in calls.items()}


def sets(call, *, paths=False):
    network = memory.weighty(WIDTH, depth=24)
    weights = sum(p.numel() * p.element_size() for p in network[0].parameters())
    return memory.peak(call, lambda: network, paths=paths) / weights


@pytest.mark.parametrize(("room", "name"), SETS, ids=[name for _, name in SETS])
def test_a_docstring_states_the_sets_of_weights_that_are_held(room, name):
    said = re.search(r"Memory: (\d+) sets", getattr(getattr(ll, room), name).__doc__)
    call, paths = EVERY[SETS[room, name]]
    assert int(said[1]) - 1 < sets(call, paths=paths) < int(said[1]) + 0.4


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("chunk", [1, 8])
def test_probes_hold_what_a_chunk_of_them_takes(name, chunk):
    call = getattr(ll.curvature, name)
    count = {"directions" if name.startswith("filter") else "probes": 16}
    assert "up to 3 sets of weights for each of `chunk` vectors, and a dozen more" in " ".join(call.__doc__.split())
    assert sets(memory.on(call, chunk=chunk, **count)) < 3 * chunk + 16


def test_a_krylov_run_holds_a_vector_for_each_product():
    assert sets(memory.on(ll.curvature.spectral_density, probes=2, steps=20)) < 2 * 20 + 24


def test_directions_that_are_not_stored_leave_a_survey_one_set():
    assert sets(EVERY["evaluate, random plane, stored=False"][0]) < 1.4


def test_what_is_released_is_not_counted():
    with memory.Peak() as seen:
        first = torch.ones(100)
        second = first + 1
        del first
        view = second[:10]
        del second
        assert (seen.now, seen.most) == (400, 800)
        del view
        assert seen.now == 0
