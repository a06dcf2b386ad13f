"""Health, readiness, metrics and logs: who may read them, what they say, and that no secret is in them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from inference.doctor.faults import found
from inference.doctor.findings import Finding, Report, save_report
from inference.errors import MediaError, RestoreError
from inference.logs import JobHandler, configure_logs, log_of_job, redact
from inference.progress import Cancellation
from seedvr_ui.access import COOKIE, Access
from seedvr_ui.jobs import JobStatus
from seedvr_ui.metrics import Metrics
from seedvr_ui.routes import add_routes
from seedvr_ui.sessions import Limits, Services, SessionManager
from seedvr_ui.storage import Storage
from seedvr_ui.system import System
from seedvr_ui.system_routes import add_system_routes
from tests.ui.conftest import FakeEngine, Submit, Wait

SECRETS = (
    "correct-horse-battery",
    "tok-4711-geheim",
    "X-Amz-Signature=abc123",
    "hooks/geheim-path",
    "hf_abcdefghij12345",
)
TOKEN = "tok-4711-geheim"


@pytest.fixture
def _job_logs() -> Iterator[None]:
    root, handler = logging.getLogger(), JobHandler()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
def manager(tmp_path: Path, engine: FakeEngine) -> Iterator[SessionManager]:
    """A queue whose attempts are measured."""
    holder: list[SessionManager] = []
    measured = Metrics(lambda: holder[0].counts(), dict)
    services = Services(check=engine.check, restore=measured.measured(engine.restore), make_preview=engine.make_preview)
    holder.append(SessionManager(Storage(tmp_path / "data"), services, Limits(max_upload_bytes=10**6)))
    holder[0].engine = {"metrics": measured}
    yield holder[0]
    engine.hold.set()
    holder[0].close()


Serve = Callable[..., TestClient]


@pytest.fixture
def serve(manager: SessionManager, session: str) -> Serve:
    """serve(check_worker=..., token=..., client=...) is a client of the routes."""

    def serve(check_worker: Callable[[], None] = lambda: None, token: str = "", host: str = "127.0.0.1") -> TestClient:
        app, access = FastAPI(), Access()
        add_routes(app, manager, access)
        system = System(manager, examine, check_worker)
        add_system_routes(app, access, system, manager.engine["metrics"], token)
        return TestClient(app, cookies={COOKIE: session}, client=(host, 5000))

    def examine(*, tell: Callable[[Finding], None], cancellation: Cancellation) -> Report:
        finding = found("shm.little", free="64 MiB")
        tell(finding)
        return Report([finding])

    return serve


def test_a_server_that_can_work_is_ready(serve: Serve) -> None:
    answer = serve().get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_every_reason_is_told_without_names_and_paths(
    serve: Serve, manager: SessionManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise RestoreError(f"The worker did not start in {tmp_path}.")

    save_report(manager.storage.root, Report([found("disk.read-only", folder=tmp_path, reason="no")]))
    monkeypatch.setattr(manager, "counts", fail)
    monkeypatch.setattr("seedvr_ui.system._write", lambda folder: (_ for _ in ()).throw(OSError(30, str(folder))))
    answer = serve(check_worker=fail).get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [
        "The index of jobs does not answer.",
        "The data folder cannot be written.",
        "The worker does not start.",
        "The doctor found an error (disk); see the System page.",
    ]
    assert str(tmp_path) not in answer.text


def test_metrics_are_for_this_machine_or_for_the_token(serve: Serve) -> None:
    assert serve().get("/metrics").status_code == 200
    assert serve().get("/metrics", headers={"X-Forwarded-For": "203.0.113.5"}).status_code == 403
    far = serve(token=TOKEN, host="203.0.113.5")
    assert far.get("/metrics").status_code == 403
    assert far.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 403
    assert far.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert serve(host="203.0.113.5").get("/metrics", headers={"Authorization": "Bearer "}).status_code == 403


def test_metrics_count_jobs_stages_errors_and_requests(
    serve: Serve, manager: SessionManager, submit: Submit, session: str, wait_until: Wait, engine: FakeEngine
) -> None:
    client = serve()
    good, bad = submit("good.mp4"), submit("geheim.mp4", "fail:It cannot be read.")
    manager.start()
    wait_until(lambda: manager.job(session, bad.id).status is JobStatus.FAILED)
    client.get(f"/studio/jobs/{good.id}/download")
    client.get("/nothing/geheim")
    text = client.get("/metrics").text
    for line in (
        'seedvr_jobs{state="succeeded"} 1.0',
        'seedvr_jobs{state="failed"} 1.0',
        'seedvr_job_seconds_count{outcome="succeeded"} 1.0',
        'seedvr_job_errors_total{kind="MediaError"} 1.0',
        'seedvr_stage_seconds_count{stage="restore"} 2.0',
        'seedvr_frames_total{model="unknown"} 8.0',
        'seedvr_http_requests_total{method="GET",route="/studio/jobs/{job_id}/download",status="200"} 1.0',
        'seedvr_http_requests_total{method="GET",route="other",status="404"} 1.0',
    ):
        assert line in text
    assert "seedvr_memory_available_bytes" in text
    assert not any(word in text for word in ("geheim", good.id, session))


@pytest.mark.usefixtures("_job_logs")
def test_the_log_of_a_job_is_its_own_and_no_secret_is_in_it(
    serve: Serve, manager: SessionManager, submit: Submit, session: str, wait_until: Wait, engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SEEDVR_USERS", "anna:correct-horse-battery")
    monkeypatch.setenv("SEEDVR_METRICS_TOKEN", TOKEN)
    monkeypatch.setenv("SEEDVR_WEBHOOK", "https://example.com/hooks/geheim-path")
    engine.errors.append(
        MediaError(
            "https://bucket.example.com/clip.mp4?X-Amz-Signature=abc123 with correct-horse-battery, tok-4711-geheim,"
            " https://example.com/hooks/geheim-path and hf_abcdefghij12345 failed"
        )
    )
    job = submit("holiday.mp4")
    client = serve()
    assert client.get(f"/studio/jobs/{job.id}/log").status_code == 404
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.FAILED)
    wait_until(lambda: b"failed" in client.get(f"/studio/jobs/{job.id}/log").content)
    answer = client.get(f"/studio/jobs/{job.id}/log")
    assert "attachment" in answer.headers["content-disposition"]
    assert f'"job": "{job.id}"' in answer.text
    assert "starts, attempt 1" in answer.text
    assert "https://bucket.example.com/clip.mp4?[hidden] with [hidden], [hidden]" in answer.text
    assert client.get(f"/studio/jobs/{job.id}/log", cookies={COOKIE: "0" * 32}).status_code == 404
    assert not any(secret in answer.text + client.get("/metrics").text for secret in SECRETS)


def test_what_may_be_a_secret_is_hidden_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDVR_PASSWORD", "correct-horse-battery")
    monkeypatch.setenv("SEEDVR_WEBHOOK", "https://example.com/hooks/geheim-path")
    text = redact(
        "GET https://anna:pw@host/clip.mp4?X-Amz-Signature=abc123 Authorization: Bearer tok-4711-geheim; "
        "password=hunter2 told https://example.com/hooks/geheim-path by correct-horse-battery and hf_abcdefghij12345; "
        "3 frames of clip.mp4"
    )
    assert not any(secret in text for secret in (*SECRETS, "hunter2", "anna:pw"))
    assert "https://[hidden]@host/clip.mp4?[hidden]" in text
    assert text.endswith("3 frames of clip.mp4")


@pytest.mark.usefixtures("_job_logs")
def test_a_log_stays_small_and_goes_with_its_job(tmp_path: Path) -> None:
    log = logging.getLogger("test")
    with log_of_job("1" * 32, tmp_path / "job"):
        log.info("nowhere")
        (tmp_path / "job").mkdir()
        for number in range(60):
            log.info("%d %s", number, "x" * 7000)
    size = (tmp_path / "job" / "log.jsonl").stat().st_size
    text = (tmp_path / "job" / "log.jsonl").read_text()
    assert 100_000 < size <= 256 * 1024
    assert "older lines were dropped" in text.splitlines()[0]
    assert '"event": "59 x' in text
    shutil.rmtree(tmp_path / "job")
    with log_of_job("1" * 32, tmp_path / "job"):
        log.info("after its end")
    assert not (tmp_path / "job").exists()


def test_an_examination_is_started_once_and_kept(serve: Serve, wait_until: Wait) -> None:
    client = serve()
    assert client.get("/studio/system/report").json() == {"report": None, "coming": None}
    assert client.post("/studio/system/examine").json() == {"started": True}
    wait_until(lambda: client.get("/studio/system/report").json()["report"] is not None)
    assert client.get("/studio/system/report").json()["report"]["findings"][0]["key"] == "shm.little"
    assert client.get("/studio/system").headers["content-security-policy"].startswith("default-src 'none'")


def test_who_opens_the_address_without_the_cookie_of_the_studio_is_sent_there(serve: Serve) -> None:
    client = serve()
    client.cookies.clear()
    answer = client.get("/studio/system", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "../")


@pytest.mark.parametrize("form", ["", "json"])
def test_the_log_of_the_server_has_messages_with_their_values_and_traces(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEEDVR_LOG", form)
    configure_logs()
    try:
        raise OSError("no room")
    except OSError:
        logging.getLogger("seedvr").exception("%d of %s", 3, "five")
    text = capsys.readouterr().err
    if form == "json":
        entry = json.loads(text)
        assert (entry["event"], entry["level"]) == ("3 of five", "error")
        text = entry["trace"]
    else:
        assert "ERROR seedvr: 3 of five" in text
    assert text.rstrip().endswith("OSError: no room")
