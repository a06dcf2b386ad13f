"""Processes that are killed at any moment: afterwards nothing is lost, nothing is half, and everything goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedvr_ui import manifest
from seedvr_ui.holder import is_gone, new_holder
from seedvr_ui.jobs import JobStatus
from seedvr_ui.storage import Storage, is_id
from seedvr_ui.store import Store
from tests.ui.conftest import Wait
from tests.ui.server import ROOT
from tests.ui.stores import OpenStore, database_url, make_job, open_store, postgres, storage, store

__all__ = ["database_url", "open_store", "postgres", "storage", "store"]  # fixtures

LIMIT_S = 60.0
OWNERS = ["a" * 32, "b" * 32]

_CHANGE_FOR_EVER = """
import random, sys
from pathlib import Path
from seedvr_ui.jobs import Ending, Job, Outcome
from seedvr_ui.storage import Storage
from seedvr_ui.store import Store
from tests.ui.stores import make_job

storage = Storage(Path(sys.argv[1]))
store = Store(storage, sys.argv[2], lease_s=0.01)
store.open()
chance = random.Random(int(sys.argv[3]))

def tell(job):
    print(job.id, len(job.history), job.priority, flush=True)

while True:
    match chance.randrange(5):
        case 0:
            tell(store.add(make_job(storage, chance.choice(["a" * 32, "b" * 32]), chance.random())))
        case 1:
            if job := store.claim():
                tell(job)
                tell(store.change(job.id, lambda job: job.finish(Outcome(ending=Ending.DONE)), token=job.token))
        case 2:
            if job := store.claim():
                tell(store.change(job.id, lambda job: job.finish(Outcome(ending=Ending.STOPPED))))
        case 3:
            for job in store.recover():
                tell(job)
        case 4:
            if line := list(store.line()):
                tell(store.change(chance.choice(line), lambda job: job.rank(job.priority + 1)))
"""


@contextlib.contextmanager
def _child(program: str, *arguments: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
        )  # fmt: skip
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(LIMIT_S)


def _told(output: Path) -> dict[str, tuple[int, int]]:
    """The last (length of the history, priority) that was acknowledged, by job."""
    lines = [line.split() for line in output.read_text().split("\n")[:-1]]
    wrong = [line for line in lines if len(line) != 3 or not is_id(line[0])]
    assert wrong == [], output.read_text()[-2000:]
    return {job_id: (int(length), int(priority)) for job_id, length, priority in lines}


@pytest.mark.timeout(240)
def test_killed_writers_lose_nothing_and_leave_nothing_half(
    storage: Storage, database_url: str, tmp_path: Path, wait_until: Wait
) -> None:
    chance = random.Random(1)
    output = tmp_path / "told"
    for round_number in range(6):
        before = output.stat().st_size if output.exists() else 0
        with _child(_CHANGE_FOR_EVER, str(storage.root), database_url, str(round_number), output=output) as child:
            wait_until(lambda before=before, child=child: output.stat().st_size > before or child.poll() is not None)
            time.sleep(chance.uniform(0.0, 0.4))
            assert child.poll() is None, output.read_text()[-2000:]
            child.kill()
            child.wait(LIMIT_S)
        store = Store(storage, database_url)
        store.open()
        indexed = {job.id: job for owner in OWNERS for job in store.jobs(owner)}
        store.close()
        for job_id, (length, priority) in _told(output).items():  # what was acknowledged is there, or has gone on
            assert len(indexed[job_id].history) >= length
            assert indexed[job_id].priority >= priority
        for _, job_id, folder in storage.job_folders():  # and the manifests are whole, and what the index says
            if (folder / manifest.NAME).exists():
                assert manifest.read(folder)[0] == indexed[job_id]
            assert not manifest.has_one_aside(folder)
        if not database_url:
            connection = sqlite3.connect(storage.root / "index.sqlite3")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()
    assert len(_told(output)) > 5
    assert list(storage.root.glob("*.damaged*")) == []


_RUN_A_JOB = """
import sys, time
from pathlib import Path
from inference.progress import Progress, Stage
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.storage import Storage

def restore(source, target, settings, report, cancellation, *, work):
    work.mkdir(exist_ok=True)
    done = len(list(work.iterdir()))
    print("begins at", done, flush=True)
    report(Progress(Stage.RESTORE, 10 * done, 50))
    while done < 5:
        cancellation.check()
        if done == int(sys.argv[2]):
            time.sleep(0.01)
            continue
        (work / str(done)).touch()
        done += 1
        report(Progress(Stage.RESTORE, 10 * done, 50))
        print("finished", done, flush=True)
    target.write_text("restored")
    return {"frames": 50}

