"""Optimizers as the tests of loops, processes and rules build them; a new method joins by one line in METHODS."""

from lowland import optim
from lowland.testing.own import OwnOptimizer

METHODS = {
    "SAM": lambda base, **options: optim.SAM(base, **options),
    "ASAM": lambda base, **options: optim.ASAM(base, **options),
    "GSAM": lambda base, **options: optim.GSAM(base, rho=0.1, **options),
    "LookSAM": lambda base, **options: optim.LookSAM(base, period=2, **options),
    "SALA": lambda base, **options: optim.SALA(base, **options),
    "FSAM": lambda base, **options: optim.FSAM(base, rho=0.05, **options),
    "WSAM": lambda base, **options: optim.WSAM(base, gamma=0.6, **options),
    "LateSAM": lambda base, **options: optim.LateSAM(base, total=60, share=0.95, **options),
    # what follows has no second pass, so that options of the ascent do not apply
    "MSAM": lambda base, model=None, **_: optim.MSAM(base, rho=0.3, model=model),
    "Lookahead": lambda base, model=None, **_: optim.Lookahead(base, period=2, model=model),
    "EMA": lambda base, model=None, **_: optim.EMA(base, decay=0.9, model=model),
    "SWA": lambda base, model=None, **_: optim.SWA(base, start=2, interval=1, model=model),
}
AROUND = {
    "EMA": lambda base: optim.EMA(base, decay=0.9, start=1),
    "SWA": lambda base: optim.SWA(base, start=2, interval=2),
    "Lookahead": lambda base: optim.Lookahead(base, period=3),
    "MSAM": lambda base: optim.MSAM(base, rho=0.3),
}
PAIRS = [
    (around, method)
    for around in AROUND
    for method in ("SAM", "ASAM", "GSAM", "LookSAM", "SALA", "FSAM", "WSAM", "LateSAM", "Lookahead", "MSAM")
    if not (around in ("Lookahead", "MSAM") and method in ("SALA", "Lookahead", "MSAM"))  # slow weights already
]
COMPOSED = {
    "EMA(SAM)": lambda base, **options: optim.EMA(optim.SAM(base, **options), decay=0.9),
    "Lookahead(GSAM)": lambda base, **options: optim.Lookahead(optim.GSAM(base, rho=0.1, **options), period=2),
}


def pair(around, method):
    """Return how to build a composition of two."""
    return lambda base, **options: AROUND[around](METHODS[method](base, **options))


COMPOSITIONS = COMPOSED | {
    name: pair(around, method) for around, method in PAIRS if (name := f"{around}({method})") not in COMPOSED
}
VARIANTS = {
    "SAM interval": lambda base, **options: optim.SAM(base, start=2, interval=3, stop=30, **options),
    "GSAM decaying": lambda base, **options: optim.GSAM(base, rho=0.1, rho_min=0.05, alpha=0.3, **options),
    "LookSAM of three": lambda base, **options: optim.LookSAM(base, period=3, **options),
    "SALA of three": lambda base, **options: optim.SALA(base, rho=0.08, period=3, **options),
    "SALA lazy": lambda base, **options: optim.SALA(base, rho=0.1, slow_weights="lazy", **options),
    "Lookahead of three": lambda base, **options: optim.Lookahead(base, period=3, **options),
    "SWA every two": lambda base, **options: optim.SWA(base, start=3, interval=2, **options),
    "SWA in cycles": lambda base, **options: optim.SWA(base, start=3, interval=2, rates=(1.0, 0.5), **options),
    "FSAM every two": lambda base, **options: optim.FSAM(base, rho=0.05, interval=2, **options),
    "WSAM coupled": lambda base, **options: optim.WSAM(base, gamma=0.6, decoupled=False, **options),
    "LateSAM short": lambda base, **options: optim.LateSAM(base, total=12, share=0.5, floor=0.1, **options),
}
MEMBERS = METHODS | VARIANTS
TWO_PASS = ["SAM", "ASAM", "GSAM", "LookSAM", "SALA", "FSAM", "WSAM", "LateSAM"]


def every(period, first=0):
    """Passes in n steps where one step of a period takes two."""
    return lambda n: n + len(range(first, n, period))


BY_DISTANCE = {"passes_as_defined": "how far it has come decides whether a step takes a second pass"}
SYNCHRONIZED = {"scheduler_attaches": "the slow weights are followed in a step of rate 0 too"}
# What the rules must know of a method beside its name; the others keep to the adapter's defaults.
CLAIMS = {
    "SAM": {"formula": "sam"},
    "ASAM": {"moves": "other"},
    "GSAM": {"rho": 0.1},
    "LookSAM": {"passes": every(2)},
    "SALA": {"moves": "other", "conventions": BY_DISTANCE},
    "MSAM": {"bases": ("sgd",)},
    "Lookahead": {"conventions": SYNCHRONIZED},
    "SAM interval": {"passes": every(3, first=2)},
    "GSAM decaying": {"rho": 0.1},
    "LookSAM of three": {"passes": every(3)},
    "SALA of three": {"moves": "other", "conventions": BY_DISTANCE | SYNCHRONIZED},
    "FSAM every two": {"passes": every(2)},
    "LateSAM": {"passes": lambda n: n + max(0, n - 3)},
    "LateSAM short": {"passes": lambda n: n + max(0, n - 6)},
    "SALA lazy": {"moves": "other", "conventions": BY_DISTANCE},
}


def adapter(name):
    """Return the adapter by which `lowland.testing` drives a member."""
    build, of = MEMBERS[name], name.split()[0]
    one_pass = {} if of in TWO_PASS else {"moves": "never", "passes": lambda n: n}
    return OwnOptimizer(name, lambda base, model: build(base, model=model), **{**one_pass, **CLAIMS.get(name, {})})
