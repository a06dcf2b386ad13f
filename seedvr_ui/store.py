"""Where jobs live: the manifests in their folders, and the index over them. The only module that writes either.

Every change is one transaction of the index: it locks the job, reads its manifest, writes the new manifest, then the
row. So the manifest is never behind the index, a reader of the index sees only what is on disk, and two processes never
change one job at once. A process that dies in between leaves a manifest that is ahead: `open` finds it by its stamp.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, delete, func, select, update

from inference.errors import RestoreError
from inference.progress import Progress
from inference.units import finished_units
from seedvr_ui import manifest, rows
from seedvr_ui.database import Database
from seedvr_ui.holder import is_gone, new_holder
from seedvr_ui.jobs import FINISHED, Job, JobStatus, StateError, Wish
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.tables import JOBS, STATE

log = logging.getLogger(__name__)

LEASE_S = 30.0
_NEW_S = 60.0

Edit = Callable[[Job], Job]
_Seen = TypeVar("_Seen")


class UnknownJobError(RestoreError):
    """The job does not exist (any more), or belongs to another session."""

    def __init__(self) -> None:
        super().__init__("This job no longer exists; reload the page to see the queue as it is.")


class LeaseLostError(RestoreError):
    """Somebody else has taken over the job; whatever is done for it here no longer counts."""

    def __init__(self) -> None:
        super().__init__("This job is done by another process now.")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one owner has in the store: jobs that are not finished, and the bytes of all jobs."""

    num_unfinished: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Resting:
    """A job that may be deleted when its time has come; `since` is when it came to rest."""

    id: str
    since: float
    num_bytes: int
    is_unseen: bool


