"""What the browser needs to know and see of a file, asked of a separate process. Neither torch nor PyAV on this side.

Each call starts `python -m inference.media_preview`, so that a hostile or broken file can at worst end that process,
and a cancellation can kill it. It answers with one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inference.errors import MediaError, RestoreError, from_message
from inference.progress import Cancellation

_CHECK_LIMIT_S = 60.0
_PREVIEW_LIMIT_S = 6 * 3600.0
_PART_LIMIT_S = 3600.0
_COUNT_LIMIT_S = 24 * 3600.0
_POLL_S = 0.1


def check_media(source: Path, thumbnail: Path) -> dict[str, Any]:
    """Facts about `source` (width, height, fps, frames, duration in seconds, has_audio, is_image) and a thumbnail file.

    Raises MediaError with a sentence if the file cannot be used.
    """
    unreadable = MediaError(f"{source.name} cannot be read as a video or an image; convert it to MP4 or PNG first.")
    return _run(["check", str(source), str(thumbnail)], Cancellation(), _CHECK_LIMIT_S, unreadable)


def make_preview(source: Path, result: Path, folder: Path, cancellation: Cancellation) -> dict[str, Any]:
    """Write what the comparing player shows into `folder`; returns its description with file names.

    {"kind": "video", "video", "width", "height", "after_top", "fps", "has_audio"}: sizes of one side; the result's
    rows begin at `after_top`. {"kind": "image", "before", "after", "width", "height"} for images.
    Raises MediaError, or CancelledError when asked to stop.
    """
    failed = MediaError(f"No preview of {source.name} could be made; the result itself is not affected.")
    return _run(["preview", str(source), str(result), str(folder)], cancellation, _PREVIEW_LIMIT_S, failed)


def join_part(work: Path, source: Path, target: Path, cancellation: Cancellation) -> dict[str, Any]:
    """Write what is finished of a job on `source` with the work folder `work` into the new file `target`.

    {"units": how many finished units it holds, "frames"}. Raises MediaError, or CancelledError when asked to stop.
    """
    failed = MediaError(f"The finished part of {source.name} could not be joined; the job itself is not affected.")
    return _run(["part", str(work), str(source), str(target)], cancellation, _PART_LIMIT_S, failed)


def count_shots(source: Path, cancellation: Cancellation) -> int:
    """The number of shots of the video `source`. Raises MediaError, or CancelledError when asked to stop."""
    failed = MediaError(f"The shots of {source.name} could not be counted; a job on it is not affected.")
    return int(_run(["shots", str(source)], cancellation, _COUNT_LIMIT_S, failed)["num_shots"])


def _run(arguments: list[str], cancellation: Cancellation, limit_s: float, failure: RestoreError) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryFile() as answer:  # a file, not a pipe: nobody has to read it while we wait
        process = subprocess.Popen(
            [sys.executable, "-m", "inference.media_preview", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                cancellation.check()
                if time.monotonic() > deadline:
                    raise failure
                cancellation.wait(_POLL_S)
        finally:
            _kill(process)
        answer.seek(0)
        lines = answer.read().decode("utf-8", errors="replace").strip().splitlines()
    if process.returncode != 0 or not lines:
        raise failure
    reply: dict[str, Any] = json.loads(lines[-1])
    if "error" in reply:
        raise from_message(reply["error"])
    return reply


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
