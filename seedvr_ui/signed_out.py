"""The sessions that somebody has ended early: an empty file each, until they would have ended by themselves.

A file is there or is not, so there is nothing to lock, to cache or to damage, and all processes over one data folder
know it at once. Its name says when it may go, since a copy of the folder may have other times.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from inference.durable import write_bytes
from inference.errors import RestoreError

FOLDER_NAME = "signed-out"


class SignOutError(RestoreError):
    """That a session has ended could not be written down, so it has not."""


class SignedOut:
    """The ended sessions of the server over the folder `data`. Sessions are known by an id as `new_id` makes them."""

    def __init__(self, data: Path) -> None:
        self._folder = data.expanduser() / FOLDER_NAME

    def add(self, session_id: str, expires_at: int) -> None:
        """End a session that would end by itself at `expires_at`, in seconds since 1970. Raises SignOutError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._forget_old()
            write_bytes(self._path(session_id, expires_at), b"")
        except OSError as error:
            raise SignOutError(
                f"Signing out could not be written down ({error.strerror}), so you are still signed in; make room on "
                "the server's disk and sign out again."
            ) from error

    def has(self, session_id: str, expires_at: int) -> bool:
        """Whether that session was ended. Raises OSError if it cannot be known."""
        try:
            self._path(session_id, expires_at).stat()
        except FileNotFoundError:
            return False
        return True

    def _path(self, session_id: str, expires_at: int) -> Path:
        return self._folder / f"{expires_at}-{session_id}"

    def _forget_old(self) -> None:
        now = int(time.time())
        with os.scandir(self._folder) as entries:
            for entry in entries:
                expires_at, _, _ = entry.name.partition("-")
                if expires_at.isdecimal() and int(expires_at) < now:
                    with contextlib.suppress(FileNotFoundError):  # another process was faster
                        os.unlink(entry.path)
