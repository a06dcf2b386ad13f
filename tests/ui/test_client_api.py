"""The Gradio endpoints with the real gradio_client against the real server with its real worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from seedvr_ui.access import COOKIE
from seedvr_ui.client_api import ClientApi
from seedvr_ui.storage import new_id
from tests.ui.conftest import Wait
from tests.ui.server import ROOT, Server, running_server

SAMPLE = ROOT / "samples" / "sintel_320x136.mp4"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("client")) as server:
        yield server


Call = Callable[..., Any]


def make_call(server: Server, owner: str, folder: Path) -> Call:
    """call(name, ...) asks one endpoint as `owner`."""
    client = Client(server.url, headers={"Cookie": f"{COOKIE}={owner}"}, verbose=False, download_files=folder)

    def call(name: str, *arguments: Any, **named: Any) -> Any:
        return client.predict(*arguments, api_name=f"/{name}", **named)

    return call


@pytest.fixture
def owner() -> str:
    return new_id()


@pytest.fixture
def call(server: Server, owner: str, tmp_path: Path) -> Call:
    return make_call(server, owner, tmp_path)


@pytest.fixture
def upload(server: Server, owner: str) -> str:
    """The id of the sample, sent by the HTTP API."""
    reply = httpx2.post(
        f"{server.url}api/v1/uploads", params={"name": SAMPLE.name}, content=SAMPLE.read_bytes(),
        cookies={COOKIE: owner}, timeout=60,
    )  # fmt: skip
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    assert found["is_ready"], found
    upload_id: str = found["id"]
    return upload_id


def test_only_the_endpoints_for_programs_are_offered(server: Server) -> None:
    info = httpx2.get(f"{server.url}gradio_api/info", timeout=60).json()
    names = {endpoint.__name__ for endpoint in ClientApi.endpoints(ClientApi.__new__(ClientApi))}
    assert set(info["named_endpoints"]) == {f"/{name}" for name in names}
    assert info["unnamed_endpoints"] == {}


def test_a_job_is_submitted_watched_and_fetched(
    server: Server, call: Call, owner: str, upload: str, wait_until: Wait
) -> None:
    job = call("submit_job", upload, settings={"restore.factor": 1, "window": 5, "engine.model": "nano"})
    assert (job["status"], job["name"]) == ("queued", SAMPLE.name)

    def is_at_work() -> bool:
        found = call("show_job", job["id"])
        assert found["status"] != "failed", found
        return bool(found["status"] == "running" and found["progress"])

    wait_until(is_at_work)
    assert call("cancel_job", job["id"], keep_part=True)["id"] == job["id"]
    wait_until(lambda: bool(call("show_job", job["id"])["status"] == "cancelled"))
    assert call("list_jobs", statuses=["cancelled"])["total"] == 1
    again = call("duplicate_job", job["id"], settings={"seed": 5, "engine.model": "nano"}, draft=True)
    assert call("show_job", again["id"])["settings"]["restore"]["seed"] == 5
    assert call("start_job", again["id"])["status"] in ("queued", "running")
    call("pause_job", again["id"])
    wait_until(lambda: bool(call("show_job", again["id"])["status"] == "paused"))
    assert call("resume_job", again["id"])["status"] in ("queued", "running")
    call("cancel_job", again["id"])
    wait_until(lambda: bool(call("show_job", again["id"])["status"] == "cancelled"))
    assert call("delete_job", again["id"]) == {"deleted": again["id"]}
    assert [one["id"] for one in call("list_jobs")["jobs"]] == [job["id"]]


def test_mistakes_come_as_their_sentence(call: Call, upload: str) -> None:
    for words, arguments in [
        ("no longer exists", ("show_job", new_id())),
        ("no longer exists", ("show_job", "../../etc/passwd")),
        ("did you mean", ("submit_job", upload, {"restore.fcator": 2})),
        ("There is no state 'lost'", ("list_jobs", ["lost"])),
        ("limit is a whole number", ("list_jobs", None, "", 10**6)),
        ("chosen where the server is started", ("submit_job", upload, {"engine.weights": "/etc"})),
    ]:
        with pytest.raises(AppError, match=words):
            call(*arguments)


def test_what_is_somebody_elses_is_answered_like_what_does_not_exist(
    server: Server, call: Call, upload: str, tmp_path: Path
) -> None:
    job = call("submit_job", upload, draft=True)
    stranger = make_call(server, new_id(), tmp_path)
    assert stranger("list_jobs")["total"] == 0
    for name in ("show_job", "start_job", "pause_job", "cancel_job", "retry_job", "duplicate_job", "delete_job"):
        with pytest.raises(AppError, match="no longer exists"):
            stranger(name, job["id"])
    assert call("show_job", job["id"])["status"] == "draft"


def test_who_does_not_say_who_it_is_gets_nothing(server: Server) -> None:
    reply = httpx2.post(f"{server.url}gradio_api/call/list_jobs", json={"data": []}, timeout=60)
    events = httpx2.get(f"{server.url}gradio_api/call/list_jobs/{reply.json()['event_id']}", timeout=60).text
    assert "event: error" in events
    assert '"jobs"' not in events


def test_settings_and_status_are_told(call: Call) -> None:
    assert "restore.factor" in {field["key"] for field in call("job_settings")}
    assert json.dumps(call("server_status")["jobs"])
