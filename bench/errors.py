"""The exceptions for bad input and for a sweep with failed runs, and the sentence that lists near names."""

from __future__ import annotations

import difflib
import errno
import textwrap
from collections.abc import Iterable


class InputError(Exception):
    """Something the user gave is wrong; the message is one line: the rule, the value, the way out."""


class Unfinished(Exception):
    """Runs came to no result, by their method's fault or the machine's; the same command tries them again."""

    def __init__(self, failures: Iterable[str]) -> None:
        """Lists the runs.

        Args:
            failures: for each run what it is, and what became of it.
        """
        lines = list(failures)
        super().__init__(
            "\n".join([f"{len(lines)} runs came to no result; the same command tries them again:", *lines])
        )


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> InputError:
    """An error for a name that is not known, with the near ones, or all if they are few.

    Args:
        kind: what was named, as "method".
        name: what the user wrote.
        known: every right name.
        see: a command that lists them.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    elif len(names) <= 20:
        hint = f"there are {', '.join(names)}." if names else "there are none."
    else:
        hint = f"there are {len(names)}."
    return InputError(f"unknown {kind} {name!r}: {hint}" + (f" See: {see}" if see else ""))


def full_disk(error: BaseException | None) -> str:
    """What an exception, or one that it came from, says of a disk without room; empty if none does."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "database or disk is full" in str(error):
            return reason(error)
        error = error.__cause__ or error.__context__
    return ""


def reason(error: BaseException, most: int = 400) -> str:
    """What an exception says on one line; a long text ends at a word, with dots that say so."""
    return textwrap.shorten(str(error), most, placeholder=" ...")
