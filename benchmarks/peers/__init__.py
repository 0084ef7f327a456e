"""Other engines on the same weights: each module has `run(...)`, which returns one line of figures.

Used by the benchmarks that print qnext beside its peers, and by `python -m benchmarks.peers`. Invariant: a
peer that is not installed is no error: its line says `skipped` and why; one that fails says `error`.
"""
