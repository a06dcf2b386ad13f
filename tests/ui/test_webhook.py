"""The webhook against a real server on this machine: told at least once, signed, and never in a job's way."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from inference.errors import SettingsError
from inference.progress import Progress, Stage
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.sessions import SessionManager
from seedvr_ui.webhook import DELIVERY, SIGNATURE, Webhook, begin_record, check_url, end_record, sign
from tests.ui.conftest import FakeEngine, MakeManager, Submit, Wait


@dataclass
class Receiver:
    """A web server that keeps what it is sent. `answers` are its next status codes, 200 after them."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def events(self, job: Job) -> list[str]:
        return [message["event"] for message in self.messages if message["id"] == job.id]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            code = receiver.answers.pop(0) if receiver.answers else 200
            self.send_response(code)
            if code == 302:
                self.send_header("location", receiver.url)
            self.send_header("content-length", "0")
            self.end_headers()
            if code == 200:
                receiver.bodies.append(body)
                receiver.headers.append({key.lower(): value for key, value in self.headers.items()})
                receiver.messages.append(json.loads(body))

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join()


StartHook = Callable[..., Webhook]


@pytest.fixture
def start_hook(receiver: Receiver) -> Iterator[StartHook]:
    """start_hook(manager, url=..., ...) is the webhook of one server; it is closed at the end."""
    hooks: list[Webhook] = []

    def start_hook(manager: SessionManager, url: str = "", **options: Any) -> Webhook:
        hooks.append(Webhook(manager, url or receiver.url, retry_waits_s=(0.0,), **options))
        hooks[-1].start()
        return hooks[-1]

    yield start_hook
    for hook in hooks:
        hook.close()


def test_the_end_of_a_job_is_told_once_and_signed(
    manager: SessionManager, submit: Submit, receiver: Receiver, start_hook: StartHook, wait_until: Wait
) -> None:
    start_hook(manager, secret="key", root="/below/")
    good, bad, stopped = submit("good.mp4"), submit("bad.mp4", "fail:It is broken."), submit("stopped.mp4")
    manager.cancel(stopped.owner, stopped.id)
    manager.start()
    wait_until(lambda: len(receiver.messages) >= 3)
    told = {message["id"]: message for message in receiver.messages}
    assert told[good.id] | {"seconds": 0, "at": 0} == {
        "event": "job.succeeded", "id": good.id, "name": "good.mp4", "status": "succeeded", "message": "",
        "seconds": 0, "at": 0, "link": f"/below/api/v1/jobs/{good.id}/download",
    }  # fmt: skip
    assert told[good.id]["seconds"] > 0
    assert (told[bad.id]["event"], told[bad.id]["message"]) == ("job.failed", "It is broken.")
    assert told[stopped.id]["link"] == f"/below/api/v1/jobs/{stopped.id}"
    for headers, body in zip(receiver.headers, receiver.bodies, strict=True):
        assert headers[SIGNATURE.lower()] == sign(b"key", body)
    assert len({headers[DELIVERY.lower()] for headers in receiver.headers}) == 3
    wait_until(lambda: not manager.news(0.0, 10))
    assert len(receiver.messages) == 3


def test_the_signature_is_the_hmac_of_the_body() -> None:
    assert sign(b"key", b"The quick brown fox jumps over the lazy dog") == (
        "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
    )


def test_a_pause_is_told_only_if_nobody_asked_for_it(
    manager: SessionManager, submit: Submit, engine: FakeEngine, receiver: Receiver, start_hook: StartHook,
    wait_until: Wait,
) -> None:  # fmt: skip
    start_hook(manager)
    asked, full = submit("asked.mp4"), submit("full.mp4")
    manager.pause(asked.owner, asked.id)
    engine.errors.append(OSError(errno.ENOSPC, "No space left on device"))
    manager.start()
    wait_until(lambda: bool(receiver.messages))
    assert receiver.events(full) == ["job.paused"]
    assert "disk is full" in receiver.messages[0]["message"]
    assert receiver.events(asked) == []


