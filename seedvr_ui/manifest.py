"""The manifest of a job: one JSON file in its folder that says everything about it. It is the truth; the index is not.

A manifest is replaced as a whole (`.part`, fsync, rename, fsync of the folder), so it is old or new, never half. It has
a version; older ones are brought up to date as they are read, and are written in the new form at the job's next change.
One that cannot be read is renamed and kept. Paths in it are relative to the folder, so the data may move.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from inference.errors import DiskFullError, RestoreError
from inference.progress import Progress
from seedvr_ui.jobs import Change, Death, Job, JobStatus, Wish

log = logging.getLogger(__name__)

NAME = "manifest.json"
VERSION = 4
_ASIDE = "manifest.unreadable"


class UnreadableError(RestoreError):
    """The manifest is damaged; it can be set aside."""


class NewerError(RestoreError):
    """The manifest was written by a newer version of this program and must be left alone."""


def write(job: Job) -> str:
    """Make `job` what its folder says, durably; returns the stamp of the new file. Raises DiskFullError, OSError."""
    part, path = job.folder / f"{NAME}.part", job.folder / NAME
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps(to_document(job), ensure_ascii=False, indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError("The disk is full; remove finished jobs or free some space, then try again.") from error
        raise
    sync_folder(job.folder)
    return stamp_of(path.stat())


def read(folder: Path) -> tuple[Job, str]:
    """The job of `folder` and the stamp of its manifest. Raises FileNotFoundError, UnreadableError, NewerError."""
    path = folder / NAME
    with path.open("rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        content = file.read()
    document = parse(content, folder)
    try:
        return from_document(document, folder), stamp
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def parse(content: bytes, folder: Path) -> dict[str, Any]:
    """The document that the manifest of `folder` holds, in the present form. Raises UnreadableError, NewerError."""
    path = folder / NAME
    try:
        document = json.loads(content)
        version = document["version"]
        if version > VERSION:
            raise NewerError(
                f"{path} was written by a newer SeedVR Studio (form {version}); update this one to use it."
            )
        return _up_to_date(document, folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def stamp_of(status: os.stat_result) -> str:
    """Changes with each `write`: what a manifest that was seen before is recognised by, without reading it."""
    return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"


def set_aside(folder: Path) -> Path:
    """Rename the unreadable manifest of `folder`, so that it disturbs no more and is not lost; returns its new path."""
    number = 1
    while (aside := folder / f"{_ASIDE}.{number}.json").exists():
        number += 1
    os.replace(folder / NAME, aside)
    log.warning(
        "The job in %s cannot be shown: its manifest is damaged and was kept as %s; put a good copy back as %s.",
        folder, aside.name, NAME,
    )  # fmt: skip
    return aside


def has_one_aside(folder: Path) -> bool:
    """Whether a manifest of `folder` was set aside; nothing in such a folder may be deleted by the program."""
    return any(folder.glob(f"{_ASIDE}.*.json"))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_document(job: Job) -> dict[str, Any]:
    """`job` as JSON-able values."""
    return {
        "version": VERSION,
        "id": job.id,
        "owner": job.owner,
        "source": job.source.relative_to(job.folder).as_posix(),
        "target": job.target.relative_to(job.folder).as_posix(),
        "settings": job.settings,
        "media": job.media,
        "status": job.status.value,
        "history": [
            {"status": change.status.value, "at": change.at, "reason": change.reason} for change in job.history
        ],
        "priority": job.priority,
        "place": job.place,
        "attempts": job.attempts,
        "deaths": [[death.base, death.done] for death in job.deaths],
        "crashes": list(job.crashes),
        "token": job.token,
        "holder": job.holder,
        "wish": job.wish.value,
        "keeps_part": job.keeps_part,
        "progress": job.progress.to_dict() if job.progress is not None else None,
        "base": job.base,
        "message": job.message,
        "summary": job.summary,
        "preview": job.preview,
        "num_bytes": job.num_bytes,
        "is_seen": job.is_seen,
        "created_at": job.created_at,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "worked_s": job.worked_s,
        "told_at": job.told_at,
    }


def from_document(document: Mapping[str, Any], folder: Path) -> Job:
    """The inverse of `to_document` for a job that lies in `folder`. Raises ValueError, KeyError or TypeError."""
    values = {key: value for key, value in document.items() if key != "version"}
    progress = values["progress"]
    return Job(
        **{
            **values,
            "folder": folder,
            "source": _inside(folder, values["source"]),
            "target": _inside(folder, values["target"]),
            "status": JobStatus(values["status"]),
            "history": tuple(
                Change(JobStatus(entry["status"]), entry["at"], entry["reason"]) for entry in values["history"]
            ),
            "deaths": tuple(Death(*death) for death in values["deaths"]),
            "crashes": tuple(values["crashes"]),
            "wish": Wish(values["wish"]),
            "progress": Progress.from_dict(progress) if progress is not None else None,
        }
    )


def _inside(folder: Path, name: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{name!r} lies outside of the job's folder")
    return folder / relative


def _from_1(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Form 1 knew neither bytes, nor whether a result was seen or a part kept, nor how long there was work on it."""
    started, finished = document["started_at"], document["finished_at"]
    worked = finished - started if started and finished else 0.0
    added = {"num_bytes": folder_bytes(folder), "is_seen": False, "keeps_part": False, "worked_s": worked}
    return {**document, **added}


def _from_2(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Form 2 knew no webhook."""
    return {**document, "told_at": 0.0}


def _from_3(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Form 3 did not know how often the app had ended during a job."""
    return {**document, "crashes": []}


_UPGRADES: Mapping[int, Callable[[dict[str, Any], Path], dict[str, Any]]] = {1: _from_1, 2: _from_2, 3: _from_3}


def _up_to_date(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    for version in range(document["version"], VERSION):
        document = {**_UPGRADES[version](document, folder), "version": version + 1}
    return document


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below `folder`."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # a file on its way to its final name
                continue
    return total
