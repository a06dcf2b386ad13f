"""The worker: restoring in a separate process that keeps the model and can be killed. Without torch on this side.

`Worker` is the client. It starts `python -m inference.worker` (see `inference.worker_process`) and exchanges JSON
lines with it:

    to the worker    {"type": "restore", "job", "source", "target", "settings", "work"}   {"type": "cancel", "job"}
    from the worker  {"type": "ready"}   {"type": "progress", "job", "progress"}   {"type": "done", "job", "summary"}
                     {"type": "log", "job", "level", "logger", "event", "trace": of an exception, else ""}
                     {"type": "failed", "job", "error", "is_ending": whether the process takes no more jobs}

Closing the pipe asks the worker to end, so it also ends when this process dies in whatever way. So does SIGTERM. With
a work folder ("work" is its path, else null) the next worker goes on where one ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from inference.durable import part_path
from inference.errors import CancelledError, RestoreError, WorkerDiedError, from_message
from inference.progress import Cancellation, Progress, Report
from inference.settings import load_settings, to_dict

log = logging.getLogger(__name__)

_START_LIMIT_S = 120.0
_CANCEL_LIMIT_S = 30.0
_CLOSE_LIMIT_S = 10.0
_POLL_S = 0.2


class Worker:
    """Restores files in a process of its own; one job at a time, the model stays loaded between jobs.

    A worker that died takes only its job with it: that `restore` raises WorkerDiedError and the next one starts a new
    process. Use as a context manager, or call `close`.
    """

    def __init__(self, cancel_limit_s: float = _CANCEL_LIMIT_S) -> None:
        self._cancel_limit_s = cancel_limit_s
        self._busy = threading.Lock()
        self._jobs = itertools.count(1)
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()

    @property
    def pid(self) -> int | None:
        """Process id of the running worker, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def restore(
        self,
        source: Path,
        target: Path,
        settings: Mapping[str, Any],
        report: Report | None = None,
        cancellation: Cancellation | None = None,
        work: Path | None = None,
    ) -> dict[str, Any]:
        """Restore `source` into `target` and return the summary as JSON-able values.

        `settings` is a tree as `to_dict` makes it, or a part of one. Raises what `Engine.restore` raises, and
        WorkerDiedError if the worker dies. A job that does not stop soon after a cancellation is killed. `work` is a
        folder for this job alone, from which the next `restore` of the same job goes on; only success removes it.
        """
        whole = to_dict(load_settings(settings))
        if not self._busy.acquire(blocking=False):
            raise RestoreError("The worker is busy with another job; wait until it has finished.")
        try:
            return self._run(Path(source), Path(target), whole, report, cancellation or Cancellation(), work)
        finally:
            self._busy.release()

    def check_start(self) -> None:
        """Start the process if there is none. Raises RestoreError or OSError if that does not work."""
        if self.pid is None and self._busy.acquire(blocking=False):
            try:
                self._start()
            finally:
                self._busy.release()

    def close(self) -> None:
        """End the process: politely, then by force. A later `restore` starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            _kill(process)

    def kill(self) -> None:
        """End the process at once; a running `restore` raises WorkerDiedError."""
        if self._process is not None:
            _kill(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(
        self,
        source: Path,
        target: Path,
        settings: dict[str, Any],
        report: Report | None,
        cancellation: Cancellation,
        work: Path | None,
    ) -> dict[str, Any]:
        cancellation.check()
        process = self._start()
        job = next(self._jobs)
        paths = {
            "source": str(source.absolute()),
            "target": str(target.absolute()),
            "work": None if work is None else str(Path(work).absolute()),
        }
        cancel_deadline: float | None = None
        answered = False
        try:
            self._send(process, {"type": "restore", "job": job, "settings": settings} | paths)
            while True:
                if cancellation.is_set() and cancel_deadline is None:
                    self._send(process, {"type": "cancel", "job": job})
                    cancel_deadline = time.monotonic() + self._cancel_limit_s
                if cancel_deadline is not None and time.monotonic() > cancel_deadline:
                    log.warning("worker %d did not stop within %.0f s and is killed", process.pid, self._cancel_limit_s)
                    raise CancelledError()
                message = self._receive(process)
                if message is None or message.get("job") != job:
                    continue
                if message["type"] == "log":
                    _log_again(message, process.pid)
                    continue
                answered = message["type"] == "done" or (message["type"] == "failed" and not message["is_ending"])
                if message["type"] == "done":
                    return dict(message["summary"])
                if message["type"] == "failed":
                    raise from_message(message["error"])
                if report is not None and cancel_deadline is None:
                    report(Progress.from_dict(message["progress"]))
        finally:
            if not answered:  # it dies, ignored a cancellation, or nobody listens any more: never leave it at work
                self._discard(process, target, is_resumable=work is not None)

    def _start(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in a terminal is for us; we then cancel the job in an orderly way
        )
        self._process, self._messages = process, queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, self._messages), daemon=True).start()
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(queue.Empty):
                if self._messages.get(timeout=_POLL_S).get("type") == "ready":
                    return process
        _kill(process)
        raise RestoreError("The worker process did not start; try again, and look into the log if it happens twice.")

    def _send(self, process: subprocess.Popen[str], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except (OSError, ValueError) as error:
            _kill(process)
            raise _death(process) from error

    def _receive(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        """The next message, or None if there is none yet. Raises WorkerDiedError if the process has died."""
        dead = process.poll() is not None  # asked before the queue, so that last words are not lost
        try:
            return self._messages.get(timeout=_POLL_S)
        except queue.Empty:
            if not dead:
                return None
        raise _death(process)

    def _discard(self, process: subprocess.Popen[str], target: Path, *, is_resumable: bool) -> None:
        """Kill the process and remove what it could not remove itself beside the target: its own work folder, or the
        unfinished file of a job with a work folder elsewhere."""
        _kill(process)
        if self._process is process:
            self._process = None
        for folder in target.absolute().parent.glob(f".*.seedvr-{process.pid}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if is_resumable:
            part_path(target.absolute()).unlink(missing_ok=True)


def _read(lines: IO[str], messages: queue.Queue[dict[str, Any]]) -> None:
    with lines, contextlib.suppress(OSError, ValueError):
        for line in lines:
            try:
                messages.put(json.loads(line))
            except json.JSONDecodeError:
                log.warning("the worker said something that is not JSON: %.200s", line)


def _log_again(message: Mapping[str, Any], pid: int) -> None:
    """Log here what the worker has logged about its job, so that it is where everything about the job is."""
    logger = logging.getLogger(str(message["logger"]))
    level = int(message["level"])
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message["event"], extra={"worker": pid, "trace": message["trace"]})


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_CLOSE_LIMIT_S)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _death(process: subprocess.Popen[str]) -> WorkerDiedError:
    code = process.poll()
    how = f"with exit code {code}" if code is None or code >= 0 else f"by signal {signal.Signals(-code).name}"
    memory = " It may have run out of memory: try a smaller size." if code == -signal.SIGKILL else ""
    return WorkerDiedError(f"The worker process was ended {how} during the job; start the job again.{memory}")


if __name__ == "__main__":
    from inference.worker_process import main

    main()
