"""A whole store, checked and mended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from kdbench.bench.errors import InputError, reason
from kdbench.results.store.run_store import RunStore
from kdbench.sweeps.doctor.databases import check_caches, check_databases, check_plans
from kdbench.sweeps.doctor.finding import Finding, leftovers
from kdbench.sweeps.doctor.runs import check_lines, check_run, check_sources, check_weights


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what became of it."""

    finding: Finding
    said: str
    """Empty if it was not to be mended; "mended", or why it could not be."""

    @property
    def open(self) -> bool:
        """Whether it is still as it was found."""
        return self.said != MENDED

    def values(self) -> dict[str, Any]:
        """All of it as JSON values."""
        found = self.finding
        return {"path": str(found.path), "what": found.what, "remedy": found.remedy, "said": self.said}

    def line(self) -> str:
        """All of it as text."""
        return f"{self.finding.path}: {self.finding.what}\n    {self.said or 'with --mend'}: {self.finding.remedy}"


MENDED = "mended"


def check(store: RunStore) -> Iterator[Finding]:
    """Everything that is not as it should be; runs that are being written are passed over."""
    root = store.root
    yield from leftovers(root)
    for folder in sorted((root / "runs").glob("*")):
        yield from check_run(root, folder)
    for part in (check_weights, check_sources, check_lines, check_plans, check_caches):
        yield from part(root)
    yield from check_databases(store)


def visit(store: RunStore, mend: bool) -> list[Diagnosis]:
    """Checks a store, and mends it if that is wanted.

    Raises:
        InputError: if it is to be mended and a sweep is using it.
    """
    if not mend:
        return [Diagnosis(finding, "") for finding in check(store)]
    with store.exclusive():
        return [Diagnosis(finding, _mended(store, finding)) for finding in list(check(store))]


def _mended(store: RunStore, finding: Finding) -> str:
    """Mends what was found, unless another process is at its run; says so, or why it could not be."""
    parts = finding.path.relative_to(store.root).parts
    folder = store.root / "runs" / parts[1] if parts[0] == "runs" and len(parts) > 1 else None
    lock = FileLock(folder / "lock") if folder and folder.is_dir() else None
    try:
        if lock:
            lock.acquire(timeout=0)
        finding.mend()
        return MENDED
    except Timeout:
        return "not mended, as another process is at this run"
    except (OSError, InputError) as error:
        return f"not mended ({type(error).__name__}: {reason(error)})"
    finally:
        if lock:
            lock.release()
