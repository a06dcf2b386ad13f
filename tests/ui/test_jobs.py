"""The states of a job and how running it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.errors import CancelledError, MediaError
from inference.progress import Cancellation, Progress, Report, Stage
from seedvr_ui.jobs import Job, JobStatus, TransitionError, run_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        id="a" * 32, session="b" * 32, folder=tmp_path, source=tmp_path / "in.mp4", target=tmp_path / "r" / "out.mp4",
        settings={},
    )  # fmt: skip


def _run(job: Job, restore: Any, make_preview: Any = lambda *_: {"kind": "video"}) -> Job:
    return run_job(job.start(), restore, make_preview, lambda _: None, Cancellation())


def _raise(error: Exception) -> Any:
    def raiser(*_: Any) -> Mapping[str, Any]:
        raise error

    return raiser


def test_a_job_that_works_succeeds_with_summary_and_preview(job: Job) -> None:
    done = _run(job, lambda *_: {"frames": 3})
    assert (done.status, done.summary, done.preview) == (JobStatus.SUCCEEDED, {"frames": 3}, {"kind": "video"})


def test_an_error_for_people_becomes_the_message(job: Job) -> None:
    done = _run(job, _raise(MediaError("The file ends too early; upload it again.")))
    assert (done.status, done.message) == (JobStatus.FAILED, "The file ends too early; upload it again.")


def test_a_bug_is_logged_and_named_by_its_job_only(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        done = _run(job, _raise(ZeroDivisionError("secret detail")))
    assert done.status is JobStatus.FAILED
    assert "aaaaaaaa" in done.message
    assert "secret" not in done.message
    assert "secret detail" in caplog.text


def test_a_cancelled_job_is_cancelled_not_failed(job: Job) -> None:
    assert _run(job, _raise(CancelledError())).status is JobStatus.CANCELLED


def test_an_error_after_a_cancellation_counts_as_cancelled(job: Job) -> None:
    cancellation = Cancellation()

    def restore(*_: Any) -> Mapping[str, Any]:
        cancellation.cancel()
        raise MediaError("The worker was killed.")

    assert run_job(job.start(), restore, lambda *_: {}, lambda _: None, cancellation).status is JobStatus.CANCELLED


def test_a_result_without_preview_is_still_a_result(job: Job) -> None:
    done = _run(job, lambda *_: {"frames": 3}, _raise(MediaError("No preview.")))
    assert (done.status, done.preview) == (JobStatus.SUCCEEDED, {})


def test_the_folder_of_the_result_is_there_before_the_engine_runs(job: Job) -> None:
    def restore(
        source: Path, target: Path, settings: Any, report: Report, cancellation: Cancellation
    ) -> Mapping[str, Any]:
        target.write_text("x")
        return {}

    assert _run(job, restore).target.read_text() == "x"


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.RUNNING, JobStatus.QUEUED])
def test_only_a_failed_or_cancelled_job_can_be_queued_again(job: Job, status: JobStatus) -> None:
    states = {JobStatus.QUEUED: job, JobStatus.RUNNING: job.start(), JobStatus.SUCCEEDED: job.start().succeed({}, {})}
    with pytest.raises(TransitionError, match="cannot become queued"):
        states[status].requeue()


def test_a_queued_again_job_has_forgotten_its_failure(job: Job) -> None:
    again = job.start().advance(Progress(Stage.RESTORE, 2, 4)).fail("It broke.").requeue()
    assert (again.status, again.message, again.progress, again.started_at) == (JobStatus.QUEUED, "", None, None)


def test_progress_that_comes_too_late_changes_nothing(job: Job) -> None:
    done = job.start().succeed({}, {})
    assert done.advance(Progress(Stage.RESTORE, 2, 4)) == done
