"""Search with Ray Tune."""
