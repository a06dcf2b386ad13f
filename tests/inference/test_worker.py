"""The worker process: results, progress, errors, cancellation, and every way to die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.errors import CancelledError, MediaError, RestoreError, SettingsError
from inference.progress import Cancellation, Progress, Stage
from inference.units import finished_units
from inference.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.fixture
def settings(nano_weights: Path) -> dict[str, Any]:
    return {"engine": {"model": "nano", "device": "cpu", "weights": str(nano_weights), "threads": 1}}


def wait_until(is_true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if is_true():
            return True
        time.sleep(0.05)
    return False


def test_a_job_gives_its_file_its_summary_and_its_progress(
    worker: Worker, settings: dict[str, Any], make_clip: Any, decoded: Any, tmp_path: Path
) -> None:
    told: list[Progress] = []

    summary = worker.restore(make_clip("in.mp4", 6), tmp_path / "out.mp4", settings, told.append)

    assert (summary["frames"], summary["width"], summary["model"]) == (6, 48, "nano")
    assert len(decoded(tmp_path / "out.mp4")) == 6
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == [Stage.PREPARE, Stage.LOAD, Stage.RESTORE, Stage.FINISH]


def test_an_error_keeps_its_type_and_the_worker_goes_on(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    worker.restore(make_clip("in.mp4", 1), tmp_path / "one.mp4", settings)
    pid = worker.pid

    with pytest.raises(MediaError, match="empty"):
        worker.restore(tmp_path / "empty.mp4", tmp_path / "out.mp4", settings)
    worker.restore(tmp_path / "in.mp4", tmp_path / "two.mp4", settings)

    assert worker.pid == pid


def test_a_cancelled_job_leaves_no_file_and_the_worker_goes_on(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path
) -> None:
    source, cancellation = make_clip("in.mp4", 200), Cancellation()

    def report(progress: Progress) -> None:
        if progress.frames_done:
            cancellation.cancel()

    with pytest.raises(CancelledError):
        worker.restore(source, tmp_path / "out.mp4", settings, report, cancellation)

    assert list(tmp_path.iterdir()) == [source]
    assert worker.pid is not None


def test_a_killed_worker_fails_its_job_and_the_next_job_gets_a_new_one(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path
) -> None:
    source, killed = make_clip("in.mp4", 200), []

    def report(progress: Progress) -> None:
        if progress.frames_done and not killed:
            killed.append(worker.pid)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(RestoreError, match="SIGKILL"):
        worker.restore(source, tmp_path / "out.mp4", settings, report)
    assert list(tmp_path.iterdir()) == [source]

    worker.restore(make_clip("short.mp4", 1), tmp_path / "out.mp4", settings)
    assert worker.pid not in [None, *killed]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_with_a_work_folder_goes_on_in_the_next_worker_to_the_same_bytes(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path, number: signal.Signals
) -> None:
    source, work = make_clip("in.mp4", 70, fps=12), tmp_path / "work"
    settings["restore"] = {"window": 9, "encode": {"preset": "ultrafast"}}
    worker.restore(source, tmp_path / "whole.mp4", settings)
    killed: list[int | None] = []

    def kill(progress: Progress) -> None:
        if progress.units >= 1 and not killed:
            killed.append(worker.pid)
            os.kill(worker.pid or 0, number)

    with pytest.raises(RestoreError, match="SIGKILL|told to end"):
        worker.restore(source, tmp_path / "out.mp4", settings, kill, work=work)
    done = finished_units(work)
    told: list[Progress] = []
    worker.restore(source, tmp_path / "out.mp4", settings, told.append, work=work)

    assert len(done) >= 1
    assert worker.pid not in [None, *killed]
    assert max(progress.units for progress in told) > len(done)
    restoring = [progress.frames_done for progress in told if progress.stage is Stage.RESTORE]
    assert [frames for frames in restoring if frames][0] >= done[-1].stop
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4", "whole.mp4"}


def test_a_cancelled_job_keeps_its_work_folder_and_its_units(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path
) -> None:
    source, work, cancellation = make_clip("in.mp4", 200, fps=12), tmp_path / "work", Cancellation()

    def report(progress: Progress) -> None:
        if progress.units:
            cancellation.cancel()

    with pytest.raises(CancelledError):
        worker.restore(source, tmp_path / "out.mp4", settings, report, cancellation, work)

    assert len(finished_units(work)) >= 1
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "work", "work.lock"}
    assert worker.pid is not None


def test_a_worker_that_does_not_stop_is_killed(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_cancel_limit_s", 1.0)
    source, cancellation, stopped = make_clip("in.mp4", 200), Cancellation(), []

    def report(progress: Progress) -> None:
        if progress.frames_done and not stopped:
            stopped.append(worker.pid)
            os.kill(stopped[0], signal.SIGSTOP)
            cancellation.cancel()

    with pytest.raises(CancelledError):
        worker.restore(source, tmp_path / "out.mp4", settings, report, cancellation)

    assert wait_until(lambda: not psutil.pid_exists(stopped[0]))
    assert list(tmp_path.iterdir()) == [source]


def test_a_failing_report_does_not_leave_the_job_at_work(
    worker: Worker, settings: dict[str, Any], make_clip: Any, tmp_path: Path
) -> None:
    source = make_clip("in.mp4", 200)

    def report(progress: Progress) -> None:
        if progress.frames_done:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        worker.restore(source, tmp_path / "out.mp4", settings, report)

    assert worker.pid is None
    assert list(tmp_path.iterdir()) == [source]


def test_a_second_job_at_the_same_time_is_refused(tmp_path: Path) -> None:
    worker = Worker()
    assert worker._busy.acquire(timeout=1)

    with pytest.raises(RestoreError, match="busy"):
        worker.restore(tmp_path / "in.mp4", tmp_path / "out.mp4", {})


def test_wrong_settings_are_refused_without_a_process(tmp_path: Path) -> None:
    worker = Worker()

    with pytest.raises(SettingsError, match="did you mean"):
        worker.restore(tmp_path / "in.mp4", tmp_path / "out.mp4", {"restore": {"sed": 1}})
    assert worker.pid is None


def test_noise_on_standard_output_does_not_disturb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading\nprint('not JSON', flush=True)\n"
        "def shout():\n    import time\n    while True:\n        time.sleep(0.05); print('noise', flush=True)\n"
        "threading.Thread(target=shout, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "empty.mp4").write_bytes(b"")

    with Worker() as worker, pytest.raises(MediaError, match="empty"):
        worker.restore(tmp_path / "empty.mp4", tmp_path / "out.mp4", {"engine": {"device": "cpu"}})


def test_closing_ends_the_process() -> None:
    worker = Worker()
    pid = worker._start().pid

    worker.close()

    assert not psutil.pid_exists(pid)
    assert worker.pid is None


def test_the_worker_ends_when_its_parent_is_killed() -> None:
    code = "import time; from inference.worker import Worker; print(Worker()._start().pid, flush=True); time.sleep(300)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    timer = threading.Timer(LIMIT_S, parent.kill)
    timer.start()
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        timer.cancel()
        parent.kill()
        parent.wait(LIMIT_S)
        parent.stdout.close()

    assert wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
