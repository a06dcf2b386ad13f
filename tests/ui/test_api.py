"""The HTTP API with the real routes, store and files; only the engine is a fake one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from seedvr_ui import sessions
from seedvr_ui.access import COOKIE, Access
from seedvr_ui.accounts import Accounts, AccountsFile
from seedvr_ui.api import add_api
from seedvr_ui.archives import Archives
from seedvr_ui.gate import Gate
from seedvr_ui.jobs import JobStatus
from seedvr_ui.login import Login
from seedvr_ui.operations import Operations
from seedvr_ui.sessions import Limits, SessionManager
from seedvr_ui.signed_out import SignedOut
from seedvr_ui.storage import new_id
from seedvr_ui.transfers import Transfers
from tests.ui.conftest import FakeEngine, MakeManager, Submit, Wait

Client = TestClient


def make_app(manager: SessionManager, access: Access | None = None) -> FastAPI:
    app, access = FastAPI(docs_url=None, openapi_url=None), access or Access()
    app.add_middleware(Gate, access=access)
    operations = Operations(manager, {"engine": {"weights": "/secret/weights"}})
    add_api(app, operations, access, Transfers(manager.uploads), Archives(manager))
    return app


@pytest.fixture
def app(manager: SessionManager) -> FastAPI:
    return make_app(manager)


@pytest.fixture
def client(app: FastAPI, session: str) -> Iterator[Client]:
    with TestClient(app, cookies={COOKIE: session}, base_url="http://testserver/api/v1/") as client:
        yield client


@pytest.fixture
def stranger(app: FastAPI) -> Client:
    return TestClient(app, cookies={COOKIE: new_id()}, base_url="http://testserver/api/v1/")


def send(client: Client, name: str = "holiday.mp4", content: bytes = b"pixels") -> str:
    reply = client.post("uploads", params={"name": name}, content=content)
    assert reply.status_code == 201, reply.text
    upload_id: str = reply.json()["id"]
    return upload_id


def submit_one(client: Client, **more: Any) -> dict[str, Any]:
    reply = client.post("jobs", json={"uploads": [send(client)], **more})
    assert reply.status_code == 201, reply.text
    job: dict[str, Any] = reply.json()[0]
    return job


# --- the way of a file ---


def test_a_file_goes_in_becomes_a_job_and_its_result_comes_out(
    client: Client, manager: SessionManager, engine: FakeEngine, wait_until: Wait
) -> None:
    job = submit_one(client, settings={"restore.factor": 3, "restore.encode": {"quality": 20}})
    assert (job["status"], job["name"]) == ("queued", "holiday.mp4")
    manager.start()
    wait_until(lambda: client.get(f"jobs/{job['id']}").json()["status"] == "succeeded")
    assert (engine.settings[0]["restore"]["factor"], engine.settings[0]["restore"]["encode"]["quality"]) == (3.0, 20)
    assert engine.settings[0]["engine"]["weights"] == "/secret/weights"
    reply = client.get(f"jobs/{job['id']}/download", headers={"range": "bytes=9-"})
    assert (reply.status_code, reply.text) == (206, "pixels")
    assert 'filename="holiday_restored.mp4"' in reply.headers["content-disposition"]
    detail = client.get(f"jobs/{job['id']}").json()
    assert [change["status"] for change in detail["history"]] == ["queued", "running", "succeeded"]
    assert "weights" not in detail["settings"]["engine"]
    assert detail["owner"] == ""
    assert manager.jobs(manager.store.job(job["id"]).owner)[0].is_seen


def test_a_bad_file_is_refused_with_its_sentence_and_leaves_nothing(client: Client) -> None:
    reply = client.post("uploads", params={"name": "a.mp4"}, content=b"bad file")
    assert (reply.status_code, reply.json()["error"]) == (422, "'a.mp4' is not a video; choose another file.")
    assert client.get("uploads").json() == []


def test_a_file_without_length_is_refused(client: Client) -> None:
    reply = client.post("uploads", params={"name": "a.mp4"}, content=iter([b"pix", b"els"]))
    assert reply.status_code == 411
    assert "Content-Length" in reply.json()["error"]


def test_a_file_above_the_limit_is_refused_before_it_is_sent(client: Client) -> None:
    reply = client.post("uploads", params={"name": "a.mp4"}, content=b"x" * (10**6 + 1))
    assert reply.status_code == 413


def test_a_body_that_ends_early_leaves_nothing(client: Client) -> None:
    reply = client.post("uploads", params={"name": "a.mp4"}, content=b"pixels", headers={"content-length": "60"})
    assert reply.status_code == 400
    assert "Only 6 of 60 bytes" in reply.json()["error"]
    assert client.get("uploads").json() == []


def test_a_full_disk_is_507(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedvr_ui.storage._RESERVED_BYTES", 2**62)
    reply = client.post("uploads", params={"name": "a.mp4"}, content=b"pixels")
    assert reply.status_code == 507
    assert "The disk has only 0.0 GB free" in reply.json()["error"]


def test_an_upload_can_be_looked_at_and_discarded(client: Client) -> None:
    upload = send(client)
    assert client.get(f"uploads/{upload}").json()["is_ready"] is True
    assert client.delete(f"uploads/{upload}").status_code == 204
    assert client.get(f"uploads/{upload}").status_code == 404


# --- submitting ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"restore.sede": 1}, "did you mean restore.seed?"),
        ({"restore.factor": "much"}, "is not a number"),
        ({"restore.seed": 10**400}, "too large"),
        ({"restore.factor": 10**400}, "too large"),
        ({"engine.weights": "/etc"}, "chosen where the server is started"),
        ({"threads": 64}, "chosen where the server is started"),
        ({"restore.box": "\ud800"}, "is not a size"),
    ],
)
def test_settings_that_cannot_work_are_422_and_keep_the_upload(
    client: Client, settings: dict[str, Any], words: str
) -> None:
    upload = send(client)
    body = json.dumps({"uploads": [upload], "settings": settings})  # which writes a lone surrogate as an escape
    reply = client.post("jobs", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert words in reply.json()["error"]
    assert client.get(f"uploads/{upload}").json()["is_ready"] is True


def test_either_all_uploads_become_jobs_or_none(client: Client) -> None:
    upload = send(client)
    assert client.post("jobs", json={"uploads": [upload, new_id()]}).status_code == 404
    assert client.post("jobs", json={"uploads": [upload, upload]}).status_code == 422
    assert client.get("jobs").json()["total"] == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"uploads": []}', b'{"uploads": ["x"], "more": 1}', b"[" * 5000])
def test_a_malformed_request_is_one_sentence(client: Client, body: bytes) -> None:
    reply = client.post("jobs", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    assert set(reply.json()) == {"error"}


def test_a_limit_is_told(make_manager: MakeManager, session: str) -> None:
    manager = make_manager(Limits(max_jobs=1))
    client = TestClient(make_app(manager), cookies={COOKIE: session}, base_url="http://testserver/api/v1/")
    submit_one(client)
    reply = client.post("jobs", json={"uploads": [send(client)]})
    assert (reply.status_code, "at most 1 jobs" in reply.json()["error"]) == (400, True)


# --- lists ---


def test_lists_are_filtered_searched_paged_and_in_the_order_of_the_page(
    client: Client, manager: SessionManager, submit: Submit
) -> None:
    jobs = [submit(f"clip{number}.mp4").id for number in range(4)]
    client.post(f"jobs/{jobs[0]}/cancel")
    client.post(f"jobs/{jobs[1]}/pause")

    def ids(**query: Any) -> list[str]:
        return [job["id"] for job in client.get("jobs", params=query).json()["jobs"]]

    assert ids() == [jobs[2], jobs[3], jobs[1], jobs[0]]
    assert ids() == [job.id for job in manager.jobs(manager.store.job(jobs[0]).owner)]
    assert ids(status=["paused", "cancelled"]) == [jobs[1], jobs[0]]
    assert ids(search="CLIP3") == [jobs[3]]
    assert ids(limit=2, offset=1) == [jobs[3], jobs[1]]
    assert client.get("jobs", params={"limit": 1}).json()["total"] == 4
    assert client.get("jobs").json()["jobs"][1]["num_ahead"] == 1


def test_an_unchanged_list_is_304(client: Client, submit: Submit) -> None:
    submit("a.mp4")
    revision = client.get("jobs").json()["revision"]
    reply = client.get("jobs", params={"since": revision})
    assert (reply.status_code, reply.content) == (304, b"")
    submit("b.mp4")
    assert client.get("jobs", params={"since": revision}).json()["total"] == 2


# --- changing ---


def test_the_actions_of_a_job(client: Client) -> None:
    job = submit_one(client, draft=True)
    address = f"jobs/{job['id']}"
    assert job["actions"] == ["start", "duplicate", "delete"]
    assert client.post(f"{address}/start").json()["status"] == "queued"
    assert client.post(f"{address}/pause").json()["status"] == "paused"
    assert client.post(f"{address}/resume").json()["status"] == "queued"
    other = client.post(f"{address}/duplicate", json={"settings": {"seed": 7}}).json()
    assert client.get(f"jobs/{other['id']}").json()["settings"]["restore"]["seed"] == 7
    assert client.post(f"jobs/{other['id']}/move", json={"before": job["id"]}).json()["num_ahead"] == 0
    assert client.post(f"{address}/cancel", json={"keep_part": True}).json()["status"] == "cancelled"
    assert client.post(f"{address}/retry").json()["status"] == "queued"
    assert client.post(f"{address}/cancel").json()["actions"] == ["retry", "duplicate", "delete"]
    assert client.delete(address).status_code == 204
    assert client.get(address).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "resume"), ("POST", "retry"), ("POST", "start"), ("GET", "download"), ("DELETE", "")],
)
def test_what_the_state_does_not_allow_is_409(client: Client, method: str, path: str) -> None:
    job = submit_one(client)
    reply = client.request(method, f"jobs/{job['id']}/{path}".rstrip("/"))
    assert reply.status_code == 409, reply.text
    assert client.get(f"jobs/{job['id']}").json()["status"] == "queued"


def test_a_finished_job_cannot_be_cancelled(client: Client) -> None:
    job = submit_one(client)
    client.post(f"jobs/{job['id']}/cancel")
    assert client.post(f"jobs/{job['id']}/cancel").status_code == 409


# --- who asks ---

ROUTES = [
    ("GET", "jobs/{job}"), ("DELETE", "jobs/{job}"), ("POST", "jobs/{job}/start"), ("POST", "jobs/{job}/pause"),
    ("POST", "jobs/{job}/resume"), ("POST", "jobs/{job}/cancel"), ("POST", "jobs/{job}/retry"),
    ("POST", "jobs/{job}/duplicate"), ("POST", "jobs/{job}/move"), ("GET", "jobs/{job}/download"),
    ("GET", "jobs/{job}/export"), ("GET", "uploads/{upload}"), ("DELETE", "uploads/{upload}"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_is_somebody_elses_is_answered_like_what_does_not_exist(
    client: Client, stranger: Client, method: str, path: str
) -> None:
    job, upload = submit_one(client)["id"], send(client, "other.mp4")
    body = {"up": True} if path.endswith("move") else None
    replies = [
        stranger.request(method, path.format(job=job, upload=upload), json=body),
        stranger.request(method, path.format(job=new_id(), upload=new_id()), json=body),
    ]
    assert [reply.status_code for reply in replies] == [404, 404]
    assert replies[0].json() == replies[1].json()
    assert client.get(f"jobs/{job}").json()["status"] == "queued"
    assert client.get(f"uploads/{upload}").status_code == 200


def test_every_route_asks_who_it_is(app: FastAPI) -> None:
    client = TestClient(app, base_url="http://testserver/api/")
    asked = 0
    for path, methods in client.get("openapi.json").json()["paths"].items():
        for method in methods:
            body = {"uploads": [new_id()]} if path == "/v1/jobs" else {"up": True}
            reply = client.request(
                method, re.sub(r"\{\w+\}", new_id(), path.lstrip("/")), json=body, params={"name": "a.mp4"}
            )
            assert reply.status_code == 401, (method, path, reply.text)
            assert set(reply.json()) == {"error"}
            asked += 1
    assert asked >= 20


def test_an_admin_reaches_the_jobs_of_all(manager: SessionManager, client: Client, submit: Submit) -> None:
    class Admin(Access):
        def visitor(self, connection: Any) -> Any:
            visitor = super().visitor(connection)
            return visitor and type(visitor)(visitor.owner, "admin", True)

    job = submit("a.mp4")
    admin = TestClient(make_app(manager, Admin()), cookies={COOKIE: new_id()}, base_url="http://testserver/api/v1/")
    listed = admin.get("jobs").json()["jobs"]
    assert [(one["id"], one["owner"]) for one in listed] == [(job.id, job.owner)]
    assert admin.get("jobs", params={"owner": new_id()}).json()["total"] == 0
    assert admin.post(f"jobs/{job.id}/pause").json()["status"] == "paused"
    assert client.get(f"jobs/{job.id}").json()["status"] == "paused"


def test_an_admin_may_name_an_account(manager: SessionManager, submit: Submit, tmp_path: Path) -> None:
    file, password = AccountsFile(tmp_path / "accounts.json"), "correct horse"
    file.add("root", password, is_admin=True)
    job = submit("a.mp4", session=file.add("Anna", password).id)
    login = Login(Accounts(file, b"s" * 32), b"s" * 32, SignedOut(tmp_path))
    client = TestClient(make_app(manager, Access(login)), base_url="http://testserver/api/v1/")

    def ask(name: str, owner: str) -> Any:
        return client.get("jobs", params={"owner": owner}, auth=(name, password)).json()

    assert [one["id"] for one in ask("root", "anna")["jobs"]] == [job.id]
    assert ask("root", "root")["total"] == 0
    assert "'ben' is neither an account nor an owner" in ask("root", "ben")["error"]
    assert ask("anna", "ben")["total"] == 1  # who may see their own jobs only learns nothing about names


# --- documents ---


def test_the_document_has_these_routes_only_and_each_is_described(app: FastAPI) -> None:
    document = TestClient(app).get("/api/openapi.json").json()
    assert document["servers"] == [{"url": "."}]
    assert all(path.startswith("/v1/") for path in document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert "401" in operation["responses"], (method, path)
    for schema in document["components"]["schemas"].values():
        assert schema["title"].startswith(("HTTPValidation", "ValidationError")) or schema.get("description"), schema


def test_the_page_shows_every_route_and_asks_no_other_host(app: FastAPI) -> None:
    client = TestClient(app)
    page = client.get("/api/docs").text
    for path in client.get("/api/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page
    assert re.findall(r"(?:href|src)=\"(?:https?:)?//", page) == []
    assert "<script" not in page


def test_settings_and_status_are_told(client: Client) -> None:
    fields = {field["key"]: field for field in client.get("settings").json()}
    assert fields["restore.color_fix"]["choices"][0] == "balanced"
    assert fields["restore.encode.quality"]["maximum"] == 51
    assert "engine.weights" not in fields
    status = client.get("status").json()
    assert status["version"]
    assert set(status["jobs"]) == {status.value for status in JobStatus}


def test_an_unknown_address_is_an_error_in_the_same_form(client: Client) -> None:
    reply = client.get("nothing")
    assert (reply.status_code, set(reply.json())) == (404, {"error"})


def test_a_bug_is_a_sentence_too(app: FastAPI, session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sessions.SessionManager, "counts", explode)
    client = TestClient(app, cookies={COOKIE: session}, raise_server_exceptions=False)
    reply = client.get("/api/v1/status")
    assert (reply.status_code, set(reply.json())) == (500, {"error"})


# --- archives ---


def test_an_exported_job_is_imported_and_goes_on(
    client: Client, stranger: Client, manager: SessionManager, wait_until: Wait
) -> None:
    job = submit_one(client)
    client.post(f"jobs/{job['id']}/pause")
    archive = client.get(f"jobs/{job['id']}/export")
    assert archive.status_code == 200, archive.text
    reply = stranger.post("imports", params={"start": True}, content=archive.content)
    assert reply.status_code == 202, reply.text
    new = reply.json()
    assert new["is_done"]
    assert new["job"]["id"] != job["id"]
    assert client.get(f"imports/{new['id']}").status_code == 404
    manager.start()
    wait_until(lambda: stranger.get(f"jobs/{new['job']['id']}").json()["status"] == "succeeded")
    assert client.get(f"jobs/{job['id']}").json()["status"] == "paused"


def test_what_is_no_archive_is_refused_and_leaves_nothing(client: Client, tmp_path: Path) -> None:
    reply = client.post("imports", content=b"something else" * 100)
    assert reply.status_code in (400, 422), reply.text
    assert client.get("jobs").json()["total"] == 0
    assert list(tmp_path.rglob("imports/*")) == []


def test_an_archive_is_made_anew_when_the_job_has_changed(client: Client) -> None:
    job = submit_one(client)
    client.post(f"jobs/{job['id']}/pause")
    first = client.get(f"jobs/{job['id']}/export").headers["etag"]
    assert client.get(f"jobs/{job['id']}/export").headers["etag"] == first
    client.post(f"jobs/{job['id']}/cancel")
    assert client.get(f"jobs/{job['id']}/export").headers["etag"] != first
