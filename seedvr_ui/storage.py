"""Where the front end keeps files: one folder a session, safe names, free space, age limit. Without gradio.

    <data>/sessions/<session>/uploads/<upload>/    upload.json, the file (`.part` until it is whole), thumbnail
    <data>/sessions/<session>/jobs/<job>/          manifest.json, source/, work/, result/, preview files, thumbnail
    <data>/sessions/<session>/exports/<job>/       the archive of a job, made to be fetched; imports/: come in
    <data>/trash/                                  folders on their way out: renamed at once, deleted when there is time
    <data>/moving/                                 files of jobs on their way out or in
    <data>/gradio/                                 Gradio's own temporary files

Ids are 128 random bits in hex and are checked before they become a path, so no request can name another folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from inference.errors import DiskFullError, RestoreError

THUMBNAIL = "thumbnail.jpg"
_ID = re.compile(r"[0-9a-f]{32}")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_MAX_NAME_BYTES = 160
_RESERVED_BYTES = 256 * 2**20
_MOVING_S = 3 * 86400.0


def default_data() -> Path:
    """The data folder: SEEDVR_DATA, else below the user's home."""
    return Path(os.environ.get("SEEDVR_DATA") or "~/.local/share/seedvr").expanduser()


def local_owner(root: Path) -> str:
    """The owner of what the command line of this machine submits: one id for the data folder `root`, made at need.

    Whoever knows an owner's id is that owner to a server without accounts, so only the user of the machine may read it.
    """
    path = root / "local-owner"
    with contextlib.suppress(FileNotFoundError):
        owner = path.read_text(encoding="ascii", errors="replace").strip()
        if not is_id(owner):
            raise RestoreError(f"{path} is damaged; write the owner's id of an older job into it, or delete it.")
        return owner
    root.mkdir(parents=True, exist_ok=True)
    new = root / f"local-owner.{secrets.token_hex(4)}"
    with open(new, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"{new_id()}\n")
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.link(new, path)
    new.unlink()
    return local_owner(root)


