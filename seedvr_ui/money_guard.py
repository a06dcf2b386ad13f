"""Stops the rented pod when nothing has been to do for a while, so that nobody pays for an idle card. Off by default.

What counts as work: a job that runs or waits, any change of a job, and a file that is coming in. When the time is over
the webhook is told, if there is one; then RunPod's API is asked to stop the pod, with the key that RunPod gives to each
pod. A webhook that does not answer delays nothing. The volume stays, and the next start goes on with the queue.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from inference.errors import RestoreError, SettingsError
from seedvr_ui.sessions import SessionManager

log = logging.getLogger(__name__)

RUNPOD_API = "https://rest.runpod.io/v1"
_LOOK_EVERY_S = 5.0
_TIMEOUT_S = 20.0
_RETRY_WAITS_S = (10.0, 60.0, 300.0)
_CLOSE_LIMIT_S = 2.0
_POD_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Tell = Callable[[Mapping[str, Any]], object]
"""Tells the operator; may raise httpx2.HTTPError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod that this server runs on, and the key that may stop it."""

    id: str
    key: str
    api: str = RUNPOD_API

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Pod:
        """From RUNPOD_POD_ID and RUNPOD_API_KEY. Raises SettingsError if this is no pod."""
        pod_id, key = environment.get("RUNPOD_POD_ID", ""), environment.get("RUNPOD_API_KEY", "")
        if not _POD_ID.fullmatch(pod_id) or not key:
            raise SettingsError(
                "Only a RunPod pod can be stopped when idle: RUNPOD_POD_ID and RUNPOD_API_KEY are not set here. "
                "Leave --stop-idle-minutes away on other machines."
            )
        return cls(id=pod_id, key=key)

    def stop(self) -> None:
        """Ask for the stop; the pod ends a little later. Raises httpx2.HTTPError."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx2.Client(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            client.post(f"{self.api}/pods/{self.id}/stop", headers=headers).raise_for_status()


class MoneyGuard:
    """The thread that watches the queue. `idle_minutes` without work end in `pod.stop()`, after `tell`.

    `clock` gives seconds, for tests. Raises SettingsError for a time that makes no sense.
    """

    def __init__(
        self,
        manager: SessionManager,
        pod: Pod,
        idle_minutes: float,
        tell: Tell | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (math.isfinite(idle_minutes) and idle_minutes >= 1):
            raise SettingsError(f"{idle_minutes:g} minutes are too short to stop the pod after; use 1 or more.")
        self._manager = manager
        self._pod = pod
        self._idle_s = idle_minutes * 60
        self._tell = tell
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="money guard", daemon=True)
        self._last_work = clock()
        self._next_try = 0.0
        self._num_tries = 0
        self._trace: object = None

    def start(self) -> None:
        """Begin to watch; the time counts from now."""
        self._last_work = self._clock()
        log.info("the pod is stopped when nothing has been to do for %g minutes", self._idle_s / 60)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_LIMIT_S)

    def look(self) -> None:
        """One look at the queue, and the stop if it is time. Raises RestoreError or OSError if the store is away."""
        now = self._clock()
        trace = self._manager.store.revision(), self._arriving()
        if trace != self._trace or not self._manager.is_idle():
            self._trace, self._last_work, self._num_tries, self._next_try = trace, now, 0, 0.0
            return
        if now - self._last_work < self._idle_s or now < self._next_try:
            return
        if self._num_tries == 0:
            self._notify(now - self._last_work)
            if not self._manager.is_idle():  # a job came while the operator was told
                return
        try:
            self._pod.stop()
        except httpx2.HTTPError as error:
            wait_s = _RETRY_WAITS_S[min(self._num_tries, len(_RETRY_WAITS_S) - 1)]
            log.error("RunPod did not stop the pod (%s); it is asked again in %.0f s", _words(error), wait_s)
        else:
            wait_s = _RETRY_WAITS_S[-1]  # if it is still here by then, it was not stopped
            log.warning("nothing was to do for %.0f minutes; RunPod stops the pod", (now - self._last_work) / 60)
        self._num_tries += 1
        self._next_try = now + wait_s

    # --- inside ---

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            try:
                self.look()
            except (RestoreError, OSError):
                log.exception("the queue cannot be looked at, so the pod goes on")
            except Exception:  # noqa: BLE001  a guard that has died in silence would cost a night
                log.exception("the money guard goes on with the next look")

    def _arriving(self) -> float:
        """When bytes of an upload last came in, over all of them; 0 if there are none."""
        uploads, newest = self._manager.uploads, 0.0
        for session, folder in self._manager.storage.upload_folders():
            with contextlib.suppress(OSError, RestoreError):  # discarded while we look
                newest = max(newest, uploads.last_change(session, folder.name))
        return newest

    def _notify(self, idle_s: float) -> None:
        if self._tell is None:
            return
        try:
            self._tell({"event": "pod.stopping", "pod": self._pod.id, "idle_seconds": round(idle_s), "at": time.time()})
        except httpx2.HTTPError as error:
            log.warning("the webhook was not told that the pod stops: %s", _words(error))


def _words(error: httpx2.HTTPError) -> str:
    """What went wrong, without the address: it may hold a secret."""
    if isinstance(error, httpx2.HTTPStatusError):
        return f"answer {error.response.status_code}"
    return type(error).__name__
