"""Work on model files that goes on whatever becomes of the page: each task is a process of its own. Without gradio.

Nothing of it has to survive the server: what a download has fetched is on the disk, and the next one goes on there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from inference.catalogue import CATALOGUE
from inference.errors import RestoreError, from_message
from inference.installed import Survey, Task, delete_model, survey
from seedvr_ui.jobs import StateError

log = logging.getLogger(__name__)

IMPORTED = "import"
"""What a task is about that belongs to no single model."""

COMMAND = (sys.executable, "-m", "inference.model_task")

_ROOT = Path(__file__).resolve().parents[1]
_END_LIMIT_S = 10.0


class UnknownModelError(RestoreError):
    """There is no model of this name."""


class TaskStatus(StrEnum):
    """Where a task is."""

    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """The last task about a model. `num_bytes` is 0 until it is known how much there is to do."""

    task: Task
    status: TaskStatus
    done_bytes: int = 0
    num_bytes: int = 0
    message: str = ""


class ModelTasks:
    """The models of this machine and the tasks about them; `weights` and `offline` are the engine's settings."""

    def __init__(self, weights: str = "", *, offline: bool = False, command: Sequence[str] = COMMAND) -> None:
        self._weights, self._offline, self._command = weights, offline, command
        self._lock = threading.Lock()
        self._states: dict[str, TaskState] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def survey(self) -> Survey:
        """What is on the disk."""
        return survey(self._weights)

    def states(self) -> Mapping[str, TaskState]:
        """The last task about each model, since the server was started; imports by the name IMPORTED."""
        with self._lock:
            return dict(self._states)

    def start(self, task: Task, model: str = IMPORTED, folder: str = "") -> TaskState:
        """Begin a task, which goes on by itself. Raises UnknownModelError, or StateError if one runs already."""
        if model != IMPORTED:
            self._require(model)
        values = {"model": model, "weights": self._weights, "offline": self._offline, "folder": folder}
        with self._lock:
            self._require_idle(model)
            if self._is_closed:
                raise StateError("The server is stopping; ask again when it is back.")
            process = subprocess.Popen(
                [*self._command, task.value, json.dumps(values)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT, start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
            )  # fmt: skip
            self._processes[model] = process
            state = self._states[model] = TaskState(task=task, status=TaskStatus.RUNNING)
            thread = threading.Thread(target=self._follow, args=(model, process), name=f"models-{model}", daemon=True)
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()
        return state

    def pause(self, model: str) -> TaskState:
        """Stop a task at once; a download keeps what has come. Raises StateError if none runs."""
        if model != IMPORTED:
            self._require(model)
        with self._lock:
            process = self._processes.get(model)
            if process is None:
                raise StateError("Nothing is going on with this model that could be paused.")
            state = self._states[model] = replace(self._states[model], status=TaskStatus.PAUSED)
        _kill(process)
        return state

    def delete(self, model: str, *, only_originals: bool = False) -> int:
        """Delete the files that no other model needs; returns the bytes. Raises StateError while a task runs."""
        self._require(model)
        with self._lock:
            self._require_idle(model)
            freed = delete_model(CATALOGUE[model], only_originals=only_originals)
            self._states.pop(model, None)
        return freed

    def close(self) -> None:
        """Stop everything."""
        with self._lock:
            self._is_closed = True
            processes = list(self._processes.values())
        for process in processes:
            _kill(process)
        for thread in self._threads:
            thread.join(_END_LIMIT_S)

    def _require(self, model: str) -> None:
        if model not in CATALOGUE:
            raise UnknownModelError(f"There is no model {model[:60]!r}; there are {', '.join(CATALOGUE)}.")

    def _require_idle(self, model: str) -> None:
        if model in self._processes:
            raise StateError(f"A {self._states[model].task.value} is going on already; wait for it, or pause it.")

    def _follow(self, model: str, process: subprocess.Popen[bytes]) -> None:
        """Take in what the process says, until it ends."""
        assert process.stdout is not None
        assert process.stdin is not None
        end = "The process that did this has ended unexpectedly; try again, and see the server's log."
        last: dict[str, Any] = {"error": {"message": end}}
        with process.stdin, process.stdout:
            for line in process.stdout:
                with contextlib.suppress(ValueError):  # cut off when it was killed
                    message = json.loads(line)
                    if "bytes" in message:
                        done, total = message["bytes"]
                        with self._lock:
                            self._states[model] = replace(self._states[model], done_bytes=done, num_bytes=total)
                    else:
                        last = message
            process.wait()
        with self._lock:
            del self._processes[model]
            state = self._states[model]
            if state.status is TaskStatus.PAUSED:
                return
            if "error" in last:
                state = replace(state, status=TaskStatus.FAILED, message=str(from_message(last["error"])))
                log.warning("%s of %s: %s", state.task.value, model, state.message)
            else:
                state = replace(state, status=TaskStatus.SUCCEEDED, message=last["result"])
            self._states[model] = state


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