def test_what_ended_before_the_server_did_is_told_after_its_next_start(
    make_manager: MakeManager, engine: FakeEngine, receiver: Receiver, start_hook: StartHook, wait_until: Wait
) -> None:
    first = make_manager()
    hook = start_hook(first)
    hook.close()  # it ended between the end of the job and the message
    owner = "a" * 32
    upload = first.uploads.begin(owner, "a.mp4", 6)
    first.uploads.append(owner, upload.id, 0, b"pixels")
    (job,) = first.submit(owner, [upload.id], {})
    first.start()
    wait_until(lambda: first.job(owner, job.id).status is JobStatus.SUCCEEDED)
    first.close()
    assert receiver.messages == []
    second = make_manager()
    start_hook(second)
    wait_until(lambda: bool(receiver.messages))
    assert receiver.events(job) == ["job.succeeded"]
    wait_until(lambda: not second.news(0.0, 10))
    third = make_manager()
    assert third.reindex() == 1  # the mark is in the job, not in the index
    assert third.news(0.0, 10) == []


def test_refusals_and_a_server_that_is_away_are_tried_again(
    manager: SessionManager, submit: Submit, receiver: Receiver, start_hook: StartHook, wait_until: Wait
) -> None:
    receiver.answers = [500, 404, 302]
    start_hook(manager)
    job = submit("a.mp4")
    manager.cancel(job.owner, job.id)
    wait_until(lambda: bool(receiver.messages))
    assert receiver.answers == []
    assert receiver.events(job) == ["job.cancelled"]


def test_a_receiver_that_is_away_disturbs_no_job_and_is_told_when_it_is_back(
    manager: SessionManager, submit: Submit, receiver: Receiver, start_hook: StartHook, wait_until: Wait
) -> None:
    hook = start_hook(manager, url="http://127.0.0.1:1/hook")
    job, other = submit("a.mp4"), submit("b.mp4")
    manager.start()
    wait_until(lambda: manager.job(job.owner, other.id).status is JobStatus.SUCCEEDED)
    hook.close()
    start_hook(manager)
    wait_until(lambda: len(receiver.messages) >= 2)
    assert receiver.events(job) == receiver.events(other) == ["job.succeeded"]


def test_every_change_is_told_in_order_also_when_the_job_went_on(
    manager: SessionManager, submit: Submit, receiver: Receiver, start_hook: StartHook, wait_until: Wait
) -> None:
    hook = start_hook(manager)
    hook.close()
    job = submit("a.mp4")
    manager.cancel(job.owner, job.id)
    manager.retry(job.owner, job.id)
    manager.cancel(job.owner, job.id)
    receiver.answers = [503]
    start_hook(manager)
    wait_until(lambda: len(receiver.messages) >= 2)
    assert [message["at"] for message in receiver.messages] == sorted(
        change.at for change in manager.job(job.owner, job.id).history if change.status is JobStatus.CANCELLED
    )


def test_what_happened_without_a_webhook_is_not_told_later(
    manager: SessionManager, submit: Submit, receiver: Receiver, start_hook: StartHook, wait_until: Wait
) -> None:
    old = submit("old.mp4")
    manager.cancel(old.owner, old.id)
    start_hook(manager)
    new = submit("new.mp4")
    manager.cancel(new.owner, new.id)
    wait_until(lambda: bool(receiver.messages))
    assert (receiver.events(old), receiver.events(new)) == ([], ["job.cancelled"])
    root = manager.storage.root
    assert begin_record(root) == begin_record(root) > manager.job(old.owner, old.id).history[-1].at
    end_record(root)
    assert begin_record(root) > manager.job(new.owner, new.id).history[-1].at


def test_a_damaged_record_begins_anew(manager: SessionManager) -> None:
    (manager.storage.root / "webhook.json").write_text("{")
    before = time.time()
    assert begin_record(manager.storage.root) >= before


@pytest.mark.parametrize("url", ["hook", "ftp://host/x", "http://", "http://host:port/x"])
def test_an_address_that_cannot_work_is_refused_at_once(manager: SessionManager, url: str) -> None:
    with pytest.raises(SettingsError, match=r"https://host/path"):
        check_url(url)


def test_times_stay_in_order_when_the_clock_goes_back(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit("a.mp4").start()
    monkeypatch.setattr(time, "time", lambda: 5.0)
    job = job.advance(Progress(Stage.RESTORE, 1, 2)).fail("It is broken.").tell(job.history[-1].at)
    assert [change.status for change in job.news] == [JobStatus.FAILED]
    assert job.tell(job.news[-1].at).news == ()
