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
_SAMPLE_BYTES = 2**16
_NUM_SAMPLES = 64
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


def sha256_of_samples(path: Path) -> str:
    """SHA-256 over the size of a file and samples of it: the first and last MiB, and a block of each 64th in between.

    It tells files apart in no time, however large they are; one of up to 6 MiB is read as a whole. Raises OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        digest.update(file.read(_END_BYTES))
        between = size - 2 * _END_BYTES
        if between <= _NUM_SAMPLES * _SAMPLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        for number in range(_NUM_SAMPLES):
            file.seek(_END_BYTES + number * (between - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(size - _END_BYTES)
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
