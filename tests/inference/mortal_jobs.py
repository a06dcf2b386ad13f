"""Runs jobs in processes that are killed: a helper of the tests, started once as `python mortal_jobs.py`.

Each line on standard input is a job: {"source", "target", "work", "settings", "frames_per_unit", "large_histories",
"die"}. Each job runs
in a process of its own, forked after torch and the model are there, and ends in one line on standard output:
{"code": exit code, or minus the signal, "error": text or "", "told": frames_done of each report while restoring}.

`die` says when the process sends itself SIGKILL: {"before": NAME} or {"after": NAME}, when a file gets its final name
NAME; {"step": N}, at the N-th time that a file is made durable or renamed; {"seconds": S}, wherever it is by then, sent
by its parent; {"pending": N}, when unit N is at the encoder, which does not end, and the next unit gets its first
frame; or null. {"skip": [NAMES]} beside that leaves out states, as if the disk had no room for them.

`large_histories` is the number of bytes above which the histories of the VAE are not saved; null for the usual one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference import resume, shot_state
from inference.checkpoint import Models, load_models
from inference.errors import RestoreError
from inference.media.writer import SegmentWriter
from inference.meter import Meter
from inference.pipeline import prepare, run
from inference.progress import Progress, Stage
from inference.settings import load_settings
from inference.shot_state import ShotState
from inference.tracker import Tracker


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(wish: dict[str, Any]) -> None:
    """Put the death that is wished for into the calls that make files durable."""
    steps = 0
    fsync, replace = os.fsync, os.replace

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == wish.get("step"):
            die()

    def deadly_fsync(descriptor: int) -> None:
        step()
        fsync(descriptor)

    def deadly_replace(part: Path, target: Path) -> None:
        step()
        if Path(target).name == wish.get("before"):
            die()
        replace(part, target)
        if Path(target).name == wish.get("after"):
            die()

    os.fsync, os.replace = deadly_fsync, deadly_replace  # type: ignore[assignment]
    save = resume.save_state

    def save_some(state: ShotState, path: Path) -> None:
        if path.name.removesuffix(".part") not in wish.get("skip", ()):
            save(state, path)

    resume.save_state = save_some
    if "pending" in wish:
        die_while_pending(wish["pending"])


def die_while_pending(number: int) -> None:
    """Die when unit `number` is pending and the next one gets a frame."""
    close, write, is_pending = SegmentWriter.close, SegmentWriter.write, threading.Event()

    def endless_close(segment: SegmentWriter) -> None:
        if segment.path.stem == f"{number:06d}":
            is_pending.set()
            threading.Event().wait()
        close(segment)

    def deadly_write(segment: SegmentWriter, pixels: NDArray[np.uint8], pts: Fraction) -> None:
        write(segment, pixels, pts)
        if segment.path.stem == f"{number + 1:06d}":
            is_pending.wait()
            die()

    SegmentWriter.close, SegmentWriter.write = endless_close, deadly_write  # type: ignore[method-assign]


def restore(job: dict[str, Any], models: Models, tell: Callable[[str], None]) -> None:
    arrange_death(job["die"] or {})
    if job["large_histories"] is not None:
        shot_state.LARGE_HISTORIES_BYTES = job["large_histories"]

    def report(progress: Progress) -> None:
        if progress.stage is Stage.RESTORE:
            tell(f"{progress.frames_done}\n")

    prepared = prepare(Path(job["source"]), Path(job["target"]), load_settings(job["settings"]).restore)
    tracker = Tracker(Meter(torch.device("cpu")), report)
    work = None if job["work"] is None else Path(job["work"])
    try:
        run(prepared, models, tracker, work, job["frames_per_unit"])
    except RestoreError as error:
        tell(f"error {error}\n")


def run_in_own_process(job: dict[str, Any], models: Models) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            restore(job, models, lambda text: (os.write(writing, text.encode()), None)[1])
            code = 0
        except BaseException:  # noqa: BLE001  never back into the loop of the parent
            traceback.print_exc()
        os._exit(code)
    os.close(writing)
    timer = threading.Timer((job["die"] or {}).get("seconds", 60.0), os.kill, (child, signal.SIGKILL))
    timer.start()
    with open(reading) as lines:
        told = lines.read().splitlines()
    timer.cancel()
    _, status = os.waitpid(child, 0)
    errors = [line.removeprefix("error ") for line in told if line.startswith("error ")]
    numbers = [int(line) for line in told if not line.startswith("error ")]
    return {"code": os.waitstatus_to_exitcode(status), "error": "".join(errors), "told": numbers}


def main() -> None:
    torch.set_num_threads(1)
    models = load_models("nano")
    for line in sys.stdin:
        print(json.dumps(run_in_own_process(json.loads(line), models)), flush=True)


if __name__ == "__main__":
    main()
