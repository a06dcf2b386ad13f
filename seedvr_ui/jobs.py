"""One job: its states, the allowed transitions, and how it is run. Without gradio.

    QUEUED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED        QUEUED -> CANCELLED        FAILED | CANCELLED -> QUEUED

A Job is a value: every transition returns a new one, so a snapshot never changes under its reader.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from inference.errors import CancelledError, RestoreError
from inference.progress import Cancellation, Progress, Report

log = logging.getLogger(__name__)

Restore = Callable[[Path, Path, Mapping[str, Any], Report, Cancellation], Mapping[str, Any]]
"""(source, target, settings, report, cancellation) -> summary; raises RestoreError, CancelledError when stopped."""

MakePreview = Callable[[Path, Path, Path, Cancellation], Mapping[str, Any]]
"""(source, result, folder, cancellation) -> what the comparing player shows; writes its files into the folder."""


class JobStatus(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_NEXT = {
    JobStatus.QUEUED: {JobStatus.RUNNING, JobStatus.CANCELLED},
    JobStatus.RUNNING: {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED},
    JobStatus.SUCCEEDED: set[JobStatus](),
    JobStatus.FAILED: {JobStatus.QUEUED},
    JobStatus.CANCELLED: {JobStatus.QUEUED},
}


class TransitionError(RestoreError):
    """A job cannot go from its state to the wanted one."""

    def __init__(self, before: JobStatus, after: JobStatus) -> None:
        super().__init__(f"This job is {before.value} and cannot become {after.value}; look at the queue again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to restore, and what has become of it. Times are seconds since the epoch."""

    id: str
    session: str
    folder: Path
    source: Path
    target: Path
    settings: Mapping[str, Any]
    media: Mapping[str, Any] = field(default_factory=dict)
    status: JobStatus = JobStatus.QUEUED
    progress: Progress | None = None
    message: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    preview: Mapping[str, Any] = field(default_factory=dict)
    queued_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen unless somebody asks."""
        return self.status not in (JobStatus.QUEUED, JobStatus.RUNNING)

    @property
    def can_retry(self) -> bool:
        """Whether the job may be queued once more."""
        return JobStatus.QUEUED in _NEXT[self.status]

    def start(self) -> Job:
        """The job as it is taken from the queue."""
        return self._to(JobStatus.RUNNING, started_at=time.time(), progress=None)

    def advance(self, progress: Progress) -> Job:
        """The job with its newest progress; only a running job has any."""
        return replace(self, progress=progress) if self.status is JobStatus.RUNNING else self

    def succeed(self, summary: Mapping[str, Any], preview: Mapping[str, Any]) -> Job:
        """The job with its result in `target`."""
        return self._to(JobStatus.SUCCEEDED, summary=summary, preview=preview, finished_at=time.time())

    def fail(self, message: str) -> Job:
        """The job that ended with `message`, a sentence for the user."""
        return self._to(JobStatus.FAILED, message=message, finished_at=time.time())

    def cancel(self) -> Job:
        """The job that the user stopped."""
        return self._to(JobStatus.CANCELLED, finished_at=time.time())

    def requeue(self) -> Job:
        """The job at the end of the queue again, as if it were new."""
        return self._to(
            JobStatus.QUEUED, progress=None, message="", queued_at=time.time(), started_at=None, finished_at=None
        )

    def _to(self, status: JobStatus, **changes: Any) -> Job:
        if status not in _NEXT[self.status]:
            raise TransitionError(self.status, status)
        return replace(self, status=status, **changes)


def run_job(job: Job, restore: Restore, make_preview: MakePreview, report: Report, cancellation: Cancellation) -> Job:
    """Run a RUNNING `job` to its end; whatever happens is in the job that comes back.

    A result without a preview is still a result: the note is in the job's message.
    """
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        summary = restore(job.source, job.target, job.settings, report, cancellation)
        cancellation.check()
        try:
            preview = make_preview(job.source, job.target, job.folder, cancellation)
        except CancelledError:
            raise
        except RestoreError as error:
            log.warning("job %s has no preview: %s", job.id, error)
            preview = {}
        return job.succeed(summary, preview)
    except CancelledError:
        return job.cancel()
    except RestoreError as error:
        return job.cancel() if cancellation.is_set() else job.fail(str(error))
    except Exception:  # noqa: BLE001  the one place where a bug becomes a message; the traceback goes to the log
        log.exception("job %s", job.id)
        return job.fail(f"Something unexpected went wrong; try again, or report it with the job number {job.id[:8]}.")
