"""Frozen teachers, and the cache of what they have answered."""
