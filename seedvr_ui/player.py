"""What the page shows of a job: plain words, and the addresses of its pictures and files. Without gradio.

Addresses are relative to the page, so the app works below any path of a proxy. The comparing player plays one file
that holds both sides one above the other: a single decoder shows both, so they cannot drift apart by even a frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.logs import JOB_LOG
from inference.progress import Progress, Stage
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.price import Price
from seedvr_ui.retention import stays_until
from seedvr_ui.storage import THUMBNAIL, is_plain
from seedvr_ui.wording import about_range, media_facts, settings_words, to_size, to_words

STAGE_WORDS = {
    Stage.PREPARE: "Preparing",
    Stage.LOAD: "Loading the model",
    Stage.RESTORE: "Restoring",
    Stage.FINISH: "Finishing",
}

Seconds = tuple[float, float]
"""A span of time that lies between the two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """What the words about a job depend on beside the job.

    `keep_s`: how long finished jobs stay. `expect`: how long a whole job takes, as far as that is known.
    """

    keep_s: float | None = None
    price: Price | None = None
    expect: Callable[[Job], Seconds | None] = lambda job: None


def job_view(job: Job, num_ahead: int = 0, display: Display | None = None) -> dict[str, Any]:
    """`job` as JSON-able values for the queue and the player; `num_ahead` jobs run before it."""
    display = display or Display()
    base = f"studio/jobs/{job.id}"
    is_done = job.status is JobStatus.SUCCEEDED
    return {
        "id": job.id,
        "name": job.source.name,
        "status": job.status.value,
        "text": _status_text(job, num_ahead, display),
        "cost": _cost_text(job, display),
        "facts": media_facts(job.media),
        "settings": settings_words(job.settings),
        "percent": percent_of(job),
        "thumbnail": f"{base}/files/{THUMBNAIL}" if (job.folder / THUMBNAIL).exists() else "",
        "download": f"{base}/download" if is_done else "",
        "preview": _preview(job.preview, base) if is_done else None,
        "part": f"{base}/part" if job.has_part else "",
        "log": f"{base}/log" if log_file(job) is not None else "",
        "finishedAt": job.finished_at,
        "staysUntil": stays_until(job, display.keep_s) if display.keep_s is not None else None,
        "canCancel": job.can_cancel,
        "canPause": job.can_pause,
        "canResume": job.can_resume,
        "canRetry": job.can_retry,
        "canRemove": not job.is_at_work,
        "isFirst": job.priority > 0,
        "canMove": job.status is JobStatus.QUEUED,
    }


def _status_text(job: Job, num_ahead: int, display: Display) -> str:
    match job.status:
        case JobStatus.DRAFT:
            return "Not started yet"
        case JobStatus.PAUSED:
            return job.message or "Paused"
        case JobStatus.INTERRUPTED:
            return "Interrupted; it goes on by itself"
        case JobStatus.QUEUED:
            text = f"Waiting, {num_ahead} ahead" if num_ahead else "Waiting, next in line"
            expected = display.expect(job)
            return f"{text} · takes {about_range(*expected)}" if expected else text
        case JobStatus.RUNNING:
            return _progress_text(job.progress)
        case JobStatus.SUCCEEDED:
            return _result_text(job)
        case JobStatus.FAILED:
            return job.message
        case JobStatus.CANCELLED:
            return "Cancelled, the finished part was kept" if job.has_part else "Cancelled"


def _progress_text(progress: Progress | None) -> str:
    """Stage, shot, speed and time left, each as soon as it is known."""
    if progress is None:
        return "Starting"
    parts = [STAGE_WORDS[progress.stage]]
    if progress.stage is Stage.RESTORE:
        if progress.num_shots:
            total = f"{progress.num_shots} so far" if progress.shots_total is None else progress.shots_total
            parts.append(f"shot {progress.shot + 1} of {total}")
        if progress.frames_per_second:
            parts.append(f"{progress.frames_per_second:.3g} frames/s")
        if progress.eta_low_s is not None and progress.eta_high_s is not None:
            parts.append(f"{about_range(progress.eta_low_s, progress.eta_high_s)} left")
    if progress.stage is Stage.LOAD and progress.bytes_total:
        parts.append(f"{to_size(progress.bytes_done)} of {to_size(progress.bytes_total)}")
    return " · ".join(parts)


def _result_text(job: Job) -> str:
    parts = ["Done"]
    if job.worked_s:
        parts[0] += f" in {to_words(max(0.1, job.worked_s))}"
    if "width" in job.summary and "height" in job.summary:
        parts.append(f"{job.summary['width']}×{job.summary['height']}")
    if job.target.exists():
        parts.append(to_size(job.target.stat().st_size))
    return " · ".join(parts)


def _cost_text(job: Job, display: Display) -> str:
    """What the work on the job costs: so far and in all while it runs, expected while it waits; empty without price."""
    price = display.price
    if price is None:
        return ""
    if job.status is JobStatus.RUNNING:
        so_far = job.worked_s + max(0.0, time.time() - (job.started_at or time.time()))
        progress = job.progress
        if progress is None or progress.eta_low_s is None or progress.eta_high_s is None:
            return f"{price.of(so_far)} so far"
        whole = price.of_range(so_far + progress.eta_low_s, so_far + progress.eta_high_s)
        return f"{price.of(so_far)} so far, about {whole} in all"
    if job.worked_s:
        return price.of(job.worked_s)
    expected = display.expect(job) if job.status is JobStatus.QUEUED else None
    return f"about {price.of_range(*expected)}" if expected else ""


def percent_of(job: Job) -> float | None:
    """Whole percent of the frames, or None while nothing can be said."""
    if job.status is JobStatus.SUCCEEDED:
        return 100
    progress = job.progress
    if job.status is not JobStatus.RUNNING or progress is None:
        return None
    if progress.stage is Stage.FINISH:
        return 99
    if not progress.frames_total:
        return None
    return min(99, 100 * progress.frames_done // progress.frames_total)


def _preview(preview: Mapping[str, Any], base: str) -> dict[str, Any] | None:
    if not preview:
        return None
    files = {key: f"{base}/files/{preview[key]}" for key in ("video", "before", "after") if key in preview}
    return {**preview, **files}


def log_file(job: Job) -> Path | None:
    """The log of the job, if there is one."""
    path = job.folder / JOB_LOG
    return path if is_plain(path, job.folder) else None


def preview_file(job: Job, name: str) -> Path | None:
    """The file `name` beside the job, if the page may have it: its thumbnail, or a file that its preview names."""
    allowed = {THUMBNAIL, *(str(job.preview[key]) for key in ("video", "before", "after") if key in job.preview)}
    path = job.folder / name
    return path if name in allowed and is_plain(path, job.folder) else None
