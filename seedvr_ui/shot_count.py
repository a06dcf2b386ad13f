"""Counts the shots of a source beside the work on it, which finds them only as it comes to them. Without gradio."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from inference.errors import CancelledError, RestoreError
from inference.progress import Cancellation
from seedvr_ui.jobs import Job

log = logging.getLogger(__name__)

CountShots = Callable[[Path, Cancellation], int]
"""(source, cancellation) -> the number of its shots. Raises MediaError, or CancelledError when asked to stop."""


class ShotCount:
    """A context in which the shots of `job` are counted; `total` is None until that is done.

    What was counted in an earlier attempt is not counted again. Leaving the context ends the count.
    """

    def __init__(self, count: CountShots | None, job: Job) -> None:
        self.total = None if job.progress is None else job.progress.shots_total
        self._source, self._cancellation = job.source, Cancellation()
        self._thread: threading.Thread | None = None
        if count is not None and self.total is None and _has_shots(job):
            run = contextvars.copy_context().run  # what it says belongs to the job
            self._thread = threading.Thread(target=run, args=(self._count, count), name="shots", daemon=True)

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancellation.cancel()
        if self._thread is not None:
            self._thread.join()

    def _count(self, count: CountShots) -> None:
        try:
            self.total = count(self._source, self._cancellation)
        except CancelledError:
            pass
        except (RestoreError, OSError) as error:  # the job itself will say what is wrong with the file
            log.info("the shots of %s could not be counted: %s", self._source.name, error)


def _has_shots(job: Job) -> bool:
    restore = job.settings.get("restore", {})
    return not job.media.get("is_image", False) and restore.get("detect_shots", True)
