"""The queue with thousands of jobs: start of the server, a look at a queue, a submission, a turn. On this disk.

    ./run.sh bench store

Ends with 1 when a figure is above its budget. Nothing is restored; the jobs are small files in a temporary folder.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import SERVE
from benchmarks.report import add_save_option, publish, table
from inference.errors import RestoreError
from inference.progress import Cancellation, Report
from inference.settings import load_settings, to_dict
from seedvr_ui import manifest
from seedvr_ui.jobs import Ending, Job, Outcome
from seedvr_ui.player import Display
from seedvr_ui.sessions import Limits, Services, SessionManager
from seedvr_ui.snapshots import Question, Snapshots
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.store import Store

NUM_JOBS, NUM_OWNERS, NUM_RUNS = 5000, 50, 30
START_LIMIT_S = 60.0
BUDGETS_S = {
    "start of the server": 5.0,
    "start of the server, no index": 30.0,
    "look at a queue after a change": 0.050,
    "look at a queue": 0.050,
    "submit": 0.050,
    "take a job": 0.050,
    "finish a job": 0.050,
    "ask for news": 0.005,
    "page asks, nothing is new": 0.005,
    "page asks after a change": 0.050,
    "page searches finished jobs": 0.050,
}
MEDIA = {"width": 640, "height": 360, "is_image": False, "fps": 24.0, "num_frames": 96, "duration": 4.0}


def fill(storage: Storage, owners: Sequence[str], num_jobs: int) -> None:
    """Half of the jobs wait, half are done; written as manifests without waiting for the disk."""
    settings = to_dict(load_settings())
    for number in range(num_jobs):
        owner, job_id = owners[number % len(owners)], new_id()
        folder = storage.job_folder(owner, job_id)
        job = Job(
            id=job_id, owner=owner, folder=folder, source=folder / "source" / "clip.mp4", settings=settings,
            target=folder / "result" / "clip_restored.mp4", media=MEDIA, num_bytes=1000, created_at=time.time() - 100,
        ).queue(time.time())  # fmt: skip
        if number % 2:
            done = Outcome(ending=Ending.DONE, summary={"frames": 96, "width": 1280, "height": 720})
            job = job.start().finish(done)
        job.source.parent.mkdir(parents=True)
        job.source.write_bytes(b"pixels")
        (folder / manifest.NAME).write_text(json.dumps(manifest.to_document(job), indent=1))


def time_start(data: Path) -> float:
    """Seconds from the start of the server's process until its page is served. Raises RestoreError without one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*SERVE, "--host", "127.0.0.1", "--port", str(port), "--data", str(data)]
    begin = time.perf_counter()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - begin < START_LIMIT_S and server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    page.read()
                return time.perf_counter() - begin
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.02)
        raise RestoreError("The server did not answer; start it by hand to see why.")
    finally:
        server.kill()
        server.wait()


def time_each(action: Callable[[int], object], runs: int) -> list[float]:
    """Seconds of each call of ``action``."""
    seconds = []
    for number in range(runs):
        begin = time.perf_counter()
        action(number)
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure(data: Path, num_jobs: int, runs: int, starts: int) -> dict[str, list[float]]:
    """Seconds by name, one or several each."""
    storage = Storage(data)
    owners = [new_id() for _ in range(NUM_OWNERS)]
    fill(storage, owners, num_jobs)
    figures: dict[str, list[float]] = {}
    figures["build the index"] = time_each(lambda _: _open(storage), 1)
    figures["open the index"] = time_each(lambda _: _open(storage), 3)
    manager = SessionManager(storage, Services(check=_check, restore=_restore, make_preview=_preview), Limits())
    try:
        figures |= _measure_queue(manager, owners, runs)
        for job in [job for owner in owners for job in manager.jobs(owner) if job.can_cancel]:
            manager.cancel(job.owner, job.id)  # the server that is started next shall have nothing to run
    finally:
        manager.close()

    if starts:
        figures["start of the server, no jobs"] = [time_start(data / "empty") for _ in range(starts)]
        figures["start of the server"] = [time_start(data) for _ in range(starts)]
        (data / "index.sqlite3").unlink()
        figures["start of the server, no index"] = [time_start(data)]
    return figures


