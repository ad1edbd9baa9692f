"""Methods from outside at hand wherever a run is carried out: their files are kept in the store, and loaded from it."""

from __future__ import annotations

from pathlib import Path

from kdbench.bench.outside import Source, load, sources_of
from kdbench.bench.spec import ids_from_outside
from kdbench.methods.registry import OF_SOURCE, OUTSIDE
from kdbench.results.store.sources import keep_source, kept_source


def provide(text: str, root: Path) -> None:
    """Keeps those methods that a text names and that are loaded, and loads the others, as far as they are kept.

    Args:
        text: of a specification, or names of methods.
        root: of the store.

    Raises:
        InputError: if a file that is kept was edited.
    """
    for name in ids_from_outside(text):
        if name in OUTSIDE:
            (source,) = sources_of([name])
            keep_source(root, source.module, source.code)
        elif path := kept_source(root, name.rpartition(OF_SOURCE)[2]):
            load(Source(path.stem, path.read_bytes(), str(path)))
