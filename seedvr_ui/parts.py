"""Files of what is finished of a job, made in the background so that no request waits. Without gradio.

<job>/part/000012.mp4    the first 12 units, joined; the latest two such files are kept, since one may be playing
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import CancelledError, RestoreError
from inference.progress import Cancellation
from seedvr_ui.jobs import Job
from seedvr_ui.storage import Storage, is_plain

log = logging.getLogger(__name__)

JoinPart = Callable[[Path, Path, Path, Cancellation], Mapping[str, Any]]
"""(work folder, source, new file, cancellation) -> {"units", "num_bytes"}; raises RestoreError with a sentence."""

_NAME = re.compile(r"\d{6,}\.mp4")
_NEXT = "next.mp4"
_NUM_KEPT = 2
_NUM_AT_ONCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What can be watched of a job: the file `path` of its first `num_units` units, None if there is none yet.

    `is_making`: a newer one is on its way. `message` says why the last one could not be made.
    """

    path: Path | None = None
    num_units: int = 0
    is_making: bool = False
    message: str = ""


class Parts:
    """The parts of all jobs; `close` stops what is being made. `on_made` is called with the id of the job."""

    def __init__(self, storage: Storage, join: JoinPart, on_made: Callable[[str], None] = lambda job_id: None) -> None:
        self._storage = storage
        self._join = join
        self._on_made = on_made
        self._lock = threading.Lock()
        self._making: set[str] = set()
        self._messages: dict[str, str] = {}
        self._closing = Cancellation()
        self._pool = ThreadPoolExecutor(_NUM_AT_ONCE, thread_name_prefix="parts")

    def ask(self, job: Job) -> Part:
        """Begin to make a file of what is finished by now, unless the newest one has it; returns at once."""
        part = self.look(job)
        is_new = job.progress is not None and job.progress.units <= part.num_units and part.path is not None
        if not job.has_part or is_new or part.is_making or self._closing.is_set():
            return part
        with self._lock:
            if job.id not in self._making:
                self._making.add(job.id)
                self._messages.pop(job.id, None)
                self._pool.submit(self._make, job)
        return self.look(job)

    def look(self, job: Job) -> Part:
        """What there is now."""
        path = max(self._files(job), default=None)
        with self._lock:
            is_making, message = job.id in self._making, self._messages.get(job.id, "")
        return Part(
            path=path, num_units=int(path.stem) if path else 0, is_making=is_making, message=message
        )  # fmt: skip

    def file(self, job: Job, name: str) -> Path | None:
        """The file of that name, if it is one of the job's parts."""
        path = job.part / name
        return path if _NAME.fullmatch(name) and is_plain(path, job.folder) else None

    def close(self) -> None:
        """Stop what is being made and make nothing more; returns when it has stopped."""
        self._closing.cancel()
        self._pool.shutdown(cancel_futures=True)

    def _make(self, job: Job) -> None:
        message = ""
        try:
            self._storage.require_space(sum(path.stat().st_size for path in job.work.glob("*.nut")))
            job.part.mkdir(exist_ok=True)
            joined = self._join(job.work, job.source, job.part / _NEXT, self._closing)
            os.replace(job.part / _NEXT, job.part / f"{int(joined['units']):06d}.mp4")
            for old in sorted(self._files(job))[:-_NUM_KEPT]:
                old.unlink(missing_ok=True)
            self._on_made(job.id)
        except CancelledError:
            pass
        except (RestoreError, OSError) as error:  # the job may have ended meanwhile, and its folder with it
            log.warning("no part of job %s was made: %s", job.id, error)
            message = str(error) if isinstance(error, RestoreError) else "The part could not be written; try again."
        except Exception:  # noqa: BLE001  a bug in a thread must not leave the page waiting
            log.exception("the part of job %s", job.id)
            message = "Something unexpected went wrong; the job itself is not affected."
        with self._lock:
            self._making.discard(job.id)
            if message:
                self._messages[job.id] = message

    def _files(self, job: Job) -> list[Path]:
        try:
            return [path for path in job.part.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