manager = SessionManager(Storage(Path(sys.argv[1])), Services(
    check=lambda *_: {}, restore=restore, make_preview=lambda *_: {}))
manager.start()
if sys.argv[3] == "close on SIGTERM":
    import signal, threading
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    asked.wait()
    manager.close()
    print("closed", flush=True)
else:
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["power cut", "polite end"])
def test_a_job_goes_on_from_its_finished_units_after_the_server_ended(
    tmp_path: Path, wait_until: Wait, how: signal.Signals
) -> None:
    storage, output = Storage(tmp_path / "data"), tmp_path / "output"
    setup = Store(storage)
    setup.open()
    job = setup.add(make_job(storage, OWNERS[0], 1.0))
    setup.close()
    with _child(_RUN_A_JOB, str(storage.root), "3", "close on SIGTERM", output=output) as child:
        wait_until(lambda: output.exists() and "finished 3" in output.read_text())
        begin = time.monotonic()
        child.send_signal(how)
        assert child.wait(LIMIT_S) == (0 if how is signal.SIGTERM else -signal.SIGKILL), output.read_text()
        assert time.monotonic() - begin < 10
    left, _ = manifest.read(job.folder)
    assert left.status is (JobStatus.INTERRUPTED if how is signal.SIGTERM else JobStatus.RUNNING)
    with _child(_RUN_A_JOB, str(storage.root), "9", "", output=output):
        wait_until(lambda: manifest.read(job.folder)[0].status is JobStatus.SUCCEEDED and not job.work.exists())
    done, _ = manifest.read(job.folder)
    assert "begins at 3" in output.read_text()
    assert (done.target.read_text(), done.place, done.attempts) == ("restored", job.place, 2)
    statuses = [change.status.value for change in done.history]
    assert statuses == ["queued", "running", "interrupted", "queued", "running", "succeeded"]


def test_a_job_that_kills_the_server_again_and_again_waits_and_the_next_one_runs(
    tmp_path: Path, wait_until: Wait
) -> None:
    storage, output = Storage(tmp_path / "data"), tmp_path / "output"
    setup = Store(storage)
    setup.open()
    job, other = setup.add(make_job(storage, OWNERS[0], 1.0)), setup.add(make_job(storage, OWNERS[0], 2.0))
    setup.close()
    for number in range(4):
        polite = number == 1  # such an end does not count
        before = output.read_text().count("begins at") if output.exists() else 0
        mode = "close on SIGTERM" if polite else ""
        with _child(_RUN_A_JOB, str(storage.root), "0", mode, output=output) as child:
            wait_until(lambda before=before: output.exists() and output.read_text().count("begins at") > before)
            child.send_signal(signal.SIGTERM if polite else signal.SIGKILL)
            child.wait(LIMIT_S)
    with _child(_RUN_A_JOB, str(storage.root), "9", "", output=output):
        wait_until(lambda: manifest.read(other.folder)[0].status is JobStatus.SUCCEEDED)
    waiting, _ = manifest.read(job.folder)
    assert (waiting.status, waiting.attempts, waiting.crashes) == (JobStatus.PAUSED, 4, (0, 0, 0))
    assert "ended 3 times at frame 0" in waiting.message


# --- whose lease it is ---


def test_a_holder_that_runs_is_not_gone_and_one_that_ended_is() -> None:
    assert not is_gone(new_holder())
    program = "from seedvr_ui.holder import new_holder; print(new_holder())"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()
    assert is_gone(ended)


def test_a_process_with_the_number_of_an_older_one_is_another() -> None:
    machine, pid, start, rest = new_holder().split("|")
    assert is_gone("|".join([machine, pid, str(float(start) - 100), rest]))


def test_a_process_of_another_machine_cannot_be_judged() -> None:
    _, pid, start, rest = new_holder().split("|")
    assert not is_gone("|".join(["elsewhere pid:[1]", pid, start, rest]))
    assert is_gone("")


def test_the_lease_of_a_killed_process_ends_at_once(
    store: Store, open_store: OpenStore, storage: Storage, database_url: str, tmp_path: Path, wait_until: Wait
) -> None:
    job = store.add(make_job(storage, OWNERS[0], 1.0))
    program = """
import sys, time
from pathlib import Path
from seedvr_ui.storage import Storage
from seedvr_ui.store import Store
store = Store(Storage(Path(sys.argv[1])), sys.argv[2], lease_s=1000)
store.open()
print(store.claim().id, flush=True)
time.sleep(600)
"""
    output = tmp_path / "told"
    with _child(program, str(storage.root), database_url, output=output):
        wait_until(lambda: output.exists() and job.id in output.read_text())
        assert store.recover() == []
    assert [recovered.id for recovered in store.recover()] == [job.id]