def new_id() -> str:
    """A fresh unguessable id."""
    return secrets.token_hex(16)


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id; anything else must not reach the disk."""
    return _ID.fullmatch(text) is not None


def is_plain(path: Path, folder: Path) -> bool:
    """Whether `path` is a file below `folder` that no link leads to, nor away from."""
    try:
        return path.is_file() and path.resolve() == folder.resolve() / path.relative_to(folder)
    except (OSError, ValueError):  # too long, a NUL, or not below it
        return False


def safe_name(name: str) -> str:
    """The last part of `name` as a file name that is valid everywhere, with its suffix kept."""
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    last = "".join(char for char in _FORBIDDEN.sub("_", last) if char.isprintable()).strip().lstrip(".").strip()
    stem, suffix = os.path.splitext(last or "upload")
    suffix = suffix.encode()[:20].decode(errors="ignore")
    stem = stem.encode()[: _MAX_NAME_BYTES - len(suffix.encode())].decode(errors="ignore").rstrip()
    return f"{stem}{suffix}"


class Storage:
    """The folders below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self._sessions = self.root / "sessions"
        self._trash = self.root / "trash"
        for folder in (self._sessions, self._trash):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def gradio_folder(self) -> Path:
        """Where Gradio keeps its temporary files: on the same file system as everything else."""
        return self.root / "gradio"

    def uploads_folder(self, session: str) -> Path:
        """The folder that holds one folder per upload of `session`."""
        return self._session_folder(session) / "uploads"

    def upload_folder(self, session: str, upload: str) -> Path:
        """The folder of one upload; it need not exist."""
        return self.uploads_folder(session) / _checked(upload)

    def exports_folder(self, session: str) -> Path:
        """The folder that holds one folder per job of `session` that is written into an archive."""
        return self._session_folder(session) / "exports"

    def export_folder(self, session: str, job: str) -> Path:
        """The folder of the archive of one job; it need not exist."""
        return self.exports_folder(session) / _checked(job)

    def import_folder(self, session: str, identifier: str) -> Path:
        """The folder of an archive that has come in; it need not exist."""
        return self._session_folder(session) / "imports" / _checked(identifier)

    def job_folder(self, session: str, job: str) -> Path:
        """The folder of one job; it need not exist."""
        return self._session_folder(session) / "jobs" / _checked(job)

    def job_folders(self) -> Iterator[tuple[str, str, Path]]:
        """(session, job, folder) of every job folder that is there."""
        for session in _folders(self._sessions):
            for job in _folders(session / "jobs"):
                if is_id(session.name) and is_id(job.name):
                    yield session.name, job.name, job

    def upload_folders(self) -> Iterator[tuple[str, Path]]:
        """(session, folder) of every upload folder that is there."""
        for session in _folders(self._sessions):
            for upload in _folders(session / "uploads"):
                if is_id(session.name) and is_id(upload.name):
                    yield session.name, upload

    def has_space(self) -> bool:
        """Whether there is some room on the disk beyond what we keep free."""
        return shutil.disk_usage(self.root).free > _RESERVED_BYTES

    def require_space(self, num_bytes: int) -> None:
        """Raise DiskFullError unless `num_bytes` more fit on the disk with some room to spare."""
        free = shutil.disk_usage(self.root).free - _RESERVED_BYTES
        if num_bytes > free:
            raise DiskFullError(
                f"The disk has only {max(0, free) / 1e9:.1f} GB free and this needs {num_bytes / 1e9:.1f} GB; "
                "remove finished jobs and try again."
            )

    def remove(self, folder: Path) -> None:
        """Delete `folder` of this storage with all it holds; nothing happens if it is gone already."""
        if self._sessions not in folder.parents:
            raise ValueError(f"{folder} is outside of {self._sessions}")
        shutil.rmtree(folder, ignore_errors=True)

    def throw_away(self, folder: Path) -> None:
        """Take `folder` out of this storage in one step: it is there as a whole, or not at all."""
        if self._sessions not in folder.parents:
            raise ValueError(f"{folder} is outside of {self._sessions}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, self._trash / f"{folder.name}-{secrets.token_hex(4)}")

    def new_hold(self) -> Path:
        """A new folder for a job on its way; on the same file system, so that it can be moved and linked."""
        folder = self.root / "moving" / new_id()
        folder.mkdir(parents=True)
        return folder

    def release_hold(self, folder: Path) -> None:
        """Remove what is left in a folder that `new_hold` made."""
        if folder.parent != self.root / "moving":
            raise ValueError(f"{folder} is no folder of a job on its way")
        shutil.rmtree(folder, ignore_errors=True)

    def release_old_holds(self) -> None:
        """Remove what processes left that ended while a job was on its way."""
        for folder in _folders(self.root / "moving"):
            if max(_times([folder]), default=0.0) < time.time() - _MOVING_S:
                self.release_hold(folder)

    def empty_trash(self) -> None:
        """Delete what was thrown away."""
        for folder in _folders(self._trash):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_older_than(self, age_s: float, keep: Collection[Path] = ()) -> list[Path]:
        """Delete job and upload folders in which nothing changed for `age_s` seconds, except those in `keep`.

        Returns what was deleted. Sessions that hold nothing any more go too.
        """
        limit = time.time() - age_s
        removed = [
            folder
            for folder in self._sessions.glob("*/*/*")
            if folder.is_dir() and folder not in keep and _last_change(folder) < limit
        ]
        for folder in removed:
            self.remove(folder)
        for session in self._sessions.iterdir():
            if session.is_dir() and _last_change(session) < limit and not any(session.glob("*/*")):
                self.remove(session)
        return removed

    def _session_folder(self, session: str) -> Path:
        return self._sessions / _checked(session)


def _checked(identifier: str) -> str:
    if not is_id(identifier):
        raise ValueError(f"not an id: {identifier!r}")
    return identifier


def _folders(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _last_change(folder: Path) -> float:
    return max(_times([folder, *folder.rglob("*")]), default=0.0)


def _times(paths: list[Path]) -> Iterator[float]:
    for path in paths:
        try:
            yield path.stat().st_mtime
        except FileNotFoundError:  # removed by its owner between listing and asking
            continue
