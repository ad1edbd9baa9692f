"""A store whose folder a worker cannot see: it asks for everything on its line, and the driver keeps it at home.

So records, checkpoints and weights are in the store as soon as they are said, and a run whose machine is lost goes on
elsewhere from its last checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.bench.errors import InputError
from kdbench.bench.record import Epoch, Outcome, plain
from kdbench.bench.spec import ids_from_outside
from kdbench.methods.registry import OF_SOURCE
from kdbench.results.store.attempt import Attempt, Clock
from kdbench.results.store.run_store import CHECKPOINT_SECONDS, Busy, RunStore
from kdbench.results.store.sources import keep_source, kept_source
from kdbench.sweeps.scheduling.line import packed
from kdbench.sweeps.scheduling.serving import Server
from kdbench.sweeps.scheduling.workers import Fault, fault_of

ERRORS: dict[Fault, type[Exception]] = {"busy": Busy, "machine": OSError, "input": InputError, "method": RuntimeError}
"""What a worker raises where home did, so that the fault is the same."""

Files = list[bytes]


class FarStore:
    """A store as a worker has it that cannot see its folder; see `Keeper`."""

    def __init__(self, server: Server, root: Path) -> None:
        """Asks for nothing yet.

        Args:
            server: the worker's side of the line.
            root: a folder of this machine's own.
        """
        self.server, self.root = server, root

    def ask(self, what: str, *arguments: Any, files: Files | None = None) -> tuple[Any, Files]:
        """What home answers; raises what home raised, as one of `ERRORS`."""
        self.server.send("store", 0, [what, *arguments], *(files or ()))
        answer, found = self.server.recv()
        if "fault" in answer:
            raise ERRORS[answer["fault"]](answer["reason"])
        return answer["answer"], found

    def holds(self, key: str) -> bool:
        """See `Keeper`."""
        return bool(self.ask("holds", key)[0])

    def fetch(self, text: str) -> None:
        """Brings the files of methods from outside that a text names."""
        for name in ids_from_outside(text):
            digest = name.rpartition(OF_SOURCE)[2]
            if not kept_source(self.root, digest):
                module, files = self.ask("source", digest)
                for code in files:
                    keep_source(self.root, module, code)

    def attempt(
        self, key: str, spec: str, watch: Callable[[Epoch], None], checkpoint_seconds: float = CHECKPOINT_SECONDS
    ) -> FarTry:
        """See `Keeper`."""
        return FarTry(self, key, spec, watch, checkpoint_seconds)


class FarTry:
    """A try at a run whose records are kept at home; see `Try`."""

    def __init__(
        self, store: FarStore, key: str, spec: str, watch: Callable[[Epoch], None], checkpoint_seconds: float
    ) -> None:
        """Begins it at home.

        Raises:
            Busy: if another process is at this run.
        """
        self.store, self.key, self.watch, self.clock = store, key, watch, Clock(checkpoint_seconds)
        kept, files = store.ask("attempt", key, spec)
        self.kept = [Epoch(**each) for each in kept]
        self.resumed = files[0] if files else None

    def __enter__(self) -> FarTry:
        """The try itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives the run free."""
        with contextlib.suppress(*ERRORS.values()):
            self.store.ask("close", self.key)

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from."""
        return self.resumed

    def epoch(self, record: Epoch, state: Callable[[], bytes]) -> None:
        """Sends an epoch, with a checkpoint when one is due, and shows it to the watcher."""
        files = [state()] if self.clock.due(record) else []
        self.store.ask("epoch", self.key, plain(record), files=files)
        if files:
            self.clock.kept()
        self.watch(record)

    def weights(self, reference: str) -> bytes:
        """Stored weights, checked."""
        return self.store.ask("weights", reference)[1][0]

    def end(self, event: str, reason: str, detail: str = "") -> None:
        """See `Try`."""
        self.store.ask("end", self.key, event, reason, detail)

    def finish(self, outcome: Outcome, files: dict[str, bytes]) -> None:
        """See `Try`."""
        self.store.ask("finish", self.key, plain(outcome), list(files), files=list(files.values()))


class Home:
    """The driver's side: does in the store what one far worker asks for."""

    def __init__(self, store: RunStore) -> None:
        """Holds no run yet."""
        self.store = store
        self.attempts: dict[str, Attempt] = {}

    def answer(self, asked: list[Any], files: Files) -> bytes:
        """What goes back on the line; what cannot be done is told with whose fault it is."""
        what, *arguments = asked
        try:
            answer, found = getattr(self, f"_{what}")(*arguments, files)
            return packed({"answer": answer}, *found)
        except Exception as error:
            reason = str(error) if isinstance(error, InputError) else repr(error)
            return packed({"fault": fault_of(error), "reason": reason})

    def close(self) -> None:
        """Gives free what a worker that has ended held."""
        for attempt in self.attempts.values():
            attempt.__exit__()
        self.attempts.clear()

    def _holds(self, key: str, files: Files) -> tuple[bool, Files]:
        return self.store.holds(key), []

    def _source(self, digest: str, files: Files) -> tuple[str, Files]:
        path = kept_source(self.store.root, digest)
        return (path.stem, [path.read_bytes()]) if path else ("", [])

    def _attempt(self, key: str, spec: str, files: Files) -> tuple[list[Any], Files]:
        attempt = self.attempts[key] = self.store.attempt(key, spec, lambda epoch: None)
        return [plain(epoch) for epoch in attempt.kept], [attempt.resumed] if attempt.resumed else []

    def _epoch(self, key: str, record: dict[str, Any], files: Files) -> tuple[None, Files]:
        self.attempts[key].keep(Epoch(**record), files[0] if files else None)
        return None, []

    def _weights(self, reference: str, files: Files) -> tuple[None, Files]:
        return None, [self.store.weights(reference)]

    def _end(self, key: str, event: str, reason: str, detail: str, files: Files) -> tuple[None, Files]:
        self.attempts[key].end(event, reason, detail)
        return None, []

    def _finish(self, key: str, outcome: dict[str, Any], names: list[str], files: Files) -> tuple[None, Files]:
        self.attempts[key].finish(Outcome(**outcome), dict(zip(names, files, strict=True)))
        return None, []

    def _close(self, key: str, files: Files) -> tuple[None, Files]:
        self.attempts.pop(key).__exit__()
        return None, []
