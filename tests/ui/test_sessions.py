"""The queue: order, ownership, cancelling, expiry."""

from __future__ import annotations

import pytest

from inference.errors import RestoreError
from seedvr_ui import manifest
from seedvr_ui.jobs import JobStatus
from seedvr_ui.sessions import Limits, SessionManager, result_file
from seedvr_ui.storage import new_id
from seedvr_ui.store import UnknownJobError
from tests.ui.conftest import FakeEngine, Submit, Wait


def _status(manager: SessionManager, session: str, job_id: str) -> JobStatus:
    return manager.job(session, job_id).status


def test_jobs_run_one_after_another_in_the_order_of_submission(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    names = ["c.mp4", "a.mp4", "b.mp4"]
    jobs = [submit(name) for name in names]
    manager.start()
    wait_until(lambda: _status(manager, session, jobs[0].id) is JobStatus.RUNNING)
    assert [job.status for job in manager.jobs(session)] == [JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.QUEUED]
    engine.hold.set()
    wait_until(lambda: all(job.status is JobStatus.SUCCEEDED for job in manager.jobs(session)))
    assert engine.restored == names


def test_a_result_is_the_file_that_the_engine_wrote(
    manager: SessionManager, submit: Submit, session: str, wait_until: Wait
) -> None:
    job = submit("holiday.mov", "pixels")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.SUCCEEDED)
    path = result_file(manager.job(session, job.id))
    assert (path.name, path.read_text()) == ("holiday_restored.mp4", "restored pixels")


def test_progress_is_in_the_snapshot(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).progress is not None)
    progress = manager.job(session, job.id).progress
    assert progress is not None
    assert (progress.frames_done, progress.frames_total, progress.frames_per_second, progress.eta_s) == (3, 8, 1.5, 4.0)


def test_a_failed_job_does_not_stop_the_next(
    manager: SessionManager, submit: Submit, session: str, wait_until: Wait
) -> None:
    first, second = submit("a.mp4", "fail:It is broken; choose another."), submit("b.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, second.id) is JobStatus.SUCCEEDED)
    assert manager.job(session, first.id).message == "It is broken; choose another."


def test_two_sessions_do_not_see_each_other(manager: SessionManager, submit: Submit, session: str) -> None:
    mine, other = submit("a.mp4"), new_id()
    assert manager.jobs(other) == []
    for act in (manager.job, manager.cancel, manager.retry, manager.remove):
        with pytest.raises(UnknownJobError):
            act(other, mine.id)


def test_the_number_ahead_counts_all_sessions(manager: SessionManager, submit: Submit) -> None:
    submit("a.mp4", session=new_id())
    submit("b.mp4", session=new_id())
    assert manager.num_ahead(submit("c.mp4")) == 2


def test_a_waiting_job_is_cancelled_at_once(manager: SessionManager, submit: Submit, session: str) -> None:
    job = submit("a.mp4")
    manager.cancel(session, job.id)
    assert _status(manager, session, job.id) is JobStatus.CANCELLED


def test_a_running_job_stops_when_cancelled_and_can_be_tried_again(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.RUNNING)
    manager.cancel(session, job.id)
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.CANCELLED)
    engine.hold.set()
    manager.retry(session, job.id)
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.SUCCEEDED)


def test_a_finished_job_is_removed_with_its_files(manager: SessionManager, submit: Submit, session: str) -> None:
    job = submit("a.mp4")
    manager.cancel(session, job.id)
    manager.remove(session, job.id)
    assert manager.jobs(session) == []
    assert not job.folder.exists()


def test_a_job_at_work_cannot_be_removed(manager: SessionManager, submit: Submit, session: str) -> None:
    with pytest.raises(RestoreError, match="cancel it before"):
        manager.remove(session, submit("a.mp4").id)


def test_a_full_queue_refuses_more(manager: SessionManager, submit: Submit) -> None:
    for index in range(5):
        submit(f"{index}.mp4")
    with pytest.raises(RestoreError, match="at most 5 jobs"):
        submit("6.mp4")


def test_closing_interrupts_the_running_job(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.RUNNING)
    manager.close()
    stopped, _ = manifest.read(job.folder)
    assert (stopped.status, stopped.frames_done) == (JobStatus.INTERRUPTED, 3)


def test_rested_results_expire_and_waiting_jobs_do_not(manager: SessionManager, submit: Submit, session: str) -> None:
    old, waiting = submit("a.mp4"), submit("b.mp4")
    manager.cancel(session, old.id)
    manager.limits = Limits(keep_s=-1)
    manager.expire()
    assert [job.id for job in manager.jobs(session)] == [waiting.id]
    assert (old.folder.exists(), waiting.folder.exists()) == (False, True)
