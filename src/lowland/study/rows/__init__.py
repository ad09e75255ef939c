"""The rows of the ledger, one file per paper; `claims` lists them all."""

from dataclasses import replace

from lowland.study.claims import Claim
from lowland.study.rows.landscape import landscape_claims
from lowland.study.rows.llr import llr_claims
from lowland.study.rows.lookahead import lookahead_claims
from lowland.study.rows.sam import sam_claims
from lowland.study.rows.tasks import FULL, SMALL, Size
from lowland.study.rows.trajectory import trajectory_claims
from lowland.study.rows.undecided import UNDECIDED

__all__ = ["FULL", "SMALL", "UNDECIDED", "Size", "claims"]


def claims(size: Size = SMALL) -> list[Claim]:
    """Return every row, in the ledger's order.

    Args:
        size: Small or full.

    Returns:
        The rows.
    """
    makers = (sam_claims, llr_claims, trajectory_claims, lookahead_claims, landscape_claims)
    every = [claim for make in makers for claim in make(size)]
    return [replace(claim, seconds=size.cost * claim.seconds) for claim in every]
