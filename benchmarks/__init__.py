"""Measurements of what is claimed: `python -m benchmarks.run` writes `benchmarks/RESULTS.md`."""
