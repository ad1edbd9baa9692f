"""A real PostgreSQL server on loopback for tests, from Debian's package or any other."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "only-for-tests"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them out of the path."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").exists()), None)


class Postgres:
    """A server with a password, in a folder of its own, as a user that is not root."""

    def __init__(self) -> None:
        """Makes the folder, and starts the server."""
        place = programs()
        assert place is not None
        self.programs, self.folder = place, Path(tempfile.mkdtemp(prefix="kdbench-postgres-", dir="/tmp"))
        self.user: str | None = None
        if os.getuid() == 0:  # it does not run as root
            user = next(each for name in ("postgres", "nobody") for each in pwd.getpwall() if each.pw_name == name)
            self.user = user.pw_name
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self.data = self.folder / "data"
        access = ("-U", "kdbench", "-A", "scram-sha-256", "--pwfile", secret)
        self._run("initdb", "-D", self.data, *access, "--no-sync", "--encoding", "UTF8")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-o", options, "-w", "-t", "120", "start")

    def stop(self) -> None:
        """As if it died: connections are cut."""
        self._run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def address(self, database: str = "postgres") -> str:
        return f"postgresql://kdbench@127.0.0.1:{self.port}/{database}"

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, name: str, *arguments: str | Path) -> None:
        command = [str(self.programs / name), *map(str, arguments)]
        done = subprocess.run(
            command,
            user=self.user,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,
            text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        )
        assert done.returncode == 0, (command, done.stderr)
