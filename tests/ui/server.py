"""Starts the real app as a process of its own, in its own process group, with output to a file; always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVE = (sys.executable, "-m", "inference.cli", "serve")
"""The command that starts the server."""
START_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0
LIFE_LIMIT_S = 600


@dataclass(frozen=True)
class Server:
    """A running app."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """The port that it answers on."""
        return int(self.url.rstrip("/").rpartition(":")[2])

    def kill(self) -> None:
        """End it, its worker, and all else of its group at once, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_LIMIT_S)

    def stop(self) -> int:
        """Ask it to end and return its exit code; raises TimeoutExpired if it does not."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_LIMIT_S)


@contextlib.contextmanager
def running_server(folder: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """The app over the data folder below `folder`, answering requests; `options` go to it.

    A `port` is given when it is started again.
    """
    port = port or free_port()
    log = folder / "server.log"
    weights = os.environ.get("SEEDVR_TEST_WEIGHTS")  # a folder with another model than the embedded one
    command = [
        *("timeout", "--kill-after=5", str(LIFE_LIMIT_S)),  # it ends by itself if the test process is killed
        *(*SERVE, "--host", "127.0.0.1", "--port", str(port)),
        *("--data", str(folder / "data")),
        *((f"engine.weights={weights}",) if weights else ()),
        *options,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}/", process, log)
    try:
        _wait_for(server)
        yield server
    finally:
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.stop()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_LIMIT_S)


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            urllib.request.urlopen(f"{server.url}healthz", timeout=5).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"the server does not answer; its output:\n{server.log.read_text(errors='replace')[-4000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
