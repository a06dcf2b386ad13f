"""Jobs that travel: out of one data folder, into another, where they go on. Without gradio.

A job goes out as it was at one moment: its files get second names under the store's lock, which takes no time, and are
read from there. None of them is ever written to again (`inference.durable`). What is secret (the owner's id) or true of
one machine only (its settings, who held the job) stays behind.

What comes in is not trusted. Its manifest is rebuilt from what is allowed (`arrival`), its source is looked at like an
upload, its finished units are counted, and it becomes a job in one step when all is well; else nothing of it is left.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import RestoreError
from inference.progress import Progress, Stage
from inference.units import finished_units, is_unit_file
from seedvr_ui import archive_file, manifest
from seedvr_ui.archive_file import ArchiveError, Listed, Packed
from seedvr_ui.arrival import read_arrival
from seedvr_ui.jobs import Job, JobStatus, StateError
from seedvr_ui.storage import THUMBNAIL, safe_name
from seedvr_ui.uploads import TooLargeError

if TYPE_CHECKING:
    from seedvr_ui.sessions import SessionManager

__all__ = ["SUFFIX", "ArchiveError", "export_job", "import_job"]

log = logging.getLogger(__name__)

SUFFIX = ".seedvr.tar"
MACHINE_SETTINGS = ("weights", "threads", "offline", "device")
"""Of `engine`: what is true of one machine only."""

_PICTURE = re.compile(r"preview[\w-]{0,60}\.(mp4|jpg|png|webp)")
_NOBODY = "0" * 32


def export_job(
    manager: SessionManager, owner: str, job_id: str, target: Path, check: Callable[[], None] = lambda: None
) -> Path:
    """Write the job as an archive to `target`, complete or not at all; returns its path. `check` may raise to stop.

    What is done with the job meanwhile changes nothing about the archive. Raises UnknownJobError, StateError for a job
    that runs, RestoreError.
    """
    held = manager.storage.new_hold()
    try:
        archive_file.write(manager.store.look(job_id, owner, lambda job: _hold(job, held)), target, check)
    finally:
        manager.storage.release_hold(held)
    return target


def import_job(manager: SessionManager, owner: str, archive: Path, *, start: bool = False) -> Job:
    """A job of `owner` from `archive`, under its old id unless there is such a job here; the archive stays.

    It rests as it did; what would have gone on by itself is paused, and with `start` it is queued. Raises RestoreError;
    then nothing has come in.
    """
    held = manager.storage.new_hold()
    try:
        try:
            with archive.open("rb") as body:
                archive_file.unpack(body, held, lambda files: _judge(manager, owner, files))
        except OSError as error:
            raise RestoreError(
                f"{archive.name} cannot be read ({error.strerror or error}); check its path and its rights."
            ) from error
        place = manager.store.next_place(owner)
        job = _rebuild(manager, owner, held).arrive(place)
        if start:
            job = _started(job, place)
        return manager.store.settle(job)
    finally:
        manager.storage.release_hold(held)


def _hold(job: Job, held: Path) -> list[Packed]:
    """Second names in `held` for everything that travels of `job`."""
    if job.status is JobStatus.RUNNING:
        raise StateError("This job is being worked on; pause it, then export it.")
    if not job.source.exists():
        raise StateError("The file of this job is no longer here, so it cannot be exported.")
    document = json.dumps(_outgoing(job), ensure_ascii=False, indent=1).encode()
    files = [Packed(manifest.NAME, document, len(document))]
    for index, path in enumerate(_travelling(job)):
        second = held / str(index)
        _link_or_copy(path, second)
        files.append(Packed(path.relative_to(job.folder).as_posix(), second, second.stat().st_size))
    return files


def _travelling(job: Job) -> list[Path]:
    paths = [job.source]
    if job.work.is_dir() and not job.keeps_no_work:
        paths += sorted(path for path in job.work.iterdir() if is_unit_file(path.name))
    if job.status is JobStatus.SUCCEEDED:
        names = {str(job.preview[key]) for key in ("video", "before", "after") if key in job.preview}
        paths += [job.target, *sorted(job.folder / name for name in names if _PICTURE.fullmatch(name))]
    return [path for path in paths if path.is_file()]


def _outgoing(job: Job) -> dict[str, Any]:
    """The manifest without what is secret, or true of this machine only."""
    settings = {key: dict(value) if isinstance(value, Mapping) else value for key, value in job.settings.items()}
    for name in MACHINE_SETTINGS:
        settings.get("engine", {}).pop(name, None)
    return {**manifest.to_document(job), "owner": _NOBODY, "holder": "", "settings": settings}


def _judge(manager: SessionManager, owner: str, files: Sequence[Listed]) -> None:
    """Raise RestoreError unless these are the files of one job, and `owner` may have it."""
    names = [file.name for file in files]
    wrong = next((name for name in names if not _is_of_a_job(name)), None)
    if wrong is not None:
        raise ArchiveError(f"it has a file with the name {wrong[:80]!r}")
    sources = [file for file in files if file.name.startswith("source/")]
    if len(sources) != 1 or manifest.NAME not in names or sum(name.startswith("result/") for name in names) > 1:
        raise ArchiveError("it does not hold one whole job")
    limit = manager.limits.max_upload_bytes
    if sources[0].num_bytes > limit:
        raise TooLargeError(
            f"The file of this job has {sources[0].num_bytes / 1e9:.1f} GB and the limit is {limit / 1e9:.0f} GB; "
            "let the owner of the server raise it."
        )
    num_bytes = sum(file.num_bytes for file in files)
    manager.admit_job(owner, num_bytes)


def _is_of_a_job(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    match folder:
        case "":
            return last == manifest.NAME or _PICTURE.fullmatch(last) is not None
        case "source" | "result":
            return last == safe_name(last)
        case "work":
            return is_unit_file(last)
    return False


def _rebuild(manager: SessionManager, owner: str, folder: Path) -> Job:
    """The job in `folder` as this machine sees it."""
    (source,) = (folder / "source").iterdir()
    media = manager.check(source, folder / THUMBNAIL)
    engine = {name: manager.engine[name] for name in MACHINE_SETTINGS if name in manager.engine}
    job = read_arrival(folder, owner, source, media, engine)
    if job.status is JobStatus.SUCCEEDED and not job.target.is_file():
        raise ArchiveError("its result is missing")
    return replace(job, progress=_count(job), num_bytes=manifest.folder_bytes(folder))


def _count(job: Job) -> Progress | None:
    """What is finished of the job, counted in its work folder; None if nothing is."""
    units = finished_units(job.work)
    if not units:
        return None
    total = job.media.get("num_frames")
    return Progress(Stage.PREPARE, units[-1].stop, total if isinstance(total, int) else None, units=len(units))


def _started(job: Job, place: float) -> Job:
    if job.can_resume:
        return job.resume()
    if job.can_retry:
        return job.retry(place)
    return job.queue(place) if job.status is JobStatus.DRAFT else job


def _link_or_copy(path: Path, second: Path) -> None:
    try:
        os.link(path, second)
    except OSError as error:
        log.info("%s is copied for its export: %s", path.name, error)
        shutil.copyfile(path, second)
