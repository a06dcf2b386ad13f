"""One job: its states, the allowed transitions, and what the end of an attempt makes of it. Without gradio.

    DRAFT ──> QUEUED ──> RUNNING ──> SUCCEEDED | FAILED | CANCELLED
                 ^          ├──> PAUSED        somebody asked, or the disk is full; waits for somebody
                 │          └──> INTERRUPTED   the server or the worker ended; goes on by itself
                 └── PAUSED, INTERRUPTED (at the old place), FAILED, CANCELLED (at the end of the queue)

A Job is a value: every transition returns a new one with one more entry in its history, so a snapshot never changes
under its reader. Who stores it, and who may change it, is the business of `store`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from inference.errors import RestoreError
from inference.progress import Progress, Stage

MAX_HISTORY = 200
_NO_HEADWAY = 3
_MAX_CRASHES = 3
_TICK_S = 1e-6


class JobStatus(StrEnum):
    """Where a job is in its life."""

    DRAFT = "draft"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


_NEXT: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.DRAFT: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PAUSED, JobStatus.INTERRUPTED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
    JobStatus.INTERRUPTED: frozenset({JobStatus.QUEUED, JobStatus.PAUSED, JobStatus.CANCELLED}),
}

FINISHED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
_ASKED_TO_PAUSE = "paused"
AT_WORK = frozenset({JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.INTERRUPTED})


class Wish(StrEnum):
    """What its owner wants of a running job; it comes true at the job's next check."""

    NONE = ""
    PAUSE = "pause"
    CANCEL = "cancel"
    CANCEL_KEEP = "cancel, keep the part"


_WISHED = {
    Wish.NONE: JobStatus.RUNNING,
    Wish.PAUSE: JobStatus.PAUSED,
    Wish.CANCEL: JobStatus.CANCELLED,
    Wish.CANCEL_KEEP: JobStatus.CANCELLED,
}


class StateError(RestoreError):
    """What was asked for is not possible in the state that the job is in."""


class TransitionError(StateError):
    """A job cannot go from its state to the wanted one."""

    def __init__(self, before: JobStatus, after: JobStatus) -> None:
        super().__init__(f"This job is {before.value} and cannot become {after.value}; look at the queue again.")


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a job's history."""

    status: JobStatus
    at: float
    reason: str

    @property
    def is_news(self) -> bool:
        """Whether somebody who is not looking should hear of it: the job has ended, or waits though nobody asked."""
        return self.status in FINISHED or (self.status is JobStatus.PAUSED and self.reason != _ASKED_TO_PAUSE)


