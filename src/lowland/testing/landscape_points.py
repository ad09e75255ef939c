"""Rules of landscape tools: which points a plane or a line consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from lowland.testing.adapters import LandscapeAdapter
from lowland.testing.networks import Tied, flat, seeded, small
from lowland.testing.places import Lattice, plain_loss, surveyed
from lowland.testing.rulebook import demand, rule


@rule("Rows that are shifted against each other draw valleys that are not there.")
def points_on_a_grid(adapter: LandscapeAdapter) -> None:
    """The points of a plane lie on a regular grid."""
    error = surveyed(adapter)[2].error
    demand(error < 1e-2, f"points lie up to {error:.2g} steps away from a regular grid")


@rule("Mixed orders transpose square pictures and scramble others.")
def first_axis_first(adapter: LandscapeAdapter) -> None:
    """Value (i, j) of a grid of 5 x 3 points lies at the i-th x and the j-th y."""
    surface, _, found = surveyed(adapter, shape=(5, 3))
    demand(surface.values.shape == (5, 3), f"5 x 3 points come as an array of {surface.values.shape}")
    demand(found.error < 1e-2, f"points lie up to {found.error:.2g} steps away from (x[i], y[j])")


@rule("A picture whose middle is not the model cannot be checked against anything.")
def center_is_the_model(adapter: LandscapeAdapter) -> None:
    """On an odd grid the middle value is the loss of the model, at coordinates (0, 0)."""
    surface, _, _ = surveyed(adapter)
    wanted, value = plain_loss(*adapter.network()), float(surface.values[2, 2])
    demand(surface.x[2] == 0 and surface.y[2] == 0, f"the middle is at ({surface.x[2]:.3g}, {surface.y[2]:.3g})")
    demand(abs(value - wanted) < 1e-6 * wanted, f"the middle value is {value:.6g}, the model's loss {wanted:.6g}")


@rule("An off-by-half moves the minimum out of the middle.")
def even_grid_is_centered(adapter: LandscapeAdapter) -> None:
    """On an even grid the stated coordinates are true: (0, 0) is the model, between the four middle points."""
    _, _, found = surveyed(adapter, shape=(4, 4))
    step = torch.cat([part.reshape(-1) for part in found.u.values()]).norm()
    gap = float((found.origin - found.center).norm() / step)
    demand(gap < 1e-3, f"the place of coordinates (0, 0) is {gap:.2g} units away from the model")


@rule("A distance that means its inverse shows a flat picture as a wide one.")
def farther_is_farther(adapter: LandscapeAdapter) -> None:
    """Twice the distance asked for moves the weights twice as far."""
    reached = []
    for extent in (0.5, 1.0):
        surface, _, found = surveyed(adapter, extent=extent)
        unit = float(torch.cat([part.reshape(-1) for part in found.u.values()]).norm())
        reached.append(unit * float(surface.x.max() - surface.x.min()))
    ratio = reached[1] / reached[0]
    demand(abs(ratio - 2) < 0.01, f"asked for twice the distance, the weights move {ratio:.3g} times as far")


def _ratios(found: Lattice, model: nn.Module, name: str, rows: Callable[[Tensor], Tensor]) -> Tensor:
    weight = dict(model.named_parameters())[name].detach().double()
    moved: Tensor = torch.linalg.vector_norm(rows(found.u[name]), dim=1)
    norms: Tensor = torch.linalg.vector_norm(rows(weight), dim=1)
    return moved / norms


class _Scores(nn.Module):
    """Layers whose output is averaged over all axes but the first two."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return [samples, channels]."""
        out: Tensor = self.layers(x)
        return torch.tanh(out).flatten(2).mean(2) if out.ndim > 2 else out


def _first(weight: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1)


_LAYERS: Final[dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[Tensor], Tensor]]]] = {
    "Linear": (lambda: nn.Linear(5, 4), (7, 5), _first),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3), (7, 3, 6), _first),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 3), (7, 3, 5, 5), _first),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 2), (7, 2, 3, 3, 3), _first),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 2), (7, 3, 3, 3), lambda w: _first(w.transpose(0, 1))),
}


def _filters(adapter: LandscapeAdapter, kind: str) -> None:
    make, shape, rows = _LAYERS[kind]
    _, model, found = surveyed(
        adapter, seeded(3, lambda: (_Scores(make()).eval(), torch.randn(shape), torch.randn(7, 4)))
    )
    ratios = _ratios(found, model.body, "layers.0.weight", rows)
    spread = float(ratios.max() / ratios.min())
    demand(spread < 1.001, f"norms of the moves over norms of the filters differ by up to {spread:.3g}")


