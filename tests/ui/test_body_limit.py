"""Bodies that are too long, with and without their length, and the addresses that take files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request

from seedvr_ui.access import COOKIE, Access
from seedvr_ui.body_limit import BodyLimit
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import SessionManager


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.add_middleware(BodyLimit, path="/proxied", max_bytes=100)

    async def length(request: Request) -> int:
        return len(await request.body())

    for path in ("/anything", "/studio/uploads", "/studio/uploads/x", "/studio/uploadsx", "/proxied/api/v1/uploads"):
        app.post(path)(length)
    return TestClient(app)


def pieces(number: int) -> Iterator[bytes]:
    yield from (b"x" * 10 for _ in range(number))


@pytest.mark.parametrize("path", ["/anything", "/studio/uploadsx"])
def test_a_long_body_is_refused_however_it_comes(client: TestClient, path: str) -> None:
    for body, status in ((b"x" * 100, 200), (b"x" * 101, 413), (pieces(10), 200), (pieces(11), 413)):
        assert client.post(path, content=body).status_code == status


@pytest.mark.parametrize("path", ["/studio/uploads", "/studio/uploads/x", "/proxied/api/v1/uploads"])
def test_files_may_be_long(client: TestClient, path: str) -> None:
    assert client.post(path, content=b"x" * 1000).json() == 1000


@pytest.mark.parametrize("length", ["-1", "1e9", "\u0663"])
def test_a_length_that_is_no_number_is_refused(client: TestClient, length: str) -> None:
    assert client.post("/anything", headers={"content-length": length.encode()}).status_code == 413


def test_a_request_that_is_no_text_is_answered(manager: SessionManager, session: str) -> None:
    app = FastAPI()
    add_routes(app, manager, Access())
    client = TestClient(app, cookies={COOKIE: session})
    for body in (b'{"link": "\\ud800"}', b'{"link": {"\\ud800": 1}}', b'{"link": "http://\\ud800/"}'):
        answer = client.post("/studio/links", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), body
        assert answer.json()["error"].endswith(".")
