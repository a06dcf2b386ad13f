"""One file that holds many: the form of exported jobs. Knows nothing of jobs.

    seedvr-job.json     first: what this is, and the name and size of each file that follows
    ...                 the files, in that order
    sha256.json         last: the SHA-256 of each; without it the archive was cut short

It is a plain tar of regular files (video does not get smaller by packing it again). The digests come last so that each
file is read once and the first bytes leave at once, however large the files are. Reading knows only what writing makes:
no links, no devices, no long-name records; names are those of the list, and every one is judged before it is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inference.durable import part_path, publish
from inference.errors import DiskFullError, RestoreError

HEADER, DIGESTS = "seedvr-job.json", "sha256.json"
FORMAT = 1

_KIND = "seedvr job"
_BLOCK_BYTES = 2**20
_UNIT = 512  # everything in a tar is a whole number of these
_MAX_DOCUMENT_BYTES = 64 * 2**20
_MAX_FILES = 300_000
_MAX_ENTRY_NAME = 100
_LIMIT_BYTES = 2**62


class ArchiveError(RestoreError):
    """A file is no archive of this kind, damaged, or not to be trusted."""

    def __init__(self, why: str) -> None:
        super().__init__(f"This cannot be imported: {why}; export the job again.")


class Body(Protocol):
    """Where an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, at least one unless the end is reached."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A file on its way out: its name in the archive, and where it lies, or what it holds."""

    name: str
    content: Path | bytes
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A file that the head of an archive announces."""

    name: str
    num_bytes: int


def length(files: Sequence[Packed]) -> int:
    """The bytes of an archive of `files`."""
    head = _head(files)
    tail = len(_document({file.name: "0" * 64 for file in (head, *files)}))
    return sum(_UNIT + _padded(size) for size in (*(file.num_bytes for file in (head, *files)), tail)) + 2 * _UNIT


def pack(files: Sequence[Packed]) -> Iterator[bytes]:
    """The archive, piece by piece. Raises RestoreError if a file is not as long as it was said to be."""
    digests: dict[str, str] = {}
    for file in (_head(files), *files):
        digest = hashlib.sha256()
        yield _entry(file.name, file.num_bytes)
        for block in _content(file):
            digest.update(block)
            yield block
        yield bytes(_padded(file.num_bytes) - file.num_bytes)
        digests[file.name] = digest.hexdigest()
    document = _document(digests)
    yield _entry(DIGESTS, len(document)) + document + bytes(_padded(len(document)) - len(document))
    yield bytes(2 * _UNIT)


def write(files: Sequence[Packed], target: Path, check: Callable[[], None] = lambda: None) -> None:
    """The archive as the file `target`, complete or not at all; `check` may raise to stop. Raises RestoreError."""
    part = part_path(target)
    try:
        with part.open("wb") as file:
            for block in pack(files):
                check()
                file.write(block)
        publish(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _disk_error(error, target) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def unpack(body: Body, folder: Path, admit: Callable[[Sequence[Listed]], None]) -> None:
    """Write the files of an archive into the new folder `folder`, each durably; they are what was packed.

    `admit` is told what will come before anything is written, and raises what it does not want: names are relative
    paths in which no part leads upwards. Raises ArchiveError, DiskFullError.
    """
    head = _read_document(body, HEADER)
    document = _parse(head)
    if not isinstance(document, Mapping) or document.get("kind") != _KIND:
        raise ArchiveError("it is no exported job")
    if document.get("format") != FORMAT:
        raise ArchiveError(f"it has the form {document.get('format')!s:.20}, which this version does not know")
    files = _listed(document.get("files"))
    admit(files)
    digests = {HEADER: hashlib.sha256(head).hexdigest()}
    try:
        for file in files:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            digests[file.name] = _receive(body, file, path)
    except OSError as error:
        raise _disk_error(error, folder) from error
    if _parse(_read_document(body, DIGESTS)) != digests:
        raise ArchiveError("its content is not what was exported")


def _listed(entries: Any) -> list[Listed]:
    """The announced files, every one of which has a name that stays in its folder and that no other one has."""
    if not isinstance(entries, list) or len(entries) > _MAX_FILES:
        raise ArchiveError("its list of files is damaged")
    files: list[Listed] = []
    names: set[str] = set()
    for entry in entries:
        name, size = (entry.get("name"), entry.get("bytes")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ArchiveError("its list of files is damaged")
        if size > _LIMIT_BYTES or name.casefold() in names or not _stays_inside(name):
            raise ArchiveError(f"it has a file with the name {name[:80]!r}")
        names.add(name.casefold())
        files.append(Listed(name, size))
    return files


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    is_clean = not any(char in name for char in "\\:\0") and name.isprintable()
    return is_clean and len(parts) <= 2 and all(part.strip() not in ("", ".", "..") for part in parts)


def _receive(body: Body, file: Listed, path: Path) -> str:
    """Write the next file of the archive; its SHA-256."""
    size = _next_size(body)
    if size != file.num_bytes:
        raise ArchiveError(f"{file.name!r} has {size} bytes where its list says {file.num_bytes}")
    digest = hashlib.sha256()
    with path.open("xb") as target:
        left = size
        while left:
            block = _exactly(body, min(left, _BLOCK_BYTES))
            digest.update(block)
            target.write(block)
            left -= len(block)
        target.flush()
        os.fsync(target.fileno())
    _exactly(body, _padded(size) - size)
    return digest.hexdigest()


def _read_document(body: Body, name: str) -> bytes:
    size = _next_size(body, name)
    if size > _MAX_DOCUMENT_BYTES:
        raise ArchiveError("its list of files is too long")
    content = _exactly(body, size)
    _exactly(body, _padded(size) - size)
    return content


def _next_size(body: Body, name: str | None = None) -> int:
    """The size of the next file, which has to be a regular one, and to have that name if one is given."""
    try:
        info = tarfile.TarInfo.frombuf(_exactly(body, _UNIT), "utf-8", "strict")
    except (tarfile.TarError, UnicodeDecodeError):
        raise ArchiveError("it is no exported job, or it is damaged") from None
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0 or name not in (None, info.name):
        raise ArchiveError("it holds something else than the files of a job")
    return info.size


def _exactly(body: Body, size: int) -> bytes:
    blocks: list[bytes] = []
    left = size
    while left:
        block = body.read(left)
        if not block:
            raise ArchiveError("it ends too early")
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _content(file: Packed) -> Iterator[bytes]:
    if isinstance(file.content, bytes):
        yield file.content
        return
    left = file.num_bytes
    with file.content.open("rb") as source:
        while block := source.read(min(_BLOCK_BYTES, left)):
            left -= len(block)
            yield block
        if left or source.read(1):
            raise RestoreError(f"{file.name} has changed while it was exported; export the job again.")


def _entry(name: str, num_bytes: int) -> bytes:
    """The head of a file. Its name is for people who look into the archive; the list has the true one."""
    info = tarfile.TarInfo(_short(name))
    info.size, info.mode = num_bytes, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _short(name: str) -> str:
    if len(name.encode()) <= _MAX_ENTRY_NAME:
        return name
    stem, suffix = os.path.splitext(name)
    return stem.encode()[: _MAX_ENTRY_NAME - len(suffix.encode()[:20])].decode(errors="ignore") + suffix[:5]


def _head(files: Sequence[Packed]) -> Packed:
    listed = [{"name": file.name, "bytes": file.num_bytes} for file in files]
    document = _document({"kind": _KIND, "format": FORMAT, "files": listed})
    return Packed(HEADER, document, len(document))


def _document(values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False, indent=1).encode()


def _parse(document: bytes) -> Any:
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        raise ArchiveError("its list of files is damaged") from None


def _padded(size: int) -> int:
    return -(-size // _UNIT) * _UNIT


def _disk_error(error: OSError, path: Path) -> RestoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("The disk is full; free some space, then try again.")
    return RestoreError(f"{path} cannot be used ({error.strerror or error}); check the folder and its rights.")
