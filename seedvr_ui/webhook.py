"""Tells a web address of the operator when a job has ended, or waits since the disk is full. Never in a job's way.

Each change is told at least once, in its order, also if the server was started again in between: what was delivered is
noted in the job itself. What happened before a data folder had a webhook is not told. A receiver that answers with
anything but 2xx, or not at all, is asked again with growing pauses, for a day.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from inference.durable import write_bytes
from inference.errors import RestoreError, SettingsError
from seedvr_ui.jobs import Change, Job, JobStatus
from seedvr_ui.sessions import SessionManager
from seedvr_ui.store import UnknownJobError

log = logging.getLogger(__name__)

SIGNATURE = "X-SeedVR-Signature"
DELIVERY = "X-SeedVR-Delivery"
RETRY_WAITS_S = (2.0, 10.0, 60.0, 300.0, 600.0)
"""Pauses between attempts; the last one is repeated."""

_GIVE_UP_S = 86400.0
_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 1.0
_TROUBLE_S = 10.0
_MAX_JOBS = 100
_CLOSE_LIMIT_S = 2.0
_RECORD = "webhook.json"


@dataclass(slots=True)
class _Failure:
    """How often a change could not be delivered, and when it is tried again, by the monotonic clock."""

    count: int
    next_at: float


class Webhook:
    """The thread that tells. `url` is http or https; with a `secret` each message is signed; links begin with `root`.

    Raises SettingsError for a URL that cannot work.
    """

    def __init__(
        self,
        manager: SessionManager,
        url: str,
        secret: str = "",
        root: str = "",
        retry_waits_s: Sequence[float] = RETRY_WAITS_S,
    ) -> None:
        self._manager = manager
        self._url = check_url(url)
        self._secret = secret.encode()
        self._root = root.strip("/")
        self._retry_waits_s = retry_waits_s
        self._failures: dict[tuple[str, float], _Failure] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._since = 0.0

    def start(self) -> None:
        """Begin to tell what happens from now on, and what an earlier server has not told."""
        self._since = begin_record(self._manager.storage.root)
        self._thread.start()

    def close(self) -> None:
        """Stop; what is not told yet is told after the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_LIMIT_S)

    def announce(self, message: Mapping[str, Any]) -> None:
        """Tell something that is about no job, once, now. Raises httpx2.HTTPError if it was not taken."""
        with httpx2.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            key = f"{message['event']}-{message['at']:.6f}"
            status = self._send(client, json.dumps(message, ensure_ascii=False).encode(), key)
        if not 200 <= status < 300:
            raise httpx2.HTTPError(f"the webhook answers {status}")

    # --- inside ---

    def _run(self) -> None:
        revision = -1
        with httpx2.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            while not self._stop.is_set():
                pause_s = _LOOK_EVERY_S
                try:
                    newest = self._manager.store.revision()
                    if newest != revision or self._failures:
                        revision = newest
                        self._tell_all(client)
                except (RestoreError, OSError):  # the store is away, or the disk is full
                    log.exception("the webhook goes on in %.0f s", _TROUBLE_S)
                    revision, pause_s = -1, _TROUBLE_S
                except Exception:  # noqa: BLE001  whatever it is, the next look may do better, and jobs go on
                    log.exception("the webhook goes on in %.0f s", _TROUBLE_S)
                    revision, pause_s = -1, _TROUBLE_S
                self._stop.wait(pause_s)

    def _tell_all(self, client: httpx2.Client) -> None:
        """One round over what is to be told; it ends early where nobody answers."""
        jobs = self._manager.news(self._since, _MAX_JOBS)
        current = {(job.id, change.at) for job in jobs for change in job.news}
        self._failures = {key: failure for key, failure in self._failures.items() if key in current}
        for job in jobs:
            for change in job.news:
                if change.at <= self._since:
                    continue
                failure = self._failures.get((job.id, change.at))
                if self._stop.is_set():
                    return
                if failure is not None and time.monotonic() < failure.next_at:
                    break  # the later changes of this job wait for the earlier one
                try:
                    is_told = self._post(client, job, change)
                except httpx2.TransportError as error:
                    log.warning("the webhook does not answer: %r", error)
                    self._note_failure(job, change)
                    return
                if not is_told and not self._note_failure(job, change):
                    break
                self._note_told(job, change)

    def _post(self, client: httpx2.Client, job: Job, change: Change) -> bool:
        body = json.dumps(message_of(job, change, self._root), ensure_ascii=False).encode()
        status = self._send(client, body, f"{job.id}-{change.at:.6f}")
        if 200 <= status < 300:
            log.info("the webhook was told that job %s is %s", job.id, change.status.value)
            return True
        log.warning("the webhook answers %d for job %s", status, job.id)
        return False

    def _send(self, client: httpx2.Client, body: bytes, delivery: str) -> int:
        """POST one signed message; returns the status code of the answer."""
        headers = {"Content-Type": "application/json", DELIVERY: delivery}
        if self._secret:
            headers[SIGNATURE] = sign(self._secret, body)
        # Only the head of the answer matters; a body without end would hold the thread.
        with client.stream("POST", self._url, content=body, headers=headers) as answer:
            return answer.status_code

    def _note_failure(self, job: Job, change: Change) -> bool:
        """Plan the next attempt; returns whether it is time to give up."""
        if time.time() > change.at + _GIVE_UP_S:
            log.error("the webhook was not told that job %s is %s; it is given up", job.id, change.status.value)
            return True
        count = self._failures[job.id, change.at].count + 1 if (job.id, change.at) in self._failures else 1
        wait_s = self._retry_waits_s[min(count, len(self._retry_waits_s)) - 1]
        self._failures[job.id, change.at] = _Failure(count, time.monotonic() + wait_s)
        return False

    def _note_told(self, job: Job, change: Change) -> None:
        self._failures.pop((job.id, change.at), None)
        try:
            self._manager.tell(job.id, change.at)
        except UnknownJobError:
            log.info("job %s was deleted meanwhile", job.id)


