"""The worker's own side: runs jobs that arrive as JSON lines on stdin and answers on stdout. See `inference.worker`.

Standard output belongs to the protocol alone; whatever a library prints there goes to standard error instead. The
process ends when its stdin closes, its parent is gone or SIGTERM comes, at the latest a few seconds after that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from inference.errors import CancelledError, DiskFullError, RestoreError, WorkerDiedError, to_message
from inference.logs import configure_logs, to_entry
from inference.progress import Cancellation, Progress, Stage
from inference.settings import EngineSettings, Settings, load_settings

if TYPE_CHECKING:
    from inference.engine import Engine

log = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.25
_PARENT_POLL_S = 1.0
_END_LIMIT_S = 8.0


class Throttle:
    """Passes on the first snapshot of each stage, then at most one each quarter of a second."""

    def __init__(self, send: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._stage: Stage | None = None
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        if progress.stage is self._stage and now < self._next:
            return
        self._stage, self._next = progress.stage, now + _PROGRESS_INTERVAL_S
        self._send(progress)


class JobRecords(logging.Handler):
    """Hands what is logged during a job to the client of this process, and everything else to standard error."""

    def __init__(self, loop: JobLoop, otherwise: logging.Handler) -> None:
        super().__init__()
        self._loop, self._otherwise = loop, otherwise

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, or write it."""
        job = self._loop.job
        if job is None:
            self._otherwise.handle(record)
            return
        entry = to_entry(record)
        message = {"type": "log", "job": job, "level": record.levelno, "logger": record.name}
        self._loop.tell({**message, "event": entry["event"], "trace": entry.get("trace", "")})


class JobLoop:
    """Takes jobs one after another; keeps the engine as long as the engine settings stay the same."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._jobs: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._cancellations: dict[int, Cancellation] = {}
        self._is_ending = False
        self.job: int | None = None
        self._engine: Engine | None = None
        self._engine_settings: EngineSettings | None = None

    def listen(self, lines: IO[str]) -> None:
        """Read requests until the pipe closes, then stop the running job and the process."""
        for line in lines:
            message = json.loads(line)
            if message["type"] == "restore":
                self._cancellations[message["job"]] = Cancellation()
                self._jobs.put(message)
            elif message["type"] == "cancel" and message["job"] in self._cancellations:
                self._cancellations[message["job"]].cancel()
        self.stop()

    def stop(self) -> None:
        """End after the running job, which stops at its next step; by force if that takes too long."""
        self._is_ending = True
        for cancellation in list(self._cancellations.values()):
            cancellation.cancel()
        self._jobs.put(None)
        time.sleep(_END_LIMIT_S)
        os._exit(1)

    def watch_parent(self, parent: int) -> None:
        """Stop when the parent process is gone, even if something else still holds our stdin open."""
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        self.stop()

    def run(self) -> None:
        """Say that we are ready, then run jobs until `stop`."""
        self._send({"type": "ready"})
        while (message := self._jobs.get()) is not None:
            job = self.job = int(message["job"])
            try:
                summary = self._restore(message, self._cancellations[job])
                self._send({"type": "done", "job": job, "summary": summary})
            except RestoreError as error:
                if isinstance(error, CancelledError) and self._is_ending:  # not what the user wanted
                    error = WorkerDiedError("The worker process was told to end during the job; start the job again.")
                if not isinstance(error, CancelledError):
                    log.warning("job %d failed: %s", job, error)
                self._fail(job, error)
            except Exception as error:  # noqa: BLE001  a bug: the log gets the traceback, the user a sentence
                log.exception("internal error in job %d", job)
                self._fail(job, _internal_error(job, error))
            finally:
                del self._cancellations[job]
                self.job = None
        if self._engine is not None:
            self._engine.close()

    def _restore(self, message: Mapping[str, Any], cancellation: Cancellation) -> dict[str, Any]:
        settings = load_settings(message["settings"])
        job = int(message["job"])

        def send(progress: Progress) -> None:
            self._send({"type": "progress", "job": job, "progress": progress.to_dict()})

        engine = self._load_engine(settings)
        source, target = Path(message["source"]), Path(message["target"])
        work = None if message.get("work") is None else Path(message["work"])
        return engine.restore(source, target, settings.restore, Throttle(send), cancellation, work).to_dict()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message that nobody waits for."""
        with contextlib.suppress(CancelledError):
            self._send(message)

    def _fail(self, job: int, error: RestoreError) -> None:
        self._send({"type": "failed", "job": job, "error": to_message(error), "is_ending": self._is_ending})

    def _load_engine(self, settings: Settings) -> Engine:
        from inference.engine import Engine

        if self._engine is None or self._engine_settings != settings.engine:
            if self._engine is not None:
                self._engine.close()
            self._engine, self._engine_settings = Engine(settings.engine), settings.engine
        return self._engine

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            with self._lock:
                self._output.write(json.dumps(message) + "\n")
                self._output.flush()
        except BrokenPipeError:
            raise CancelledError() from None  # nobody waits for the result any more


def _internal_error(job: int, error: Exception) -> RestoreError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError("The disk is full; free some space and start the job again.")
    return RestoreError(f"Internal error in job {job} of worker {os.getpid()}; the log has the details.")


def main() -> None:
    """Take over stdin and stdout and run jobs until the parent closes the pipe or dies."""
    configure_logs(in_jobs=False)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop = JobLoop(output)
    root = logging.getLogger()
    root.handlers = [JobRecords(loop, handler) for handler in root.handlers]
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=loop.stop, daemon=True).start())
    threading.Thread(target=loop.listen, args=(sys.stdin,), daemon=True).start()
    threading.Thread(target=loop.watch_parent, args=(os.getppid(),), daemon=True).start()
    loop.run()
    os._exit(0)  # daemon threads may sit in a read: the interpreter's own shutdown could wait for them


if __name__ == "__main__":
    main()
