"""What the interfaces for programs say about jobs, uploads and settings, as documented types. Times are seconds.

The HTTP API, the Gradio endpoints and the command line all answer with these. Moments are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from inference.settings import SettingInfo, describe
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.player import percent_of
from seedvr_ui.uploads import Upload

OF_THE_SERVER = ("engine.weights", "engine.threads", "engine.offline")
"""Settings that only whoever starts a process may choose: they name its files and its processors."""

_JOB_ID = "3f2b8c1d4e5f60718293a4b5c6d7e8f9"
_UPLOAD_ID = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


class Action(StrEnum):
    """What may be asked of a job."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"
    DUPLICATE = "duplicate"
    MOVE = "move"
    DELETE = "delete"


class ProgressInfo(BaseModel):
    """How far a job is. What is not known yet is null."""

    stage: str = Field(description="prepare, load, restore or finish", examples=["restore"])
    percent: float | None = Field(default=None, description="whole percent of the frames", examples=[42])
    frames_done: int = Field(default=0, examples=[101])
    frames_total: int | None = Field(default=None, examples=[240])
    frames_per_second: float | None = Field(default=None, examples=[4.5])
    seconds_left_low: float | None = Field(default=None, description="the time left is probably more than this")
    seconds_left_high: float | None = Field(default=None, description="the time left is probably less than this")
    shot: int = Field(default=0, description="the shot in work, counted from 0")
    num_shots: int | None = Field(default=None, description="shots found so far")
    shots_total: int | None = Field(default=None, description="all shots of the source")


class JobInfo(BaseModel):
    """A job in a list."""

    id: str = Field(description="32 hexadecimal digits", examples=[_JOB_ID])
    name: str = Field(description="the name of its file", examples=["holiday.mp4"])
    status: JobStatus = Field(description="its state", examples=["running"])
    message: str = Field(default="", description="why it failed, or waits though nobody asked for it; one sentence")
    wish: str = Field(default="", description="what a running job was asked for and has not done yet: pause or cancel")
    owner: str = Field(default="", description="whose job it is; told to admins only")
    num_ahead: int = Field(default=0, description="jobs, of anybody, that run before it")
    progress: ProgressInfo | None = None
    num_bytes: int = Field(default=0, description="bytes of all its files", examples=[12500000])
    worked_s: float = Field(default=0.0, description="seconds of work until now, without the attempt that runs")
    created_at: float = Field(default=0.0, examples=[1790000000.0])
    started_at: float | None = None
    finished_at: float | None = None
    has_result: bool = Field(default=False, description="whether `download` has a file")
    has_part: bool = Field(
        default=False, description="whether finished units are kept, so that it can go on from there"
    )
    actions: list[Action] = Field(default_factory=list, description="what may be asked of it now")


class ChangeInfo(BaseModel):
    """One entry of a job's history."""

    status: JobStatus
    at: float
    reason: str = Field(examples=["submitted"])


class JobDetail(JobInfo):
    """All that is known of a job."""

    settings: dict[str, Any] = Field(description="the whole tree of its settings")
    media: dict[str, Any] = Field(description="facts about its file: width, height, fps, num_frames, duration, ...")
    summary: dict[str, Any] = Field(description="what the engine tells of a finished job; empty before")
    history: list[ChangeInfo] = Field(description="every change of its state, oldest first")
    priority: int = 0
    attempts: int = Field(default=0, description="how often it was begun")


class JobPage(BaseModel):
    """A part of a list of jobs: first what runs, then what waits in its order, what rests, the latest finished ones."""

    jobs: list[JobInfo]
    total: int = Field(description="how many jobs match in all", examples=[1])
    revision: int = Field(description="send it as `since`: 304 says that nothing has changed", examples=[1790000000123])


class UploadInfo(BaseModel):
    """A file on the server that has not been submitted yet."""

    id: str = Field(description="what `submit` takes", examples=[_UPLOAD_ID])
    name: str = Field(examples=["holiday.mp4"])
    size: int = Field(description="bytes", examples=[12500000])
    received: int = Field(description="bytes that have arrived", examples=[12500000])
    is_ready: bool = Field(description="whether it was checked and can be submitted")
    error: str = Field(default="", description="why it cannot be used; one sentence")
    media: dict[str, Any] = Field(default_factory=dict, description="facts about the file, once it was checked")


class ImportInfo(BaseModel):
    """An archive on its way to become a job."""

    id: str = Field(examples=[_UPLOAD_ID])
    is_done: bool = Field(description="whether it has ended; then there is a job, or an error")
    error: str = Field(default="", description="why nothing became of it; one sentence")
    job: JobInfo | None = None


class SettingField(BaseModel):
    """A setting that a job may have."""

    key: str = Field(examples=["restore.factor"])
    kind: str = Field(description="text, choice, whole number, number or yes/no", examples=["number"])
    default: str | int | float | bool = Field(examples=[0.0])
    label: str = Field(examples=["Factor"])
    help: str = Field(examples=["Enlargement of both sides; 0 leaves it open"])
    minimum: float | None = None
    maximum: float | None = None
    choices: list[str] = Field(default_factory=list, description="the possible values of a choice")


