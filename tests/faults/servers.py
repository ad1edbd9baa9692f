"""A real MLflow server on loopback, and a proxy before it that drops replies, hangs or refuses."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that no one listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


class Server:
    """`mlflow server` in a session of its own, over a database in a folder; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        """Has no process yet.

        Args:
            folder: of its database and artifacts.
        """
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.port}"

    def start(self, seconds: float = 300.0) -> None:
        """Starts it, and waits until it answers."""
        command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", HOST, "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, start_new_session=True)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.5)
        raise AssertionError((self.folder / "server.log").read_text())

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """A server that runs."""
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.signal(signal.SIGKILL)


class Proxy(ThreadingHTTPServer):
    """Passes requests on; of those that change something, the first of each content has its reply dropped."""

    daemon_threads = True

    def __init__(self, to: int) -> None:
        """Listens on a port of its own.

        Args:
            to: port of the server.
        """
        super().__init__((HOST, 0), _Passing)
        self.to, self.seen, self.dropped = to, set[tuple[str, bytes]](), dict[str, int]()
        self.dropping = ("runs/create", "runs/log-batch")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://{HOST}:{self.server_address[1]}"

    def drops(self, path: str, body: bytes) -> bool:
        """Whether the reply to a request is dropped."""
        name = next((name for name in self.dropping if path.endswith(name)), None)
        if name is None or (name, body) in self.seen:
            return False
        self.seen.add((name, body))
        self.dropped[name] = self.dropped.get(name, 0) + 1
        return True


class _Passing(BaseHTTPRequestHandler):
    server: Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = http.client.HTTPConnection(HOST, self.server.to, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        line.request(self.command, self.path, body, headers)
        reply = line.getresponse()
        content = reply.read()
        line.close()
        if self.server.drops(self.path.partition("?")[0], body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""
