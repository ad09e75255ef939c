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
        "Checked are SAM, WSAM, LookSAM, FriendlySAM and Lookahead with their documented calls.",
    ),
    Peer(
        "temperon", "temperon", "0.1.1", "September 2026", "SAM for the last share of a run",
        "Checked with all of the run as its tail, which makes it SAM.",
    ),
    Peer(
        "unifiedsam", "unifiedsam", "1.0.0", "May 2026", "SAM and its unnormalized variant in one",
        "Checked with lambda = 1, which is SAM, by its two calls by hand: `step(closure)` as in its README fails at "
        "the first step for want of gradients.",
    ),
    Peer(
        "schedulefree", "schedulefree", "1.4.1", "March 2025", "averages in place of schedules",
        "Checked is its wrapper around any optimizer.",
    ),
    Peer(
        "torch2_look_ahead", "torch2-look-ahead", "0.1.0", "June 2026", "slow weights",
        "Evaluated by its two calls that exchange slow and trained weights.",
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
    Peer(
        "loss_landscape_3d", "loss-landscape-3d", "0.1.3", "August 2026", "planes of losses and trajectories",
        "Planes go along its own random directions, normalized as it does by default.",
    ),
    Peer(
        "nngeom", "nngeom", "0.2.0", "July 2026", "loss landscapes, curvature, representations",
        "Products by its double backward; ends by its Lanczos run of at most 40 steps; the trace with its default "
        "of 20 probes.",
    ),
]  # fmt: skip
"""Li et al.'s own scripts (github.com/tomgoldstein/loss-landscape) are no package and are not checked."""