class ServerStatus(BaseModel):
    """The server at a glance."""

    version: str = Field(examples=["0.1.0"])
    jobs: dict[str, int] = Field(description="the number of jobs per state, of everybody", examples=[{"running": 1}])
    used_bytes: int = Field(description="bytes of your jobs")
    limit_bytes: int = Field(description="bytes that your files may have")


class Submission(BaseModel):
    """What to restore, and how."""

    model_config = ConfigDict(extra="forbid")

    uploads: list[str] = Field(
        min_length=1,
        max_length=1000,
        description="ids of uploads that are ready; one job each",
        examples=[[_UPLOAD_ID]],
    )
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings that differ from the defaults, by key or as a tree",
        examples=[{"restore.factor": 2, "restore.encode": {"quality": 18}}],
    )
    draft: bool = Field(default=False, description="do not queue them yet; `start` does")


class Changes(BaseModel):
    """Settings in which a new job shall differ."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any] | None = Field(
        default=None,
        description="settings over the defaults; left out: those of the job",
        examples=[{"restore.seed": 7}],
    )
    draft: bool = Field(default=False, description="do not queue it yet; `start` does")


class Cancel(BaseModel):
    """How to cancel."""

    model_config = ConfigDict(extra="forbid")

    keep_part: bool = Field(
        default=False, description="keep the finished part: it can be watched, and a retry goes on from it"
    )


class Move(BaseModel):
    """Where to put a waiting job among yours: one place up or down, or before another one."""

    model_config = ConfigDict(extra="forbid")

    up: bool = False
    down: bool = False
    before: str = Field(default="", max_length=64, description="the id of another waiting job", examples=[_JOB_ID])


class ErrorInfo(BaseModel):
    """What went wrong."""

    error: str = Field(
        description="one sentence with the next thing to try",
        examples=["This job no longer exists; reload the page to see the queue as it is."],
    )


def job_info(job: Job, num_ahead: int = 0, *, with_owner: bool = False) -> JobInfo:
    """`job` as it is in a list."""
    return JobInfo(**_facts(job, num_ahead, with_owner))


def job_detail(job: Job, num_ahead: int = 0, *, with_owner: bool = False) -> JobDetail:
    """All of `job` that may be told to its owner."""
    return JobDetail(
        **_facts(job, num_ahead, with_owner),
        settings=_without(job.settings, OF_THE_SERVER),
        media=dict(job.media),
        summary=dict(job.summary),
        history=[ChangeInfo(status=change.status, at=change.at, reason=change.reason) for change in job.history],
        priority=job.priority,
        attempts=job.attempts,
    )


def upload_info(upload: Upload) -> UploadInfo:
    """`upload` as programs see it."""
    return UploadInfo(
        id=upload.id, name=upload.name, size=upload.size, received=upload.received, is_ready=upload.is_ready,
        error=upload.error, media=dict(upload.media or {}),
    )  # fmt: skip


def setting_fields() -> list[SettingField]:
    """All settings that a job may have."""
    return [_setting_field(info) for info in describe() if info.key not in OF_THE_SERVER]


def _facts(job: Job, num_ahead: int, with_owner: bool) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.source.name,
        "status": job.status,
        "message": job.message,
        "wish": job.wish.value.partition(",")[0],
        "owner": job.owner if with_owner else "",
        "num_ahead": num_ahead,
        "progress": _progress_info(job),
        "num_bytes": job.num_bytes,
        "worked_s": job.worked_s,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "has_result": job.status is JobStatus.SUCCEEDED,
        "has_part": job.has_part,
        "actions": list(_actions(job)),
    }


def _actions(job: Job) -> Iterator[Action]:
    possible = {
        Action.START: job.status is JobStatus.DRAFT,
        Action.PAUSE: job.can_pause,
        Action.RESUME: job.can_resume,
        Action.CANCEL: job.can_cancel,
        Action.RETRY: job.can_retry,
        Action.DUPLICATE: True,
        Action.MOVE: job.status is JobStatus.QUEUED,
        Action.DELETE: not job.is_at_work,
    }
    return (action for action, is_possible in possible.items() if is_possible)


def _progress_info(job: Job) -> ProgressInfo | None:
    progress = job.progress
    if progress is None:
        return None
    return ProgressInfo(
        stage=progress.stage.value,
        percent=percent_of(job),
        frames_done=progress.frames_done,
        frames_total=progress.frames_total,
        frames_per_second=progress.frames_per_second,
        seconds_left_low=progress.eta_low_s,
        seconds_left_high=progress.eta_high_s,
        shot=progress.shot,
        num_shots=progress.num_shots,
        shots_total=progress.shots_total,
    )


def _setting_field(info: SettingInfo) -> SettingField:
    kinds = {int: "whole number", float: "number", bool: "yes/no", str: "text"}
    return SettingField(
        key=info.key,
        kind="choice" if info.choices else kinds[info.kind],
        default=getattr(info.default, "value", info.default),
        label=info.label,
        help=info.help,
        minimum=info.minimum,
        maximum=info.maximum,
        choices=list(info.choices),
    )


def _without(tree: Mapping[str, Any], keys: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    """`tree` without the leaves of these dotted keys."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if f"{prefix}{name}" not in keys
    }
