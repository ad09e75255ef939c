"""The peers that are checked: one module of adapters each, imported only where the package is installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A package: how it is called where, the version that was checked and when it appeared, and what it is."""

    module: str
    distribution: str
    version: str
    released: str
    about: str
    note: str = ""


PEERS = [
    Peer(
        "pytorch_optimizer", "pytorch-optimizer", "4.1.0", "October 2026", "optimizers, among them a SAM family",
        "Checked are SAM, WSAM, LookSAM and FriendlySAM with their documented calls.",
    ),
    Peer(
        "curvlinops", "curvlinops-for-pytorch", "3.0.1", "January 2026", "curvature matrices as linear operators",
        "It has no eigensolver: the ends come from SciPy's `eigsh` on its operator, as its documentation shows. "
        "Traces are by its Hutch++ with 60 products, the density by its Lanczos run of at most 40 steps.",
    ),
    Peer(
        "pyhessian", "PyHessian", "0.1", "April 2021", "eigenvalues, trace and density of the Hessian",
        "The release on the package index; its repository has later commits. It computes in float32 and offers only "
        "the eigenvalue of largest magnitude.",
    ),
    Peer(
        "hessian_eigenthings", "hessian-eigenthings", "1.0.0a5", "May 2026", "eigenvalues, trace and density",
        "A pre-release. Lanczos and the density run with at most 40 steps.",
    ),
    Peer(
        "landscaper", "landscaper", "1.3.1", "January 2026", "loss landscapes and their topology, Hessian estimates",
        "Planes go along its own random orthogonal directions. Losses are computed by a function that the user writes. "
        "One of its dependencies asks for NumPy < 2, but runs with the present one.",
    ),
    Peer(
        "loss_landscapes", "loss-landscapes", "3.0.6", "August 2019", "lines and planes of losses",
        "Run with `deepcopy_model=True`: by default, as documented, it works on the model itself and leaves it at the "
        "last point. It states no coordinates; [-distance, distance] is taken from its documentation.",
    ),
]  # fmt: skip
"""Li et al.'s own scripts (github.com/tomgoldstein/loss-landscape) are no package and are not checked."""
