"""What the ledger cannot decide, and why."""

from __future__ import annotations

from typing import Final

__all__ = ["UNDECIDED"]

UNDECIDED: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "SAM",
        "ImageNet tables (ResNet-50, -101, -152)",
        "hundreds of accelerator hours, and a data set that is not free",
    ),
    (
        "SAM",
        "CIFAR tables at published size (WRN-28-10, PyramidNet)",
        "days on an accelerator; the recipes run at that size where the data are on disk",
    ),
    ("LLR", "result tables of the journal version", "the paper is closed and its tables could not be read"),
    (
        "LLR",
        "ImageNet runs of the published code",
        "without AddBase its gradients equal the baseline's, and its one run "
        "with AddBase has ten extra epochs: nothing to reproduce",
    ),
    ("LLR", "diffusion-theory escape times", "theorems of a closed paper; the two-well row simulates their claim"),
    ("SAF and MESA", "ImageNet tables (ResNets, ViT-S/32)", "hundreds of accelerator hours"),
    (
        "SAF and MESA",
        "the official multi-device SAF",
        "its memory is not shared over ranks: at 8 ranks one look-up in "
        "eight hits, so that the published ImageNet numbers may rest on another method",
    ),
    ("SALA", "result tables and convergence theorems", "the paper is closed and could not be read"),
    ("Lookahead", "ImageNet, translation and language tables", "days on an accelerator"),
    (
        "Li et al.",
        "ResNet-56 and -110 surfaces on CIFAR-10",
        "days on two cores; the rows here use digits and narrower networks",
    ),
    ("Li et al.", "DenseNet-121 test error", "not given in the paper"),
)
"""Group, claim, reason."""
