"""Uploads that survive a lost connection, a reload and a restart: files on their way in. Without gradio and HTTP.

The size of the file on disk is the only record of how much has arrived, so there is no second number that a crash could
leave behind. Bytes are written by one writer at a time, at the place where the file ends. When the last one is in, the
content is checked once and the verdict is stored beside the file; a check that a crash cut short is made again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inference.durable import publish, write_bytes
from inference.errors import DiskFullError, RestoreError
from seedvr_ui.storage import THUMBNAIL, Storage, is_id, is_plain, new_id, safe_name

Check = Callable[[Path, Path], Mapping[str, Any]]
"""(file, where to write a thumbnail) -> facts about the media; raises RestoreError with a sentence for a bad file."""

Admit = Callable[[str, int], None]
"""(session, bytes of a new upload) -> nothing; raises RestoreError with a sentence if the session may not have them."""

MAX_WAITING = 1000
"""Uploads of one owner that may wait to be started; each is a folder, however small its file."""

_RECORD = "upload.json"
_PART = "content.part"
_LINK = "link.part"
_GROWTH_BYTES = 256 * 2**20  # asked for at once while nobody knows how long a file will be


class UnknownUploadError(RestoreError):
    """The upload does not exist (any more)."""

    def __init__(self) -> None:
        super().__init__("This upload no longer exists; choose the file again.")


class OffsetError(RestoreError):
    """A piece does not continue the file; `received` bytes are there."""

    def __init__(self, received: int) -> None:
        super().__init__(f"The upload continues at byte {received}.")
        self.received = received


class UploadLockedError(RestoreError):
    """Somebody else is writing to this upload."""

    def __init__(self) -> None:
        super().__init__("Another connection is still sending this file; it goes on in a moment.")


class TooLargeError(RestoreError):
    """More bytes than the limit for one file, or than were announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file on its way in. `media` holds the facts of a good file, `error` the sentence about a bad one.

    `fingerprint` is what its sender knows it by. A file that this server fetches itself has an `origin` (`link` or
    `folder`) with its `address` there, and a `validator` that tells whether the other side still has the same bytes.
    """

    id: str
    name: str
    size: int
    fingerprint: str
    begun_at: float
    received: int = 0
    media: Mapping[str, Any] | None = None
    error: str = ""
    origin: str = ""
    address: str = ""
    validator: str = ""
    is_size_known: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether the file is whole and was found good."""
        return self.media is not None

    @property
    def is_whole(self) -> bool:
        """Whether the last byte is there."""
        return self.is_size_known and self.received == self.size

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.is_ready or bool(self.error)


class GrowingFile:
    """A file of which `received` bytes are there, and which shall have at most `limit`."""

    def __init__(self, path: Path, received: int, limit: int) -> None:
        self._file = path.open("r+b", buffering=0)
        self._file.seek(received)
        self.limit = limit
        self.received = received

    def write(self, data: bytes) -> None:
        """Add `data` to the end of the file.

        Raises TooLargeError, and writes nothing, if that is more than was announced; DiskFullError, with as much
        written as there was room for.
        """
        if self.received + len(data) > self.limit:
            raise TooLargeError(f"The file has more bytes than its announced {self.limit}; choose it again.")
        view = memoryview(data)
        try:
            while view:
                written = self._file.write(view)
                view = view[written:]
                self.received += written
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError("The disk of the server is full; remove finished jobs, then go on.") from error
            raise

    def truncate(self, size: int) -> None:
        """Keep the first `size` bytes only."""
        self._file.truncate(size)
        self._file.seek(size)
        self.received = size

    def sync(self) -> None:
        """Make durable what was written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the writing; what was written is durable."""
        try:
            self.sync()
        finally:
            self._file.close()


class Part(GrowingFile):
    """The file of an upload while somebody has the sole right to write to it."""

    def __init__(self, folder: Path, upload: Upload) -> None:
        super().__init__(folder / _PART, upload.received, upload.size)
        self._folder = folder

    def write(self, data: bytes) -> None:
        """Add `data` to the end of the file. Raises UnknownUploadError if the upload was discarded meanwhile."""
        if not (self._folder / _RECORD).exists():
            raise UnknownUploadError()
        super().write(data)


