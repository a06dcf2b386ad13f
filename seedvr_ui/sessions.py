"""What people may do with jobs: submit, look, order, stop and remove them, within limits. Without gradio.

Handlers and routes call this and nothing below it. Jobs live in the store on disk, one thread of this process runs
them; closing the page, the server, or the power changes nothing about what was asked for.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from inference.errors import RestoreError
from seedvr_ui import manifest
from seedvr_ui.attempt import MakePreview, Restore
from seedvr_ui.jobs import AT_WORK, Job, JobStatus, StateError, Wish
from seedvr_ui.retention import plan_expiry
from seedvr_ui.runner import Runner
from seedvr_ui.shot_count import CountShots
from seedvr_ui.storage import THUMBNAIL, Storage, is_plain, new_id
from seedvr_ui.store import Edit, Store, UnknownJobError, Usage
from seedvr_ui.uploads import Check, Upload, Uploads
from seedvr_ui.visitor import Visitor

log = logging.getLogger(__name__)

_Read = TypeVar("_Read")
_CLOSE_LIMIT_S = 6.0
_MAX_CACHED = 500
_RANK = {
    JobStatus.RUNNING: 0,
    JobStatus.QUEUED: 1,
    JobStatus.INTERRUPTED: 1,
    JobStatus.PAUSED: 2,
    JobStatus.DRAFT: 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the queue needs from the engine, as plain callables."""

    check: Check
    restore: Restore
    make_preview: MakePreview
    count_shots: CountShots | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one owner may ask for, and how long finished work is kept.

    `max_upload_bytes` is for one file, `max_uploading_bytes` for all that an owner has sent and not yet started,
    `max_stored_bytes` for those and all jobs of an owner. `keep_bytes` is for all owners together.
    """

    max_upload_bytes: int = 100 * 10**9
    max_uploading_bytes: int = 400 * 10**9
    max_stored_bytes: int = 2 * 10**12
    max_jobs: int = 200
    keep_s: float = 7 * 86400.0
    keep_bytes: int | None = None
    sweep_every_s: float = 3600.0


@dataclass(slots=True)
class _Snapshot:
    """What was read from the store at one revision, kept for the next polls. Progress is laid over it."""

    revision: int
    lists: dict[str, list[Job]] = field(default_factory=dict)
    looks: dict[Hashable, Any] = field(default_factory=dict)
    line: dict[str, int] | None = None


class SessionManager:
    """All jobs of all owners, who take turns. An owner is a session or a user: an id as `new_id` makes them."""

    def __init__(
        self, storage: Storage, services: Services, limits: Limits | None = None, database_url: str = ""
    ) -> None:
        self.storage = storage
        self.limits = limits or Limits()
        self.uploads = Uploads(storage, services.check, self.limits.max_upload_bytes, self._admit)
        self.check = services.check
        self.engine: Mapping[str, Any] = {}  # the engine settings that this machine was started with
        self.store = Store(storage, database_url)
        self._seen = -1
        self._number = int(time.time() * 1000)  # ahead of whatever an earlier process has told
        self._lock = threading.Lock()
        self._snapshot = _Snapshot(-1)
        self._runner = Runner(
            self.store,
            storage,
            services.restore,
            services.make_preview,
            on_progress=self._tick,
            sweep=self.expire,
            sweep_every_s=self.limits.sweep_every_s,
            count_shots=services.count_shots,
        )
        self.store.open()

    def start(self) -> None:
        """Begin to run jobs; those that were interrupted go on."""
        self._runner.start()

    def close(self) -> None:
        """Interrupt the running job and take no more; returns within seconds. It goes on at the next start."""
        self._runner.close(_CLOSE_LIMIT_S)
        self.store.close()

    @property
    def revision(self) -> int:
        """A number that is greater whenever a job, or its progress, has changed; equal means: nothing is new."""
        stored = self.store.revision()
        with self._lock:
            if stored != self._seen:
                self._seen = stored
                self._number += 1
            return self._number

    # --- new jobs ---

    def submit(
        self, owner: str, upload_ids: Sequence[str], settings: Mapping[str, Any], *, draft: bool = False
    ) -> list[Job]:
        """Queue one job per ready upload, in the given order, all with `settings` (a whole settings tree).

        With `draft` they wait for `enqueue`.
        """
        self._require_room(owner, len(upload_ids))
        return [self._submit_one(owner, upload_id, settings, draft=draft) for upload_id in upload_ids]

    def enqueue(self, owner: str, job_id: str, settings: Mapping[str, Any] | None = None) -> Job:
        """Queue a draft, with other settings if they are given."""
        place = self.store.next_place(owner)

        def queue(job: Job) -> Job:
            return (job if settings is None else job.adjust(settings)).queue(place)

        return self._changed(self.store.change(job_id, queue, owner=owner))

    def duplicate(
        self, owner: str, job_id: str, settings: Mapping[str, Any] | None = None, *, draft: bool = False
    ) -> Job:
        """A new job for the same file, with the same settings or other ones."""
        self._require_room(owner, 1)
        old = self.job(owner, job_id)
        if not old.source.exists():
            raise RestoreError("The file of this job is no longer here; upload it again.")
        num_bytes = old.source.stat().st_size
        self._require_bytes(owner, num_bytes)
        job = self._new_job(owner, old.source.name, old.media, settings or old.settings, num_bytes)
        job.source.parent.mkdir(parents=True)
        _link_or_copy(old.source, job.source, self.storage)
        if (old.folder / THUMBNAIL).exists():
            shutil.copyfile(old.folder / THUMBNAIL, job.folder / THUMBNAIL)
        return self._changed(self.store.add(job if draft else job.queue(job.place)))

    # --- looking ---

    def jobs(self, owner: str) -> list[Job]:
        """A snapshot of the jobs of `owner`: the running one, the queue in its order, what rests, newest results."""
        lists = self._fresh_snapshot().lists
        jobs = lists.get(owner)
        if jobs is None:
            jobs = lists[owner] = sorted(self.store.jobs(owner), key=_shown_order)
        return [self._runner.newest(job) for job in jobs]

    def unfinished(self, owner: str | None) -> list[Job]:
        """A snapshot of the unfinished jobs of `owner`: the running one, the queue in its order, what rests.

        None means everybody, here and below: for admins.
        """
        jobs = self._look(("unfinished", owner), lambda: sorted(self.store.unfinished(owner), key=_shown_order))
        return [self._runner.newest(job) for job in jobs]

    def finished(self, owner: str | None, search: str = "", limit: int = 50) -> tuple[list[Job], int]:
        """The latest finished jobs of `owner` that match `search`, at most `limit`; and how many match."""
        return self._look(("finished", owner, search, limit), lambda: self.store.finished(owner, search, limit))

    def page(
        self,
        owner: str | None,
        statuses: Collection[JobStatus] = tuple(JobStatus),
        search: str = "",
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[list[Job], int]:
        """A snapshot of `limit` jobs of `owner` (None: of everybody) in these states that match `search`.

        They are in the order of `jobs`, from the `offset`th on; the number is how many match in all.
        """
        jobs, number = self.store.page(owner, statuses, search, limit, offset)
        return [self._runner.newest(job) for job in jobs], number

    def usage(self, owner: str | None) -> Usage:
        """What `owner` has in the store."""
        return self._look(("usage", owner), lambda: self.store.usage(owner))

    def job(self, owner: str, job_id: str) -> Job:
        """The job with this id, if it belongs to `owner`."""
        job = self.store.job(job_id)
        if job.owner != owner:
            raise UnknownJobError()
        return self._runner.newest(job)

    def job_for(self, visitor: Visitor, job_id: str) -> Job:
        """The job with this id, if `visitor` may see it and act on it: its owner, or an admin.

        Whoever comes from outside is judged here; what they may do is done in the name of the job's `owner`, to whose
        limits and place in the queue it counts.
        """
        job = self.store.job(job_id)
        if job.owner != visitor.owner and not visitor.is_admin:
            raise UnknownJobError()
        return self._runner.newest(job)

    def line(self) -> dict[str, int]:
        """The number of jobs, of any owner, that run before each waiting one. To be read only."""
        snapshot = self._fresh_snapshot()
        if snapshot.line is None:
            snapshot.line = self.store.line()
        return snapshot.line

    def num_ahead(self, job: Job) -> int:
        """How many jobs, of any owner, run before `job`."""
        return self.line().get(job.id, 0)

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits to run."""
        counts = self.store.counts()
        return not any(counts[status.value] for status in AT_WORK)

    def counts(self) -> dict[str, int]:
        """The number of jobs per status, over all owners."""
        return self.store.counts()

    # --- changing ---

    def cancel(self, owner: str, job_id: str, keep_part: bool = False) -> Job:
        """Stop a job: at once if it waits, at its next step if it runs. A finished job stays as it is.

        With `keep_part` what is finished of it stays, and a retry goes on from there.
        """

        def stop(job: Job) -> Job:
            if job.status is JobStatus.RUNNING:
                return job.want(Wish.CANCEL_KEEP if keep_part else Wish.CANCEL)
            return job if job.is_finished else job.cancel(keep_part=keep_part)

        job = self._change_and_stop(owner, job_id, stop)
        if job.keeps_no_work:
            self.storage.remove(job.work)
            self.storage.remove(job.part)
        return job

    def pause(self, owner: str, job_id: str) -> Job:
        """Let a job wait until it is resumed; one that runs stops at its next step and keeps what is finished."""
        return self._change_and_stop(
            owner, job_id, lambda job: job.want(Wish.PAUSE) if job.status is JobStatus.RUNNING else job.pause()
        )

    def resume(self, owner: str, job_id: str) -> Job:
        """Let a paused job go on, at its old place in the queue."""
        return self._changed(self.store.change(job_id, Job.resume, owner=owner))

    def retry(self, owner: str, job_id: str) -> Job:
        """Queue a failed or cancelled job once more; a paused one goes on."""
        if self.job(owner, job_id).is_finished:
            self._require_room(owner, 1)
        place = self.store.next_place(owner)
        return self._changed(
            self.store.change(job_id, lambda job: job.resume() if job.can_resume else job.retry(place), owner=owner)
        )

    def weigh(self, job_id: str) -> None:
        """Count the bytes of a job's folder again, since files were added; one that runs is counted at its end."""
        num_bytes = manifest.folder_bytes(self.store.job(job_id).folder)
        self._changed(
            self.store.change(job_id, lambda job: job if job.status is JobStatus.RUNNING else job.weigh(num_bytes))
        )

    def see(self, owner: str, job_id: str) -> None:
        """Note that somebody has looked at the result."""
        if self.job(owner, job_id).is_unseen_result:
            self._changed(self.store.change(job_id, Job.see, owner=owner))

    def move(self, owner: str, job_id: str, *, up: bool = False, down: bool = False, before: str = "") -> None:
        """Change the order of the waiting jobs of `owner`: one step, or before another of them."""

        def reorder(ids: list[str]) -> list[str]:
            index = ids.index(job_id)
            others = [other for other in ids if other != job_id]
            if before and before not in others:
                raise StateError("Only a waiting job has a place in the queue; look at the queue again.")
            place = others.index(before) if before else max(0, index - up + down)
            return [*others[:place], job_id, *others[place:]]

        self.store.move(job_id, owner, reorder)
        self._tick()

    def news(self, since: float, limit: int) -> list[Job]:
        """Jobs with a change later than `since` that the webhook has still to tell, at most `limit`."""
        return self.store.with_news(since, limit)

    def tell(self, job_id: str, at: float) -> None:
        """Note that the webhook has delivered all changes of a job up to the time `at`."""
        self.store.change(job_id, lambda job: job.tell(at))

    def export_job(self, owner: str, job_id: str, target: Path) -> Path:
        """Write an archive of a job from which another machine can go on; returns its path."""
        from seedvr_ui import portable

        return portable.export_job(self, owner, job_id, target)

    def admit_job(self, owner: str, num_bytes: int) -> None:
        """Raise RestoreError unless `owner` may bring in a job of that size."""
        self._require_room(owner, 1)
        self._require_bytes(owner, num_bytes)
        self.storage.require_space(num_bytes)

    def admit_archive(self, owner: str, num_bytes: int) -> None:
        """Raise RestoreError unless `owner` may import an archive of that size."""
        self._require_room(owner, 1)
        self._require_bytes(owner, num_bytes)
        self.storage.require_space(2 * num_bytes)  # the archive, and what is in it

    def import_job(self, owner: str, archive: Path, *, start: bool = False) -> Job:
        """A new job of `owner` from an archive; with `start` it goes on at once. What it was there is no news here."""
        from seedvr_ui import portable

        job = portable.import_job(self, owner, archive, start=start)
        if job.news:
            job = self.store.change(job.id, lambda job: job.tell(job.news[-1].at) if job.news else job)
        return self._changed(job)

    def reindex(self) -> int:
        """Build the index anew from the manifests; returns the number of jobs."""
        number = self.store.reindex()
        self._tick()
        return number

    def set_priority(self, job_id: str, priority: int) -> Job:
        """Put a job, of whichever owner, before all with a lower priority. For admins; the usual priority is 0."""
        return self._changed(self.store.change(job_id, lambda job: job.rank(priority)))

    def remove(self, owner: str, job_id: str) -> None:
        """Forget a job that is not at work and delete its files."""
        self.store.remove(job_id, owner, _require_rest)
        self.storage.empty_trash()
        self._tick()

    def expire(self) -> None:
        """Delete what has rested for longer than the age limit, and what is more than the limit of bytes."""
        too_many = 0 if self.limits.keep_bytes is None else self.store.total_bytes() - self.limits.keep_bytes
        num_expired = 0
        for resting in plan_expiry(self.store.resting(), time.time(), self.limits.keep_s, too_many):
            try:
                self.store.remove(resting.id, check=_require_rest)
                num_expired += 1
            except RestoreError as error:  # somebody has queued or removed it meanwhile
                log.info("job %s stays: %s", resting.id, error)
        self.storage.empty_trash()
        self.storage.release_old_holds()
        keep = {folder for _, _, folder in self.storage.job_folders() if _is_ours(folder)}
        removed = self.storage.remove_older_than(self.limits.keep_s, keep)
        if num_expired or removed:
            log.info("expired %d jobs, %d other folders", num_expired, len(removed))
            self._tick()

    # --- inside ---

    def _submit_one(self, owner: str, upload_id: str, settings: Mapping[str, Any], *, draft: bool) -> Job:
        """The manifest comes first: whatever ends us, either the upload is still one, or the job is whole."""
        upload = self.uploads.ready(owner, upload_id)
        assert upload.media is not None  # a ready upload has been checked
        job = self._new_job(owner, upload.name, upload.media, settings, upload.size)
        job = job if draft else job.queue(job.place)
        manifest.write(job)
        try:
            self.uploads.take(owner, upload_id, job.folder)
        except RestoreError:
            self.storage.throw_away(job.folder)
            raise
        return self._changed(self.store.add(job))

    def _new_job(
        self, owner: str, name: str, media: Mapping[str, Any], settings: Mapping[str, Any], num_bytes: int
    ) -> Job:
        job_id = new_id()
        folder = self.storage.job_folder(owner, job_id)
        suffix = ".png" if media.get("is_image") else ".mp4"
        return Job(
            id=job_id, owner=owner, folder=folder, source=folder / "source" / name,
            target=folder / "result" / f"{Path(name).stem}_restored{suffix}", settings=settings, media=media,
            place=self.store.next_place(owner), num_bytes=num_bytes,
        )  # fmt: skip

    def _change_and_stop(self, owner: str, job_id: str, edit: Edit) -> Job:
        job = self._changed(self.store.change(job_id, edit, owner=owner))
        if job.wish is not Wish.NONE:
            self._runner.stop(job_id)
        return job

    def _changed(self, job: Job) -> Job:
        self._tick()
        if job.status is JobStatus.QUEUED:
            self._runner.wake()
        return job

    def _tick(self) -> None:
        with self._lock:
            self._number += 1

    def _fresh_snapshot(self) -> _Snapshot:
        """What was read since the last change. One that is replaced while it is being filled is not seen again."""
        snapshot, stored = self._snapshot, self.store.revision()
        if snapshot.revision != stored or len(snapshot.lists) + len(snapshot.looks) > _MAX_CACHED:
            snapshot = self._snapshot = _Snapshot(stored)
        return snapshot

    def _look(self, key: Hashable, read: Callable[[], _Read]) -> _Read:
        """What `read` says, asked once per change of the store."""
        looks = self._fresh_snapshot().looks
        if key not in looks:
            looks[key] = read()
        found: _Read = looks[key]
        return found

    def _require_room(self, owner: str, num_jobs: int) -> None:
        number, limit = self.store.usage(owner).num_unfinished, self.limits.max_jobs
        if number + num_jobs > limit:
            raise RestoreError(
                f"The queue holds at most {limit} jobs of yours and there are {number}; "
                "wait until one is done, or cancel one."
            )

    def _require_bytes(self, owner: str, num_bytes: int, uploading: int = 0) -> None:
        stored, limit = self.store.usage(owner).num_bytes + uploading, self.limits.max_stored_bytes
        if stored + num_bytes > limit:
            raise RestoreError(
                f"Your files take {stored / 1e9:.1f} GB, this needs {num_bytes / 1e9:.1f} GB more, and the limit is "
                f"{limit / 1e9:.1f} GB; remove finished jobs and try again."
            )

    def _admit(self, owner: str, num_bytes: int) -> None:
        """Raise RestoreError unless `owner` may begin an upload of that size."""
        uploading, limit = sum(map(_upload_bytes, self.uploads.of_session(owner))), self.limits.max_uploading_bytes
        if uploading + num_bytes > limit:
            raise RestoreError(
                f"Files of {uploading / 1e9:.1f} GB wait to be started and this one has {num_bytes / 1e9:.1f} GB; the "
                f"limit for both is {limit / 1e9:.1f} GB. Start or discard some of them first."
            )
        self._require_bytes(owner, num_bytes, uploading)


def result_file(job: Job) -> Path:
    """The master file of a job that succeeded."""
    if job.status is not JobStatus.SUCCEEDED or not is_plain(job.target, job.folder):
        raise StateError("This job has no result yet; wait until it is done.")
    return job.target


def _shown_order(job: Job) -> tuple[int, float, float, str]:
    if job.is_finished:
        return len(_RANK), 0.0, -(job.finished_at or 0.0), job.id
    return _RANK[job.status], -job.priority, job.place, job.id


def _require_rest(job: Job) -> None:
    if job.is_at_work:
        raise StateError("This job is still at work; cancel it before you remove it.")


def _is_ours(folder: Path) -> bool:
    return (folder / manifest.NAME).exists() or manifest.has_one_aside(folder)


def _upload_bytes(upload: Upload) -> int:
    return 0 if upload.error else upload.size


def _link_or_copy(source: Path, target: Path, storage: Storage) -> None:
    """Two names for one file where the file system can; sources are never changed."""
    try:
        os.link(source, target)
    except OSError:
        storage.require_space(source.stat().st_size)
        shutil.copyfile(source, target)
