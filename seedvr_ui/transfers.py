"""What this server does for uploads by itself: fetch links, take files of its folder, check what is whole.

Each in a thread of its own, a few at a time, so that no request waits. A restart begins again where the files end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from inference.errors import DiskFullError, RestoreError
from seedvr_ui.fetch import LOST, Answer, ask, is_untrusted
from seedvr_ui.folder import FolderError, ServerFolder
from seedvr_ui.network import LinkError, Network
from seedvr_ui.uploads import Part, UnknownUploadError, Upload, UploadLockedError, Uploads

log = logging.getLogger(__name__)

LINK = "link"
FOLDER = "folder"
RETRY_WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Pauses between attempts that brought no byte; a link fails after the last one."""

_FIRST_TRIES = 3  # until a link has given something; somebody waits to hear that it is mistyped
_MAX_AT_ONCE = 8
_MAX_OF_OWNER = 2
_MAX_CHECKS = 2
_FETCH_LIMIT_S = 12 * 3600.0
_BLOCK_BYTES = 2**20
_CLOSE_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class _Task:
    owner: str
    upload_id: str


class _Stopping(Exception):
    """The server is going down; what has arrived stays for the next start."""


class Transfers:
    """The background work on uploads. `folder` None means that there is no server folder."""

    def __init__(
        self,
        uploads: Uploads,
        folder: ServerFolder | None = None,
        network: Network | None = None,
        retry_waits_s: tuple[float, ...] = RETRY_WAITS_S,
    ) -> None:
        self.folder = folder
        self._uploads = uploads
        self._network = network or Network()
        self._retry_waits_s = retry_waits_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._waiting: deque[_Task] = deque()
        self._running: dict[_Task, threading.Thread] = {}
        self._checks = threading.BoundedSemaphore(_MAX_CHECKS)

    def start(self) -> None:
        """Go on with what an earlier process left unfinished."""
        for owner, upload in self._uploads.unsettled():
            if upload.is_whole:
                self.check(owner, upload.id)
            else:
                self._enqueue(_Task(owner, upload.id))

    def close(self) -> None:
        """Stop at the next block; returns within seconds."""
        self._stop.set()
        with self._lock:
            self._waiting.clear()
            threads = list(self._running.values())
        deadline = time.monotonic() + _CLOSE_LIMIT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def fetch(self, owner: str, link: str) -> Upload:
        """A new upload that is filled from `link`. Raises LinkError if it cannot be asked for."""
        url = self._network.check(link)
        name = PurePosixPath(url.path).name or url.host
        upload = self._uploads.begin(owner, name, 0, origin=LINK, address=str(url))
        self._enqueue(_Task(owner, upload.id))
        return upload

    def take(self, owner: str, file_id: str) -> Upload:
        """A new upload with a file of the server folder. Raises FolderError if there is none with this id."""
        file = self._require_folder().find(file_id)
        upload = self._uploads.begin(owner, PurePosixPath(file.path).name, 0, origin=FOLDER, address=file.id)
        try:
            upload = self._uploads.describe(
                owner, upload.id, upload.name, file.size, file.stamp, takes_space=False
            )  # fmt: skip
        except RestoreError:
            self._uploads.discard(owner, upload.id)
            raise
        self._enqueue(_Task(owner, upload.id))
        return upload

    def check(self, owner: str, upload_id: str) -> None:
        """Check the content of a whole upload soon."""
        threading.Thread(target=self._check, args=(owner, upload_id), name="check", daemon=True).start()

    # --- the line ---

    def _enqueue(self, task: _Task) -> None:
        with self._lock:
            self._waiting.append(task)
        self._start_some()

    def _start_some(self) -> None:
        """Start what may run now; nobody's links keep the others' waiting."""
        with self._lock:
            for task in list(self._waiting):
                of_owner = sum(running.owner == task.owner for running in self._running)
                if self._stop.is_set() or len(self._running) >= _MAX_AT_ONCE:
                    return
                if of_owner < _MAX_OF_OWNER:
                    self._waiting.remove(task)
                    thread = threading.Thread(target=self._run, args=(task,), name="transfer", daemon=True)
                    self._running[task] = thread
                    thread.start()

    def _run(self, task: _Task) -> None:
        try:
            self._settle(task, self._fill)
        finally:
            with self._lock:
                del self._running[task]
            self._start_some()

    def _check(self, owner: str, upload_id: str) -> None:
        with self._checks:
            if not self._stop.is_set():
                self._settle(_Task(owner, upload_id), lambda task: self._uploads.finish(task.owner, task.upload_id))

    def _settle(self, task: _Task, work: Callable[[_Task], object]) -> None:
        """Do `work`, and store why if nothing comes of it; an upload that was discarded meanwhile needs no words."""
        try:
            try:
                work(task)
            except (UnknownUploadError, UploadLockedError, _Stopping) as error:
                log.debug("upload %s is left: %r", task.upload_id, error)
            except RestoreError as error:
                self._uploads.fail(task.owner, task.upload_id, str(error))
            except Exception:
                log.exception("upload %s failed", task.upload_id)
                self._uploads.fail(
                    task.owner, task.upload_id, "This file could not be brought in; see the server's log."
                )
        except UnknownUploadError:
            log.debug("upload %s was discarded", task.upload_id)

    # --- filling ---

    def _fill(self, task: _Task) -> None:
        upload = self._uploads.get(task.owner, task.upload_id)
        if not upload.is_settled and not upload.is_whole:
            if upload.origin == FOLDER:
                self._take_file(task, upload)
            else:
                self._fetch_link(task, upload.address)
        with self._checks:
            self._uploads.finish(task.owner, task.upload_id)

    def _take_file(self, task: _Task, upload: Upload) -> None:
        folder = self._require_folder()
        file = folder.find(upload.address)
        if file.stamp != upload.validator:
            raise FolderError(f"{file.path} has changed in the server folder; choose it again.")
        try:
            self._uploads.adopt(task.owner, task.upload_id, lambda target: folder.link(file, target))
            return
        except OSError as error:
            log.info("%s is copied, since the file system cannot link it: %s", upload.name, error)
        self._uploads.storage.require_space(file.size - upload.received)
        with folder.open(file) as original, self._uploads.writing(task.owner, task.upload_id) as part:
            original.seek(part.received)
            while block := original.read(_BLOCK_BYTES):
                self._go_on()
                part.write(block)

    def _fetch_link(self, task: _Task, link: str) -> None:
        deadline = time.monotonic() + _FETCH_LIMIT_S
        failures = 0
        while True:
            before = self._uploads.get(task.owner, task.upload_id)
            try:
                self._receive(task, before, link, deadline)
                return
            except LOST as error:
                received = self._uploads.get(task.owner, task.upload_id).received
                failures = 0 if received > before.received else failures + 1
                log.info("connection lost while fetching %s at byte %d: %r", before.name, received, error)
                host = self._network.check(link).host
                if is_untrusted(error):
                    raise LinkError(f"{host} cannot prove that it is {host}; download the file instead.") from error
                if failures > (len(self._retry_waits_s) if received else _FIRST_TRIES):
                    raise LinkError(f"{host} does not answer; check the link, or try again later.") from error
                if failures and self._stop.wait(self._retry_waits_s[failures - 1]):
                    raise _Stopping from error

    def _receive(self, task: _Task, before: Upload, link: str, deadline: float) -> None:
        with (
            self._uploads.writing(task.owner, task.upload_id) as part,
            ask(link, self._network, part.received, before.validator) as answer,
        ):
            is_rest = answer.start > 0 and answer.size in (None, before.size)
            if answer.start > 0 and before.is_size_known and not is_rest:
                raise LinkError(f"{before.name} has changed while it was fetched; give the link again.")
            part.truncate(answer.start)
            name = before.name if answer.start else answer.name
            size = self._uploads.describe(task.owner, task.upload_id, name, answer.size, answer.validator).size
            part.limit = size
            self._write(task, part, answer, deadline)
        upload = self._uploads.get(task.owner, task.upload_id)
        if answer.size is None:
            self._uploads.end(task.owner, task.upload_id)
        elif upload.received < answer.size:
            raise LOST[0](f"the connection ended at byte {upload.received} of {answer.size}")

    def _write(self, task: _Task, part: Part, answer: Answer, deadline: float) -> None:
        for block in answer.blocks:
            self._go_on()
            if time.monotonic() > deadline:
                raise LinkError("This link is too slow: 12 hours were not enough; download the file instead.")
            if answer.size is None and part.received + len(block) > part.limit:
                self._uploads.grow(task.owner, task.upload_id, part)
            try:
                part.write(block)
            except DiskFullError as error:
                raise LinkError(
                    "The disk of the server is full; remove finished jobs and give the link again."
                ) from error

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _Stopping()

    def _require_folder(self) -> ServerFolder:
        if self.folder is None:
            raise FolderError("This server has no folder to choose files from.")
        return self.folder
