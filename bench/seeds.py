"""Random seeds drawn by name, not by call order, so that adding a draw moves no other."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*names: object) -> int:
    """A seed of 63 bits from a path of names, as the run's seed, "order" and the epoch."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU random generator with the seed of these names."""
    return torch.Generator().manual_seed(seed_of(*names))
