"""A run that tests look into, as the contract's checks do."""

from kdbench.bench.contract.open_run import CPU, OpenRun, Seen

__all__ = ["CPU", "OpenRun", "Seen"]
