"""The money guard against a real HTTP server in place of RunPod's API and the webhook. The clock is the test's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inference.errors import SettingsError
from seedvr_ui.money_guard import MoneyGuard, Pod
from seedvr_ui.serve_options import ServeOptions
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id
from seedvr_ui.webhook import Webhook
from tests.ui.conftest import FakeEngine, Submit, Wait

MINUTE = 60.0


@dataclass
class RunPod:
    """What was asked of the API and the webhook, in order; `answers` are the next codes, 200 after them."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    messages: list[dict[str, object]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    now: float = 1000.0

    @property
    def stops(self) -> int:
        return self.asked.count("/v1/pods/pod1/stop")


@pytest.fixture
def runpod() -> Iterator[RunPod]:
    runpod = RunPod()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            runpod.asked.append(self.path)
            if self.path == "/hook":
                runpod.messages.append(json.loads(body))
            else:
                runpod.keys.append(self.headers["authorization"])
            self.send_response(runpod.answers.pop(0) if runpod.answers else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    runpod.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield runpod
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def guard(manager: SessionManager, runpod: RunPod) -> MoneyGuard:
    """Stops after ten minutes; it has looked once, so the time counts from now."""
    guard = make_guard(manager, runpod)
    guard.look()
    return guard


def make_guard(manager: SessionManager, runpod: RunPod) -> MoneyGuard:
    pod = Pod(id="pod1", key="secret", api=f"{runpod.url}/v1")
    hook = Webhook(manager, f"{runpod.url}/hook")
    return MoneyGuard(manager, pod, 10, hook.announce, lambda: runpod.now)


def test_after_the_idle_time_the_operator_is_told_and_then_the_pod_stopped(guard: MoneyGuard, runpod: RunPod) -> None:
    runpod.now += 9.9 * MINUTE
    guard.look()
    assert runpod.asked == []
    runpod.now += 0.1 * MINUTE
    guard.look()
    assert runpod.asked == ["/hook", "/v1/pods/pod1/stop"]
    assert runpod.keys == ["Bearer secret"]
    assert runpod.messages[0]["event"] == "pod.stopping"
    assert runpod.messages[0]["idle_seconds"] == 600


def test_a_job_in_the_queue_keeps_the_pod(
    manager: SessionManager, runpod: RunPod, submit: Submit, engine: FakeEngine, wait_until: Wait
) -> None:
    guard = make_guard(manager, runpod)
    engine.hold.clear()
    job = submit("clip.mp4")
    manager.start()
    runpod.now += 100 * MINUTE
    guard.look()
    engine.hold.set()
    wait_until(lambda: manager.job(job.owner, job.id).is_finished)
    guard.look()
    runpod.now += 9 * MINUTE
    guard.look()
    assert runpod.stops == 0
    runpod.now += 1 * MINUTE
    guard.look()
    assert runpod.stops == 1


def test_a_file_that_is_coming_in_keeps_the_pod(manager: SessionManager, guard: MoneyGuard, runpod: RunPod) -> None:
    owner = new_id()
    upload = manager.uploads.begin(owner, "clip.mp4", 10, "")
    manager.uploads.append(owner, upload.id, 0, b"12345")
    runpod.now += 11 * MINUTE
    guard.look()
    assert runpod.stops == 0
    runpod.now += 11 * MINUTE
    guard.look()
    assert runpod.stops == 1


def test_an_api_that_fails_is_asked_again_and_the_operator_told_once(guard: MoneyGuard, runpod: RunPod) -> None:
    runpod.answers = [200, 500]
    for _ in range(4):
        runpod.now += 10 * MINUTE
        guard.look()
        guard.look()  # at the same moment: nothing more
    assert runpod.asked[:3] == ["/hook", "/v1/pods/pod1/stop", "/v1/pods/pod1/stop"]
    assert runpod.asked.count("/hook") == 1


def test_a_webhook_that_fails_does_not_keep_the_pod(guard: MoneyGuard, runpod: RunPod) -> None:
    runpod.answers = [503]
    runpod.now += 10 * MINUTE
    guard.look()
    assert runpod.stops == 1


def test_the_key_is_never_in_the_log(guard: MoneyGuard, runpod: RunPod, caplog: pytest.LogCaptureFixture) -> None:
    runpod.answers = [200, 401]
    runpod.now += 10 * MINUTE
    guard.look()
    assert "answer 401" in caplog.text
    assert "secret" not in caplog.text


def test_another_machine_than_a_pod_is_a_sentence() -> None:
    with pytest.raises(SettingsError, match="Only a RunPod pod"):
        Pod.of_environment({"RUNPOD_POD_ID": "pod1"})
    with pytest.raises(SettingsError, match="Only a RunPod pod"):
        Pod.of_environment({"RUNPOD_POD_ID": "../me", "RUNPOD_API_KEY": "key"})


@pytest.mark.parametrize("minutes", [0.5, -1.0, float("nan"), float("inf")])
def test_a_time_that_makes_no_sense_is_a_sentence(manager: SessionManager, minutes: float) -> None:
    with pytest.raises(SettingsError, match="use 1 or more"):
        MoneyGuard(manager, Pod(id="pod1", key="k"), minutes)


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEEDVR_STOP_IDLE_MINUTES", raising=False)
    assert ServeOptions().idle_minutes == 0
    monkeypatch.setenv("SEEDVR_STOP_IDLE_MINUTES", "soon")
    with pytest.raises(SettingsError, match="number of minutes"):
        _ = ServeOptions().idle_minutes
