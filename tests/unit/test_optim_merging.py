"""Merging of checkpoints: the weights are those of decayed updates, and nothing but one model is summed."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lowland as ll
from lowland.core.errors import CheckpointError, InputError
from lowland.optim import merge, merge_weights
from lowland.workflows import FitSpec, fit, parse
from lowland.workflows import merge as merge_files

DECAYS = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}


def path(count):
    generator = torch.Generator().manual_seed(1)
    states = [{"w": torch.zeros(7, dtype=torch.float64)}]
    for _ in range(count - 1):
        states.append({"w": states[-1]["w"] + torch.randn(7, generator=generator, dtype=torch.float64)})
    return states


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("decay", list(DECAYS))
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_a_merge_is_the_path_with_decayed_updates(count, decay, floor):
    states = path(count)
    walked = states[0]["w"].clone()
    for i in range(1, count):
        factor = floor + (1 - floor) * DECAYS[decay](i / count)
        walked += factor * (states[i]["w"] - states[i - 1]["w"])
    weights = merge_weights(count, decay, floor=floor)
    assert (merge(iter(states), weights)["w"] - walked).abs().max() < 1e-12
    assert sum(weights) == pytest.approx(1, abs=1e-14) and min(weights) >= 0


def test_what_the_named_decays_are():
    assert merge_weights(8, "linear") == [1 / 8] * 8
    roots = merge_weights(8, "1-sqrt")
    assert roots[0] == pytest.approx(1 / math.sqrt(8)) and roots == sorted(roots, reverse=True)
    middle = merge_weights(9, "cosine")
    assert max(middle) == middle[4] and middle[0] == pytest.approx(middle[-1]) and middle[0] < 0.04
    n, b = 6, 0.7
    average = path(n)[0]["w"]
    for state in path(n)[1:]:
        average = b * average + (1 - b) * state["w"]
    found = merge(path(n), merge_weights(n, lambda x: 1 - b ** (n * (1 - x))))
    assert (found["w"] - average).abs().max() < 1e-12


def test_types_counters_and_what_is_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    states = [{n: v + i for n, v in model.state_dict().items()} for i in range(3)]
    merged = merge(states, merge_weights(3, "linear"))
    assert int(merged["1.num_batches_tracked"]) == 2 and merged["0.weight"].dtype is torch.bfloat16
    assert torch.allclose(merged["0.weight"], states[1]["0.weight"], rtol=1e-2)
    assert int(states[0]["1.num_batches_tracked"]) == 0, "what came in is left alone"
    for weights, rule in (([0.5, 0.5], "as many"), ([0.3] * 3, "add up"), ([0.25] * 4, "as many")):
        with pytest.raises(InputError, match=rule):
            merge(states, weights)
    with pytest.raises(CheckpointError, match=r"(?s)checkpoint 2 .*0\.weight +\(2, 3\) +\(2, 2\)"):
        merge([states[0], {**states[1], "0.weight": torch.zeros(2, 2)}], [0.5, 0.5])
    with pytest.raises(InputError, match="rise"):
        merge_weights(4, lambda x: 0.5 + x / 2)
    with pytest.raises(InputError, match="1-sqrt"):
        merge_weights(4, "1-sqr")
    with pytest.raises(InputError, match="count"):
        merge_weights(0)


def test_a_run_is_merged_with_statistics_of_its_own(tmp_path):
    words = "--data.options.train_size 96 --model.name resnet8 --model.options.width 4 --epochs 4 --batch_size 32"
    words += " --schedule.kind constant"
    fit(parse(FitSpec, ["--folder", str(tmp_path / "run"), *words.split()]))
    result, file = merge_files([str(tmp_path / "run")], last=3)
    run = ll.open(tmp_path / "run")
    assert result["merged"] == ["6", "9", "12"] and result["weights"] == merge_weights(3)
    state = load_file(file)
    expected = merge((run.model(int(step)).state_dict() for step in result["merged"]), result["weights"])
    weight = next(name for name in state if name.endswith("weight"))
    assert torch.equal(state[weight], expected[weight])
    mean = next(name for name in state if name.endswith("running_mean"))
    assert not torch.equal(state[mean], expected[mean])
    model = run.model("last")
    model.load_state_dict(state)
    assert run.risk("validation", model=model).evaluate()["loss"].value == result["validation_loss"]
    with pytest.raises(InputError, match="new file"):
        merge_files([str(tmp_path / "run")])
    torch.save(run.model("last").state_dict(), tmp_path / "a.pt")
    both, file = merge_files(
        [str(file), str(tmp_path / "a.pt")], decay="linear", output=str(tmp_path / "b.safetensors")
    )
    assert both["weights"] == [0.5, 0.5]
    assert torch.allclose(load_file(file)[weight], (state[weight] + run.model("last").state_dict()[weight]) / 2)
