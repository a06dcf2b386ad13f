"""The headers of answers: of pages with inline scripts, of files, of refusals, over http and https."""

from __future__ import annotations

import base64
import gzip
import hashlib
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient

from seedvr_ui.access import Access
from seedvr_ui.headers import SecurityHeaders, script_hashes
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import SessionManager

SCRIPT = "window.config = {a: '<b>'};\n"
PAGE = f"<html><script>{SCRIPT}</script><script type=module src=./a.js></script>{'x' * 600}</html>"


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.add_middleware(SecurityHeaders, path="/studio-1")

    @app.get("/")
    def page() -> StreamingResponse:
        return StreamingResponse(iter([PAGE[:30], PAGE[30:]]), media_type="text/html")

    @app.get("/own")
    def own() -> HTMLResponse:
        return HTMLResponse("<p>", headers={"Content-Security-Policy": "default-src 'none'"})

    @app.get("/text")
    def text() -> PlainTextResponse:
        return PlainTextResponse("<script>", headers={"Referrer-Policy": "no-referrer"})

    @app.get("/file")
    def file() -> FileResponse:
        return FileResponse(__file__)

    return TestClient(app)


def test_only_the_scripts_that_came_with_a_page_may_run(client: TestClient) -> None:
    answer = client.get("/", headers={"accept-encoding": "identity"})
    policy = answer.headers["content-security-policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert scripts == f"script-src 'self' 'unsafe-eval' {digest(SCRIPT)}"
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert answer.text == PAGE
    assert int(answer.headers["content-length"]) == len(PAGE)


def test_the_page_is_compressed_after_it_was_looked_at(client: TestClient) -> None:
    with client.stream("GET", "/", headers={"accept-encoding": "gzip, br"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["vary"]
    assert gzip.decompress(raw).decode() == PAGE
    assert digest(SCRIPT) in answer.headers["content-security-policy"]


def test_nothing_runs_in_what_is_no_page(client: TestClient) -> None:
    for path in ("/text", "/file", "/none"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].endswith("sandbox"), path
        assert "script-src" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_what_a_route_says_itself_counts(client: TestClient) -> None:
    assert client.get("/own").headers["content-security-policy"] == "default-src 'none'"
    assert client.get("/text").headers["referrer-policy"] == "no-referrer"


def test_https_is_demanded_from_those_only_who_came_by_it(client: TestClient) -> None:
    assert "strict-transport-security" not in client.get("/text").headers
    assert "strict-transport-security" in client.get("/text", headers={"x-forwarded-proto": "https"}).headers
    assert "strict-transport-security" in client.get("https://testserver/text").headers


def test_parts_of_a_file_arrive_as_they_are(client: TestClient) -> None:
    answer = client.get("/file", headers={"range": "bytes=3-9"})
    assert (answer.status_code, answer.text) == (206, Path(__file__).read_text()[3:10])


def test_a_script_that_says_where_it_is_has_no_hash() -> None:
    page = b"<SCRIPT defer\nsrc='a.js'></SCRIPT><script data-x>1</script><script> </script><script>1</script>"
    assert script_hashes(page) == [digest("1")]


def test_refusals_of_the_gate_have_them_too(manager: SessionManager) -> None:
    app = FastAPI()
    add_routes(app, manager, Access())
    refused = TestClient(app).get("/gradio_api/file=x")
    assert refused.status_code == 404
    assert refused.headers["content-security-policy"].endswith("sandbox")
