"""Uploads in pieces that survive a lost connection, a reload and a restart. Without gradio.

A piece names the offset where it belongs; the file on disk is the only record of how much has arrived. When the last
piece is in, the content is checked once and the verdict is stored beside the file.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inference.errors import RestoreError
from seedvr_ui.storage import THUMBNAIL, Storage, is_id, new_id, safe_name

Check = Callable[[Path, Path], Mapping[str, Any]]
"""(file, where to write a thumbnail) -> facts about the media; raises RestoreError with a sentence for a bad file."""

Admit = Callable[[str, int], None]
"""(session, bytes of a new upload) -> nothing; raises RestoreError with a sentence if the session may not have them."""

PIECE_BYTES = 8 * 2**20
_RECORD = "upload.json"
_PART = "content.part"


class UnknownUploadError(RestoreError):
    """The upload does not exist (any more)."""

    def __init__(self) -> None:
        super().__init__("This upload no longer exists; choose the file again.")


class OffsetError(RestoreError):
    """A piece does not continue the file; `received` bytes are there."""

    def __init__(self, received: int) -> None:
        super().__init__(f"The upload continues at byte {received}.")
        self.received = received


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file on its way in. `media` holds the facts of a good file, `error` the sentence about a bad one."""

    id: str
    name: str
    size: int
    fingerprint: str
    begun_at: float
    received: int = 0
    media: Mapping[str, Any] | None = None
    error: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether the file is whole and was found good."""
        return self.media is not None


class Uploads:
    """All uploads of all sessions."""

    def __init__(self, storage: Storage, check: Check, max_bytes: int, admit: Admit | None = None) -> None:
        self._storage = storage
        self._admit = admit
        self._check = check
        self._max_bytes = max_bytes
        self._locks: dict[str, threading.Lock] = {}

    def begin(self, session: str, name: str, size: int, fingerprint: str) -> Upload:
        """A new upload, or the unfinished one of the same file, to be continued at its `received` bytes."""
        if size > self._max_bytes:
            raise RestoreError(
                f"{safe_name(name)} has {size / 1e9:.1f} GB and the limit is {self._max_bytes / 1e9:.0f} GB; "
                "cut it into parts or raise the limit."
            )
        for upload in self.of_session(session):
            same = (upload.name, upload.size, upload.fingerprint) == (safe_name(name), size, fingerprint)
            if same and upload.received < size:
                return upload
        if self._admit is not None:
            self._admit(session, size)
        self._storage.require_space(size)
        upload = Upload(
            id=new_id(), name=safe_name(name), size=size, fingerprint=fingerprint, begun_at=time.time()
        )  # fmt: skip
        folder = self._storage.upload_folder(session, upload.id)
        folder.mkdir(parents=True)
        (folder / _PART).touch()
        self._write(folder, upload)
        return self.append(session, upload.id, 0, b"") if size == 0 else upload

    def append(self, session: str, upload_id: str, offset: int, data: bytes) -> Upload:
        """Write `data` at `offset`, which must be what has been received; the last piece also checks the file."""
        folder = self._folder(session, upload_id)
        with self._locks.setdefault(upload_id, threading.Lock()):
            upload = self._read(folder)
            if offset != upload.received or offset + len(data) > upload.size or not (folder / _PART).exists():
                raise OffsetError(upload.received)
            with (folder / _PART).open("ab") as file:
                file.write(data)
            upload = replace(upload, received=offset + len(data))
            return upload if upload.received < upload.size else self._finish(folder, upload)

    def of_session(self, session: str) -> list[Upload]:
        """The uploads of `session`, oldest first."""
        records = self._storage.uploads_folder(session).glob(f"*/{_RECORD}")
        return sorted((self._read(record.parent) for record in records), key=lambda upload: upload.begun_at)

    def thumbnail(self, session: str, upload_id: str) -> Path:
        """The picture of an upload; the file need not exist."""
        return self._folder(session, upload_id) / THUMBNAIL

    def discard(self, session: str, upload_id: str) -> None:
        """Forget an upload and delete its file."""
        folder = self._folder(session, upload_id)
        with self._locks.setdefault(upload_id, threading.Lock()):
            self._storage.remove(folder)
        self._locks.pop(upload_id, None)

    def ready(self, session: str, upload_id: str) -> Upload:
        """The upload, which is whole and good. Raises RestoreError with a sentence if it is not."""
        upload = self._read(self._folder(session, upload_id))
        if not upload.is_ready:
            raise RestoreError(upload.error or f"{upload.name} has not arrived completely; wait for its upload.")
        return upload

    def take(self, session: str, upload_id: str, folder: Path) -> tuple[Upload, Path]:
        """Move a ready upload into `folder` of its new owner: its facts, and the path of the file there."""
        origin = self._folder(session, upload_id)
        with self._locks.setdefault(upload_id, threading.Lock()):
            upload = self.ready(session, upload_id)
            source = folder / "source" / upload.name
            source.parent.mkdir(parents=True)
            os.replace(origin / upload.name, source)
            if (origin / THUMBNAIL).exists():
                os.replace(origin / THUMBNAIL, folder / THUMBNAIL)
            self._storage.remove(origin)
        self._locks.pop(upload_id, None)
        return upload, source

    def _finish(self, folder: Path, upload: Upload) -> Upload:
        whole = folder / upload.name
        os.replace(folder / _PART, whole)
        try:
            upload = replace(upload, media=dict(self._check(whole, folder / THUMBNAIL)))
        except RestoreError as error:
            upload = replace(upload, error=str(error))
        self._write(folder, upload)
        if upload.error:
            whole.unlink()
        return upload

    def _folder(self, session: str, upload_id: str) -> Path:
        if not is_id(upload_id):
            raise UnknownUploadError()
        folder = self._storage.upload_folder(session, upload_id)
        if not (folder / _RECORD).exists():
            raise UnknownUploadError()
        return folder

    def _read(self, folder: Path) -> Upload:
        try:
            values = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            part = folder / _PART
            received = part.stat().st_size if part.exists() else values["size"]
        except FileNotFoundError as error:
            raise UnknownUploadError() from error
        return Upload(**{**values, "received": received})

    def _write(self, folder: Path, upload: Upload) -> None:
        fresh = folder / f"{_RECORD}.part"
        fresh.write_text(json.dumps(asdict(upload)), encoding="utf-8")
        os.replace(fresh, folder / _RECORD)
