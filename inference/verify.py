"""Decides whether a weight file is the one that was meant: size, then SHA-256, remembered after the first time.

Hashing 33 GB takes the better part of a minute, so results are kept in one JSON file, keyed by path, size and
modification time. The record is a convenience: if it cannot be read or written, the file is hashed again.
Nothing here ever deletes or changes a weight file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from inference.catalogue import WeightFile
from inference.errors import CheckpointError
from inference.locate import own_folder

log = logging.getLogger(__name__)

ReportBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while weights are fetched or checked; may raise to stop the work."""

_BLOCK = 8 * 2**20


def verify(file: WeightFile, path: Path, report_bytes: ReportBytes | None = None) -> str | None:
    """The SHA-256 of `path` if it has the size and hash of `file`, else raises CheckpointError.

    What the catalogue does not know is not checked; without a known hash the file is not read and None returned.
    """
    size = _size(path)
    if file.num_bytes is not None and size != file.num_bytes:
        raise CheckpointError(
            f"{path} has {size:,} bytes, but {file.name} must have {file.num_bytes:,}; it is incomplete or another"
            " file. Move it away and start again to download it anew."
        )
    if file.sha256 is None:
        return None
    found = sha256_of(path, report_bytes)
    if found in file.superseded:
        raise CheckpointError(
            f"{path} is an earlier upload of {file.name} with other weights (SHA-256 {found}, expected {file.sha256});"
            " move it away and start again to download the current one."
        )
    if found != file.sha256:
        raise CheckpointError(
            f"{path} is damaged or another file: its SHA-256 is {found}, expected {file.sha256}. Move it away and"
            " start again to download it anew, or rename it if the weights are your own."
        )
    return found


def sha256_of(path: Path, report_bytes: ReportBytes | None = None) -> str:
    """SHA-256 of a file as hex digits, from the record if size and modification time are those of the last time."""
    try:
        stat = path.stat()
        known = _read_record().get(str(path.resolve()))
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        digest = _hash(path, stat.st_size, report_bytes)
        # Of the state before the reading: a file that changed meanwhile will not match and is hashed again.
        _write_record(str(path.resolve()), [stat.st_size, stat.st_mtime_ns, digest])
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest


def is_remembered(file: WeightFile, path: Path) -> bool:
    """Whether `path` was found to be `file` before and has not changed since. Reads nothing of the file."""
    return file.sha256 is not None and known_sha256(path) == file.sha256


def known_sha256(path: Path) -> str | None:
    """The recorded hash of a file, if it has not changed since; the file is not read."""
    try:
        stat = path.stat()
    except OSError:
        return None
    known = _read_record().get(str(path.resolve()))
    return str(known[2]) if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns] else None


def forget_sha256(path: Path) -> None:
    """Lets the next `verify` read the file again."""
    _write_record(str(path.resolve()), [0, 0, ""])


def remember_sha256(path: Path, digest: str) -> None:
    """Records the hash of a file that was checked under another name and then renamed."""
    stat = path.stat()
    _write_record(str(path.resolve()), [stat.st_size, stat.st_mtime_ns, digest])


def _hash(path: Path, size: int, report_bytes: ReportBytes | None) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if report_bytes is not None:
                report_bytes(done, size)
    return digest.hexdigest()


def _record_path() -> Path:
    return own_folder() / "verified.json"


def _read_record() -> dict[str, list[int | str]]:
    try:
        record = json.loads(_record_path().read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {key: value for key, value in record.items() if isinstance(value, list) and len(value) == 3}


def _write_record(key: str, value: list[int | str]) -> None:
    """Two processes may write at once; the later one wins, and the lost entry costs one more hashing."""
    target = _record_path()
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**_read_record(), key: value}, indent=1))
        part.replace(target)
    except OSError as error:
        log.info("cannot remember verified weights in %s: %s", target, error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read ({error.strerror or error}); check that it exists and its permissions."
    )
