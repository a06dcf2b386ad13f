"""Public links, with a program in the place of Gradio's helper and a server in the place of its API, on loopback."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from seedvr_ui import share as module
from seedvr_ui.accounts import AccountsFile
from seedvr_ui.share import Share, ShareError, find_helper, read_link
from tests.ui.conftest import Wait
from tests.ui.server import SERVE, free_port, running_server

LINK = "https://0123456789abcdef.gradio.live/"
_HELPER = """#!{python}
import json, os, sys, time
with open({record!r}, "a") as record:
    record.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\\n")
print("2026/01/01 [I] [service.go] {said}", flush=True)
sys.stderr.write("x" * 300_000)
sys.stderr.flush()  # as long as nobody reads it, it stays here
print("and on", file=open({record!r} + ".alive", "w"), flush=True)
time.sleep({life})
"""


def write_helper(
    folder: Path, said: str = "start proxy success: http://0123456789abcdef.gradio.live", life: int = 60
) -> Path:
    path = folder / "frpc"
    path.write_text(_HELPER.format(python=sys.executable, record=str(folder / "record"), said=said, life=life))
    path.chmod(0o755)
    return path


def runs(folder: Path) -> list[list[Any]]:
    """[process id, arguments ...] of every start of the helper."""
    record = folder / "record"
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


@pytest.fixture
def api() -> Iterator[str]:
    """Says where the share server is, as Gradio's API does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps([{"host": "203.0.113.7", "port": 7000, "root_ca": "the certificate"}]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_SHARE_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(module, "RETRY_WAITS_S", (0.05,))


def make_share(folder: Path, api: str, told: list[str]) -> Share:
    return Share(folder, "127.0.0.1", 7860, told.append, api)


def test_a_link_is_made_and_ends_with_the_server(
    tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    monkeypatch.setenv("SEEDVR_FRPC", str(write_helper(tmp_path)))
    told: list[str] = []
    share = make_share(tmp_path, api, told)
    share.start()
    wait_until(lambda: share.state.link == LINK and (tmp_path / "record.alive").exists())
    ((process, *arguments),) = runs(tmp_path)
    assert arguments[0] == "http"
    for name, value in {"-l": "7860", "-i": "127.0.0.1", "--server_addr": "203.0.113.7:7000"}.items():
        assert arguments[arguments.index(name) + 1] == value
    certificate = Path(arguments[arguments.index("--tls_trusted_ca_file") + 1])
    assert certificate.read_text() == "the certificate"
    assert LINK in told[0]
    assert "up to one week" in told[0]
    share.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_lost_link_is_made_again_under_the_same_name(
    tmp_path: Path, api: str, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    monkeypatch.setenv("SEEDVR_FRPC", str(write_helper(tmp_path)))
    share = make_share(tmp_path, api, [])
    share.start()
    wait_until(lambda: bool(share.state.link))
    os.kill(runs(tmp_path)[0][0], signal.SIGKILL)
    wait_until(lambda: len(runs(tmp_path)) >= 2 and bool(share.state.link))
    share.close()
    assert runs(tmp_path)[0][1:] == runs(tmp_path)[1][1:]


def test_without_a_network_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    monkeypatch.setenv("SEEDVR_FRPC", str(write_helper(tmp_path)))
    told: list[str] = []
    share = make_share(tmp_path, f"http://127.0.0.1:{free_port()}/", told)
    share.start()
    wait_until(lambda: bool(told))
    share.close()
    assert told == [share.state.message]
    assert told[0].startswith("There is no public link: 127.0.0.1 cannot be reached")
    assert runs(tmp_path) == []


@pytest.mark.parametrize(
    ("said", "life", "words"),
    [("login to server failed: EOF", 60, "was refused"), ("hello", 0, "has ended"), ("hello", 60, "does not answer")],
)
def test_a_helper_that_fails_is_explained(tmp_path: Path, said: str, life: int, words: str) -> None:
    process = subprocess.Popen(
        [str(write_helper(tmp_path, said, life))], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        with pytest.raises(ShareError, match=words):
            read_link(process, 1.0 if words == "does not answer" else 30.0)
    finally:
        process.kill()
        process.wait()


def test_a_helper_with_a_wrong_checksum_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import tunneling

    planted = tmp_path / "frpc_v0"
    planted.write_text("#!/bin/sh\n")
    monkeypatch.delenv("SEEDVR_FRPC", raising=False)
    monkeypatch.setattr(tunneling, "BINARY_PATH", str(planted))
    monkeypatch.setattr(tunneling, "BINARY_FOLDER", tmp_path)
    monkeypatch.setattr(tunneling, "BINARY_URL", f"http://127.0.0.1:{free_port()}/frpc")
    monkeypatch.setitem(tunneling.CHECKSUMS, tunneling.BINARY_URL, "0" * 64)
    with pytest.raises(ShareError, match="cannot be downloaded"):
        find_helper()
    assert not planted.exists()


def test_a_name_that_is_no_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVR_FRPC", str(tmp_path / "none"))
    with pytest.raises(ShareError, match="which is no program"):
        find_helper()


# --- the app as a process ---


def ask(port: int, name: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    credentials = b64encode(f"{name}:correct horse".encode()).decode()
    connection.request("GET", "/studio/share", headers={"authorization": f"Basic {credentials}"})
    reply = connection.getresponse()
    body = json.loads(reply.read())
    connection.close()
    return reply.status, body


def test_admins_of_a_shared_server_get_link_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    monkeypatch.setenv("SEEDVR_FRPC", str(write_helper(tmp_path)))
    monkeypatch.setenv("GRADIO_SHARE_SERVER_ADDRESS", "203.0.113.7:7000")
    accounts = AccountsFile(tmp_path / "data" / "accounts.json")
    accounts.add("root", "correct horse", is_admin=True)
    accounts.add("ben", "correct horse")
    with running_server(tmp_path, "--share") as server:
        wait_until(lambda: ask(server.port, "root")[1]["link"] == LINK)
        shown = ask(server.port, "root")[1]
        assert shown["code"].startswith("data:image/svg+xml")
        assert "one week" in shown["expiry"]
        assert ask(server.port, "ben")[0] == 403
        ((process, *arguments),) = runs(tmp_path)
        assert arguments[arguments.index("-l") + 1] == str(server.port)
        server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert LINK in server.log.read_text()


def test_without_accounts_a_shared_server_does_not_start(tmp_path: Path) -> None:
    command = [*SERVE, "--host", "127.0.0.1", "--share", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("A shared link is open to everybody; add an account first")
