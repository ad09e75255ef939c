"""The rows of the ledger, one file per paper; `claims` lists them all."""

from lowland.study.claims import Claim
from lowland.study.recipes.landscape import landscape_claims
from lowland.study.recipes.llr import llr_claims
from lowland.study.recipes.lookahead import lookahead_claims
from lowland.study.recipes.sam import sam_claims
from lowland.study.recipes.tasks import FULL, SMALL, Size
from lowland.study.recipes.trajectory import trajectory_claims
from lowland.study.recipes.undecided import UNDECIDED

__all__ = ["FULL", "SMALL", "UNDECIDED", "Size", "claims"]


def claims(size: Size = SMALL) -> list[Claim]:
    """Return every row, in the ledger's order.

    Args:
        size: Small or full.

    Returns:
        The rows.
    """
    makers = (sam_claims, llr_claims, trajectory_claims, lookahead_claims, landscape_claims)
    return [claim for make in makers for claim in make(size)]
