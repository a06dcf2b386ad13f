"""Fetches weights from the Hugging Face hub into its cache, and gives the paths of a model's verified files.

The hub's library (2.4) starts a killed download anew and leaves the dead part on the disk, which hurts at 33 GB. So
the bytes are streamed here: into `blobs/<etag>.part` of the hub's own cache, resumed from where a killed process
stopped, under a file lock that the system releases with the process. The finished file is checked, renamed to the
blob's name, and `hf_hub_download` then links it in as if it had fetched it, so every other tool finds it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from inference.catalogue import ModelEntry, Part, WeightFile
from inference.errors import CheckpointError
from inference.locate import check_weights_folder, hub_cache, locate, repository_folder
from inference.verify import ReportBytes, remember_sha256, verify

log = logging.getLogger(__name__)

RETRY_WAITS_S = (0.5, 2.0, 5.0, 10.0)
"""Pauses between attempts that brought no byte; the download fails after the last one."""

_METADATA_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0
_RETRY_STATUS = (408, 429, 500, 502, 503, 504)
_SPARE_BYTES = 64 * 2**20  # left free on the disk after a download


def model_files(
    entry: ModelEntry, weights: str | Path | None = None, offline: bool = False, report_bytes: ReportBytes | None = None
) -> dict[Part, Path]:
    """Verified paths of all parts of a model, downloaded where missing.

    weights: folder that is looked into first. offline: never use the network (so does `HF_HUB_OFFLINE=1`).
    report_bytes: called with (done, in all) over what has to be fetched, then for each file that has to be hashed.
    Raises CheckpointError; nothing is deleted, and whatever was fetched so far is kept for the next try.
    """
    folder = check_weights_folder(weights)
    located = {part: locate(files, folder) for part, files in entry.files.items()}
    wanted = {part: _downloadable(entry, part) for part, found in located.items() if found is None}
    if wanted and (offline or is_offline()):
        names = ", ".join(file.name for file in wanted.values())
        raise CheckpointError(
            f"The weights of {entry.name} are not on this machine ({names}) and offline mode is on; set engine.weights"
            " to a folder that has them, or allow the download (engine.offline=false, HF_HUB_OFFLINE unset)."
        )
    paths: dict[Part, Path] = {}
    for part, found in located.items():
        if found is not None:
            verify(found.file, found.path, report_bytes)
            paths[part] = found.path
    paths.update(download(wanted, report_bytes))
    return {part: paths[part] for part in entry.files}


def is_offline() -> bool:
    """True if the environment forbids the network, in the hub's own words."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def download(wanted: Mapping[Part, WeightFile], report_bytes: ReportBytes | None = None) -> dict[Part, Path]:
    """Fetches files from the hub into its cache and verifies them.

    Before the first byte the disk is checked for the room that all of them need. Safe to run in several processes at
    once, and to kill at any moment: the next call goes on where the last one stopped.
    """
    remote = {part: _look_up(file) for part, file in wanted.items()}
    _check_disk(list(remote.values()))
    total = sum(blob.size for blob in remote.values())
    paths: dict[Part, Path] = {}
    before = 0
    for part, blob in remote.items():
        paths[part] = _fetch(blob, _shifted(report_bytes, before, total))
        before += blob.size
    return paths


class _RemoteFile:
    """A file of the hub: where to read it, and where its bytes go in the cache."""

    def __init__(self, file: WeightFile, url: str, etag: str, size: int) -> None:
        self.file = file
        self.url = url
        self.size = size
        assert file.repository is not None
        self.blob = repository_folder(file.repository) / "blobs" / etag
        self.part = self.blob.with_name(f"{etag}.part")

    @property
    def missing_bytes(self) -> int:
        if self.blob.is_file():
            return 0
        return self.size - (self.part.stat().st_size if self.part.is_file() else 0)


