"""Every row of the ledger."""

from __future__ import annotations

from dataclasses import replace

from studies.claims.claim import Claim
from studies.claims.rows.better import better_claims
from studies.claims.rows.checkpoints import checkpoint_claims
from studies.claims.rows.landscape import landscape_claims
from studies.claims.rows.llr import llr_claims
from studies.claims.rows.lookahead import lookahead_claims
from studies.claims.rows.sam import sam_claims
from studies.claims.rows.surfaces import surface_claims
from studies.claims.rows.tasks import FULL, SMALL, Size
from studies.claims.rows.trajectory import trajectory_claims

__all__ = ["FULL", "SMALL", "Size", "claims"]


def claims(size: Size = SMALL) -> list[Claim]:
    """Return every row, in the ledger's order."""
    makers = (
        *(sam_claims, llr_claims, trajectory_claims, lookahead_claims, landscape_claims),
        *(better_claims, surface_claims, checkpoint_claims),
    )
    made = [
        replace(claim, seconds=size.cost * claim.seconds, module=make.__module__)
        for make in makers
        for claim in make(size)
    ]
    places = {claim.name: place for place, claim in enumerate(made)}
    behind = {claim.better: places[claim.name] + 0.5 for claim in made if claim.better}
    groups = [*dict.fromkeys(claim.group for claim in made)]
    return sorted(made, key=lambda claim: (groups.index(claim.group), behind.get(claim.name, places[claim.name])))
