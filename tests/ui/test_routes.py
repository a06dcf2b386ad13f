"""Our HTTP routes, without Gradio and without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from seedvr_ui.access import COOKIE, Access
from seedvr_ui.jobs import JobStatus
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import is_id, new_id
from tests.ui.conftest import Submit, Wait


@pytest.fixture
def app(manager: SessionManager) -> FastAPI:
    app = FastAPI()
    add_routes(app, manager, Access())
    app.get("/", response_class=HTMLResponse)(lambda: "<p>page</p>")
    return app


@pytest.fixture
def client(app: FastAPI, session: str) -> Iterator[TestClient]:
    with TestClient(app, cookies={COOKIE: session}) as client:
        yield client


@pytest.fixture
def done(client: TestClient, manager: SessionManager, submit: Submit, session: str, wait_until: Wait) -> str:
    """The address of a job that has succeeded."""
    job = submit("holiday.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)
    return f"/studio/jobs/{job.id}"


def test_the_page_gives_a_new_visitor_a_session_that_scripts_cannot_read(app: FastAPI) -> None:
    header = TestClient(app).get("/").headers["set-cookie"]
    assert header.startswith(f"{COOKIE}=")
    assert is_id(header.split("=")[1].split(";")[0])
    assert "HttpOnly" in header
    assert "SameSite=Lax" in header


def test_a_known_visitor_keeps_the_session(client: TestClient) -> None:
    assert "set-cookie" not in client.get("/").headers


def test_a_forged_session_is_replaced(app: FastAPI) -> None:
    assert COOKIE in TestClient(app, cookies={COOKIE: "../../x"}).get("/").headers["set-cookie"]


def test_behind_tls_the_cookie_is_secure(app: FastAPI) -> None:
    assert "Secure" in TestClient(app).get("/", headers={"x-forwarded-proto": "https"}).headers["set-cookie"]


def test_health_tells_how_many_jobs_there_are(client: TestClient, submit: Submit) -> None:
    submit("a.mp4")
    assert client.get("/healthz").json()["jobs"]["queued"] == 1


@pytest.mark.parametrize("path", ["/studio/uploads", f"/studio/jobs/{'0' * 32}/download"])
def test_without_a_session_nothing_is_shown(app: FastAPI, path: str) -> None:
    assert TestClient(app).get(path).status_code == 401


@pytest.mark.parametrize("path", ["/download", "/files/preview.mp4", "/files/thumbnail.jpg"])
def test_another_session_cannot_read_the_files_of_a_job(app: FastAPI, done: str, path: str) -> None:
    assert TestClient(app, cookies={COOKIE: new_id()}).get(done + path).status_code == 404


def test_the_download_is_the_result_under_its_own_name(client: TestClient, done: str) -> None:
    reply = client.get(f"{done}/download")
    assert reply.text == "restored pixels"
    assert 'attachment; filename="holiday_restored.mp4"' in reply.headers["content-disposition"]


@pytest.mark.parametrize(
    ("path", "is_seen"), [("/files/thumbnail.jpg", False), ("/files/preview.mp4", True), ("/download", True)]
)
def test_a_result_counts_as_seen_when_it_was_played_or_fetched(
    client: TestClient, manager: SessionManager, session: str, done: str, path: str, is_seen: bool
) -> None:
    client.get(done + path)
    assert manager.jobs(session)[0].is_seen is is_seen


def test_a_part_of_a_file_can_be_asked_for(client: TestClient, done: str) -> None:
    reply = client.get(f"{done}/files/preview.mp4", headers={"range": "bytes=10-19", "authorization": "Bearer x"})
    assert (reply.status_code, reply.content) == (206, bytes(range(10, 20)))
    assert reply.headers["content-range"] == "bytes 10-19/200"
    assert "authorization" not in reply.headers


@pytest.mark.parametrize("name", ["source", "holiday.mp4", "..%2F..%2Fx", "result"])
def test_nothing_but_thumbnail_and_preview_is_served(client: TestClient, done: str, name: str) -> None:
    assert client.get(f"{done}/files/{name}").status_code == 404


def test_a_job_without_result_has_no_download(client: TestClient, submit: Submit) -> None:
    reply = client.get(f"/studio/jobs/{submit('a.mp4').id}/download")
    assert (reply.status_code, "no result yet" in reply.json()["error"]) == (400, True)


def test_scripts_and_styles_are_served(client: TestClient) -> None:
    for name in (
        "studio.css",
        "drop.js",
        "queue.js",
        "compare.js",
        "store.js",
        "dom.js",
        "send.js",
        "sources.js",
        "icon.svg",
    ):
        assert client.get(f"/studio/static/{name}").status_code == 200, name


def test_the_upload_library_is_served_with_its_licence(client: TestClient) -> None:
    assert "javascript" in client.get("/studio/static/vendor/tus-4.3.1.min.js").headers["content-type"]
    assert "MIT License" in client.get("/studio/static/vendor/tus-4.3.1.LICENSE.txt").text


@pytest.mark.parametrize("path", ["/api/v1/jobs/a%0Ab", "/studio/jobs/a%0D/download", "/healthz%00", "/%7f"])
def test_an_address_with_a_control_character_is_none_of_ours(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.json()) == (404, {"error": "There is no such address."})
