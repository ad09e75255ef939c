"""Weights are taken as a module, a state dict or a file wherever another model is taken, and give the same bits."""

import copy
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lowland import landscape
from lowland.core.errors import CheckpointError, InputError
from lowland.core.risk import EmpiricalRisk


def network(seed, *, normed=False):
    torch.manual_seed(seed)
    first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)) if normed else nn.Linear(4, 3)
    model = nn.Sequential(first, nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))
    model[1].running_mean += seed
    return model.eval()


def forms(model, folder):
    """Every form in which the weights of a network may be given."""
    state = model.state_dict()
    torch.save(state, folder / "a.pth")
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, folder / "b.pt"
    )
    safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, folder / "c.safetensors")
    return {
        "module": model,
        "compiled": torch.compile(model, backend="eager"),
        "state": state,
        "path": folder / "a.pth",
        "string": str(folder / "b.pt"),
        "safetensors": folder / "c.safetensors",
    }


def tensors(plane):
    axes = [value for axis in plane.axes for value in axis.values.values()]
    return [*axes, *(value for part in plane.buffers for value in part.values())]


KINDS = ["compiled", "state", "path", "string", "safetensors"]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_line_and_a_plane_are_the_same_for_every_form(kind, normed, tmp_path):
    model, other, third = (network(seed, normed=normed) for seed in range(3))
    before = copy.deepcopy(model.state_dict())
    given = forms(other, tmp_path)
    expected, found = (landscape.line_between(model, given[form]) for form in ("module", kind))
    assert all(torch.equal(a, b) for a, b in zip(tensors(expected), tensors(found), strict=True))
    assert expected.describe() == found.describe()
    expected, found = (landscape.plane_through(model, given[form], third.state_dict()) for form in ("module", kind))
    assert expected.describe() == found.describe()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_matching_takes_every_form(kind, tmp_path):
    model, other = network(0), network(1)
    given = forms(other, tmp_path)
    expected, found = (landscape.match_weights(model, given[form], torch.randn(5, 4)) for form in ("module", kind))
    assert expected.similarity_after == found.similarity_after


@pytest.mark.parametrize("normed", [False, True])
def test_a_path_of_checkpoints_is_that_of_snapshots(normed, tmp_path):
    """With a risk: each checkpoint's own statistics are used at its place."""
    models = [network(seed, normed=normed) for seed in range(4)]
    model = models[-1]
    files = []
    for step, one in enumerate(models):
        files.append(tmp_path / f"e{step}.pt")
        torch.save(one.state_dict(), files[-1])
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.randint(2, (9,)))])
    for given in (
        files,
        [str(file) for file in files],
        [m.state_dict() for m in models],
        models,
        [models[0], *files[1:]],
    ):
        found = landscape.project_trajectory(model, given, risk=risk)
        true = [EmpiricalRisk(m, nn.CrossEntropyLoss(), list(risk.batches())).evaluate()["loss"].value for m in models]
        np.testing.assert_array_equal(found.loss, true)
        assert found.step.values.tolist() == [0, 1, 2, 3]
        assert float(found.distance_to_origin[-1]) == 0.0
        plane = landscape.pca_plane(model, given)
        assert plane.describe() == landscape.pca_plane(model, models).describe()


def test_what_does_not_fit_is_refused_with_a_table(tmp_path):
    model = network(0)
    wrong = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).eval()
    torch.save(wrong.state_dict(), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"name +model +given\n0\.weight +\(3, 4\) +\(5, 4\)"):
        landscape.line_between(model, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"architecture[\s\S]*0\.weight +\(3, 4\) +\(5, 4\)"):
        landscape.line_between(model, wrong)
    with pytest.raises(CheckpointError, match=r"0\.weight +\(3, 4\) +\(5, 4\)"):
        landscape.project_trajectory(model, [model, tmp_path / "b.pth"])
    with pytest.raises(CheckpointError, match=r"extra +- +\(2,\)"):
        landscape.line_between(model, {**model.state_dict(), "extra": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="1 missing"):
        landscape.plane_through(model, network(1), {n: t for n, t in network(2).state_dict().items() if n != "3.bias"})


@pytest.mark.parametrize("weights", [3, None, [1, 2], torch.zeros(3)])
def test_other_things_are_refused_by_name(weights):
    with pytest.raises(InputError, match="`other` must be a module, a state dict, or the path"):
        landscape.line_between(network(0), weights)
    with pytest.raises(InputError, match=r"`snapshots\[1\]` must be a module"):
        landscape.project_trajectory(network(0), [network(1), torch.zeros(3)])


RAN = []


def ran():
    RAN.append(1)


class Evil:
    def __reduce__(self):
        return (ran, ())


def test_no_code_of_a_file_runs(tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"0.weight": Evil()}))
    for call in (
        lambda: landscape.line_between(network(0), tmp_path / "evil.pt"),
        lambda: landscape.project_trajectory(network(0), [network(1), tmp_path / "evil.pt"]),
        lambda: landscape.line_between(network(0), tmp_path / "none.pt"),
    ):
        with pytest.raises(CheckpointError):
            call()
    assert not RAN


def test_weights_put_into_a_copy_run_there_whatever_a_trainer_put_on_the_model():
    model, other = network(0), network(1)
    own = model.forward
    model.forward = lambda x: own(x)  # as trainers wrap it: a closure is not copied with the model
    found = landscape.checkpoints.as_model(model, other.state_dict(), "other")
    x = torch.randn(5, 4)
    assert found is not model and torch.equal(found(x), other(x)) and not torch.equal(model(x), other(x))
