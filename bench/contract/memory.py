"""A recorder in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kdbench.bench.record import Epoch, Stopped


@dataclass
class Memory:
    """A kdbench.bench.record.Recorder in memory."""

    stored: dict[str, bytes]
    """Safetensors files by reference."""
    resume: bytes | None = None
    """The checkpoint from which the run goes on."""
    stop_after: int = 0
    """The epoch after which the run is stopped; 0 for never."""
    keep_all: bool = False
    """Whether checkpoints of all epochs are kept, or only the last one."""
    epochs: list[Epoch] = field(default_factory=list)
    states: dict[int, bytes] = field(default_factory=dict)
    """Checkpoints by the number of their epoch."""

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from."""
        return self.resume

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Takes an epoch, and its checkpoint if it is asked for.

        Raises:
            Stopped: after the epoch at which the run is stopped.
        """
        self.epochs.append(record)
        if self.keep_all or record.number in (self.stop_after, record.of):
            self.states[record.number] = state()
        if record.number == self.stop_after:
            raise Stopped(f"after epoch {record.number}")

    @property
    def state(self) -> bytes:
        """The last checkpoint."""
        return self.states[max(self.states)]

    def weights(self, reference: str) -> bytes:
        """The file of a stored network."""
        return self.stored[reference]
