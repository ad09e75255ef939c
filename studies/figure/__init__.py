"""The figure of Li et al. 2018 that everybody knows: deep networks with and without shortcuts, on random planes.

`plan` lists what is trained and surveyed, in the order in which it runs; `work` does it and stores a surface in the old
tool's format with a JSON file beside it; `measure` turns a surface into numbers, `draw` and `page` make pictures and
``docs/figure.md`` from what is stored. ``python -m studies.figure`` runs what is missing.
"""
