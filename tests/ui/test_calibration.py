"""What is remembered of finished jobs, and the short test where nothing is known."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.errors import CheckpointError
from inference.progress import Cancellation, Progress, Report
from seedvr_ui.calibration import NAME, Calibration
from seedvr_ui.forecast import Forecast
from seedvr_ui.sessions import SessionManager
from tests.ui.conftest import WAIT_LIMIT_S, Submit, Wait

SETTINGS = {"engine": {"model": "auto"}, "restore": {"encode": {"quality": 16}}}


class FakeWorker:
    """Answers with a summary; waits for `hold` as a worker at work does, and hears a cancellation."""

    def __init__(self) -> None:
        self.settings: list[Mapping[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.error: Exception | None = None
        self.num_at_work = 0

    def __call__(
        self, source: Path, target: Path, settings: Mapping[str, Any], report: Report, cancellation: Cancellation,
        *, work: Path,
    ) -> Mapping[str, Any]:  # fmt: skip
        self.settings.append(settings)
        self.num_at_work += 1
        assert self.num_at_work == 1, "a worker does one thing at a time"
        try:
            while not self.hold.wait(0.01):
                cancellation.check()
            if self.error is not None:
                raise self.error
            target.write_bytes(b"x" * 1000)
            return {
                "frames": 100, "width": 1280, "height": 720, "fps": "25", "seconds": {"total": 10.0, "load": 2.0},
                "model": "nano", "device": "cpu", "peak_memory_bytes": 10**9, "peak_device_bytes": None,
            }  # fmt: skip
        finally:
            self.num_at_work -= 1


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"pixels")
    return path


def _run(calibration: Calibration, folder: Path, cancellation: Cancellation | None = None) -> None:
    calibration.restore(
        folder / "clip.mp4", folder / "out.mp4", SETTINGS, _no_report, cancellation or Cancellation(),
        work=folder / "work",
    )  # fmt: skip


def _no_report(progress: Progress) -> None:
    pass


def test_a_finished_job_is_remembered_also_by_the_next_process(tmp_path: Path, worker: FakeWorker) -> None:
    _run(Calibration(tmp_path, worker), tmp_path)
    (sample,) = Calibration(tmp_path, worker).samples("auto")
    assert (sample.model, sample.seconds, sample.load_s, sample.frames) == ("nano", 8.0, 2.0, 100)
    assert Calibration(tmp_path, worker).samples("nano") == [sample]


def test_the_rest_of_a_job_says_nothing_about_a_whole_one(tmp_path: Path, worker: FakeWorker) -> None:
    (tmp_path / "work").mkdir()
    calibration = Calibration(tmp_path, worker)
    _run(calibration, tmp_path)
    assert calibration.samples("auto") == []


def test_a_damaged_file_is_begun_anew(tmp_path: Path, worker: FakeWorker) -> None:
    (tmp_path / NAME).write_text("{")
    calibration = Calibration(tmp_path, worker)
    assert calibration.samples("auto") == []
    _run(calibration, tmp_path)
    assert len(Calibration(tmp_path, worker).samples("auto")) == 1


def test_a_test_runs_once_where_nothing_is_known_and_downloads_nothing(
    tmp_path: Path, worker: FakeWorker, clip: Path, wait_until: Wait
) -> None:
    calibration = Calibration(tmp_path, worker, clip)
    assert calibration.ask("auto", SETTINGS)
    wait_until(lambda: bool(calibration.samples("auto")))
    assert worker.settings[0]["engine"]["offline"] is True
    assert calibration.samples("auto")[0].is_test
    wait_until(lambda: not calibration.ask("auto", SETTINGS))  # it is at work until it has tidied up
    assert len(worker.settings) == 1


def test_a_model_that_cannot_be_tested_is_not_tried_again(
    tmp_path: Path, worker: FakeWorker, clip: Path, wait_until: Wait
) -> None:
    worker.error = CheckpointError("It is not here.")
    calibration = Calibration(tmp_path, worker, clip)
    assert calibration.ask("seedvr2-3b", SETTINGS)
    wait_until(lambda: calibration.trouble("seedvr2-3b") != "")
    wait_until(lambda: not calibration.ask("seedvr2-3b", SETTINGS))
    assert len(worker.settings) == 1


def test_a_test_makes_room_for_a_job(tmp_path: Path, worker: FakeWorker, clip: Path, wait_until: Wait) -> None:
    worker.hold.clear()
    calibration = Calibration(tmp_path, worker, clip)
    assert calibration.ask("auto", SETTINGS)
    wait_until(lambda: worker.num_at_work == 1)
    job = threading.Thread(target=_run, args=(calibration, tmp_path))
    job.start()
    wait_until(lambda: len(worker.settings) == 2)
    worker.hold.set()
    job.join(WAIT_LIMIT_S)
    (sample,) = calibration.samples("auto")
    assert not sample.is_test


def test_no_test_runs_while_jobs_wait_or_after_the_end(tmp_path: Path, worker: FakeWorker, clip: Path) -> None:
    assert not Calibration(tmp_path, worker, clip, is_idle=lambda: False).ask("auto", SETTINGS)
    closed = Calibration(tmp_path, worker, clip)
    closed.close()
    assert not closed.ask("auto", SETTINGS)


def _upload(manager: SessionManager, session: str) -> str:
    upload = manager.uploads.begin(session, "a.mp4", 6, "")
    manager.uploads.append(session, upload.id, 0, b"pixels")
    return upload.id


def test_the_page_hears_of_a_download_then_of_a_test_then_of_a_time(
    tmp_path: Path, worker: FakeWorker, clip: Path, manager: SessionManager, session: str, wait_until: Wait
) -> None:
    missing = {"seedvr2-3b": 7 * 10**9}
    calibration = Calibration(tmp_path, worker, clip)
    forecast = Forecast(manager, calibration, lambda model: missing.get(model, 0))
    upload = _upload(manager, session)
    assert forecast.about(session, [], SETTINGS) == {"lines": [], "warnings": [], "pending": False}

    about = forecast.about(session, [upload], {"engine": {"model": "seedvr2-3b"}, "restore": {}})
    assert about["lines"][0] == "The model is not here yet: 7.0 GB are downloaded first."

    worker.hold.clear()
    about = forecast.about(session, [upload], SETTINGS)
    assert (about["lines"][0], about["pending"]) == ("Measuring how fast this machine is…", True)
    worker.hold.set()
    wait_until(lambda: bool(calibration.samples("auto")))
    about = forecast.about(session, [upload], SETTINGS)
    assert about["lines"][0].startswith(("About ", "Less"))
    assert about["lines"][-1] == "From a short test on this machine."
    assert not about["pending"]


def test_the_uploads_of_somebody_else_are_no_part_of_an_estimate(
    tmp_path: Path, worker: FakeWorker, manager: SessionManager, session: str
) -> None:
    forecast = Forecast(manager, Calibration(tmp_path, worker), lambda model: 0)
    assert forecast.about("f" * 32, [_upload(manager, session), "../x"], SETTINGS)["lines"] == []


def test_a_size_that_cannot_be_is_told_before_start(
    tmp_path: Path, worker: FakeWorker, manager: SessionManager, session: str
) -> None:
    forecast = Forecast(manager, Calibration(tmp_path, worker), lambda model: 0)
    about = forecast.about(session, [_upload(manager, session)], {"restore": {"resolution": 16000}})
    assert "8192" in about["warnings"][0]


def test_a_waiting_job_is_expected_to_take_what_others_took(
    tmp_path: Path, worker: FakeWorker, clip: Path, manager: SessionManager, submit: Submit
) -> None:
    calibration = Calibration(tmp_path, worker)
    forecast = Forecast(manager, calibration, lambda model: 0)
    job = submit("a.mp4")
    assert forecast.expect(job) is None
    _run(calibration, tmp_path)
    expected = forecast.expect(job)
    assert expected is not None
    assert 0 < expected[0] < expected[1]
