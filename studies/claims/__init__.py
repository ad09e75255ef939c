"""The claims ledger: each published claim with our number, its interval, its cost, the rule, and the answer.

A row is a `Claim` (``rows/``). Its numbers per seed are written to ``results/NAME.json`` after every seed, with date,
machine, time, revision and the fingerprint of the files that its module imports; ``docs/claims.md`` is made from those
files alone. ``python -m studies.claims`` runs what is missing.
"""
