"""What is believed of a manifest that came from elsewhere: a model with limits for each value, and nothing beyond it.

Whoever sends a job may have written its manifest by hand, and pages show what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, StrictBool, StringConstraints, ValidationError

from inference.settings import load_settings, to_dict
from seedvr_ui import manifest
from seedvr_ui.archive_file import ArchiveError
from seedvr_ui.jobs import MAX_HISTORY, Change, Job, JobStatus
from seedvr_ui.storage import is_id, new_id, safe_name

_MAX_MANIFEST_BYTES = 2**22
_SUFFIXES = (".mp4", ".png")

_Text = Annotated[str, StringConstraints(max_length=2000)]
_Time = Annotated[float, AllowInfNan(False), Field(ge=0, le=1e11)]
_Scalar = Annotated[float, AllowInfNan(False)] | int | StrictBool | _Text | None


class _Entry(BaseModel):
    status: JobStatus
    at: _Time
    reason: _Text


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str
    target: _Text
    settings: dict[str, Any]
    status: JobStatus
    history: Annotated[list[_Entry], Field(max_length=MAX_HISTORY)]
    attempts: Annotated[int, Field(ge=0, le=10**6)]
    keeps_part: bool
    message: _Text
    summary: dict[str, Any]
    preview: dict[str, Any]
    is_seen: bool
    created_at: _Time
    queued_at: _Time | None
    started_at: _Time | None
    finished_at: _Time | None
    worked_s: _Time


class _Values(BaseModel):
    values: dict[Annotated[str, StringConstraints(max_length=40)], _Scalar]


def read_arrival(folder: Path, owner: str, source: Path, media: Mapping[str, Any], engine: Mapping[str, Any]) -> Job:
    """The job that the manifest in `folder` tells of, as one of `owner`. `engine` are this machine's own settings.

    Raises ArchiveError, SettingsError, or NewerError for a manifest of a newer version.
    """
    path = folder / manifest.NAME
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ArchiveError("its description is too long")
    try:
        document = manifest.parse(path.read_bytes(), folder)
        told = _Manifest.model_validate(document)
        summary, preview = (_Values(values=_flat(values)).values for values in (told.summary, told.preview))
    except (ValidationError, manifest.UnreadableError, RecursionError) as error:
        raise ArchiveError("its description is damaged") from error
    if told.status in (JobStatus.RUNNING,):
        raise ArchiveError("it was exported while it was being worked on")
    files = ("video", "before", "after")
    if not all((folder / str(preview[key])).is_file() for key in files if key in preview):
        preview = {}
    name = safe_name(told.target)
    if not name.endswith(_SUFFIXES):
        raise ArchiveError(f"its result would have the name {name[:80]!r}")
    settings = {key: value for key, value in told.settings.items() if key in ("engine", "restore")}
    return Job(
        id=told.id if is_id(told.id) else new_id(),
        owner=owner,
        folder=folder,
        source=source,
        target=folder / "result" / name,
        settings=to_dict(load_settings(settings, {"engine": dict(engine)})),
        media=media,
        status=told.status,
        history=tuple(Change(entry.status, entry.at, entry.reason) for entry in told.history),
        attempts=told.attempts,
        keeps_part=told.keeps_part,
        message=told.message,
        summary=summary,
        preview=preview,
        is_seen=told.is_seen,
        created_at=told.created_at,
        queued_at=told.queued_at,
        started_at=told.started_at,
        finished_at=told.finished_at,
        worked_s=told.worked_s,
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values; what is nested in a summary (its times, its notes) is of the machine that made it."""
    return {key: value for key, value in values.items() if not isinstance(value, Mapping | list)}