def _downloadable(entry: ModelEntry, part: Part) -> WeightFile:
    for file in entry.files[part]:
        if file.repository is not None:
            return file
    names = " or ".join(file.name for file in entry.files[part])
    raise CheckpointError(f"The weights of {entry.name} are missing ({names}); install this program again.")


def _look_up(file: WeightFile) -> _RemoteFile:
    """Asks the hub for size and hash; a file that is not the pinned one is refused before any byte is fetched."""
    assert file.repository is not None
    url = hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=_endpoint())
    with _hub_errors(file):
        metadata: HfFileMetadata = get_hf_file_metadata(url, timeout=_METADATA_TIMEOUT_S, endpoint=_endpoint())
    if not metadata.etag or metadata.size is None:
        raise CheckpointError(
            f"{_host()} does not tell the hash and size of {file.name}; check HF_ENDPOINT, or fetch the file by hand"
            " and set engine.weights to its folder."
        )
    # Large files carry their SHA-256 as etag, so a replaced upload shows here already.
    is_sha256 = len(metadata.etag) == 64
    if (file.num_bytes not in (None, metadata.size)) or (is_sha256 and file.sha256 not in (None, metadata.etag)):
        raise CheckpointError(
            f"{_host()} now has another {file.name} in {file.repository} ({metadata.size:,} bytes, {metadata.etag})"
            f" than this program knows ({file.sha256}); update the program, or set engine.weights to a folder with the"
            " file it knows."
        )
    return _RemoteFile(file, url, metadata.etag, metadata.size)


def _check_disk(remote: list[_RemoteFile]) -> None:
    needed = sum(blob.missing_bytes for blob in remote)
    folder = hub_cache()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + _SPARE_BYTES > free:
        names = ", ".join(blob.file.name for blob in remote)
        raise CheckpointError(
            f"Downloading {names} needs {gigabytes(needed)} but only {gigabytes(free)} is free on the disk of {folder};"
            " free some space there or set HF_HOME to a folder on a larger disk."
        )


def gigabytes(num_bytes: int) -> str:
    """A size for people, in units of 10^9 bytes."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.1f} MB"


def _fetch(remote: _RemoteFile, report_bytes: ReportBytes) -> Path:
    """The path of the finished, verified file in the hub's cache."""
    file = remote.file
    with _disk_errors(remote), _hub_errors(file):
        remote.blob.parent.mkdir(parents=True, exist_ok=True)
        with _locked(remote, report_bytes):
            if not remote.blob.is_file():
                _stream(remote, report_bytes)
                _accept(remote, report_bytes)
        report_bytes(remote.size, remote.size)
        linked = hf_hub_download(
            str(file.repository),
            file.name,
            revision=file.revision,
            cache_dir=hub_cache(),
            endpoint=_endpoint(),
            etag_timeout=_METADATA_TIMEOUT_S,
        )
    return Path(linked)


def _accept(remote: _RemoteFile, report_bytes: ReportBytes) -> None:
    """Gives a complete part its final name if its hash is right; else sets it aside, so that the next try is fresh."""
    try:
        digest = verify(remote.file, remote.part, lambda _done, _size: report_bytes(remote.size, remote.size))
    except CheckpointError:
        rejected = remote.part.with_suffix(".rejected")
        remote.part.replace(rejected)
        raise CheckpointError(
            f"The download of {remote.file.name} does not have the expected SHA-256 {remote.file.sha256}; it was kept"
            f" as {rejected}. Start again to download it anew, and check the network's proxy if it happens again."
        ) from None
    remote.part.replace(remote.blob)
    if digest is not None:
        remember_sha256(remote.blob, digest)


