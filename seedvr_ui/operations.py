"""What programs may ask for, for whichever way they ask: HTTP, a Gradio client, the command line of this machine.

Everything goes to the session manager; here is decided whose jobs a visitor reaches, and what an answer says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inference.errors import SettingsError
from inference.settings import load_settings, to_dict
from seedvr_ui.access import Visitor
from seedvr_ui.api_models import (
    OF_THE_SERVER,
    JobDetail,
    JobInfo,
    JobPage,
    ServerStatus,
    SettingField,
    UploadInfo,
    job_detail,
    job_info,
    setting_fields,
    upload_info,
)
from seedvr_ui.jobs import Job, JobStatus, StateError
from seedvr_ui.sessions import SessionManager

MAX_PAGE = 500


class Operations:
    """All requests of programs. `engine` is the layer of settings that the server was started with.

    Where the one who asks owns the machine (`is_local`), jobs may also have settings that name files of the machine.
    Errors are RestoreErrors with a sentence: UnknownJobError, StateError, SettingsError, DiskFullError, or a limit.
    """

    def __init__(
        self, manager: SessionManager, engine: Mapping[str, Any] | None = None, *, is_local: bool = False
    ) -> None:
        self.manager = manager
        self._engine = engine or {}
        self._is_local = is_local

    # --- looking ---

    def list(
        self,
        visitor: Visitor,
        statuses: Sequence[JobStatus] = (),
        search: str = "",
        limit: int = 50,
        offset: int = 0,
        owner: str = "",
    ) -> JobPage:
        """The jobs of the visitor; an admin's list has those of everybody, or of `owner`."""
        whose = (owner or None) if visitor.is_admin else visitor.owner
        revision, line = self.manager.revision, self.manager.line()
        jobs, total = self.manager.page(whose, statuses or tuple(JobStatus), search, limit, offset)
        infos = [job_info(job, line.get(job.id, 0), with_owner=visitor.is_admin) for job in jobs]
        return JobPage(jobs=infos, total=total, revision=revision)

    def job(self, visitor: Visitor, job_id: str) -> Job:
        """The job itself. Raises UnknownJobError, also if it is not the visitor's."""
        return self.manager.job(self.owner_of(visitor, job_id), job_id)

    def show(self, visitor: Visitor, job_id: str) -> JobDetail:
        """All that is known of a job."""
        job = self.job(visitor, job_id)
        return job_detail(job, self.manager.num_ahead(job), with_owner=visitor.is_admin)

    def uploads(self, visitor: Visitor) -> Sequence[UploadInfo]:
        """The files of the visitor that were not submitted yet, oldest first."""
        return [upload_info(upload) for upload in self.manager.uploads.of_session(visitor.owner)]

    def upload(self, visitor: Visitor, upload_id: str) -> UploadInfo:
        """One of these files."""
        return upload_info(self.manager.uploads.get(visitor.owner, upload_id))

    def settings(self) -> Sequence[SettingField]:
        """All settings that a job may have."""
        return setting_fields()

    def status(self, visitor: Visitor) -> ServerStatus:
        """The version, and how much there is."""
        return ServerStatus(
            version=program_version(),
            jobs=self.manager.counts(),
            used_bytes=self.manager.usage(visitor.owner).num_bytes,
            limit_bytes=self.manager.limits.max_stored_bytes,
        )

    # --- changing ---

    def submit(
        self, visitor: Visitor, uploads: Sequence[str], settings: Mapping[str, Any], *, draft: bool = False
    ) -> Sequence[JobInfo]:
        """One job per upload, all with `settings` over the defaults. All are queued, or none is."""
        tree = self.tree(settings)
        if len(set(uploads)) != len(uploads):
            raise SettingsError("An upload becomes one job; name each id once.")
        for upload_id in uploads:
            upload = self.manager.uploads.get(visitor.owner, upload_id)
            if not upload.is_ready:
                raise StateError(
                    upload.error or f"{upload.name} was not checked completely yet; ask for it again soon."
                )
        return self._infos(visitor, self.manager.submit(visitor.owner, uploads, tree, draft=draft))

    def start(self, visitor: Visitor, job_id: str) -> JobInfo:
        """Queue a draft."""
        return self._info(visitor, self.manager.enqueue(self.owner_of(visitor, job_id), job_id))

    def pause(self, visitor: Visitor, job_id: str) -> JobInfo:
        """Let a job wait; one that runs stops at its next step."""
        return self._info(visitor, self.manager.pause(self.owner_of(visitor, job_id), job_id))

    def resume(self, visitor: Visitor, job_id: str) -> JobInfo:
        """Let a paused job go on."""
        return self._info(visitor, self.manager.resume(self.owner_of(visitor, job_id), job_id))

    def cancel(self, visitor: Visitor, job_id: str, *, keep_part: bool = False) -> JobInfo:
        """Stop a job; one that runs stops at its next step. Raises StateError for one that has finished."""
        owner = self.owner_of(visitor, job_id)
        job = self.manager.job(owner, job_id)
        if job.is_finished:
            raise StateError(f"This job is {job.status.value} already; there is nothing to cancel.")
        return self._info(visitor, self.manager.cancel(owner, job_id, keep_part))

    def retry(self, visitor: Visitor, job_id: str) -> JobInfo:
        """Queue a failed or cancelled job once more; a paused one goes on."""
        return self._info(visitor, self.manager.retry(self.owner_of(visitor, job_id), job_id))

    def duplicate(
        self, visitor: Visitor, job_id: str, settings: Mapping[str, Any] | None = None, *, draft: bool = False
    ) -> JobInfo:
        """A new job for the same file, with the same settings or with `settings` over the defaults."""
        tree = None if settings is None else self.tree(settings)
        return self._info(
            visitor, self.manager.duplicate(self.owner_of(visitor, job_id), job_id, tree, draft=draft)
        )  # fmt: skip

    def move(self, visitor: Visitor, job_id: str, *, up: bool = False, down: bool = False, before: str = "") -> JobInfo:
        """Change the place of a waiting job among those of its owner."""
        if (up, down, bool(before)).count(True) != 1:
            raise SettingsError("Say one of up, down and before.")
        owner = self.owner_of(visitor, job_id)
        self.manager.job(owner, job_id)
        self.manager.move(owner, job_id, up=up, down=down, before=before)
        return self._info(visitor, self.manager.job(owner, job_id))

    def delete(self, visitor: Visitor, job_id: str) -> None:
        """Forget a job that is not at work, with all its files."""
        self.manager.remove(self.owner_of(visitor, job_id), job_id)

    def discard(self, visitor: Visitor, upload_id: str) -> None:
        """Forget an upload, with its file."""
        self.manager.uploads.discard(visitor.owner, upload_id)

    def import_archive(self, visitor: Visitor, archive: Path, *, start: bool) -> JobInfo:
        """A new job of the visitor from an archive of another one."""
        return self._info(visitor, self.manager.import_job(visitor.owner, archive, start=start))

    # --- inside ---

    def owner_of(self, visitor: Visitor, job_id: str) -> str:
        """The owner in whose name the visitor acts on a job: an admin in that of each job's."""
        return self.manager.job_for(visitor, job_id).owner

    def tree(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The whole settings tree of a job with `settings` over the defaults. Raises SettingsError."""
        try:
            tree, base = load_settings(self._engine, settings), load_settings(self._engine)
        except (OverflowError, RecursionError) as error:
            raise SettingsError("A number in the settings is far too large; use one within its limits.") from error
        for key in OF_THE_SERVER:
            name = key.removeprefix("engine.")
            if not self._is_local and getattr(tree.engine, name) != getattr(base.engine, name):
                raise SettingsError(f"{key} is chosen where the server is started; leave it out.")
        return to_dict(tree)

    def _info(self, visitor: Visitor, job: Job) -> JobInfo:
        return job_info(job, self.manager.num_ahead(job), with_owner=visitor.is_admin)

    def _infos(self, visitor: Visitor, jobs: Sequence[Job]) -> Sequence[JobInfo]:
        return [self._info(visitor, job) for job in jobs]


@lru_cache(maxsize=1)
def program_version() -> str:
    """The version of this program; of a checkout that was never installed, what its project file says."""
    try:
        return version("seedvr-studio")
    except PackageNotFoundError:
        import tomllib

        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