class Uploads:
    """All uploads of all sessions."""

    def __init__(self, storage: Storage, check: Check, max_bytes: int, admit: Admit | None = None) -> None:
        self.storage = storage
        self.max_bytes = max_bytes
        self._admit = admit
        self._check = check
        self._at_work: set[str] = set()
        self._lock = threading.Lock()
        self._admission = threading.Lock()

    # --- beginning ---

    def begin(
        self, session: str, name: str, size: int, fingerprint: str = "", *, origin: str = "", address: str = ""
    ) -> Upload:
        """A new upload of `size` bytes, if the limits and the disk allow it; RestoreError with a sentence if not.

        A file from another `origin` has no size yet; `describe` tells it.
        """
        with self._admission:
            waiting = self.of_session(session)
            if len(waiting) >= MAX_WAITING:
                raise RestoreError(f"{len(waiting)} files wait to be started; start or remove some of them first.")
            self._require_room(session, name, size, size)
            upload = Upload(
                id=new_id(), name=safe_name(name), size=size, fingerprint=fingerprint, begun_at=time.time(),
                origin=origin, address=address, is_size_known=not origin,
            )  # fmt: skip
            folder = self.storage.upload_folder(session, upload.id)
            folder.mkdir(parents=True)
            (folder / _PART).touch()
            self._write(folder, upload)
        return upload

    def describe(
        self, session: str, upload_id: str, name: str, size: int | None, validator: str, *, takes_space: bool = True
    ) -> Upload:
        """Note what the other side has told about a file from elsewhere; `size` None if it does not know it itself.

        Raises RestoreError if the limits, or the disk if it `takes_space`, do not allow so many bytes.
        """
        upload = self.get(session, upload_id)
        told = upload.received if size is None else size
        self._resize(session, upload, told, takes_space)
        upload = replace(
            upload, name=safe_name(name), size=told, validator=validator, is_size_known=size is not None
        )  # fmt: skip
        self._write(self._folder(session, upload_id), upload)
        return upload

    def grow(self, session: str, upload_id: str, part: Part) -> None:
        """Allow `part` of a file whose length nobody knows some more bytes. Raises RestoreError at a limit."""
        upload = self.get(session, upload_id)
        size = max(part.received + 1, min(part.received + _GROWTH_BYTES, self.max_bytes))
        self._resize(session, upload, size)
        self._write(self._folder(session, upload_id), replace(upload, size=size))
        part.limit = size

    # --- writing ---

    @contextlib.contextmanager
    def writing(self, session: str, upload_id: str, offset: int | None = None) -> Iterator[Part]:
        """The sole right to add bytes, beginning at `offset`, by default where the file ends.

        Raises UploadLockedError while somebody else has it, OffsetError if the file does not end at `offset`. What was
        written is durable afterwards, however the writing ended.
        """
        folder = self._folder(session, upload_id)
        with self._exclusive(upload_id):
            upload = self._read(folder)
            if offset not in (None, upload.received) or not (folder / _PART).exists():
                raise OffsetError(upload.received)
            part = Part(folder, upload)
            try:
                yield part
            finally:
                part.close()

    def append(self, session: str, upload_id: str, offset: int, data: bytes) -> Upload:
        """Write `data` at `offset`, which must be what has been received; the last piece also checks the file."""
        try:
            with self.writing(session, upload_id, offset) as part:
                part.write(data)
        except TooLargeError as error:
            raise OffsetError(self.get(session, upload_id).received) from error
        upload = self.get(session, upload_id)
        return self.finish(session, upload_id) if upload.is_whole else upload

    def end(self, session: str, upload_id: str) -> None:
        """Note that the last byte of a file from elsewhere has come: its size is what is there."""
        upload = self.get(session, upload_id)
        self._write(
            self._folder(session, upload_id), replace(upload, size=upload.received, is_size_known=True)
        )  # fmt: skip

    def adopt(self, session: str, upload_id: str, link: Callable[[Path], None]) -> None:
        """Let `link` make the whole file, as another name of one that is there. Nobody can write to it afterwards."""
        folder = self._folder(session, upload_id)
        with self._exclusive(upload_id):
            incoming = folder / _LINK
            incoming.unlink(missing_ok=True)
            link(incoming)
            os.replace(incoming, folder / self._read(folder).name)
            (folder / _PART).unlink(missing_ok=True)

    def finish(self, session: str, upload_id: str) -> Upload:
        """Check the content of a whole file and store the verdict; nothing happens if there is one already."""
        folder = self._folder(session, upload_id)
        with self._exclusive(upload_id):
            upload = self._read(folder)
            if upload.is_settled or not upload.is_whole:
                return upload
            whole = folder / upload.name
            if (folder / _PART).exists():
                publish(folder / _PART, whole)
            try:
                upload = replace(upload, media=dict(self._check(whole, folder / THUMBNAIL)))
            except RestoreError as error:
                upload = replace(upload, error=str(error))
            self._write(folder, upload)
            if upload.error:
                whole.unlink(missing_ok=True)  # whoever sent it has read the verdict by now, and may have discarded it
        return upload

    def fail(self, session: str, upload_id: str, reason: str) -> None:
        """Store why nothing will come of an upload, and delete what has come of it."""
        folder = self._folder(session, upload_id)
        self._write(folder, replace(self._read(folder), error=reason))
        (folder / _PART).unlink(missing_ok=True)

    # --- looking ---

    def get(self, session: str, upload_id: str) -> Upload:
        """The upload with this id, if it belongs to `session`."""
        return self._read(self._folder(session, upload_id))

    def of_session(self, session: str) -> list[Upload]:
        """The uploads of `session`, oldest first."""
        found = []
        for record in self.storage.uploads_folder(session).glob(f"*/{_RECORD}"):
            with contextlib.suppress(UnknownUploadError):  # discarded while we look
                found.append(self.get(session, record.parent.name))
        return sorted(found, key=lambda upload: upload.begun_at)

    def unsettled(self) -> list[tuple[str, Upload]]:
        """(session, upload) of all that this server itself has to go on with: files to fetch, and files to check."""
        sessions = {session for session, _ in self.storage.upload_folders()}
        return [
            (session, upload)
            for session in sorted(sessions)
            for upload in self.of_session(session)
            if not upload.is_settled and (upload.origin or upload.is_whole)
        ]

    def thumbnail(self, session: str, upload_id: str) -> Path:
        """The picture of an upload; the file need not exist."""
        return self._folder(session, upload_id) / THUMBNAIL

    def last_change(self, session: str, upload_id: str) -> float:
        """When bytes last came in, in seconds since the epoch."""
        folder = self._folder(session, upload_id)
        part = folder / _PART
        return (part if part.exists() else folder / _RECORD).stat().st_mtime

    def ready(self, session: str, upload_id: str) -> Upload:
        """The upload, which is whole and good. Raises RestoreError with a sentence if it is not."""
        upload = self.get(session, upload_id)
        if not upload.is_ready:
            raise RestoreError(upload.error or f"{upload.name} has not arrived completely; wait for its upload.")
        return upload

    # --- leaving ---

    def discard(self, session: str, upload_id: str) -> None:
        """Forget an upload and delete its file; whoever writes to it hears so at the next piece."""
        self.storage.throw_away(self._folder(session, upload_id))
        self.storage.empty_trash()

    def take(self, session: str, upload_id: str, folder: Path) -> tuple[Upload, Path]:
        """Move a ready upload into `folder` of its new owner: its facts, and the path of the file there."""
        origin = self._folder(session, upload_id)
        with self._exclusive(upload_id):
            upload = self.ready(session, upload_id)
            source = folder / "source" / upload.name
            source.parent.mkdir(parents=True)
            os.replace(origin / upload.name, source)
            if (origin / THUMBNAIL).exists():
                os.replace(origin / THUMBNAIL, folder / THUMBNAIL)
            self.storage.remove(origin)
        return upload, source

    # --- inside ---

    def _resize(self, session: str, upload: Upload, size: int, takes_space: bool = True) -> None:
        """Raise RestoreError unless an upload that has been granted `upload.size` bytes may have `size`."""
        with self._admission:
            self._require_room(session, upload.name, size, size - upload.size, takes_space)

    def _require_room(self, session: str, name: str, size: int, more: int, takes_space: bool = True) -> None:
        if size > self.max_bytes:
            raise TooLargeError(
                f"{safe_name(name)} has {size / 1e9:.1f} GB and the limit is {self.max_bytes / 1e9:.0f} GB; "
                "cut it into parts or raise the limit."
            )
        if more > 0:
            if self._admit is not None:
                self._admit(session, more)
            if takes_space:
                self.storage.require_space(more)

    @contextlib.contextmanager
    def _exclusive(self, upload_id: str) -> Iterator[None]:
        with self._lock:
            if upload_id in self._at_work:
                raise UploadLockedError()
            self._at_work.add(upload_id)
        try:
            yield
        finally:
            with self._lock:
                self._at_work.discard(upload_id)

    def _folder(self, session: str, upload_id: str) -> Path:
        if not is_id(upload_id):
            raise UnknownUploadError()
        folder = self.storage.upload_folder(session, upload_id)
        if not is_plain(folder / _RECORD, folder.parent) or (folder / _PART).is_symlink():
            raise UnknownUploadError()  # also what a link leads to is not of this upload
        return folder

    def _read(self, folder: Path) -> Upload:
        try:
            values = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UnknownUploadError() from error
        try:
            received = (folder / _PART).stat().st_size
        except FileNotFoundError:  # whole: it has its name, or was found bad and deleted
            received = values["size"]
        return Upload(**{**values, "received": received})

    def _write(self, folder: Path, upload: Upload) -> None:
        try:
            write_bytes(folder / _RECORD, json.dumps(asdict(upload)).encode())
        except FileNotFoundError as error:
            raise UnknownUploadError() from error
