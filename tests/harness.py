"""A run that tests look into, as the contract's checks do."""

from bench.contract.open_run import OpenRun, Seen

__all__ = ["OpenRun", "Seen"]
