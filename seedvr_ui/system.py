"""Health: whether the server is ready for work, and the last examination of the machine. Without gradio."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from inference.doctor.findings import Finding, Report, Severity, last_report, save_report
from inference.errors import CancelledError, RestoreError
from inference.progress import Cancellation
from seedvr_ui.sessions import SessionManager

log = logging.getLogger(__name__)

_REMEMBER_S = 5.0
_STORE_LIMIT_S = 5.0


class Examine(Protocol):
    """Examines the machine; calls `tell` with each finding as it comes. Raises CancelledError."""

    def __call__(self, *, tell: Callable[[Finding], None], cancellation: Cancellation) -> Report: ...


class System:
    """What the server knows of its own health.

    `examine` runs the doctor; `check_worker` raises RestoreError if the worker cannot be started.
    """

    def __init__(self, manager: SessionManager, examine: Examine, check_worker: Callable[[], None]) -> None:
        self._manager = manager
        self._examine, self._check_worker = examine, check_worker
        self._lock = threading.Lock()
        self._cancellation = Cancellation()
        self._thread: threading.Thread | None = None
        self._coming: list[Finding] = []
        self._reasons: tuple[float, list[str]] = (-_REMEMBER_S, [])
        self._looking = threading.Lock()

    # --- the doctor ---

    def report(self) -> Report | None:
        """The last report on this machine, by the server or the command line; None if there is none."""
        return last_report(self._manager.storage.root)

    def coming(self) -> list[Finding] | None:
        """What the examination that goes on has found so far; None if none does."""
        with self._lock:
            return list(self._coming) if self._thread is not None else None

    def start_examination(self) -> bool:
        """Examine the machine in the background; False if that goes on already."""
        with self._lock:
            if self._thread is not None or self._cancellation.is_set():
                return False
            self._coming = []
            self._thread = threading.Thread(target=self._run, name="doctor", daemon=True)
            self._thread.start()
            return True

    def close(self) -> None:
        """Stop an examination that goes on."""
        self._cancellation.cancel()
        thread = self._thread
        if thread is not None:
            thread.join(2.0)

    def _run(self) -> None:
        try:
            report = self._examine(tell=self._coming.append, cancellation=self._cancellation)
            if not save_report(self._manager.storage.root, report):
                log.warning("the report of the doctor could not be kept in the data folder")
            for finding in report.findings:
                if finding.severity in (Severity.WARNING, Severity.ERROR):
                    log.warning("doctor: %s %s", finding.sentence, finding.action)
        except CancelledError:
            log.info("the examination was stopped")
        except Exception:  # noqa: BLE001  a bug in it must not leave the page waiting for ever
            log.exception("the examination failed")
        finally:
            with self._lock:
                self._thread = None

    # --- readiness ---

    def reasons(self) -> list[str]:
        """Why the server is not ready for work, in sentences without names or paths; empty if it is.

        What was found is remembered for some seconds, so that asking often costs nothing.
        """
        with self._looking:
            if time.monotonic() - self._reasons[0] >= _REMEMBER_S:
                found = [
                    *self._store_trouble(),
                    *self._folder_trouble(),
                    *self._worker_trouble(),
                    *self._doctor_trouble(),
                ]
                self._reasons = time.monotonic(), found
            return self._reasons[1]

    def _store_trouble(self) -> list[str]:
        answers: list[bool] = []

        def ask() -> None:
            try:
                self._manager.counts()
                answers.append(True)
            except (RestoreError, OSError) as error:
                log.warning("not ready: %s", error)

        thread = threading.Thread(target=ask, name="ready", daemon=True)  # a database that is away answers late
        thread.start()
        thread.join(_STORE_LIMIT_S)
        return [] if answers else ["The index of jobs does not answer."]

    def _folder_trouble(self) -> list[str]:
        try:
            _write(self._manager.storage.root)
        except OSError as error:
            log.warning("not ready, the data folder cannot be written: %s", error)
            return ["The data folder cannot be written."]
        return [] if self._manager.storage.has_space() else ["The disk is full."]

    def _worker_trouble(self) -> list[str]:
        try:
            self._check_worker()
        except (RestoreError, OSError) as error:
            log.warning("not ready, the worker does not start: %s", error)
            return ["The worker does not start."]
        return []

    def _doctor_trouble(self) -> list[str]:
        report = self.report()
        found = report.findings if report is not None else []
        checks = sorted({finding.check for finding in found if finding.severity is Severity.ERROR})
        return [f"The doctor found an error ({', '.join(checks)}); see the System page."] if checks else []


def _write(folder: Path) -> None:
    path = folder / f".ready-{os.getpid()}"
    try:
        path.write_bytes(b"ready")
    finally:
        path.unlink(missing_ok=True)