def message_of(job: Job, change: Change, root: str = "") -> dict[str, Any]:
    """What is told of one change. `link` is a path of the server: that of the result, else that of the job."""
    prefix = f"/{root}" if root else ""
    is_done = change.status is JobStatus.SUCCEEDED
    return {
        "event": f"job.{change.status.value}",
        "id": job.id,
        "name": job.source.name,
        "status": change.status.value,
        "message": "" if is_done else change.reason,
        "seconds": round(job.worked_s, 3),
        "at": change.at,
        "link": f"{prefix}/api/v1/jobs/{job.id}{'/download' if is_done else ''}",
    }


def sign(secret: bytes, body: bytes) -> str:
    """The value of the signature header: `sha256=` and the hexadecimal HMAC-SHA256 of the body."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def check_url(url: str) -> str:
    """`url`, if messages can be sent to it. Raises SettingsError."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise SettingsError(f"The webhook {url!r} is no address ({error}); write it as https://host/path.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(f"The webhook {url!r} is no address; write it as https://host/path.")
    return url


def begin_record(root: Path) -> float:
    """Since when this data folder has had a webhook, in seconds since the epoch; from now on if it had none."""
    path = root / _RECORD
    try:
        since = _since_of(json.loads(path.read_bytes()))
    except FileNotFoundError:
        since = None
    except ValueError:
        log.warning("%s is damaged; the webhook tells what happens from now on", path)
        since = None
    if since is None:
        since = time.time()
        write_bytes(path, json.dumps({"since": since}).encode())
    return since


def end_record(root: Path) -> None:
    """Note that this data folder has no webhook: what happens now is never told to a later one."""
    (root / _RECORD).unlink(missing_ok=True)


def _since_of(record: Mapping[str, Any]) -> float:
    if not isinstance(record, Mapping) or not isinstance(record.get("since"), float):
        raise ValueError("no time in it")
    return float(record["since"])
