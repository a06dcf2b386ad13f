"""Runs jobs: takes one after another from the store, keeps its lease, and writes down how it ended. Without gradio.

One thread works, a second one renews the lease of the job at work. What goes wrong with one job, or with the disk or
the database between two jobs, never ends the queue.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from inference.errors import RestoreError
from inference.logs import log_of_job
from inference.progress import Cancellation, Progress
from seedvr_ui.attempt import MakePreview, Restore, run_job
from seedvr_ui.jobs import Job, JobStatus, Outcome, Wish
from seedvr_ui.manifest import folder_bytes
from seedvr_ui.shot_count import CountShots, ShotCount
from seedvr_ui.storage import Storage
from seedvr_ui.store import LeaseLostError, Store, UnknownJobError

log = logging.getLogger(__name__)

POLL_S = 2.0
_TROUBLE_S = 10.0
_LOOK_S = 1.0
_SAVE_EVERY = 6
_FIRST_SWEEP_S = 60.0


@dataclass(slots=True)
class _Live:
    """The job at work, as this process knows it. `job` has the newest progress; `is_lost` when the lease has gone."""

    job: Job
    cancellation: Cancellation = field(default_factory=Cancellation)
    ended: threading.Event = field(default_factory=threading.Event)
    is_lost: bool = False


class Runner:
    """The work on the queue of `store`, from `start` to `close`.

    `on_progress` is called with each news of the job at work, `sweep` every `sweep_every_s` seconds between jobs.
    """

    def __init__(
        self,
        store: Store,
        storage: Storage,
        restore: Restore,
        make_preview: MakePreview,
        *,
        on_progress: Callable[[], None],
        sweep: Callable[[], None],
        sweep_every_s: float,
        count_shots: CountShots | None = None,
    ) -> None:
        self._count_shots = count_shots
        self._store, self._storage = store, storage
        self._restore, self._make_preview = restore, make_preview
        self._on_progress, self._sweep, self._sweep_every_s = on_progress, sweep, sweep_every_s
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._live: _Live | None = None
        self._thread = threading.Thread(target=self._run, name="queue", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def wake(self) -> None:
        """Look into the queue now; there is something new."""
        self._wake.set()

    def newest(self, job: Job) -> Job:
        """`job` with its newest progress, if it is at work here."""
        live = self._live
        if live is None or (live.job.id, live.job.token) != (job.id, job.token) or job.status is not JobStatus.RUNNING:
            return job
        return job.advance(live.job.progress) if live.job.progress is not None else job

    def stop(self, job_id: str) -> None:
        """Stop that job at its next check, if it is at work here; the store knows why."""
        live = self._live
        if live is not None and live.job.id == job_id:
            live.cancellation.cancel()

    def close(self, limit_s: float) -> None:
        """Take no more, stop the job at work and wait for it; one that does not stop in time counts as interrupted."""
        deadline = time.monotonic() + limit_s
        self._closing.set()
        self._wake.set()
        live = self._live
        if live is not None:
            live.cancellation.cancel()
        if not self._thread.is_alive():
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        live = self._live
        if self._thread.is_alive() and live is not None:
            live.is_lost = True
            live.ended.set()
            log.warning("job %s does not stop; it is interrupted as it is", live.job.id)
            try:
                self._store.change(
                    live.job.id, lambda job: job.interrupt("the server was stopped"), token=live.job.token
                )  # fmt: skip
            except (RestoreError, OSError) as error:
                log.warning("job %s: %s", live.job.id, error)

    def _run(self) -> None:
        next_look = time.monotonic()
        next_sweep = next_look + min(_FIRST_SWEEP_S, self._sweep_every_s)  # not while the server is starting
        while not self._closing.is_set():
            pause_s = POLL_S
            try:
                now = time.monotonic()
                if now >= next_look:
                    self._recover()
                    next_look = now + self._store.lease_s / 2
                if now >= next_sweep:
                    next_sweep = now + self._sweep_every_s
                    self._sweep()
                if self._work():
                    continue
            except (RestoreError, OSError):  # a full disk or a database that is away must not end the queue
                log.exception("the queue goes on in %.0f s", _TROUBLE_S)
                pause_s = _TROUBLE_S
            self._wake.wait(pause_s)
            self._wake.clear()

    def _recover(self) -> None:
        for job in self._store.recover():
            log.info("job %s was left by a process that ended, it is %s", job.id, job.status.value)
            self._tidy(job)

    def _work(self) -> bool:
        """Do the next job, if there is one and the disk has room for it."""
        if not self._storage.has_space():
            log.warning("the disk is full, so no job is started")
            return False
        job = self._store.claim()
        if job is None:
            return False
        with log_of_job(job.id, job.folder):
            self._attempt(job)
        return True

    def _attempt(self, job: Job) -> None:
        live = self._live = _Live(job)
        if self._closing.is_set():
            live.cancellation.cancel()
        log.info("job %s starts, attempt %d: %s", job.id, job.attempts, job.source.name)
        beat = contextvars.copy_context().run  # what it says belongs to the job
        heart = threading.Thread(target=beat, args=(self._beat, live), name="lease", daemon=True)
        heart.start()
        try:
            with ShotCount(self._count_shots, job) as shots:
                report = self._report_of(live, shots)
                outcome = run_job(job, self._restore, self._make_preview, report, live.cancellation)
        finally:
            live.ended.set()
            heart.join()
        self._finish(live, outcome)
        self._live = None
        self._on_progress()

    def _report_of(self, live: _Live, shots: ShotCount) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            live.job = live.job.advance(replace(progress, shots_total=shots.total))
            self._on_progress()

        return report

    def _beat(self, live: _Live) -> None:
        """Renew the lease until the attempt has ended; stop the job when its owner, or another process, wants that."""
        interval_s = min(self._store.lease_s / 6, 5.0)
        deadline = time.monotonic() + self._store.lease_s
        next_beat = time.monotonic() + interval_s
        beats = 0
        while not live.ended.wait(min(interval_s, _LOOK_S)):
            if time.monotonic() < next_beat:
                self._look(live)
                continue
            next_beat = time.monotonic() + interval_s
            beats += 1
            try:
                wish = self._store.renew(live.job, live.job.progress)
                deadline = time.monotonic() + self._store.lease_s
                if wish is not Wish.NONE:
                    live.cancellation.cancel()
                elif beats % _SAVE_EVERY == 0:
                    self._store.change(live.job.id, lambda job: _told(job, live.job), token=live.job.token)
            except (LeaseLostError, UnknownJobError) as error:
                log.warning("job %s is stopped: %s", live.job.id, error)
                live.is_lost = True
            except (RestoreError, OSError) as error:
                log.warning("the lease of job %s could not be renewed: %s", live.job.id, error)
                live.is_lost = time.monotonic() >= deadline - interval_s
            if live.is_lost:
                live.cancellation.cancel()
                return

    def _look(self, live: _Live) -> None:
        """Hear a wish that came by another process, such as the command line, without waiting for the next beat."""
        try:
            if self._store.job(live.job.id).wish is not Wish.NONE:
                live.cancellation.cancel()
        except (RestoreError, OSError) as error:  # the next beat judges it
            log.debug("job %s: %s", live.job.id, error)

    def _finish(self, live: _Live, outcome: Outcome) -> None:
        """Write down how the attempt ended; while the disk is full or the database away, again and again."""
        whole = folder_bytes(live.job.folder)
        work = folder_bytes(live.job.work) + folder_bytes(live.job.part)

        def end(job: Job) -> Job:
            ended = _told(job, live.job).finish(outcome)
            return ended.weigh(whole - work if ended.keeps_no_work else whole)

        while not live.is_lost:
            try:
                job = self._store.change(live.job.id, end, token=live.job.token)
                log.info("job %s %s", job.id, f"{job.status.value}: {job.message}" if job.message else job.status.value)
                self._tidy(job)
                return
            except (LeaseLostError, UnknownJobError) as error:
                log.warning("what was done for job %s does not count: %s", live.job.id, error)
                return
            except (RestoreError, OSError) as error:
                log.warning("the end of job %s could not be written down: %s", live.job.id, error)
                if self._closing.wait(_TROUBLE_S):
                    return

    def _tidy(self, job: Job) -> None:
        """Remove finished units that nobody needs any more."""
        if job.keeps_no_work:
            self._storage.remove(job.work)
            self._storage.remove(job.part)


def _told(job: Job, live: Job) -> Job:
    """The job as it is stored, with what this attempt has told so far."""
    return replace(job, progress=live.progress, base=live.base)
