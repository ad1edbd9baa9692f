"""Optuna's database: a file of the store that one driver has alone, or a PostgreSQL server that several work with.

What is told to it is also in the store. So training never waits for it: epochs that it did not take are told at the end
of their run, and a chain that needs it rests until it is back.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError

from kdbench.bench.errors import InputError
from kdbench.sweeps.scheduling.workers import Machine

AWAY = (StorageInternalError, OperationalError, InterfaceError)
"""What a database raises that does not answer, as SQLAlchemy and Optuna say it."""
PAUSE = 2.0
"""Seconds after which one that was away is asked again."""
SERVER: dict[str, Any] = {
    "pool_pre_ping": True,
    "connect_args": {
        "client_encoding": "utf8",
        "connect_timeout": 5,
        "tcp_user_timeout": 10_000,
        "options": "-c lock_timeout=30s -c statement_timeout=60s",
    },
}
"""How a server is spoken to: what it does not answer is an error soon, and connections that it ended are renewed."""
MAKING = 600
"""Seconds in which another driver should have made the tables."""
FILE: dict[str, Any] = {"connect_args": {"timeout": 60}}
T = TypeVar("T")


def checked(address: str) -> str:
    """The address of a PostgreSQL database, which has no password.

    Raises:
        InputError: if it is none, names another database, or has a password in it; which is not shown.
    """
    shown = re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", address)
    shown = re.sub(r"(?i)(password=)[^&]*", r"\1***", shown)
    rule = "--storage takes postgresql://USER@HOST:PORT/DATABASE, with which several sweeps work on one suite"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise InputError(f"{rule}, but got {shown!r}.") from None
    if url.get_backend_name() == "sqlite":
        raise InputError(f"{rule}; SQLite gives one trial to two, but got {shown!r}: leave it out for one sweep alone.")
    if url.get_backend_name() != "postgresql":
        raise InputError(f"{rule}, but got {shown!r}.")
    if url.password or any("password" in name for name in url.query):
        raise InputError(
            f"a password is not given in an address, which others see, but got {shown!r}: set PGPASSWORD, or write "
            "it into ~/.pgpass."
        )
    if importlib.util.find_spec("psycopg") is None:
        raise InputError("--storage needs psycopg, which is not installed here: pip install 'kdbench[postgresql]'.")
    return url.set(drivername="postgresql+psycopg").render_as_string()


class Database:
    """Optuna's database of a sweep."""

    def __init__(self, address: str, patience: float = 3600.0, say: Callable[[str], None] = lambda text: None) -> None:
        """Opens it, making its tables under a lock if it is new.

        Args:
            address: sqlite:///PATH of the store's own, or what `checked` has given.
            patience: seconds for which one that is away is waited for.
            say: told when it is away, once each time, and when it is back.

        Raises:
            InputError: if it cannot be opened, or the file is no database of Optuna's.
        """
        self.url, self.patience, self.say = make_url(address), patience, say
        self.shared = self.url.get_backend_name() != "sqlite"
        self.gone: float | None = None
        """Since when it is away, by the monotonic clock."""
        self.asked = 0.0
        """When it was last asked in vain."""
        self.storage = _server(self.url) if self.shared else _file(self.url)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keeps other drivers from a study; in a file of the store there are none."""
        if not self.shared:
            yield
            return
        with _locked(self.storage.engine, name):
            yield

    def told(self, action: Callable[[], Any]) -> bool:
        """Tells a study what it may as well be told later; one that another driver has ended takes nothing more.

        Returns:
            Whether there is nothing more to tell.
        """
        if self.gone is not None and time.monotonic() - self.asked < PAUSE:
            return False
        try:
            with contextlib.suppress(UpdateFinishedTrialError):
                action()
            self._there()
        except AWAY as error:
            self._away(error)
        return self.gone is None

    def settled(self, name: str, action: Callable[[], T]) -> Generator[list[Any], Any, T]:
        """Does something with a study, alone; a chain yields no jobs as long as the server is away.

        Raises:
            InputError: if it is away for too long.
        """
        while True:
            try:
                with self.alone(name):
                    result = action()
                self._there()
                return result
            except AWAY as error:
                if not self.shared:
                    raise
                self._away(error)
            yield []

    def _away(self, error: Exception) -> None:
        self.asked = time.monotonic()
        if self.gone is None:
            self.gone = self.asked
            self.say(f"{self.shown} is away ({_reason(error)}): training goes on, and it is told later.")
        if self.asked - self.gone > self.patience:
            raise InputError(
                f"{self.shown} has been away for {self.patience:g} s ({_reason(error)}): what is finished is kept; the "
                "same command goes on."
            )

    def _there(self) -> None:
        if self.gone is not None:
            self.say(f"{self.shown} is back after {time.monotonic() - self.gone:.0f} s.")
        self.gone = None

    @property
    def shown(self) -> str:
        """Its address as people are shown it."""
        return self.url.render_as_string(hide_password=True)


def database_of(root: Path, machine: Machine, say: Callable[[str], None]) -> Database:
    """The database of a sweep: the one that it shares with others, or else a file of its store.

    Raises:
        InputError: if it cannot be opened.
    """
    return Database(machine.storage or f"sqlite:///{root / 'optuna.db'}", machine.patience, say)


def _file(url: URL) -> optuna.storages.RDBStorage:
    try:
        return optuna.storages.RDBStorage(url.render_as_string(), engine_kwargs=FILE)
    except Exception as error:  # SQLAlchemy and Optuna raise what the file makes them
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{url.database} cannot be read as Optuna's database ({reason}): move it away and run again; it is made "
            "anew from the runs, and nothing finished is repeated."
        ) from None


def _server(url: URL) -> optuna.storages.RDBStorage:
    try:
        engine = create_engine(url, **SERVER)
        with _locked(engine, "kdbench's tables", MAKING):
            storage = optuna.storages.RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=SERVER)
        engine.dispose()
        return storage
    except Exception as error:
        raise InputError(
            f"{url.render_as_string(hide_password=True)} cannot be used as Optuna's database ({_reason(error)}): start "
            "the server, see docs/cluster.md, and give the password by PGPASSWORD."
        ) from None


@contextlib.contextmanager
def _locked(engine: Any, name: str, seconds: int = 0) -> Iterator[None]:
    """Holds a lock of the server's, which goes with the connection; waits for it as ever, or for so many seconds."""
    with engine.begin() as connection:
        for limit in ("lock_timeout", "statement_timeout") if seconds else ():
            connection.execute(text(f"SET LOCAL {limit} = '{seconds}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
        yield


def _reason(error: BaseException) -> str:
    """What the database said, on one line, without the password."""
    cause: BaseException = error
    while (inner := getattr(cause, "orig", None) or cause.__cause__) is not None:
        cause = inner
    said = " ".join((str(cause).splitlines() or [type(cause).__name__])[0].split())
    password = os.environ.get("PGPASSWORD")
    return said.replace(password, "***") if password else said