def _measure_queue(manager: SessionManager, owners: Sequence[str], runs: int) -> dict[str, list[float]]:
    store, owner = manager.store, owners[0]

    def look(number: int) -> None:
        manager.jobs(owners[number % len(owners)])
        manager.line()

    def look_after_change(seconds: list[float]) -> None:
        for number in range(runs):
            manager.set_priority(job.id, number % 2)
            seconds += time_each(look, 1)

    page = _measure_page(manager, owner, runs)
    uploads = [_upload(manager, owner) for _ in range(runs)]
    submitted = time_each(lambda number: manager.submit(owner, [uploads[number]], {}), runs)
    job = next(job for job in manager.jobs(owner) if not job.is_finished)
    changed: list[float] = []
    look_after_change(changed)
    taken: list[Job] = []
    claims = time_each(lambda _: taken.append(_require(store.claim())), runs)
    done = Outcome(ending=Ending.DONE)
    ends = time_each(
        lambda number: store.change(taken[number].id, lambda job: job.finish(done), token=taken[number].token), runs
    )
    return {
        "submit": submitted,
        "look at a queue after a change": changed,
        "look at a queue": time_each(look, runs),
        "ask for news": time_each(lambda _: manager.revision, runs),
        "take a job": claims,
        "finish a job": ends,
        **page,
    }


def _measure_page(manager: SessionManager, owner: str, runs: int) -> dict[str, list[float]]:
    """What a page costs that asks every second, as it comes to the owner with one and the same job changed."""
    snapshots = Snapshots(manager, lambda: Display(keep_s=manager.limits.keep_s))
    question = Question(owner)
    first = snapshots.changes(question, {})
    assert first is not None  # a page that knows nothing gets everything
    tags = first["tags"]
    calm = time_each(lambda _: snapshots.changes(question, tags), runs)
    job = next(job for job in manager.unfinished(owner))
    changed: list[float] = []
    for number in range(runs):
        manager.set_priority(job.id, number % 2)
        changed += time_each(lambda _: snapshots.changes(question, tags), 1)
    searched = time_each(lambda number: snapshots.changes(Question(owner, f"clip done {number}"), {}), runs)
    return {
        "page asks, nothing is new": calm,
        "page asks after a change": changed,
        "page searches finished jobs": searched,
    }


def _open(storage: Storage) -> None:
    store = Store(storage)
    store.open()
    store.close()


def _upload(manager: SessionManager, owner: str) -> str:
    upload = manager.uploads.begin(owner, "clip.mp4", 6, "")
    manager.uploads.append(owner, upload.id, 0, b"pixels")
    return upload.id


def _require(job: Job | None) -> Job:
    assert job is not None  # there are thousands
    return job


def _check(source: Path, thumbnail: Path) -> Mapping[str, Any]:
    return MEDIA


def _restore(
    source: Path, target: Path, settings: Mapping[str, Any], report: Report, cancellation: Cancellation, *, work: Path
) -> Mapping[str, Any]:
    raise AssertionError("nothing is restored here")


def _preview(source: Path, result: Path, folder: Path, cancellation: Cancellation) -> Mapping[str, Any]:
    raise AssertionError("nothing is restored here")


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 0 when every figure is within its budget, else 1. Raises RestoreError."""
    parser = argparse.ArgumentParser(prog="seedvr bench store", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=NUM_JOBS, help="jobs in the store (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=NUM_RUNS, help="repetitions of what is quick (default: %(default)s)"
    )
    parser.add_argument("--starts", type=int, default=3, help="starts of the server; 0 leaves them out")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder, to measure another disk")
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))

    os.environ.pop("SEEDVR_DATABASE_URL", None)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.jobs, arguments.runs, arguments.starts)
    rows, over = [], []
    for name, seconds in figures.items():
        middle, budget = statistics.median(seconds), BUDGETS_S.get(name)
        if budget is not None and middle > budget:
            over.append(name)
        shown = "" if budget is None else f"{budget * 1e3:.0f}"
        rows.append([name, f"{middle * 1e3:.1f}", f"{max(seconds) * 1e3:.1f}", shown])
    verdict = f"Over budget: {', '.join(over)}." if over else "All within budget."
    heading = f"{arguments.jobs} jobs of {NUM_OWNERS} owners, half of them waiting."
    body = f"{heading}\n\n{table(['what', 'median ms', 'worst ms', 'budget ms'], rows)}\n\n{verdict}"
    result = {
        "jobs": arguments.jobs,
        "owners": NUM_OWNERS,
        "median_s": {name: round(statistics.median(seconds), 5) for name, seconds in figures.items()},
        "worst_s": {name: round(max(seconds), 5) for name, seconds in figures.items()},
        "pass": not over,
    }
    publish("store", "The queue with many jobs", body, result, arguments.results if arguments.save else None)
    return 1 if over else 0
