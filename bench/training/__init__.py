"""The engine: stages, the training loop, saved state, scores."""