class Store:
    """All jobs on disk; `open` before use, `close` at the end. Safe for many threads and processes.

    `url` names a Postgres for the index; without it the index is a file in the data folder.
    """

    def __init__(self, storage: Storage, url: str = "", lease_s: float = LEASE_S) -> None:
        self.holder = new_holder()
        self.lease_s = lease_s
        self._storage = storage
        self._database = Database(storage.root, url)
        self._written: set[str] = set()
        self._behind: set[str] = set()

    # --- the index as a whole ---

    def open(self) -> None:
        """Make the index ready and bring it up to the manifests. Raises RestoreError where that is not possible."""
        with self._database.lock():
            self._database.open()
            self._reconcile()

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def reindex(self) -> int:
        """Build the index anew from the manifests; returns the number of jobs."""
        with self._database.lock():
            with self._write() as connection:
                connection.execute(update(JOBS).values(stamp=""))
            return self._reconcile()

    def revision(self) -> int:
        """A number that grows with every change, by whichever process."""
        with self._database.read() as connection:
            return int(connection.execute(select(STATE.c.revision)).scalar_one())

    # --- one job ---

    def add(self, job: Job) -> Job:
        """Store a new job. Its manifest may be there already."""
        with self._write() as connection:
            self._put(connection, job)
        manifest.sync_folder(job.folder.parent)
        return job

    def job(self, job_id: str) -> Job:
        """The job as it is now. Raises UnknownJobError."""
        with self._database.read() as connection:
            row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).first()
        if row is None:
            raise UnknownJobError()
        return self._from_row(row)

    def change(self, job_id: str, edit: Edit, *, owner: str | None = None, token: int | None = None) -> Job:
        """Replace the job by what `edit` makes of it, durably; what `edit` raises changes nothing.

        With `token` only as long as that lease counts. Raises UnknownJobError, LeaseLostError, DiskFullError.
        """
        with self._write() as connection:
            job = self._locked(connection, job_id, owner)
            if job is not None:
                if token is not None and (job.token != token or job.status is not JobStatus.RUNNING):
                    raise LeaseLostError()
                edited = edit(job)
                if edited != job:
                    self._put(connection, edited)
                return edited
        raise UnknownJobError()

    def remove(self, job_id: str, owner: str | None = None, check: Callable[[Job], None] | None = None) -> None:
        """Forget a job and take its folder away; what `check` raises keeps it."""
        with self._write() as connection:
            job = self._locked(connection, job_id, owner)
            if job is not None:
                if check is not None:
                    check(job)
                self._storage.throw_away(job.folder)
                connection.execute(delete(JOBS).where(JOBS.c.id == job_id))
                rows.bump(connection)
        if job is None:
            raise UnknownJobError()

    def look(self, job_id: str, owner: str, read: Callable[[Job], _Seen]) -> _Seen:
        """What `read` makes of a job and its folder while nobody can change it. Raises UnknownJobError."""
        with self._write() as connection:
            job = self._locked(connection, job_id, owner)
            if job is not None:
                return read(job)
        raise UnknownJobError()

    def settle(self, job: Job) -> Job:
        """Move a whole job from where it lies to its place here, all of it or nothing; under another id if need be."""
        moved: Path | None = None
        try:
            with self._write() as connection:
                rows.bump(connection)  # all writers wait for this row, so nobody else takes the id meanwhile
                is_taken = connection.execute(select(JOBS.c.id).where(JOBS.c.id == job.id)).first() is not None
                if is_taken or self._storage.job_folder(job.owner, job.id).exists():
                    job = replace(job, id=new_id())
                folder = self._storage.job_folder(job.owner, job.id)
                stamp = manifest.write(job)
                folder.parent.mkdir(parents=True, exist_ok=True)
                os.replace(job.folder, folder)
                moved = folder
                manifest.sync_folder(folder.parent)
                settled = manifest.from_document(manifest.to_document(job), folder)
                rows.upsert(connection, [(settled, stamp)])
        except BaseException:
            if moved is not None:
                self._storage.throw_away(moved)
            raise
        return settled

    # --- the queue ---

    def claim(self) -> Job | None:
        """Take the next job from the queue for this process, or None. `rows.next_in_line` says which."""
        with self._database.read() as connection:
            if connection.execute(rows.whole_line().limit(1)).first() is None:
                return None  # the usual answer, which takes no lock
        with self._write() as connection:
            while (row := connection.execute(rows.next_in_line()).first()) is not None:
                job = self._truth(connection, row)
                if job is None or job.status is not JobStatus.QUEUED:
                    continue  # the row was behind and has just caught up, or is gone
                job = job.start(self.holder)
                self._put(connection, job, lease_until=time.time() + self.lease_s)
                rows.serve(connection, job.owner, time.time())
                return job
        return None

    def renew(self, job: Job, progress: Progress | None) -> Wish:
        """Keep the lease of a running `job` and tell its progress; returns what its owner wants of it.

        Raises LeaseLostError when another process has taken over.
        """
        self._reopen_if_replaced()
        told = json.dumps(progress.to_dict()) if progress is not None else None
        with self._write() as connection:
            wish = connection.execute(
                update(JOBS)
                .where(JOBS.c.id == job.id, JOBS.c.token == job.token, JOBS.c.status == JobStatus.RUNNING.value)
                .values(lease_until=time.time() + self.lease_s, progress=told)
                .returning(JOBS.c.wish)
            ).scalar()
            if wish is None:
                raise LeaseLostError()
            rows.bump(connection)
        return Wish(wish)

    def recover(self) -> list[Job]:
        """Let go on what nobody works on: jobs of processes that ended or lost their lease, and interrupted ones."""
        self._reopen_if_replaced()
        left = rows.with_status(JobStatus.RUNNING, JobStatus.INTERRUPTED)
        with self._database.read() as connection:
            if not any(map(self._is_left, connection.execute(left).all())) and not self._behind:
                return []
        jobs, behind = [], list(self._behind)
        with self._write() as connection:
            for row in connection.execute(select(JOBS).where(JOBS.c.id.in_(behind)).with_for_update()).all():
                self._truth(connection, row)
            for row in connection.execute(left.with_for_update(skip_locked=True)).all():
                if not self._is_left(row) or (job := self._truth(connection, row)) is None:
                    continue
                if job.status is JobStatus.RUNNING:
                    job = job.abandon(sum(unit.num_frames for unit in finished_units(job.work)))
                if job.status is JobStatus.INTERRUPTED:
                    job = job.go_on()
                    self._put(connection, job)
                    jobs.append(job)
        self._behind.difference_update(behind)
        return jobs

    def move(self, job_id: str, owner: str, reorder: Callable[[list[str]], list[str]]) -> None:
        """Give the waiting jobs of `owner` the order that `reorder` makes of their ids."""
        with self._write() as connection:
            waiting = rows.with_status(JobStatus.QUEUED).where(JOBS.c.owner == owner).with_for_update()
            found = connection.execute(waiting.order_by(JOBS.c.place, JOBS.c.id)).all()
            by_id = {row.id: row for row in found}
            if job_id not in by_id:
                raise StateError("Only a waiting job has a place in the queue; look at the queue again.")
            for other, place in zip(reorder(list(by_id)), sorted(row.place for row in found), strict=True):
                if by_id[other].place != place and (job := self._truth(connection, by_id[other])) is not None:
                    self._put(connection, job.move(place))

    def next_place(self, owner: str) -> float:
        """The place behind all jobs of `owner`. Places are times, so that those of several owners compare."""
        with self._database.read() as connection:
            last = connection.execute(select(func.max(JOBS.c.place)).where(JOBS.c.owner == owner)).scalar()
        return max(time.time(), (last or 0.0) + 1e-3)

    # --- looking ---

    def jobs(self, owner: str) -> list[Job]:
        """All jobs of `owner`, in no order."""
        with self._database.read() as connection:
            found = connection.execute(select(JOBS).where(JOBS.c.owner == owner)).all()
        return [self._from_row(row) for row in found]

    def unfinished(self, owner: str | None) -> list[Job]:
        """The jobs of `owner`, or of everybody, that are not finished, in no order."""
        unfinished = [status for status in JobStatus if status not in FINISHED]
        with self._database.read() as connection:
            found = connection.execute(rows.of(rows.with_status(*unfinished), owner)).all()
        return [self._from_row(row) for row in found]

    def finished(self, owner: str | None, search: str = "", limit: int = 50) -> tuple[list[Job], int]:
        """The latest finished jobs of `owner`, or of everybody, with all words of `search` in name, state or settings;
        and how many there are in all.
        """
        query = rows.finished_of(owner, search)
        latest = query.order_by(JOBS.c.finished_at.desc(), JOBS.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            number = connection.execute(query.with_only_columns(func.count())).scalar_one()
            found = connection.execute(latest).all()
        return [self._from_row(row) for row in found], int(number)

    def page(
        self, owner: str | None, statuses: Collection[JobStatus], search: str, limit: int, offset: int
    ) -> tuple[list[Job], int]:
        """`limit` jobs from the `offset`th on, in the order in which they are shown; and how many match in all.

        `owner` None means everybody's.
        """
        query = rows.matching(owner, statuses, search)
        with self._database.read() as connection:
            number = connection.execute(query.with_only_columns(func.count())).scalar_one()
            found = connection.execute(rows.in_shown_order(query).limit(limit).offset(offset)).all()
        return [self._from_row(row) for row in found], int(number)

    def with_news(self, since: float, limit: int) -> list[Job]:
        """The jobs with a change later than `since` that the webhook has still to tell, at most `limit`."""
        query = select(JOBS).where(JOBS.c.news_at > since).order_by(JOBS.c.news_at, JOBS.c.id).limit(limit)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        return [self._from_row(row) for row in found]

    def line(self) -> dict[str, int]:
        """The number of jobs that run before each waiting one, over all owners, if they take turns as they do now."""
        num_running = self.counts()[JobStatus.RUNNING.value]
        with self._database.read() as connection:
            return {
                job_id: num_running + index for index, (job_id,) in enumerate(connection.execute(rows.whole_line()))
            }

    def counts(self) -> dict[str, int]:
        """The number of jobs per status, over all owners."""
        with self._database.read() as connection:
            found = connection.execute(select(JOBS.c.status, func.count()).group_by(JOBS.c.status)).all()
        return {status.value: 0 for status in JobStatus} | {row[0]: row[1] for row in found}

    def usage(self, owner: str | None) -> Usage:
        """What `owner`, or everybody, has in the store."""
        with self._database.read() as connection:
            number, num_bytes = connection.execute(rows.usage_of(owner)).one()
        return Usage(int(number), int(num_bytes))

    def resting(self) -> list[Resting]:
        """The finished jobs and drafts of all owners."""
        columns = (JOBS.c.id, JOBS.c.finished_at, JOBS.c.place, JOBS.c.num_bytes, JOBS.c.is_unseen)
        query = rows.with_status(*FINISHED, JobStatus.DRAFT).with_only_columns(*columns)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        return [Resting(row.id, row.finished_at or row.place, row.num_bytes, row.is_unseen) for row in found]

    def total_bytes(self) -> int:
        """The bytes of all jobs."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(JOBS.c.num_bytes), 0))).scalar_one())

    # --- inside ---

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction. If it fails after manifests were written, their rows are behind, which `recover` mends."""
        written: set[str] = set()
        try:
            with self._database.write() as connection:
                self._written = written
                yield connection
        except BaseException:
            self._behind |= written
            raise

    def _reconcile(self) -> int:
        """Read the manifests that are not the ones that the index knows, and forget rows without one."""
        with self._database.read() as connection:
            known = {row.id: row.stamp for row in connection.execute(select(JOBS.c.id, JOBS.c.stamp))}
        changed: list[Path] = []
        present: set[str] = set()
        for _, job_id, folder in self._storage.job_folders():
            try:
                stamp = manifest.stamp_of((folder / manifest.NAME).stat())
            except FileNotFoundError:
                continue
            present.add(job_id)
            if known.get(job_id) != stamp:
                changed.append(folder)
        gone = [job_id for job_id in known if job_id not in present]
        if changed or gone:
            log.info("the index takes in %d changed and forgets %d vanished jobs", len(changed), len(gone))
            with self._write() as connection:
                for row in connection.execute(select(JOBS).where(JOBS.c.id.in_(gone)).with_for_update()).all():
                    self._truth(connection, row)
                self._take_in(connection, [folder for folder in changed if folder.name in known])
                new = [folder for folder in changed if folder.name not in known]
                self._take_in(connection, new, lease_until=time.time() + self.lease_s)
                rows.serve_as_started(connection)
                rows.bump(connection)
        return len(present)

    def _take_in(self, connection: Connection, folders: Sequence[Path], lease_until: float | None = None) -> None:
        """Let the rows of these folders follow their manifests. New ones have a lease, since its end is not known."""
        names = [folder.name for folder in folders]
        connection.execute(select(JOBS.c.id).where(JOBS.c.id.in_(names)).with_for_update())
        found = {folder: _read(folder) for folder in folders}
        missing = [folder.name for folder, entry in found.items() if entry is None]
        connection.execute(delete(JOBS).where(JOBS.c.id.in_(missing)))
        kept = []
        for entry in filter(None, found.values()):
            job, _ = entry
            if lease_until is not None and not job.attempts and not job.is_finished and not job.source.exists():
                # A submission that ended before the upload was moved here; the upload is still where it was.
                if time.time() - job.created_at > _NEW_S:
                    self._storage.throw_away(job.folder)
                continue
            kept.append(entry)
        rows.upsert(connection, kept, lease_until)

    def _locked(self, connection: Connection, job_id: str, owner: str | None) -> Job | None:
        """The job as its manifest says, locked until the end of the transaction; None if there is none any more."""
        row = connection.execute(select(JOBS).where(JOBS.c.id == job_id).with_for_update()).first()
        if row is None or (owner is not None and row.owner != owner):
            raise UnknownJobError()
        return self._truth(connection, row)

    def _truth(self, connection: Connection, row: Row[Any]) -> Job | None:
        """The job of a locked `row` as its manifest says; the row follows it."""
        found = _read(self._storage.job_folder(row.owner, row.id))
        if found is None:
            connection.execute(delete(JOBS).where(JOBS.c.id == row.id))
            rows.bump(connection)
            return None
        job, stamp = found
        if (stamp, job.status.value) != (row.stamp, row.status):
            rows.upsert(connection, [found])
            rows.bump(connection)
        return job

    def _put(self, connection: Connection, job: Job, lease_until: float | None = None) -> None:
        self._written.add(job.id)
        rows.upsert(connection, [(job, manifest.write(job))], lease_until)
        rows.bump(connection)

    def _is_left(self, row: Row[Any]) -> bool:
        """Whether nobody works on the job of this row, though it is not finished."""
        if row.status == JobStatus.INTERRUPTED.value:
            return True
        return row.lease_until < time.time() or is_gone(row.holder)

    def _from_row(self, row: Row[Any]) -> Job:
        return rows.to_job(row, self._storage.job_folder(row.owner, row.id))

    def _reopen_if_replaced(self) -> None:
        if self._database.is_replaced():
            self._database.close()
            self.open()


def _read(folder: Path) -> tuple[Job, str] | None:
    """The job of `folder`, or None if it has no manifest that can be used; a damaged one is set aside."""
    try:
        job, stamp = manifest.read(folder)
    except FileNotFoundError:
        return None
    except manifest.NewerError as error:
        log.warning("%s", error)
        return None
    except manifest.UnreadableError as error:
        log.warning("%s", error)
        manifest.set_aside(folder)
        return None
    if (job.id, job.owner) != (folder.name, folder.parent.parent.name):
        log.warning("The manifest in %s is that of another job; it was left out. Move the folder back.", folder)
        return None
    return job, stamp
