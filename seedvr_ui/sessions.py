"""The queue: who owns which job, what runs next, and when files go. Without gradio.

Handlers and routes submit and read snapshots; one thread runs the jobs one after another through the callables that
the composition root passed in. Nothing here outlives the process: jobs live in memory, files on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import RestoreError
from inference.progress import Cancellation, Progress
from seedvr_ui.jobs import Job, JobStatus, MakePreview, Restore, run_job
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.uploads import Check, Uploads

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the queue needs from the engine, as plain callables."""

    check: Check
    restore: Restore
    make_preview: MakePreview


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one session may ask for, and how long finished work is kept."""

    max_upload_bytes: int = 100 * 10**9
    max_jobs: int = 200
    keep_s: float = 7 * 86400.0
    sweep_every_s: float = 3600.0


class UnknownJobError(RestoreError):
    """The job does not exist (any more), or belongs to another session."""

    def __init__(self) -> None:
        super().__init__("This job no longer exists; reload the page to see the queue as it is.")


class SessionManager:
    """All jobs of all sessions, first come first served."""

    def __init__(self, storage: Storage, services: Services, limits: Limits | None = None) -> None:
        self.storage = storage
        self.limits = limits or Limits()
        self.uploads = Uploads(storage, services.check, self.limits.max_upload_bytes)
        self._services = services
        self._jobs: dict[str, Job] = {}
        self._cancellations: dict[str, Cancellation] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="queue", daemon=True)

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def close(self) -> None:
        """Stop the running job and take no more; returns within seconds. May be called twice."""
        with self._changed:
            self._is_closed = True
            for cancellation in self._cancellations.values():
                cancellation.cancel()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_JOIN_TIMEOUT_S)

    def submit(self, session: str, upload_ids: Sequence[str], settings: Mapping[str, Any]) -> list[Job]:
        """Queue one job per ready upload, in the given order, all with `settings` (a whole settings tree)."""
        with self._changed:
            num_jobs = sum(job.session == session for job in self._jobs.values())
        if num_jobs + len(upload_ids) > self.limits.max_jobs:
            raise RestoreError(f"The queue holds at most {self.limits.max_jobs} jobs; remove finished ones first.")
        jobs = []
        for upload_id in upload_ids:
            job_id = new_id()
            folder = self.storage.job_folder(session, job_id)
            upload, source = self.uploads.take(session, upload_id, folder)
            assert upload.media is not None  # a ready upload has been checked
            suffix = ".png" if upload.media.get("is_image") else ".mp4"
            target = folder / "result" / f"{source.stem}_restored{suffix}"
            job = Job(
                id=job_id, session=session, folder=folder, source=source, target=target, settings=settings,
                media=upload.media,
            )  # fmt: skip
            with self._changed:
                self._jobs[job.id] = job
                self._changed.notify_all()
            jobs.append(job)
        return jobs

    def jobs(self, session: str) -> list[Job]:
        """A snapshot of the jobs of `session`: the running one, then the queue in its order, then newest results."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if job.session == session]
        waiting = sorted((job for job in jobs if not job.is_finished), key=_waiting_order)
        finished = sorted((job for job in jobs if job.is_finished), key=lambda job: -(job.finished_at or 0.0))
        return waiting + finished

    def job(self, session: str, job_id: str) -> Job:
        """The job with this id, if it belongs to `session`."""
        with self._changed:
            return self._find(session, job_id)

    def num_ahead(self, job: Job) -> int:
        """How many jobs, of any session, run before `job`."""
        with self._changed:
            return sum(
                other.status is JobStatus.RUNNING or _waiting_order(other) < _waiting_order(job)
                for other in self._jobs.values()
                if not other.is_finished and other.id != job.id
            )

    def counts(self) -> dict[str, int]:
        """The number of jobs per status, over all sessions."""
        with self._changed:
            statuses = [job.status for job in self._jobs.values()]
        return {status.value: statuses.count(status) for status in JobStatus}

    def cancel(self, session: str, job_id: str) -> None:
        """Stop a job: at once if it waits, at its next step if it runs. A finished job stays as it is."""
        with self._changed:
            job = self._find(session, job_id)
            if job.status is JobStatus.QUEUED:
                self._jobs[job.id] = job.cancel()
            elif job.id in self._cancellations:
                self._cancellations[job.id].cancel()

    def retry(self, session: str, job_id: str) -> None:
        """Queue a failed or cancelled job once more."""
        with self._changed:
            job = self._find(session, job_id)
            self._jobs[job.id] = job.requeue()
            self._changed.notify_all()

    def remove(self, session: str, job_id: str) -> None:
        """Forget a finished job and delete its files."""
        with self._changed:
            job = self._find(session, job_id)
            if not job.is_finished:
                raise RestoreError("This job is still at work; cancel it before you remove it.")
            del self._jobs[job.id]
        self.storage.remove(job.folder)

    def expire(self) -> None:
        """Forget and delete whatever has rested for longer than the age limit."""
        limit = time.time() - self.limits.keep_s
        with self._changed:
            old = [job for job in self._jobs.values() if job.is_finished and (job.finished_at or 0.0) < limit]
            for job in old:
                del self._jobs[job.id]
            keep = {job.folder for job in self._jobs.values()}
        for job in old:
            self.storage.remove(job.folder)
        removed = self.storage.remove_older_than(self.limits.keep_s, keep)
        if old or removed:
            log.info("expired %d jobs, %d folders", len(old), len(removed))

    def _find(self, session: str, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.session != session:
            raise UnknownJobError()
        return job

    def _run(self) -> None:
        next_sweep = time.monotonic()
        while True:
            if time.monotonic() >= next_sweep:
                self._sweep()
                next_sweep = time.monotonic() + self.limits.sweep_every_s
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._next() is not None, self.limits.sweep_every_s)
                if self._is_closed:
                    return
                job = self._next()
                if job is None:
                    continue
                job = self._jobs[job.id] = job.start()
                cancellation = self._cancellations[job.id] = Cancellation()
            self._run_one(job, cancellation)

    def _run_one(self, job: Job, cancellation: Cancellation) -> None:
        def report(progress: Progress) -> None:
            with self._changed:
                self._jobs[job.id] = self._jobs[job.id].advance(progress)

        log.info("job %s starts: %s", job.id, job.source.name)
        finished = run_job(job, self._services.restore, self._services.make_preview, report, cancellation)
        with self._changed:
            self._jobs[job.id] = finished
            del self._cancellations[job.id]
        log.info("job %s %s", job.id, finished.status.value)

    def _sweep(self) -> None:
        try:
            self.expire()
        except OSError:  # a full or vanished disk must not end the queue
            log.exception("could not delete expired files")

    def _next(self) -> Job | None:
        queued = [job for job in self._jobs.values() if job.status is JobStatus.QUEUED]
        return min(queued, key=_waiting_order, default=None)


def _waiting_order(job: Job) -> tuple[bool, float]:
    return job.status is not JobStatus.RUNNING, job.queued_at


def result_file(job: Job) -> Path:
    """The master file of a job that succeeded."""
    if job.status is not JobStatus.SUCCEEDED or not job.target.exists():
        raise RestoreError("This job has no result yet; wait until it is done.")
    return job.target
