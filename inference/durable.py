"""Owns files that survive a crash: complete under their name or not there at all. Neither torch nor PyAV.

A file is written under another name (`name.part`), made durable, and renamed; then the folder is made durable, so that
the name survives a power cut too. What is still called `.part` belongs to nobody and may be removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

MAX_NAME_BYTES = 255
"""Of one file name, on every common file system."""

PART_SUFFIX = ".part"
_END_BYTES = 2**20
_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # some network file systems; their rename is durable or is not


def part_path(target: Path) -> Path:
    """Name of the unfinished file beside `target`; shortened where a file system could not hold it."""
    name = target.name + PART_SUFFIX
    return target.with_name(name if len(os.fsencode(name)) <= MAX_NAME_BYTES else target.name[:40] + PART_SUFFIX)


def publish(part: Path, target: Path) -> None:
    """Make the finished `part` file durable and give it its final name, replacing an older file. Raises OSError."""
    _sync(part)
    os.replace(part, target)
    try:
        _sync(target.parent)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise


def write_bytes(target: Path, content: bytes) -> None:
    """Write a small file, complete or not at all. Raises OSError."""
    part = part_path(target)
    part.write_bytes(content)
    publish(part, target)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a whole file as hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_ends(path: Path) -> str:
    """SHA-256 over size, first and last MiB of a file, which tells large files apart in no time. Raises OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
