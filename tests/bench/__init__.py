"""
The benchmark, `python -m tests.bench`: speed, memory and exactness beside the peers.

Not a test: it makes its own models, runs for a while and prints a table. See `--help`.
"""
