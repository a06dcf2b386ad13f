"""The tus protocol over real connections: a real server in a thread, a real HTTP client."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI

from seedvr_ui.access import COOKIE, Access
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import Limits, SessionManager
from seedvr_ui.storage import new_id
from seedvr_ui.transfers import Transfers
from tests.ui.conftest import MakeManager, Wait

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}


@dataclass
class Live:
    """A server that answers on a port, and the address of its uploads."""

    address: str
    port: int
    manager: SessionManager
    session: str

    def client(self, session: str = "") -> httpx2.Client:
        return httpx2.Client(cookies={COOKIE: session or self.session}, trust_env=False)


@pytest.fixture
def live(make_manager: MakeManager, session: str) -> Iterator[Live]:
    manager = make_manager(Limits(max_upload_bytes=30 * 2**20, max_uploading_bytes=40 * 2**20))
    app = FastAPI()
    transfers = Transfers(manager.uploads)
    add_routes(app, manager, Access(), transfers)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    port = listener.getsockname()[1]
    yield Live(f"http://127.0.0.1:{port}/studio/uploads", port, manager, session)
    server.should_exit = True
    thread.join(10)
    listener.close()
    transfers.close()
    assert not thread.is_alive()


@pytest.fixture
def client(live: Live) -> Iterator[httpx2.Client]:
    with live.client() as client:
        yield client


def _create(client: httpx2.Client, live: Live, size: int, name: str = "a.mp4", **headers: str) -> str:
    """The address of a new upload."""
    told = {**TUS, "Upload-Length": str(size), "Upload-Metadata": f"filename {_base64(name)},is_ok", **headers}
    reply = client.post(live.address, headers=told)
    assert reply.status_code == 201, reply.text
    return urljoin(live.address, reply.headers["location"])


def _patch(client: httpx2.Client, address: str, offset: int, data: bytes, **headers: str) -> httpx2.Response:
    return client.patch(address, content=data, headers={**PIECE, "Upload-Offset": str(offset), **headers})


def _offset(client: httpx2.Client, address: str) -> int:
    return int(client.head(address, headers=TUS).headers["upload-offset"])


def _view(client: httpx2.Client, live: Live) -> dict[str, Any]:
    (view,) = client.get(live.address).json()["uploads"]
    return dict(view)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_the_server_tells_what_it_speaks(client: httpx2.Client, live: Live) -> None:
    reply = client.options(live.address)
    assert reply.status_code == 204
    assert reply.headers["tus-version"] == "1.0.0"
    assert reply.headers["tus-resumable"] == "1.0.0"
    assert reply.headers["tus-max-size"] == str(30 * 2**20)
    assert reply.headers["tus-extension"] == "creation,creation-with-upload,termination,checksum,expiration"
    assert reply.headers["tus-checksum-algorithm"] == "sha1,sha256"


def test_a_file_goes_up_in_pieces_and_is_checked(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    address = _create(client, live, 5, "größe 1.mp4")
    look = client.head(address, headers=TUS)
    assert (look.status_code, look.headers["upload-offset"], look.headers["upload-length"]) == (200, "0", "5")
    assert look.headers["cache-control"] == "no-store"
    assert look.headers["upload-metadata"] == f"filename {_base64('größe 1.mp4')}"
    first = _patch(client, address, 0, b"abc")
    assert (first.status_code, first.headers["upload-offset"]) == (204, "3")
    assert "GMT" in first.headers["upload-expires"]
    assert _offset(client, address) == 3
    assert _patch(client, address, 3, b"de").headers["upload-offset"] == "5"
    wait_until(lambda: _view(client, live)["ready"])
    view = _view(client, live)
    assert (view["name"], view["working"], view["facts"]) == (
        "größe 1.mp4", False, "64×48 · 24 fps · 8 frames · with sound",
    )  # fmt: skip
    assert _offset(client, address) == 5  # whoever missed the last answer hears that all is there


def test_the_address_of_an_upload_is_relative(client: httpx2.Client, live: Live) -> None:
    reply = client.post(live.address, headers={**TUS, "Upload-Length": "1"})
    assert reply.headers["location"].startswith("uploads/")


def test_bytes_can_come_with_the_creation(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    reply = client.post(live.address, content=b"abc", headers={**PIECE, "Upload-Length": "5"})
    assert (reply.status_code, reply.headers["upload-offset"]) == (201, "3")
    _patch(client, urljoin(live.address, reply.headers["location"]), 3, b"de")
    wait_until(lambda: _view(client, live)["ready"])


def test_an_empty_file_is_checked_without_a_piece(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    _create(client, live, 0)
    wait_until(lambda: _view(client, live)["ready"])


def test_a_bad_file_has_its_sentence(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    _patch(client, _create(client, live, 3), 0, b"bad")
    wait_until(lambda: _view(client, live)["error"] == "'a.mp4' is not a video; choose another file.")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 412),
        ({"Tus-Resumable": "0.2.2"}, 412),
        ({**TUS}, 415),
        ({**TUS, "Content-Type": "text/plain", "Upload-Offset": "0"}, 415),
        ({**PIECE}, 400),
        ({**PIECE, "Upload-Offset": "-1"}, 400),
        ({**PIECE, "Upload-Offset": "x"}, 400),
        ({**PIECE, "Upload-Offset": "1"}, 409),
        ({**PIECE, "Upload-Offset": "0", "Upload-Checksum": "md4 eA=="}, 400),
        ({**PIECE, "Upload-Offset": "0", "Upload-Checksum": "sha1 !"}, 400),
        ({**PIECE, "Upload-Offset": "0", "Upload-Checksum": f"sha1 {_base64('x')}"}, 460),
    ],
)
def test_a_wrong_piece_is_refused_and_changes_nothing(
    client: httpx2.Client, live: Live, headers: dict[str, str], status: int
) -> None:
    address = _create(client, live, 5)
    reply = client.patch(address, content=b"abc", headers=headers)
    assert reply.status_code == status
    assert reply.headers["tus-resumable"] == "1.0.0"
    assert reply.json()["error"].endswith(".")
    assert reply.headers.get("tus-version") == ("1.0.0" if status == 412 else None)
    assert _offset(client, address) == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Length": "5"}, 412),
        ({**TUS}, 400),
        ({**TUS, "Upload-Length": "-5"}, 400),
        ({**TUS, "Upload-Length": "9" * 30}, 400),
        ({**TUS, "Upload-Length": "5", "Upload-Metadata": "filename !!"}, 400),
        ({**TUS, "Upload-Length": "5", "Upload-Metadata": "x " + "A" * 9000}, 400),
        ({**TUS, "Upload-Defer-Length": "1"}, 400),
        ({**TUS, "Upload-Length": str(31 * 2**20)}, 413),
    ],
)
def test_a_wrong_creation_is_refused(client: httpx2.Client, live: Live, headers: dict[str, str], status: int) -> None:
    reply = client.post(live.address, headers=headers)
    assert (reply.status_code, reply.headers["tus-resumable"]) == (status, "1.0.0")
    assert client.get(live.address).json()["uploads"] == []


def test_a_limit_is_told_before_the_first_byte(client: httpx2.Client, live: Live) -> None:
    _create(client, live, 25 * 2**20)
    reply = client.post(live.address, headers={**TUS, "Upload-Length": str(25 * 2**20)})
    assert reply.status_code == 400
    assert "Start or discard some of them first." in reply.json()["error"]


@pytest.mark.parametrize("is_told", [True, False])
def test_more_bytes_than_announced_are_refused_and_not_kept(client: httpx2.Client, live: Live, is_told: bool) -> None:
    address = _create(client, live, 2**21 + 5)
    _patch(client, address, 0, b"ab")
    data = bytes(3 * 2**20)
    headers = {**PIECE, "Upload-Offset": "2"}
    reply = client.patch(address, content=data if is_told else iter([data]), headers=headers)
    assert reply.status_code == 413
    assert _offset(client, address) == 2


def test_a_piece_with_the_right_checksum_is_taken(client: httpx2.Client, live: Live) -> None:
    address = _create(client, live, 10)
    for offset, algorithm in ((0, "sha1"), (3, "sha256")):
        digest = base64.b64encode(hashlib.new(algorithm, b"abc").digest()).decode()
        reply = _patch(client, address, offset, b"abc", **{"Upload-Checksum": f"{algorithm} {digest}"})
        assert (reply.status_code, reply.headers["upload-offset"]) == (204, str(offset + 3))


def test_what_came_of_a_broken_connection_stays(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    content = random.Random(0).randbytes(2 * 2**20)
    address = _create(client, live, len(content))
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        raw.sendall(_raw_patch(live, address, len(content)) + content[: 2**20 + 100_000])
        wait_until(lambda: _offset(client, address) >= 2**20)
    wait_until(lambda: _patch(client, address, _offset(client, address), b"").status_code == 204)
    received = _offset(client, address)
    assert 2**20 <= received <= 2**20 + 100_000
    assert _patch(client, address, received, content[received:]).status_code == 204
    wait_until(lambda: _view(client, live)["ready"])
    folder = live.manager.storage.upload_folder(live.session, _view(client, live)["id"])
    assert (folder / "a.mp4").read_bytes() == content


def test_a_second_connection_to_one_upload_is_refused(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    address = _create(client, live, 2**21)
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        raw.sendall(_raw_patch(live, address, 2**21) + bytes(2**20))
        wait_until(lambda: _offset(client, address) == 2**20)
        assert _patch(client, address, 2**20, b"x").status_code == 423
        raw.sendall(bytes(2**20))
        assert b" 204 " in raw.recv(100)
    assert _offset(client, address) == 2**21


def test_removing_an_upload_ends_its_sending(client: httpx2.Client, live: Live, wait_until: Wait) -> None:
    address = _create(client, live, 2**22)
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        raw.sendall(_raw_patch(live, address, 2**22) + bytes(2**20))
        wait_until(lambda: _offset(client, address) == 2**20)
        assert client.delete(address, headers=TUS).status_code == 204
        raw.sendall(bytes(2**20))
        assert b" 404 " in raw.recv(100)
    assert client.head(address, headers=TUS).status_code == 404


def test_other_methods_go_through_post(client: httpx2.Client, live: Live) -> None:
    address = _create(client, live, 5)
    headers = {**PIECE, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert client.post(address, content=b"abc", headers=headers).headers["upload-offset"] == "3"
    assert client.post(address, headers=TUS).status_code == 405
    assert client.post(address, headers={**TUS, "X-HTTP-Method-Override": "DELETE"}).status_code == 204
    assert client.head(address, headers=TUS).status_code == 404


def test_a_foreign_upload_is_answered_like_an_unknown_one(client: httpx2.Client, live: Live) -> None:
    address = _create(client, live, 5)
    unknown = f"{live.address}/{new_id()}"
    with live.client(new_id()) as other:
        for method, headers in (("HEAD", TUS), ("PATCH", {**PIECE, "Upload-Offset": "0"}), ("DELETE", TUS)):
            replies = [other.request(method, url, headers=headers, content=b"") for url in (address, unknown)]
            assert [reply.status_code for reply in replies] == [404, 404]
            assert replies[0].content == replies[1].content
        assert other.get(live.address).json()["uploads"] == []
    assert _offset(client, address) == 0


@pytest.mark.parametrize("upload_id", ["..", "%2e%2e", "..%2f..", "x" * 32, "A" * 32, "0" * 33, "a%00b"])
def test_no_path_comes_from_a_client(client: httpx2.Client, live: Live, upload_id: str) -> None:
    for method in ("HEAD", "DELETE"):
        reply = client.request(method, f"{live.address}/{upload_id}", headers=TUS)
        assert reply.status_code in (404, 405)


@pytest.mark.parametrize(
    "name", ["../../x.mp4", "/etc/passwd", "a\x00b.mp4", "ü" * 400 + ".mp4", "..", "", ".ssh", "c:\\x.mp4"]
)
def test_a_name_never_leaves_its_folder(client: httpx2.Client, live: Live, wait_until: Wait, name: str) -> None:
    _patch(client, _create(client, live, 3, name), 0, b"abc")
    wait_until(lambda: _view(client, live)["ready"])
    folder = live.manager.storage.upload_folder(live.session, _view(client, live)["id"])
    assert (folder / _view(client, live)["name"]).resolve().parent == folder
    assert (folder / _view(client, live)["name"]).read_bytes() == b"abc"


@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_nobody_without_a_session_is_answered(live: Live, method: str) -> None:
    with httpx2.Client(trust_env=False) as stranger:
        headers = {**TUS, "Upload-Length": "5"}
        assert stranger.request(method, live.address, headers=headers).status_code == 401
        for path in ("links", "folder"):
            body = {"link": "http://example.com/a.mp4", "file": "x"}
            address = urljoin(live.address, path)
            reply = stranger.post(address, json=body) if method == "POST" else stranger.get(address)
            assert reply.status_code in (401, 405)


def _raw_patch(live: Live, address: str, size: int) -> bytes:
    """The head of a PATCH whose body the test sends as it likes."""
    lines = [
        f"PATCH {httpx2.URL(address).path} HTTP/1.1", "Host: x", f"Cookie: {COOKIE}={live.session}",
        f"Content-Length: {size}", "Upload-Offset: 0", *(f"{name}: {value}" for name, value in PIECE.items()),
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()
