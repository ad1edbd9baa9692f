"""Knowledge distillation, compared honestly: the command `kdbench`, and the same as functions.

The rooms of the house are packages below: `from kdbench.methods.base import Method, method, ...` is the vocabulary of a
method of one's own. What the functions need is imported when one of them is asked for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.sweeps.api import (
        InputError,
        Unfinished,
        leaderboard,
        methods,
        published,
        report,
        reproduce,
        run,
        sweep,
    )

__all__ = ["InputError", "Unfinished", "leaderboard", "methods", "published", "report", "reproduce", "run", "sweep"]


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        """The function of a name, the first time; other names are those of rooms, which Python sets."""
        if name not in __all__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from kdbench.sweeps import api

        return getattr(api, name)

    @property
    def methods(self) -> Any:
        """The function, though a room has that name too."""
        return self.__getattr__("methods")

    @methods.setter
    def methods(self, room: ModuleType) -> None:
        """Python would set the room here when it is imported; `import` statements find it without that."""


sys.modules[__name__].__class__ = _Package