def _stream(remote: _RemoteFile, report_bytes: ReportBytes) -> None:
    """Appends to the part file until it has its full size; a broken connection is taken up where it ended."""
    failures = 0
    with remote.part.open("ab") as part:
        while (start := part.seek(0, os.SEEK_END)) != remote.size:
            if start > remote.size:  # left by something else under the same name
                part.truncate(0)
                continue
            failure: Exception = EOFError("the server ended the transfer early")
            try:
                for done in _receive(remote.url, part, start):
                    report_bytes(done, remote.size)
            except httpx2.TransportError as error:
                failure = error
            except HfHubHTTPError as error:
                if error.response.status_code not in _RETRY_STATUS:
                    raise
                failure = error
            end = part.seek(0, os.SEEK_END)
            if end == remote.size:
                break
            log.info("connection lost while fetching %s at byte %d: %s", remote.file.name, end, failure)
            failures = 0 if end > start else failures + 1
            if failures > len(RETRY_WAITS_S):
                raise _unreachable(remote.file, failure) from failure
            if failures:
                time.sleep(RETRY_WAITS_S[failures - 1])
        part.flush()
        os.fsync(part.fileno())


def _receive(url: str, part: BinaryIO, start: int) -> Iterator[int]:
    """One request; yields the size of the part file after each block."""
    # The address is resolved anew each time: the signed addresses behind it live for an hour only.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    with get_session().stream("GET", url, headers=headers, timeout=_READ_TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if response.status_code != 206 and start:
            part.truncate(0)  # the server sends the whole file
            start = 0
        for block in response.iter_bytes():
            part.write(block)
            start += len(block)
            yield start


@contextmanager
def _locked(remote: _RemoteFile, report_bytes: ReportBytes) -> Iterator[None]:
    """Holds the download's lock; while another process has it, its progress is reported as ours."""
    lock = FileLock(remote.part.with_suffix(".lock"))
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            report_bytes(remote.size - remote.missing_bytes, remote.size)
    try:
        yield
    finally:
        lock.release()


def _shifted(report_bytes: ReportBytes | None, before: int, total: int) -> ReportBytes:
    """Progress of one file as progress of all of them."""

    def report(done: int, _size: int) -> None:
        if report_bytes is not None:
            report_bytes(before + done, total)

    return report


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _host() -> str:
    return _endpoint() or "huggingface.co"


@contextmanager
def _hub_errors(file: WeightFile) -> Iterator[None]:
    """Turns what the hub's library raises into one sentence with the next step."""
    by_hand = f"or fetch {file.name} by hand and set engine.weights to its folder"
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{file.repository} asks for permission; accept its terms on {_host()} and set HF_TOKEN, {by_hand}."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{_host()} has no public repository {file.repository}; if it needs a login set HF_TOKEN, {by_hand}."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{file.repository} has no revision {file.revision}; update this program, {by_hand}."
        ) from error
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{file.name} is not on this machine and offline mode is on; unset HF_HUB_OFFLINE, {by_hand}."
        ) from error
    except HfHubHTTPError as error:
        if isinstance(error, EntryNotFoundError):
            raise CheckpointError(
                f"{file.repository} has no file {file.name}; update this program, {by_hand}."
            ) from error
        raise CheckpointError(
            f"{_host()} answered {error.response.status_code} for {file.name}; try again in a few minutes, {by_hand}."
        ) from error
    except (httpx2.TransportError, FileMetadataError, EntryNotFoundError) as error:
        # The last one is the hub's local error: nothing cached, and no network to ask.
        raise _unreachable(file, error) from error


def _unreachable(file: WeightFile, error: Exception) -> CheckpointError:
    reason = str(error).strip().splitlines()
    return CheckpointError(
        f"{file.name} cannot be fetched from {_host()} ({reason[0] if reason else type(error).__name__}); check the"
        f" network and start again, or fetch it by hand and set engine.weights to its folder."
    )


@contextmanager
def _disk_errors(remote: _RemoteFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, HfHubHTTPError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full else "check its permissions"
        raise CheckpointError(
            f"{remote.file.name} cannot be written to {remote.blob.parent} ({error.strerror or error}); {advice} or set"
            " HF_HOME to another folder."
        ) from error
