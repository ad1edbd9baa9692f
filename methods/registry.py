"""Where methods are found: those of this folder by their files' names, those from outside by class and source."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from kdbench.methods.base import Method

REGISTRY: dict[str, type[Method]] = {}
"""Every built-in method by its id, which is the name of its file."""
OUTSIDE: dict[str, type[Method]] = {}
"""Every method that was loaded from outside because it was named, by its id: CLASS@HASH, of its file's SHA-256."""
OF_SOURCE = "@"
"""Comes before the hash, in such an id and at the end of the name of a module that was loaded as one."""

M = TypeVar("M", bound="type[Method]")


def identity(cls: type[Method]) -> str:
    """The id of a method: its file's name, or CLASS@HASH; of a file that was imported in passing the class's name."""
    package, _, name = cls.__module__.rpartition(".")
    _, at, digest = name.partition(OF_SOURCE)
    return f"{cls.__name__}{at}{digest}" if at else name if package == __package__ else cls.__name__


def registered(cls: M) -> M:
    """Enters a method where it is found; one that was imported in passing, as by its own test, is in neither place.

    Raises:
        ValueError: if the id is taken.
    """
    if OF_SOURCE in cls.id:
        # inherited from a built-in one, whose part in tables it does not have
        cls.role, cls.composition, cls.collection = "", "", ""
        OUTSIDE[cls.id] = cls
    elif cls.__module__.rpartition(".")[0] == __package__:
        if cls.id in REGISTRY:
            raise ValueError(f"method id {cls.id} is taken by {REGISTRY[cls.id].__module__}.")
        REGISTRY[cls.id] = cls
    return cls
