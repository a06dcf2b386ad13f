"""Archives of jobs on their way out and in. Making and reading them may take minutes, so no request waits for either.

An archive that was made lies in the owner's folder for an hour, so that a broken download can go on. One that came in
is read once and removed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from inference.errors import RestoreError
from seedvr_ui.jobs import Job
from seedvr_ui.portable import SUFFIX
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id

log = logging.getLogger(__name__)

KEEP_S = 3600.0
_MAX_AT_ONCE = 2
_MAX_KNOWN = 1000
_CLOSE_LIMIT_S = 2.0


class UnknownImportError(RestoreError):
    """There is no such import (any more)."""

    def __init__(self) -> None:
        super().__init__("This import is no longer known; look at the list of jobs.")


@dataclass(slots=True)
class _Task:
    """Something that a thread does; `path` or `job_id` is there once `ended` is set, unless there is an `error`."""

    owner: str
    mark: str = ""
    path: Path | None = None
    job_id: str = ""
    error: RestoreError | None = None
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Import:
    """What has become of an archive that came in: nothing yet, a job, or an error."""

    id: str
    is_done: bool
    job_id: str = ""
    error: RestoreError | None = None


class Archives:
    """The exports and imports of one server, a few at a time."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MAX_AT_ONCE)
        self._exports: OrderedDict[str, _Task] = OrderedDict()
        self._imports: OrderedDict[str, _Task] = OrderedDict()
        self._threads: set[threading.Thread] = set()

    def close(self) -> None:
        """Wait a little for what is in work; what does not end in time leaves files that go by their age."""
        deadline = time.monotonic() + _CLOSE_LIMIT_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def export(self, job: Job, wait_s: float) -> Path | None:
        """The archive of `job` as it is now, or None while it is being made; asking begins the work.

        Raises what has gone wrong with it, once; the next call tries again.
        """
        self._remove_old(job.owner)
        mark = f"{job.status.value} {job.token} {len(job.history)} {job.finished_at}"
        with self._lock:
            task = self._exports.get(job.id)
            if task is None or (task.ended.is_set() and not _is_good(task, mark)):
                task = self._exports[job.id] = _Task(job.owner, mark)
                self._begin(task, lambda: self._export(task, job))
                _forget_oldest(self._exports)
        if not task.ended.wait(wait_s):
            return None
        if task.error is not None:
            with self._lock:
                if self._exports.get(job.id) is task:
                    del self._exports[job.id]
            raise task.error
        return task.path

    def begin_import(self, owner: str, archive: Path, *, start: bool) -> str:
        """Make a job of `owner` from `archive`, which is removed afterwards; returns an id to ask with."""
        import_id, task = new_id(), _Task(owner)
        with self._lock:
            self._imports[import_id] = task
            _forget_oldest(self._imports)
            self._begin(task, lambda: self._import(task, archive, start))
        return import_id

    def look(self, owner: str, import_id: str, wait_s: float) -> Import:
        """What has become of an import, after waiting for it for `wait_s`. Raises UnknownImportError."""
        with self._lock:
            task = self._imports.get(import_id)
        if task is None or task.owner != owner:
            raise UnknownImportError()
        return Import(import_id, task.ended.wait(wait_s), task.job_id, task.error)

    def incoming(self, owner: str) -> Path:
        """A path for an archive that comes in; its folder is new."""
        folder = self._manager.storage.import_folder(owner, new_id())
        folder.mkdir(parents=True)
        return folder / f"archive{SUFFIX}"

    def discard(self, archive: Path) -> None:
        """Remove an archive that came in, with its folder."""
        self._manager.storage.remove(archive.parent)

    # --- inside ---

    def _begin(self, task: _Task, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                with self._slots:
                    work()
            except RestoreError as error:
                task.error = error
            except OSError as error:
                log.exception("an archive failed")
                task.error = RestoreError(f"The archive could not be written or read ({error.strerror}); try again.")
            except Exception:  # noqa: BLE001  a bug in this thread has to reach whoever waits for it
                log.exception("an archive failed")
                task.error = RestoreError("Something unexpected went wrong with the archive; see the server's log.")
            finally:
                task.ended.set()
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="archive", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _export(self, task: _Task, job: Job) -> None:
        storage = self._manager.storage
        folder = storage.export_folder(job.owner, job.id)
        storage.remove(folder)
        storage.require_space(job.num_bytes)
        folder.mkdir(parents=True)
        try:
            name = f"{PurePath(job.source.name).stem}{SUFFIX}"
            task.path = self._manager.export_job(job.owner, job.id, folder / name)
        except BaseException:
            storage.remove(folder)
            raise

    def _import(self, task: _Task, archive: Path, start: bool) -> None:
        try:
            task.job_id = self._manager.import_job(task.owner, archive, start=start).id
        finally:
            self.discard(archive)

    def _remove_old(self, owner: str) -> None:
        """Remove archives that were made too long ago, also those of an earlier process."""
        storage = self._manager.storage
        try:
            folders = [folder for folder in storage.exports_folder(owner).iterdir() if folder.is_dir()]
        except FileNotFoundError:
            return
        for folder in folders:
            with self._lock:
                task = self._exports.get(folder.name)
                if task is not None and not task.ended.is_set():
                    continue
                if folder.stat().st_mtime < time.time() - KEEP_S:
                    self._exports.pop(folder.name, None)
                    storage.remove(folder)


def _is_good(task: _Task, mark: str) -> bool:
    return task.error is None and task.mark == mark and task.path is not None and task.path.exists()


def _forget_oldest(tasks: OrderedDict[str, _Task]) -> None:
    while len(tasks) > _MAX_KNOWN and next(iter(tasks.values())).ended.is_set():
        tasks.popitem(last=False)
