"""The server as a process: what it loads, what its page names, how it ends."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from seedvr_ui.accounts import AccountsFile
from tests.ui.server import ROOT, running_server

_LIST_MODULES = """
import json, sys
from pathlib import Path
import app
app.create_app(app.ServeOptions(data=Path(sys.argv[1])))
print(json.dumps([name for name in ("torch", "av", "inference.engine") if name in sys.modules]))
"""


@pytest.mark.timeout(120)
def test_the_server_process_loads_neither_torch_nor_decoders(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIST_MODULES, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


_LIST_STUBS = """
import json, sys
from pathlib import Path
stubs = []
def note(event, args):
    if event == "open" and str(args[0]).endswith(".pyi"):
        stubs.append(str(args[0]))
sys.addaudithook(note)
import app
app.create_app(app.ServeOptions(data=Path(sys.argv[1])))
print(json.dumps(stubs))
"""


@pytest.mark.timeout(120)
def test_a_start_reads_and_writes_no_stub_files_of_gradio(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIST_STUBS, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.timeout(120)
def test_the_server_serves_the_page_keeps_its_files_in_the_data_folder_and_ends_on_sigterm(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        with urllib.request.urlopen(server.url, timeout=20) as reply:
            page = reply.read().decode()
        assert server.stop() in (0, -15)
    assert "SeedVR Studio" in page
    assert (tmp_path / "data" / "sessions").is_dir()
    assert "SeedVR Studio has stopped" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.timeout(240)
def test_a_public_server_keeps_the_password_that_it_printed_and_who_has_signed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEEDVR_USERS", "SEEDVR_ADMINS", "SEEDVR_ACCOUNTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "192.0.2.1")  # a proxy elsewhere: what this test sends is not believed
    with running_server(tmp_path, "--host", "0.0.0.0") as server:
        password = server.log.read_text().partition("password  ")[2].split()[0]
        assert ask(server.url, "wrong") == 401
        assert ask(server.url, password) == 200
        cookie, other = sign_in(server.url, password), sign_in(server.url, password)
        assert [use(server.url, "studio/me", cookie), use(server.url, "studio/me", other)] == [200, 200]
        assert use(server.url, "logout", cookie, "POST") == 303
        assert [use(server.url, "studio/me", cookie), use(server.url, "studio/me", other)] == [401, 200]
    with running_server(tmp_path, "--host", "0.0.0.0") as server:
        assert "password  " not in server.log.read_text()
        assert ask(server.url, password) == 200
        assert [use(server.url, "studio/me", cookie), use(server.url, "studio/me", other)] == [401, 200]
        AccountsFile(tmp_path / "data" / "accounts.json").set_password("admin", "another password")
        assert use(server.url, "studio/me", other) == 401
        answers = [ask(server.url, "wrong", f"198.51.100.{index}") for index in range(20)]
    assert answers == [401] * 19 + [429]  # the right one was an attempt too


def sign_in(url: str, password: str) -> str:
    """The cookie of the admin's new session."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=20)
    with closing(connection):
        form = urlencode({"name": "admin", "password": password})
        connection.request("POST", "/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
        return str(connection.getresponse().headers["set-cookie"]).partition(";")[0]


def use(url: str, path: str, cookie: str, method: str = "GET") -> int:
    """The status of the answer to whoever has this cookie."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=20)
    with closing(connection):
        connection.request(method, f"/{path}", headers={"Cookie": cookie})
        return connection.getresponse().status


def ask(url: str, password: str, forwarded_for: str = "") -> int:
    """The status of the answer to the admin with this password."""
    credentials = base64.b64encode(f"admin:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", **({"X-Forwarded-For": forwarded_for} if forwarded_for else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}studio/me", headers=headers), timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
