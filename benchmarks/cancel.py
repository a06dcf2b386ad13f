"""How soon a running job stops: cancelled and paused at random moments, and the server ended by SIGTERM.

    ./run.sh bench cancel
    ./run.sh bench cancel --jobs 40 --seed 3 --save

Real jobs of the embedded model, through the queue and its worker. Measured are the times from the request to the state
that was asked for and to an idle worker, and from SIGTERM to the end of the whole app. Ends with 1 when one is over its
limit. The last line is one JSON object.
"""

import argparse
import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from benchmarks.chaos import open_queue, submit
from benchmarks.clips import moving_texture, write_h264
from benchmarks.jobs import SERVE
from benchmarks.report import add_save_option, publish, table
from inference.worker import Worker
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.sessions import SessionManager
from seedvr_ui.storage import new_id

ROOT = Path(__file__).resolve().parents[1]
STOP_LIMIT_S, END_LIMIT_S = 2.0, 10.0
SIZE, NUM_FRAMES, FPS = (320, 180), 240, Fraction(24)
LONGEST_WAIT_S = 8.0
WAIT_LIMIT_S = 120.0


def measure_stops(folder: Path, clip: Path, num_jobs: int, rng: random.Random) -> dict[str, list[float]]:
    """Seconds from each request to its state, for cancellations and pauses, and to the next job's first frame."""
    found: dict[str, list[float]] = {"cancel": [], "pause": []}
    worker, owner = Worker(), new_id()
    manager = open_queue(folder / "data", worker)
    manager.start()
    try:
        for number in range(2 * num_jobs):
            wish = "cancel" if number % 2 == 0 else "pause"
            job = submit(manager, owner, clip)
            _wait_for(manager, job, JobStatus.RUNNING)
            time.sleep(rng.uniform(0.0, LONGEST_WAIT_S))
            found[wish].append(_stop(manager, owner, job, wish))
            if wish == "pause":
                manager.cancel(owner, job.id)
    finally:
        manager.close()
        worker.kill()
    return found


def _stop(manager: SessionManager, owner: str, job: Job, wish: str) -> float:
    """Seconds until the job is in the state that `wish` asks for, which it enters when its worker is idle again."""
    wanted = JobStatus.CANCELLED if wish == "cancel" else JobStatus.PAUSED
    start = time.perf_counter()
    (manager.cancel if wish == "cancel" else manager.pause)(owner, job.id)
    _wait_for(manager, job, wanted)
    return time.perf_counter() - start


def measure_ends(folder: Path, clip: Path, runs: int, rng: random.Random) -> list[float]:
    """Seconds from SIGTERM to the end of the app, while it restores a job."""
    found = []
    for run in range(runs):
        data, port = folder / f"app{run}", _free_port()
        manager = open_queue(data, Worker())
        owner = new_id()
        job = submit(manager, owner, clip)
        command = [*SERVE, "--host", "127.0.0.1", "--port", str(port), "--data", str(data)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait(partial(_answers, port))
            _wait_for(manager, job, JobStatus.RUNNING)
            time.sleep(rng.uniform(0.0, LONGEST_WAIT_S))
            start = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_LIMIT_S)
            found.append(time.perf_counter() - start)
            status = manager.job(owner, job.id).status
            if status not in (JobStatus.INTERRUPTED, JobStatus.QUEUED):
                raise AssertionError(f"the job is {status} after an orderly end")
        finally:
            manager.close()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return found


def _wait_for(manager: SessionManager, job: Job, status: JobStatus) -> None:
    _wait(lambda: manager.job(job.owner, job.id).status is status)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("what was waited for did not come")
        time.sleep(0.005)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 1 when something took longer than its limit."""
    parser = argparse.ArgumentParser(prog="seedvr bench cancel", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=20, metavar="N", help="cancellations, and pauses (%(default)s)")
    parser.add_argument("--ends", type=int, default=5, metavar="N", help="ends of the app (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = folder / "clip.mp4"
        write_h264(clip, moving_texture(*SIZE, NUM_FRAMES), FPS, 18)
        found = measure_stops(folder, clip, arguments.jobs, rng)
        found["SIGTERM"] = measure_ends(folder, clip, arguments.ends, rng)
    limits = {"cancel": STOP_LIMIT_S, "pause": STOP_LIMIT_S, "SIGTERM": END_LIMIT_S}
    rows = [
        [kind, str(len(times)), f"{statistics.median(times):.2f}", f"{max(times):.2f}", f"{limits[kind]:g}"]
        for kind, times in found.items()
        if times
    ]
    result = {
        kind: {"number": len(times), "median_s": round(statistics.median(times), 3), "max_s": round(max(times), 3)}
        for kind, times in found.items()
        if times
    }
    body = (
        f"Jobs of {SIZE[0]}x{SIZE[1]}, {NUM_FRAMES} frames, stopped up to {LONGEST_WAIT_S:g} s after their start.\n\n"
        f"{table(['request', 'times', 'median s', 'maximum s', 'limit s'], rows)}"
    )
    publish("cancel", "From a request to its effect", body, result, arguments.results if arguments.save else None)
    return int(any(max(times) > limits[kind] for kind, times in found.items() if times))
