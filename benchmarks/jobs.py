"""The command line as a process: the server, or one whole job, file to file, and what that cost. Imports no torch."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import RestoreError

SERVE = (sys.executable, "-m", "inference.cli", "serve")
"""The command that starts the server."""

_KIB = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """seconds: from the start of the process to its end. peak_bytes: most main memory that it held (resident set)."""

    seconds: float
    peak_bytes: int
    summary: dict[str, Any]

    @property
    def frames_per_second(self) -> float:
        frames = self.summary["frames"]
        assert isinstance(frames, int)
        return frames / self.seconds


def run_job(source: Path, target: Path, settings: Sequence[str], limit_s: float = 3600.0) -> JobCost:
    """Restore ``source`` into ``target`` with the command line; it is killed after ``limit_s``.

    Raises RestoreError, with the command's own sentence when it gave one.

    The peak is what the kernel noted for that child; it starts at the size of this process, so that is kept small.
    """
    command = [sys.executable, "-m", "inference.cli", "restore", str(source), str(target), *settings, "--json"]
    output = target.with_suffix(".json")
    errors = target.with_suffix(".txt")
    start = time.perf_counter()
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)  # unlike Popen.wait, it tells what this one child used
        finally:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        lines = errors.read_text(errors="replace").strip().splitlines()
        reason = f"The job ended with code {process.returncode} after {seconds:.0f} s; run it by hand to see why."
        raise RestoreError(lines[-1] if lines else reason)
    summary = json.loads(output.read_text())
    return JobCost(seconds=seconds, peak_bytes=usage.ru_maxrss * _KIB, summary=summary)
