"""The published methods as the tests of loops and processes build them; a new method joins by one line here.

Variants of a method (intervals, lazy slow weights ...) stand in `tests.contracts.test_wrappers`.
"""

from lowland import optim

METHODS = {
    "SAM": lambda base, **options: optim.SAM(base, **options),
    "ASAM": lambda base, **options: optim.ASAM(base, **options),
    "GSAM": lambda base, **options: optim.GSAM(base, rho=0.1, **options),
    "LookSAM": lambda base, **options: optim.LookSAM(base, period=2, **options),
    "SALA": lambda base, **options: optim.SALA(base, **options),
    # what follows has no second pass, so that options of the ascent do not apply
    "MSAM": lambda base, model=None, **_: optim.MSAM(base, rho=0.3, model=model),
    "Lookahead": lambda base, model=None, **_: optim.Lookahead(base, period=2, model=model),
    "EMA": lambda base, model=None, **_: optim.EMA(base, decay=0.9, model=model),
    "SWA": lambda base, model=None, **_: optim.SWA(base, start=2, interval=1, model=model),
}
