"""The states of a job and how running it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.errors import CancelledError, DiskFullError, FolderInUseError, MediaError, WorkerDiedError
from inference.progress import Cancellation, Progress, Report, Stage
from seedvr_ui.attempt import run_job
from seedvr_ui.jobs import MAX_HISTORY, Ending, Job, JobStatus, Outcome, TransitionError, Wish


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        id="a" * 32, owner="b" * 32, folder=tmp_path, source=tmp_path / "in.mp4", target=tmp_path / "r" / "out.mp4",
        settings={},
    ).queue(1.0)  # fmt: skip


def _run(job: Job, restore: Any, make_preview: Any = lambda *_: {"kind": "video"}) -> Job:
    running = job.start()
    return running.finish(run_job(running, restore, make_preview, lambda _: None, Cancellation()))


def _raise(error: Exception) -> Any:
    def raiser(*_: Any, **__: Any) -> Mapping[str, Any]:
        raise error

    return raiser


def test_a_job_that_works_succeeds_with_summary_and_preview(job: Job) -> None:
    done = _run(job, lambda *_, **__: {"frames": 3})
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
    running = job.start().want(Wish.CANCEL)
    outcome = run_job(running, _raise(CancelledError()), lambda *_: {}, lambda _: None, Cancellation())
    assert running.finish(outcome).status is JobStatus.CANCELLED


def test_an_error_after_a_cancellation_counts_as_stopped(job: Job) -> None:
    cancellation = Cancellation()

    def restore(*_: Any, **__: Any) -> Mapping[str, Any]:
        cancellation.cancel()
        raise MediaError("The worker was killed.")

    assert run_job(job.start(), restore, lambda *_: {}, lambda _: None, cancellation).ending is Ending.STOPPED


def test_a_result_without_preview_is_still_a_result(job: Job) -> None:
    done = _run(job, lambda *_, **__: {"frames": 3}, _raise(MediaError("No preview.")))
    assert (done.status, done.preview) == (JobStatus.SUCCEEDED, {})


def test_the_folder_of_the_result_is_there_before_the_engine_runs(job: Job) -> None:
    def restore(
        source: Path, target: Path, settings: Any, report: Report, cancellation: Cancellation, *, work: Path
    ) -> Mapping[str, Any]:
        target.write_text("x")
        return {}

    assert _run(job, restore).target.read_text() == "x"


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED])
def test_only_a_failed_or_cancelled_job_can_be_tried_again(job: Job, status: JobStatus) -> None:
    running = job.start()
    states = {
        JobStatus.QUEUED: job, JobStatus.RUNNING: running, JobStatus.SUCCEEDED: running.succeed({}, {}),
        JobStatus.PAUSED: job.pause(),
    }  # fmt: skip
    with pytest.raises(TransitionError, match="cannot become queued"):
        states[status].retry(2.0)


def test_a_queued_again_job_has_forgotten_its_failure(job: Job) -> None:
    again = job.start().advance(Progress(Stage.RESTORE, 2, 4)).fail("It broke.").retry(2.0)
    assert (again.status, again.message, again.progress, again.started_at) == (JobStatus.QUEUED, "", None, None)


def test_progress_that_comes_too_late_changes_nothing(job: Job) -> None:
    done = job.start().succeed({}, {})
    assert done.advance(Progress(Stage.RESTORE, 2, 4)) == done


def _at(job: Job, frames: int) -> Job:
    return job.start().advance(Progress(Stage.RESTORE, frames, 100))


_DIED = Outcome(ending=Ending.DIED, message="The worker process was ended by signal SIGKILL during the job.")
_STOPPED = Outcome(ending=Ending.STOPPED)


def test_every_transition_is_in_the_history_with_time_and_reason(job: Job) -> None:
    done = job.start().pause().resume().start().fail("It broke.")
    assert [(change.status.value, change.reason) for change in done.history] == [
        ("queued", "submitted"), ("running", "started"), ("paused", "paused"), ("queued", "resumed"),
        ("running", "started"), ("failed", "It broke."),
    ]  # fmt: skip
    assert [change.at for change in done.history] == sorted(change.at for change in done.history)


def test_the_history_does_not_grow_for_ever(job: Job) -> None:
    for _ in range(MAX_HISTORY):
        job = job.pause().resume()
    assert len(job.history) == MAX_HISTORY


@pytest.mark.parametrize("finish", [lambda job: job.pause(), lambda job: job.interrupt("power cut")])
def test_a_job_that_goes_on_keeps_its_place_and_its_finished_frames(job: Job, finish: Any) -> None:
    rested = finish(_at(job, 40))
    again = rested.resume() if rested.can_resume else rested.go_on()
    assert (again.status, again.place, again.frames_done) == (JobStatus.QUEUED, job.place, 40)
    assert again.start().advance(Progress(Stage.LOAD)).frames_done == 40


def test_a_job_whose_worker_died_is_tried_again_while_it_gets_ahead(job: Job) -> None:
    for frames in (10, 20, 30):
        job = _at(job, frames).finish(_DIED)
        assert job.status is JobStatus.QUEUED
    assert [change.status for change in job.history[-2:]] == [JobStatus.INTERRUPTED, JobStatus.QUEUED]


def test_a_job_whose_worker_died_twice_at_the_same_frame_fails_with_the_reason(job: Job) -> None:
    job = _at(_at(job, 10).finish(_DIED), 10).finish(_DIED)
    assert job.status is JobStatus.FAILED
    assert "SIGKILL" in job.message
    assert "frame 10" in job.message


def test_a_job_that_always_begins_anew_fails_in_the_end(job: Job) -> None:
    for frames in (11, 12, 13):
        running = _at(job, 0).advance(Progress(Stage.RESTORE, frames, 100))
        job = running.finish(_DIED)
    assert job.status is JobStatus.FAILED


def test_deaths_before_a_resume_do_not_count(job: Job) -> None:
    job = _at(job, 10).finish(_DIED).pause().resume()
    assert _at(job, 10).finish(_DIED).status is JobStatus.QUEUED


@pytest.mark.parametrize(
    "error",
    [
        DiskFullError("Full."),
        OSError(28, "No space left on device"),
        MediaError("'a.mp4' could not be written (No space left on device); check free disk space."),
    ],
)
def test_a_full_disk_pauses_the_job_with_a_sentence(job: Job, error: Exception) -> None:
    paused = _run(job, _raise(error))
    assert (paused.status, paused.can_resume) == (JobStatus.PAUSED, True)
    assert paused.message.startswith("The disk is full")


def test_another_error_of_the_system_is_a_failure(job: Job) -> None:
    assert _run(job, _raise(PermissionError("x"))).status is JobStatus.FAILED


def test_a_dead_worker_is_told_from_a_failure(job: Job) -> None:
    assert _run(job, _raise(WorkerDiedError("Ended."))).status is JobStatus.QUEUED


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        (Wish.NONE, JobStatus.INTERRUPTED),
        (Wish.PAUSE, JobStatus.PAUSED),
        (Wish.CANCEL, JobStatus.CANCELLED),
        (Wish.CANCEL_KEEP, JobStatus.CANCELLED),
    ],
)
def test_a_job_that_stops_does_so_for_the_reason_that_was_given(job: Job, wish: Wish, status: JobStatus) -> None:
    stopped = job.start().want(wish).finish(_STOPPED)
    assert (stopped.status, stopped.wish, stopped.keeps_part) == (status, Wish.NONE, wish is Wish.CANCEL_KEEP)


def test_a_wish_outlives_the_process_that_should_have_granted_it(job: Job) -> None:
    assert job.start().want(Wish.CANCEL).interrupt("power cut").go_on().status is JobStatus.CANCELLED


def test_a_cancellation_is_not_turned_into_a_pause(job: Job) -> None:
    assert job.start().want(Wish.CANCEL).want(Wish.PAUSE).wish is Wish.CANCEL


@pytest.mark.parametrize("status", list(JobStatus))
def test_no_state_but_a_draft_can_be_submitted(job: Job, status: JobStatus) -> None:
    running = job.start()
    states = {
        JobStatus.QUEUED: job, JobStatus.RUNNING: running, JobStatus.SUCCEEDED: running.succeed({}, {}),
        JobStatus.PAUSED: job.pause(), JobStatus.FAILED: running.fail("x"), JobStatus.CANCELLED: job.cancel(),
        JobStatus.INTERRUPTED: running.interrupt("x"),
    }  # fmt: skip
    if status in states:
        with pytest.raises(TransitionError):
            states[status].queue(1.0)


def _end_the_app(job: Job, *num_frames: int) -> Job:
    """The job after the app has ended without a word so many times, with so many frames in finished units."""
    for number in num_frames:
        job = job.start().abandon(number).go_on()
    return job


def test_a_job_that_ends_the_app_three_times_at_the_same_frame_waits_with_a_sentence(job: Job) -> None:
    assert _end_the_app(job, 48, 48).status is JobStatus.QUEUED
    waiting = _end_the_app(job, 0, 48, 48, 48)
    assert waiting.status is JobStatus.PAUSED
    assert waiting.message.startswith("The server ended 3 times at frame 48 of this file")
    assert waiting.history[-1].is_news


def test_a_job_that_gets_ahead_goes_on_however_often_the_app_ends(job: Job) -> None:
    assert _end_the_app(job, *(number // 2 for number in range(40))).status is JobStatus.QUEUED


def test_orderly_ends_of_the_app_do_not_count(job: Job) -> None:
    stopped = Outcome(ending=Ending.STOPPED)
    for _ in range(10):
        job = job.start().finish(stopped).go_on()
    assert (job.status, job.crashes) == (JobStatus.QUEUED, ())


@pytest.mark.parametrize("again", ["resume", "retry"])
def test_after_somebody_has_looked_a_job_has_its_three_chances_again(job: Job, again: str) -> None:
    waiting = _end_the_app(job, 5, 5, 5)
    job = waiting.resume() if again == "resume" else waiting.cancel().retry(2.0)
    assert _end_the_app(job, 5, 5).status is JobStatus.QUEUED


def test_a_cancellation_wins_over_waiting(job: Job) -> None:
    assert _end_the_app(job, 5, 5).start().want(Wish.CANCEL).abandon(5).go_on().status is JobStatus.CANCELLED


def test_a_job_whose_work_folder_is_in_use_waits_with_a_sentence(job: Job) -> None:
    waiting = _run(job, _raise(FolderInUseError("Another process still works on this job.")))
    assert (waiting.status, waiting.message) == (JobStatus.PAUSED, "Another process still works on this job.")
    assert waiting.can_resume
