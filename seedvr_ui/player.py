"""What the page shows of a job: plain words, and the addresses of its pictures and files. Without gradio.

Addresses are relative to the page, so the app works below any path of a proxy. The comparing player plays one file
that holds both sides one above the other: a single decoder shows both, so they cannot drift apart by even a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.progress import Progress, Stage
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.storage import THUMBNAIL

STAGE_WORDS = {
    Stage.PREPARE: "Preparing",
    Stage.LOAD: "Loading the model",
    Stage.RESTORE: "Restoring",
    Stage.FINISH: "Finishing",
}


def job_view(job: Job, num_ahead: int = 0) -> dict[str, Any]:
    """`job` as JSON-able values for the queue and the player; `num_ahead` jobs run before it."""
    base = f"studio/jobs/{job.id}"
    is_done = job.status is JobStatus.SUCCEEDED
    return {
        "id": job.id,
        "name": job.source.name,
        "status": job.status.value,
        "text": _status_text(job, num_ahead),
        "facts": media_facts(job.media),
        "percent": _percent(job),
        "thumbnail": f"{base}/files/{THUMBNAIL}" if (job.folder / THUMBNAIL).exists() else "",
        "download": f"{base}/download" if is_done else "",
        "preview": _preview(job.preview, base) if is_done else None,
        "canCancel": job.can_cancel,
        "canPause": job.can_pause,
        "canResume": job.can_resume,
        "canRetry": job.can_retry,
        "canRemove": not job.is_at_work,
    }


def media_facts(media: Mapping[str, Any]) -> str:
    """One short line about a file: size, rate, length, sound."""
    if not media:
        return ""
    facts = [f"{media['width']}×{media['height']}"]
    if not media.get("is_image"):
        if media.get("fps"):
            facts.append(f"{media['fps']:.5g} fps")
        if media.get("num_frames") and media.get("duration", 0) < 1:
            facts.append("1 frame" if media["num_frames"] == 1 else f"{media['num_frames']} frames")
        elif media.get("duration"):
            facts.append(to_words(media["duration"]))
        facts.append("with sound" if media.get("has_audio") else "no sound")
    return " · ".join(facts)


def to_words(seconds: float) -> str:
    """A span of time as a person says it: `0.5 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def to_size(num_bytes: int) -> str:
    """A file size as a person says it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{max(1, round(num_bytes / 1e3))} kB"


def _status_text(job: Job, num_ahead: int) -> str:
    match job.status:
        case JobStatus.DRAFT:
            return "Not started yet"
        case JobStatus.PAUSED:
            return job.message or "Paused"
        case JobStatus.INTERRUPTED:
            return "Interrupted; it goes on by itself"
        case JobStatus.QUEUED:
            return f"Waiting, {num_ahead} ahead" if num_ahead else "Waiting, next in line"
        case JobStatus.RUNNING:
            return _progress_text(job.progress)
        case JobStatus.SUCCEEDED:
            return _result_text(job)
        case JobStatus.FAILED:
            return job.message
        case JobStatus.CANCELLED:
            return "Cancelled"


def _progress_text(progress: Progress | None) -> str:
    if progress is None:
        return "Starting"
    parts = [STAGE_WORDS[progress.stage]]
    if progress.frames_per_second:
        parts.append(f"{progress.frames_per_second:.3g} frames/s")
    if progress.eta_s is not None and progress.stage is Stage.RESTORE:
        parts.append(f"{to_words(max(1, round(progress.eta_s)))} left")
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


def _percent(job: Job) -> float | None:
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


def preview_file(job: Job, name: str) -> Path | None:
    """The file `name` beside the job, if the page may have it: its thumbnail, or a file that its preview names."""
    allowed = {THUMBNAIL, *(str(job.preview[key]) for key in ("video", "before", "after") if key in job.preview)}
    path = job.folder / name
    return path if name in allowed and path.is_file() else None
