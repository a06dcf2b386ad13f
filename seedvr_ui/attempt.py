"""One attempt at a job: the engine is called, and whatever happens becomes an outcome. Without gradio."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from inference.errors import CancelledError, DiskFullError, FolderInUseError, RestoreError, WorkerDiedError
from inference.progress import Cancellation, Report
from seedvr_ui.jobs import Ending, Job, Outcome

log = logging.getLogger(__name__)

_FULL = "The disk is full, so this job waits; free some space, then let it go on."


class Restore(Protocol):
    """Restores `source` into `target`; whatever is finished on the way is kept in `work` and used by the next attempt.

    Returns the summary. Raises RestoreError, CancelledError when stopped, WorkerDiedError when its process has ended.
    """

    def __call__(
        self,
        source: Path,
        target: Path,
        settings: Mapping[str, Any],
        report: Report,
        cancellation: Cancellation,
        *,
        work: Path,
    ) -> Mapping[str, Any]: ...


MakePreview = Callable[[Path, Path, Path, Cancellation], Mapping[str, Any]]
"""(source, result, folder, cancellation) -> what the comparing player shows; writes its files into the folder."""


def run_job(
    job: Job, restore: Restore, make_preview: MakePreview, report: Report, cancellation: Cancellation
) -> Outcome:
    """Run a RUNNING `job` to its end; whatever happens is in the outcome.

    A result without a preview is still a result.
    """
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        summary = restore(job.source, job.target, job.settings, report, cancellation, work=job.work)
        cancellation.check()
        try:
            preview = make_preview(job.source, job.target, job.folder, cancellation)
        except CancelledError:
            raise
        except RestoreError as error:
            log.warning("job %s has no preview: %s", job.id, error)
            preview = {}
        return Outcome(ending=Ending.DONE, summary=summary, preview=preview)
    except CancelledError:
        return Outcome(ending=Ending.STOPPED)
    except (RestoreError, OSError) as error:
        if cancellation.is_set():
            return Outcome(ending=Ending.STOPPED)
        if _says_full(error):
            log.warning("job %s waits, the disk is full: %s", job.id, error)
            return Outcome(ending=Ending.DISK_FULL, message=_FULL)
        if isinstance(error, OSError):
            return _unexpected(job)
        if isinstance(error, FolderInUseError):
            return Outcome(ending=Ending.OCCUPIED, message=str(error))
        ending = Ending.DIED if isinstance(error, WorkerDiedError) else Ending.FAILED
        return Outcome(ending=ending, message=str(error))
    except Exception:  # noqa: BLE001  the one place where a bug becomes a message; the traceback goes to the log
        return _unexpected(job)


def _unexpected(job: Job) -> Outcome:
    log.exception("job %s", job.id)
    message = f"Something unexpected went wrong; try again, or report it with the job number {job.id[:8]}."
    return Outcome(ending=Ending.FAILED, message=message)


def _says_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in full):
        return True
    return any(os.strerror(number) in str(error) for number in full)
