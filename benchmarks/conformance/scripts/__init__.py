"""The smallest script for each failure: how a peer is called, then what should be true.

A script is the prelude of a tool and the body of a rule, or one of its own where the tool needs it; it needs torch and
the peer alone, and ends with an error as long as the peer breaks the rule.
"""

from __future__ import annotations

from typing import Final

from benchmarks.conformance.scripts import curvature, landscapes, optimizers

PRELUDES: Final = optimizers.PRELUDES | landscapes.PRELUDES | curvature.PRELUDES
BODIES: Final = optimizers.BODIES | landscapes.BODIES | curvature.BODIES
OWN: Final[dict[tuple[str, str], str]] = {
    ("curvlinops", "density_of_nothing"): """\
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos

fast_lanczos(torch.zeros(12, 12).double(), 12)
""",
}


def script(tool: str, rule: str) -> str | None:
    """Return the script that shows how a tool breaks a rule; None if there is none."""
    if (tool, rule) in OWN:
        return OWN[tool, rule]
    return PRELUDES[tool] + BODIES[rule] if tool in PRELUDES and rule in BODIES else None