@rule("It is what makes two pictures comparable (Li et al. 2018, section 4).")
def filters_of_linear(adapter: LandscapeAdapter) -> None:
    """Filter normalization scales each row of a linear layer to the norm of that row of the weights."""
    _filters(adapter, "Linear")


@rule("One norm for the whole tensor is layer normalization under another name.")
def filters_of_convolutions(adapter: LandscapeAdapter) -> None:
    """Filter normalization scales each output filter of 1-, 2- and 3-dimensional convolutions."""
    for kind in ("Conv1d", "Conv2d", "Conv3d"):
        _filters(adapter, kind)


@rule("Axis 0 holds their inputs.")
def filters_of_transposed(adapter: LandscapeAdapter) -> None:
    """Filter normalization takes the output filters of transposed convolutions, which lie on axis 1."""
    _filters(adapter, "ConvTranspose2d")


@rule("Pruned filters are zero, and so are the biases of a fresh norm layer.")
def filters_of_zeros(adapter: LandscapeAdapter) -> None:
    """A filter whose weights are all zero does not move and does not fail."""
    net, x, y = small()
    with torch.no_grad():
        net.get_parameter("0.weight")[2] = 0
        net.get_parameter("2.bias").zero_()
    surface, _, found = surveyed(adapter, (net, x, y))
    demand(bool(np.isfinite(surface.values).all()), "values are not finite")
    moved = float(found.u["0.weight"][2].abs().max())
    demand(moved < 1e-6, f"a filter of zeros moves by up to {moved:.2g} per unit")


@rule(
    "They have no filter to be measured by, and small moves of them change the loss a lot. In the scripts of Li "
    "et al. 2018 it is an option, which their figures use."
)
def biases_stay(adapter: LandscapeAdapter) -> None:
    """Biases and parameters of norm layers do not move."""
    _, _, found = surveyed(adapter)
    moved = max(float(part.abs().max()) for name, part in found.u.items() if name.endswith("bias"))
    demand(moved < 1e-6, f"biases move by up to {moved:.2g} per unit")


@rule("The picture would be a line drawn as a plane.")
def directions_differ(adapter: LandscapeAdapter) -> None:
    """The two random directions are not nearly parallel."""
    _, _, found = surveyed(adapter)
    u, v = (torch.cat([part.reshape(-1) for part in axis.values()]) for axis in (found.u, found.v))
    cosine = float(u @ v / (u.norm() * v.norm()))
    demand(abs(cosine) < 0.6, f"the two directions have the cosine {cosine:.4f}")


@rule("Moved twice, the picture shows another network.")
def tied_weights_stay_tied(adapter: LandscapeAdapter) -> None:
    """A weight that two layers share moves once, and is shared afterwards."""
    body, x, y = seeded(3, lambda: (Tied(4, 4).eval(), torch.randn(7, 4), torch.randn(7, 4)))
    before = flat(body)
    _, _, found = surveyed(adapter, (body, x, y))
    demand(found.error < 1e-2, f"points lie up to {found.error:.2g} steps away from a regular grid")
    demand(body.second.weight is body.first.weight, "the weights are not shared any more")
    demand(torch.equal(before, flat(body)), "the weights changed")


@rule("They have no first axis to loop over.")
def scalar_parameters(adapter: LandscapeAdapter) -> None:
    """Models with parameters of no dimension (temperatures, gates) can be surveyed."""

    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.temperature = nn.Linear(4, 3), nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out / self.temperature

    surface, _, _ = surveyed(adapter, seeded(3, lambda: (Warm().eval(), torch.randn(7, 4), torch.randn(7, 3))))
    demand(bool(np.isfinite(surface.values).all()), "values are not finite")


@rule("A line that stops one step short hides the end, and with it the barrier's height.")
def line_has_both_ends(adapter: LandscapeAdapter) -> None:
    """A line between two models starts at the loss of the first and ends at that of the second."""
    (first, x, y), second = adapter.network(), adapter.network(5)[0]
    wanted = [plain_loss(first, x, y), plain_loss(second, x, y)]
    values: Any = adapter.line(first, second, nn.MSELoss(), [(x, y)], points=5)
    found = [float(values[0]), float(values[-1])]
    demand(
        np.allclose(found, wanted, rtol=1e-5),
        f"the line goes from {found[0]:.4g} to {found[1]:.4g}, the models' losses are {wanted[0]:.4g}, {wanted[1]:.4g}",
    )