class Ending(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    DIED = "died"
    DISK_FULL = "disk full"
    OCCUPIED = "occupied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one attempt; `message` is a sentence for the user."""

    ending: Ending
    message: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    preview: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that ended during an attempt: frames finished when the attempt began its work, and at the end."""

    base: int
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to restore, and what has become of it. Times are seconds since the epoch.

    `place` orders the waiting jobs of one owner; `token` counts how often the job was taken from the queue, and a
    writer with an older one is turned away. `base` is the number of frames that were finished when the attempt began.
    `crashes` are the frames in finished units each time that the app ended without a word during the job.
    `told_at` is the time of the latest change that the webhook has delivered.
    """

    id: str
    owner: str
    folder: Path
    source: Path
    target: Path
    settings: Mapping[str, Any]
    media: Mapping[str, Any] = field(default_factory=dict)
    status: JobStatus = JobStatus.DRAFT
    history: tuple[Change, ...] = ()
    priority: int = 0
    place: float = 0.0
    attempts: int = 0
    deaths: tuple[Death, ...] = ()
    crashes: tuple[int, ...] = ()
    token: int = 0
    holder: str = ""
    wish: Wish = Wish.NONE
    keeps_part: bool = False
    progress: Progress | None = None
    base: int | None = None
    message: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    preview: Mapping[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    is_seen: bool = False
    created_at: float = field(default_factory=time.time)
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    worked_s: float = 0.0
    told_at: float = 0.0

    @property
    def work(self) -> Path:
        """The folder where the engine keeps finished units."""
        return self.folder / "work"

    @property
    def part(self) -> Path:
        """The folder of the file that was made of the finished units, to be watched."""
        return self.folder / "part"

    @property
    def has_part(self) -> bool:
        """Whether some units are finished of a job that is not, so that they can be watched."""
        return self.progress is not None and self.progress.units > 0 and not self.keeps_no_work

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen unless somebody asks for the whole job again."""
        return self.status in FINISHED

    @property
    def is_at_work(self) -> bool:
        """Whether the job runs, or will run by itself."""
        return self.status in AT_WORK

    @property
    def keeps_no_work(self) -> bool:
        """Whether the units in its work folder are of no more use."""
        return self.status is JobStatus.SUCCEEDED or (self.status is JobStatus.CANCELLED and not self.keeps_part)

    @property
    def is_unseen_result(self) -> bool:
        """Whether there is a result that nobody has looked at."""
        return self.status is JobStatus.SUCCEEDED and not self.is_seen

    @property
    def can_retry(self) -> bool:
        """Whether the job has ended and may be queued once more."""
        return self.status in (JobStatus.FAILED, JobStatus.CANCELLED)

    @property
    def can_resume(self) -> bool:
        """Whether the job waits for somebody to let it go on."""
        return self.status is JobStatus.PAUSED

    @property
    def can_pause(self) -> bool:
        """Whether the job may be paused."""
        return self.is_at_work

    @property
    def can_cancel(self) -> bool:
        """Whether the job may be cancelled."""
        return self.is_at_work or self.status is JobStatus.PAUSED

    @property
    def news(self) -> tuple[Change, ...]:
        """What the webhook has still to tell, oldest first."""
        return tuple(change for change in self.history if change.is_news and change.at > self.told_at)

    @property
    def frames_done(self) -> int:
        """Finished frames, as far as is known."""
        return self.progress.frames_done if self.progress is not None else 0

    def queue(self, place: float, reason: str = "submitted") -> Job:
        """The draft in the queue."""
        return self._require(JobStatus.QUEUED, JobStatus.DRAFT)._to(
            JobStatus.QUEUED, reason, place=place, queued_at=time.time()
        )

    def retry(self, place: float) -> Job:
        """The failed or cancelled job in the queue again; what is in its work folder is used."""
        return self._require(JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED)._to(
            JobStatus.QUEUED, "tried again", place=place, queued_at=time.time(), started_at=None, finished_at=None,
            message="", progress=self._kept_progress(), base=None, deaths=(), crashes=(), worked_s=0.0,
            keeps_part=False,
        )  # fmt: skip

    def resume(self) -> Job:
        """The paused job at its old place in the queue."""
        return self._require(JobStatus.QUEUED, JobStatus.PAUSED)._to(
            JobStatus.QUEUED, "resumed", message="", deaths=(), crashes=()
        )  # fmt: skip

    def go_on(self) -> Job:
        """The interrupted job: as its owner wished meanwhile, else at its old place in the queue.

        One that ends the whole app again and again, and never gets ahead, waits for somebody instead.
        """
        wished = self._require(JobStatus.QUEUED, JobStatus.INTERRUPTED)._granted()
        if wished is not None:
            return wished
        if len(self.crashes) >= _MAX_CRASHES and len(set(self.crashes[-_MAX_CRASHES:])) == 1:
            return self.pause(
                f"The server ended {_MAX_CRASHES} times at frame {self.crashes[-1]} of this file, so this job waits; "
                "look into the server's log, then resume it or try a smaller size."
            )
        return self._to(JobStatus.QUEUED, "goes on", message="")

    def start(self, holder: str = "") -> Job:
        """The job as `holder` takes it from the queue. Finished frames stay in sight while the model is loaded."""
        progress = self.progress
        if progress is not None:
            progress = Progress(
                Stage.PREPARE, progress.frames_done, progress.frames_total,
                units=progress.units, shots_total=progress.shots_total,
            )  # fmt: skip
        return self._to(
            JobStatus.RUNNING, "started", attempts=self.attempts + 1, token=self.token + 1, holder=holder,
            started_at=time.time(), finished_at=None, progress=progress, base=None, message="",
        )  # fmt: skip

    def advance(self, progress: Progress) -> Job:
        """The job with its newest progress; only a running job has any."""
        if self.status is not JobStatus.RUNNING:
            return self
        base = self.base
        if progress.shots_total is None and self.progress is not None:
            progress = replace(progress, shots_total=self.progress.shots_total)
        if progress.stage in (Stage.PREPARE, Stage.LOAD):  # nothing is known of the frames yet, so the old count stays
            done, total = progress.frames_done or self.frames_done, progress.frames_total
            if total is None and self.progress is not None:
                total = self.progress.frames_total
            units = progress.units or (self.progress.units if self.progress is not None else 0)
            progress = replace(progress, frames_done=done, frames_total=total, units=units)
        elif base is None:
            base = progress.frames_done
        return replace(self, progress=progress, base=base)

    def want(self, wish: Wish) -> Job:
        """The running job with what its owner wants of it; a cancellation is not taken back by a pause."""
        self._require(_WISHED[wish], JobStatus.RUNNING)
        return self if wish is Wish.PAUSE and self.wish is not Wish.NONE else replace(self, wish=wish)

    def finish(self, outcome: Outcome) -> Job:
        """The running job after its attempt ended with `outcome`."""
        match outcome.ending:
            case Ending.DONE:
                return self.succeed(outcome.summary, outcome.preview)
            case Ending.FAILED:
                return self.fail(outcome.message)
            case Ending.DISK_FULL | Ending.OCCUPIED:
                return self.pause(outcome.message)
            case Ending.STOPPED:
                return self._granted() or self.interrupt("the server was stopped")
            case Ending.DIED:
                return self._die(outcome.message)

    def succeed(self, summary: Mapping[str, Any], preview: Mapping[str, Any]) -> Job:
        """The job with its result in `target`."""
        return self._to(
            JobStatus.SUCCEEDED, "done", summary=summary, preview=preview, is_seen=False, finished_at=time.time()
        )

    def fail(self, message: str) -> Job:
        """The job that ended with `message`, a sentence for the user."""
        return self._to(JobStatus.FAILED, message, message=message, finished_at=time.time())

    def cancel(self, *, keep_part: bool = False) -> Job:
        """The job that the user stopped; with `keep_part` what is finished of it stays in its work folder."""
        return self._to(JobStatus.CANCELLED, "cancelled", finished_at=time.time(), keeps_part=keep_part)

    def pause(self, message: str = "") -> Job:
        """The job that waits until it is resumed; `message` says why if nobody asked for it."""
        return self._to(JobStatus.PAUSED, message or _ASKED_TO_PAUSE, message=message)

    def interrupt(self, reason: str) -> Job:
        """The job whose attempt ended through no fault of its own."""
        return self._to(JobStatus.INTERRUPTED, reason)

    def abandon(self, num_frames: int) -> Job:
        """The running job whose process ended without a word; `num_frames` are in its finished units."""
        crashes = (*self.crashes, num_frames)[-_MAX_CRASHES:]
        return replace(self, crashes=crashes).interrupt("the process that did it has ended")

    def arrive(self, place: float) -> Job:
        """The job as it comes from another machine: nobody works on it here, and what was to go on by itself waits."""
        arrived = replace(
            self, place=place, priority=0, holder="", wish=Wish.NONE, deaths=(), crashes=()
        )  # fmt: skip
        status = JobStatus.PAUSED if self.is_at_work else self.status
        history = (*self.history, Change(status, time.time(), "came from another place"))[-MAX_HISTORY:]
        return replace(arrived, status=status, history=history)

    def adjust(self, settings: Mapping[str, Any]) -> Job:
        """The draft with other settings; what has been queued keeps its own."""
        return replace(self._require(JobStatus.DRAFT, JobStatus.DRAFT), settings=settings)

    def move(self, place: float) -> Job:
        """The job at another place among the waiting ones of its owner."""
        return replace(self, place=place)

    def rank(self, priority: int) -> Job:
        """The job with another priority: a higher one goes before all lower ones, whoever owns them."""
        return replace(self, priority=priority)

    def weigh(self, num_bytes: int) -> Job:
        """The job whose folder holds `num_bytes`."""
        return replace(self, num_bytes=num_bytes)

    def see(self) -> Job:
        """The job whose result somebody has looked at."""
        return replace(self, is_seen=True)

    def tell(self, at: float) -> Job:
        """The job of which all changes up to `at` were told."""
        return replace(self, told_at=max(self.told_at, at))

    def _kept_progress(self) -> Progress | None:
        """What is finished, so that it stays in sight; None if nothing is."""
        progress = self.progress if self.has_part else None
        return progress and Progress(
            Stage.PREPARE, progress.frames_done, progress.frames_total, units=progress.units
        )  # fmt: skip

    def _granted(self) -> Job | None:
        """The job as its owner wished, if there is a wish."""
        match self.wish:
            case Wish.NONE:
                return None
            case Wish.PAUSE:
                return self.pause()
            case Wish.CANCEL | Wish.CANCEL_KEEP:
                return self.cancel(keep_part=self.wish is Wish.CANCEL_KEEP)

    def _die(self, message: str) -> Job:
        """Tried again from the last finished unit, unless the same unit ends the worker again and again.

        The same unit: the same number of frames was finished both times. Where the engine counts work inside a unit
        too, that number wavers; then attempts that begin with equal numbers tell that none between them got ahead.
        """
        base = self.base if self.base is not None else self.frames_done
        deaths = (*self.deaths, Death(base, self.frames_done))
        same = len(deaths) > 1 and deaths[-1].done == deaths[-2].done
        stuck = len(deaths) >= _NO_HEADWAY and len({death.base for death in deaths[-_NO_HEADWAY:]}) == 1
        job = replace(self, deaths=deaths)
        if same or stuck:
            return job.fail(f"{message} It ended {len(deaths)} times at frame {self.frames_done} of this file.")
        return job.interrupt(message).go_on()

    def _require(self, wanted: JobStatus, *statuses: JobStatus) -> Job:
        if self.status not in statuses:
            raise TransitionError(self.status, wanted)
        return self

    def _to(self, status: JobStatus, reason: str, **changes: Any) -> Job:
        if status not in _NEXT[self.status]:
            raise TransitionError(self.status, status)
        now = time.time()
        if self.status is JobStatus.RUNNING:
            changes = {"holder": "", **changes}
            changes["worked_s"] = self.worked_s + max(0.0, now - (self.started_at or now))
        if status is not JobStatus.INTERRUPTED:  # a wish outlives the process that should have granted it
            changes = {"wish": Wish.NONE, **changes}
        at = max(now, self.history[-1].at + _TICK_S) if self.history else now  # in order, also when the clock goes back
        history = (*self.history, Change(status, at, reason))[-MAX_HISTORY:]
        return replace(self, status=status, history=history, **changes)
