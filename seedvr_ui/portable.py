"""Jobs in archives: one file from which another machine goes on. Without gradio."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import RestoreError
from seedvr_ui import manifest
from seedvr_ui.jobs import Job, JobStatus, StateError
from seedvr_ui.storage import new_id

if TYPE_CHECKING:
    from seedvr_ui.sessions import SessionManager

SUFFIX = ".seedvr.tar"


class ArchiveError(RestoreError):
    """The archive cannot be used."""


def export_job(manager: SessionManager, owner: str, job_id: str, target: Path) -> Path:
    """Write the job as an archive to `target`; returns its path."""
    job = manager.job(owner, job_id)
    if job.status is JobStatus.RUNNING:
        raise StateError("This job runs; pause it, then export it.")
    part = target.with_name(f"{target.name}.part")
    with tarfile.open(part, "w") as archive:
        archive.add(job.folder, arcname="job")
    part.replace(target)
    return target


def import_job(manager: SessionManager, owner: str, archive: Path, *, start: bool) -> Job:
    """A new job of `owner` from `archive`; with `start` it goes on at once, else it waits."""
    job_id = new_id()
    folder = manager.storage.job_folder(owner, job_id)
    with tempfile.TemporaryDirectory(dir=manager.storage.root) as place:
        try:
            with tarfile.open(archive) as content:
                content.extractall(place, filter="data")
            job, _ = manifest.read(Path(place) / "job")
        except (tarfile.TarError, FileNotFoundError, EOFError) as error:
            raise ArchiveError("This file is no exported job; choose one that `seedvr jobs export` wrote.") from error
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(place) / "job", folder)
    source, target = job.source.relative_to(job.folder), job.target.relative_to(job.folder)
    job = replace(job, id=job_id, owner=owner, folder=folder, source=folder / source, target=folder / target)
    if job.status in (JobStatus.QUEUED, JobStatus.INTERRUPTED) and not start:
        job = job.pause()
    if start and job.status is JobStatus.PAUSED:
        job = job.resume()
    manifest.write(job)
    return manager.store.add(job)
