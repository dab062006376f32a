"""Search with Ray Tune (comes with a later version)."""
