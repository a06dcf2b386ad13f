"""A folder of this server whose media may be taken as sources. Without gradio.

What can be chosen is what the list shows, by an id that stands for a path: no path ever comes from a browser. Originals
are only read; a source is another name of the same file where the file system can, so it costs neither time nor space.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import mimetypes
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference.errors import RestoreError

_MAX_FILES = 2000
_MAX_DEPTH = 8
_MAX_SEEN = 50_000
_FICLONE = 0x40049409  # of linux/fs.h: let a file share the blocks of another one
_SUFFIXES = (
    ".mkv", ".mov", ".avi", ".ts", ".m2ts", ".mts", ".vob", ".wmv", ".flv", ".mxf", ".webm", ".mp4", ".m4v", ".mpg",
    ".mpeg", ".3gp", ".ogv", ".tif", ".tiff", ".webp", ".avif",
)  # fmt: skip


class FolderError(RestoreError):
    """A file of the server folder cannot be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFile:
    """A file in the folder. `path` is relative to it; `stamp` changes when the file does."""

    id: str
    path: str
    size: int
    stamp: str


class ServerFolder:
    """The media files below `root`. Hidden files, links, and whatever is neither file nor folder are not seen."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        if not self.root.is_dir():
            raise FolderError(f"There is no folder {root}; create it, or name another one with --folder.")

    def files(self) -> list[FolderFile]:
        """What may be chosen, by path; the first 2,000 files, at most eight folders deep."""
        found = itertools.islice(_walk(self.root), _MAX_FILES)
        files = [_describe(str(path.relative_to(self.root)), status) for path, status in found]
        return sorted(files, key=lambda file: file.path.casefold())

    def find(self, file_id: str) -> FolderFile:
        """The file with this id. Raises FolderError if the list does not have it (any more)."""
        for file in self.files():
            if file.id == file_id:
                return file
        raise FolderError("This file is no longer in the server folder; look at its list again.")

    def link(self, file: FolderFile, target: Path) -> None:
        """Make `target` another name of the file, or a copy that shares its blocks. Raises OSError if neither works."""
        with self.open(file) as original:
            try:
                _link(self.root / file.path, target, original)
            except OSError:
                clone(original, target)

    @contextlib.contextmanager
    def open(self, file: FolderFile) -> Iterator[BinaryIO]:
        """The file for reading. Every folder on the way is opened as one, so that no link can lead out of the root.

        Raises FolderError if it is not the file that was listed.
        """
        changed = FolderError(f"{file.path} has changed in the server folder; choose it again.")
        with contextlib.ExitStack() as stack:
            try:
                parent = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
                *folders, name = Path(file.path).parts
                for folder in folders:
                    stack.callback(os.close, parent)
                    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                stack.callback(os.close, parent)
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
            except PermissionError as error:
                raise FolderError(f"The server may not read {file.path}; change its permissions.") from error
            except OSError as error:
                raise changed from error
            opened = stack.enter_context(os.fdopen(descriptor, "rb"))
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or _describe(file.path, status) != file:
                raise changed
            yield opened


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Media files below `root`; what cannot be looked at is left out, and a tree without end has one here."""
    folders, num_seen = [(root, 0)], 0
    while folders and num_seen < _MAX_SEEN:
        folder, depth = folders.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as listing:
            for entry in itertools.islice(listing, _MAX_SEEN - num_seen):
                num_seen += 1
                with contextlib.suppress(OSError):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                        folders.append((Path(entry.path), depth + 1))
                    elif entry.is_file(follow_symlinks=False) and _is_media(entry.name):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)


def _is_media(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) or (mimetypes.guess_type(name)[0] or "").startswith(("video/", "image/"))


def _describe(path: str, status: os.stat_result) -> FolderFile:
    identifier = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return FolderFile(id=identifier, path=path, size=status.st_size, stamp=f"{status.st_mtime_ns}-{status.st_size}")


def _link(path: Path, target: Path, original: BinaryIO) -> None:
    os.link(path, target, follow_symlinks=False)
    if not os.path.samestat(os.lstat(target), os.fstat(original.fileno())):  # replaced since it was opened
        target.unlink()
        raise FileNotFoundError(path)


def clone(original: BinaryIO, target: Path) -> None:
    """Make `target` a copy that shares its blocks with the open file `original`. Raises OSError where none can be."""
    try:
        with target.open("xb") as copy:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
