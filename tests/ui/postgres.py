"""A Postgres of our own for the tests, where its programs are installed: on a socket in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 20.0


def find_programs() -> Path | None:
    """The folder with `initdb` and `postgres`, or None."""
    named = shutil.which("initdb")
    folders = [Path(named).parent] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@contextlib.contextmanager
def running_postgres(programs: Path) -> Iterator[str]:
    """The URL of a fresh server, without the name of a database at its end."""
    who = _someone()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if who:
            shutil.chown(folder, who["user"], who["group"])
        data = folder / "data"
        command = [str(programs / "initdb"), "-D", str(data), "-U", "studio", "--auth=trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, timeout=_START_LIMIT_S, cwd=folder, **who)
        with (folder / "log").open("wb") as log:
            options = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "unix_socket_directories=" + str(folder))
            server = subprocess.Popen(
                [str(programs / "postgres"), "-D", str(data), *options], stdout=log, stderr=log, cwd=folder, **who
            )
        try:
            _wait_for(server, folder)
            yield f"postgresql://studio@/{{name}}?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_STOP_LIMIT_S)
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _someone() -> dict[str, Any]:
    """Postgres refuses to run as root."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _wait_for(server: subprocess.Popen[bytes], folder: Path) -> None:
    import psycopg

    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(host=str(folder), user="studio", dbname="postgres").close()
            return
        time.sleep(0.1)
    raise AssertionError(f"Postgres does not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}")
