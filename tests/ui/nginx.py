"""A real nginx in front of an app, with the configuration that the documents give, where it is installed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from tests.ui.server import ROOT, free_port

PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = ROOT / "docs" / "nginx.conf"
PREFIX = "/seedvr"

_MAIN = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
    log_format requests '$status $request_method $request_length $upstream_response_time $uri';
    access_log {folder}/access.log requests;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
_START_LIMIT_S = 20.0
_STOP_LIMIT_S = 10.0


@dataclass(frozen=True)
class Proxy:
    """A running nginx; `url` is the app's address through it."""

    url: str
    folder: Path

    def requests(self) -> list[list[str]]:
        """[status, method, bytes, seconds, path] of each request so far."""
        return [line.split(maxsplit=4) for line in (self.folder / "access.log").read_text().splitlines()]


@contextlib.contextmanager
def running_nginx(folder: Path, app_port: int, read_timeout_s: int) -> Iterator[Proxy]:
    """The configuration of the documents with other ports and a short timeout, in front of the app on `app_port`."""
    assert PROGRAM is not None  # tests that need it are left out without
    folder.mkdir()
    port = free_port()
    site = CONFIGURATION.read_text()
    for old, new in {
        "listen 80;": f"listen 127.0.0.1:{port};",
        "127.0.0.1:7860/;": f"127.0.0.1:{app_port}/;",
        "proxy_read_timeout 100s;": f"proxy_read_timeout {read_timeout_s}s;",
    }.items():
        assert site.count(old) == 1, old
        site = site.replace(old, new)
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder))
    command = [PROGRAM, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"), "-p", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder)
    try:
        _wait_for(process, f"http://127.0.0.1:{port}{PREFIX}/healthz", folder)
        yield Proxy(f"http://127.0.0.1:{port}{PREFIX}/", folder)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_LIMIT_S)


def _wait_for(process: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urlopen(url, timeout=5).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"nginx does not answer:\n{(folder / 'error.log').read_text()}")
