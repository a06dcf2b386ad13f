"""Chaos: the queue and its worker are killed at random moments, and every job must still end in the right file.

    ./run.sh bench chaos --jobs 20 --kills 200
    ./run.sh bench chaos --jobs 6 --kills 20 --seed 3 --json

Small clips are restored once undisturbed. Then the same clips go through a queue in a process of its own, which is
started, and killed with SIGKILL, again and again: either it or its worker. A job that its worker did not survive twice
fails by design; it is tried again as its owner would, and counted. At the end every job must be there, and every file
must have the bytes of the undisturbed run. Ends with 1 otherwise. The last line is one JSON object.
"""

import argparse
import contextlib
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil

from benchmarks.clips import Frames, write_h264
from benchmarks.report import add_save_option, publish, table
from inference.media_proxy import check_media, make_preview
from inference.settings import load_settings, to_dict
from inference.worker import Worker
from seedvr_ui.jobs import Job, JobStatus
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.storage import Storage, new_id

ROOT = Path(__file__).resolve().parents[1]
NUM_FRAMES, HEIGHT, WIDTH = 60, 48, 64
FPS = Fraction(24)
WAITING = 3
"""Jobs that are kept unfinished while kills are left; more are submitted when fewer are."""
LONGEST_LIFE_S = 6.0
END_LIMIT_S = 600.0


def host(data: Path) -> None:
    """The queue and its worker over the folder `data`, until SIGTERM; what is killed."""
    worker = Worker()
    manager = open_queue(data, worker)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    manager.start()
    ended.wait()
    manager.close()
    worker.kill()


def open_queue(data: Path, worker: Worker) -> SessionManager:
    """As the app makes it, without the page."""
    services = Services(check=check_media, restore=worker.restore, make_preview=make_preview)
    return SessionManager(Storage(data), services)


def make_clip(number: int) -> Frames:
    """Moving stripes, different for each number."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green, blue = rows * (3 + number % 5), columns * (2 + number % 3), rows + columns * number
    frames = [np.stack([red + 4 * t, green + t, blue], axis=-1) % 256 for t in range(NUM_FRAMES)]
    return np.stack(frames).astype(np.uint8)


def submit(manager: SessionManager, owner: str, clip: Path) -> Job:
    """Upload `clip` and queue it."""
    content = clip.read_bytes()
    upload = manager.uploads.begin(owner, clip.name, len(content), new_id())
    manager.uploads.append(owner, upload.id, 0, content)
    (job,) = manager.submit(owner, [upload.id], to_dict(load_settings()))
    return job


class Victim:
    """The process of the queue, started again whenever it is gone."""

    def __init__(self, data: Path) -> None:
        self._command = [sys.executable, "-m", "benchmarks.chaos", "--host", str(data)]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, rng: random.Random) -> str:
        """SIGKILL for the queue or for its worker, if it has one by now; which one it was."""
        if self._process.poll() is not None:
            self._process = self._start()
        workers = [c for c in psutil.Process(self._process.pid).children(recursive=True) if _is_worker(c)]
        if workers and rng.random() < 0.5:
            workers[0].kill()
            return "worker"
        self._process.kill()
        self._process.wait()
        self._process = self._start()
        return "queue"

    def end(self) -> None:
        """Stop the process in order."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._process.kill()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "inference.worker" in process.cmdline()
    except psutil.Error:  # it ended between the list and the question
        return False


def run_chaos(folder: Path, num_jobs: int, num_kills: int, seed: int) -> dict[str, float | int]:
    """The whole exercise in `folder`: see the top of this file."""
    rng = random.Random(seed)
    clips = [folder / f"clip{number:02d}.mp4" for number in range(min(num_jobs, 20))]
    undisturbed: dict[str, str] = {}
    start = time.perf_counter()
    with Worker() as worker:
        for number, clip in enumerate(clips):
            write_h264(clip, make_clip(number), FPS, 18)
            target = folder / f"{clip.stem}_restored.mp4"
            worker.restore(clip, target, to_dict(load_settings()))
            undisturbed[clip.name] = _sha256(target)
    calm_s = (time.perf_counter() - start) / len(clips)
    print(f"undisturbed: {calm_s:.2f} s a job", flush=True)

    owner = new_id()
    data = folder / "data"
    manager = open_queue(data, Worker())
    submitted = [submit(manager, owner, clips[number % len(clips)]) for number in range(num_jobs)]
    victim = Victim(data)
    kills: Counter[str] = Counter()
    retried = 0
    begin = time.perf_counter()
    try:
        while kills.total() < num_kills:
            time.sleep(rng.uniform(0.0, LONGEST_LIFE_S))
            kills[victim.kill(rng)] += 1
            retried += _retry_failed(manager, owner)
            unfinished = sum(not job.is_finished for job in manager.jobs(owner))
            submitted += [submit(manager, owner, rng.choice(clips)) for _ in range(WAITING - unfinished)]
            if kills.total() % 20 == 0:
                print(f"{kills.total()} kills, {len(submitted)} jobs, {unfinished} to do", flush=True)
        deadline = time.monotonic() + END_LIMIT_S
        while any(not job.is_finished for job in manager.jobs(owner)) and time.monotonic() < deadline:
            time.sleep(1.0)
            retried += _retry_failed(manager, owner)
    finally:
        victim.end()
    seconds = time.perf_counter() - begin
    ended = {job.id: job for job in manager.jobs(owner)}
    done = [ended[job.id] for job in submitted if job.id in ended and ended[job.id].status is JobStatus.SUCCEEDED]
    wrong = sum(not job.target.is_file() or _sha256(job.target) != undisturbed[job.source.name] for job in done)
    manager.close()
    return {
        "jobs": len(submitted),
        "kills": kills.total(),
        "kills_of_queue": kills["queue"],
        "kills_of_worker": kills["worker"],
        "lost": len(submitted) - len(done),
        "wrong": wrong,
        "retried": retried,
        "seconds": round(seconds, 1),
        "undisturbed_seconds": round(calm_s * len(submitted), 1),
    }


def _retry_failed(manager: SessionManager, owner: str) -> int:
    stuck = (JobStatus.FAILED, JobStatus.PAUSED)  # paused: the queue was killed three times at the same frame
    failed = [job for job in manager.jobs(owner) if job.status in stuck]
    for job in failed:
        manager.retry(owner, job.id)
    return len(failed)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 1 when a job was lost or a file is wrong."""
    parser = argparse.ArgumentParser(prog="seedvr bench chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=20, metavar="N", help="jobs at the start (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=200, metavar="K", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--host", type=Path, help=argparse.SUPPRESS)
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))
    if arguments.host is not None:
        host(arguments.host)
        return 0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = run_chaos(Path(folder), arguments.jobs, arguments.kills, arguments.seed)
    if arguments.json:
        print(json.dumps(result))
    else:
        body = table(list(result), [[str(value) for value in result.values()]])
        publish("chaos", "Kills at random moments", body, result, arguments.results if arguments.save else None)
    return 1 if result["lost"] or result["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
