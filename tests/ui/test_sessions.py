"""The queue: order, ownership, stopping, going on."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from inference.errors import RestoreError, WorkerDiedError
from inference.progress import Progress, Stage
from seedvr_ui import manifest, runner, sessions
from seedvr_ui.jobs import Death, JobStatus
from seedvr_ui.sessions import SessionManager, result_file
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.store import UnknownJobError
from tests.ui.conftest import FakeEngine, MakeManager, Submit, Wait


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


def test_an_interrupted_job_goes_on_at_the_next_start(
    manager: SessionManager, make_manager: MakeManager, engine: FakeEngine, submit: Submit, session: str,
    wait_until: Wait,
) -> None:  # fmt: skip
    engine.hold.clear()
    first, second = submit("a.mp4"), submit("b.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, first.id) is JobStatus.RUNNING)
    manager.close()
    engine.hold.set()
    again = make_manager()
    assert [job.id for job in again.jobs(session)] == [first.id, second.id]
    again.start()
    wait_until(lambda: all(job.status is JobStatus.SUCCEEDED for job in again.jobs(session)))
    assert engine.restored == ["a.mp4", "a.mp4", "b.mp4"]


def test_a_job_that_does_not_stop_is_interrupted_as_it_is(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sessions, "_CLOSE_LIMIT_S", 0.3)
    engine.hold.clear()
    engine.is_stubborn = True
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.RUNNING)
    manager.close()
    assert manifest.read(job.folder)[0].status is JobStatus.INTERRUPTED
    engine.hold.set()
    wait_until(job.target.exists)
    assert manifest.read(job.folder)[0].status is JobStatus.INTERRUPTED


def test_two_servers_on_the_same_data_share_the_work(
    manager: SessionManager, make_manager: MakeManager, engine: FakeEngine, submit: Submit, session: str,
    wait_until: Wait,
) -> None:  # fmt: skip
    names = [submit(f"{number}.mp4").source.name for number in range(5)]
    other = make_manager()
    manager.start()
    other.start()
    wait_until(lambda: all(job.status is JobStatus.SUCCEEDED for job in other.jobs(session)))
    assert sorted(engine.restored) == names


def test_a_waiting_job_is_paused_and_resumed_at_its_place(
    manager: SessionManager, submit: Submit, session: str
) -> None:
    first, second = submit("a.mp4"), submit("b.mp4")
    manager.pause(session, first.id)
    assert [job.id for job in manager.jobs(session)] == [second.id, first.id]
    manager.resume(session, first.id)
    assert [job.id for job in manager.jobs(session)] == [first.id, second.id]


def test_a_running_job_is_paused_keeps_its_work_and_lets_others_go_on(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    first, second = submit("a.mp4"), submit("b.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, first.id) is JobStatus.RUNNING)
    manager.pause(session, first.id)
    wait_until(lambda: _status(manager, session, first.id) is JobStatus.PAUSED)
    assert (first.work / "unit").exists()
    engine.hold.set()
    wait_until(lambda: _status(manager, session, second.id) is JobStatus.SUCCEEDED)
    manager.resume(session, first.id)
    wait_until(lambda: _status(manager, session, first.id) is JobStatus.SUCCEEDED)
    wait_until(lambda: not first.work.exists())


@pytest.mark.parametrize("keep_part", [True, False])
def test_a_cancelled_job_keeps_its_part_if_that_was_asked_for(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait, keep_part: bool
) -> None:
    engine.hold.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).progress is not None and (job.work / "unit").exists())
    manager.cancel(session, job.id, keep_part=keep_part)
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.CANCELLED)
    wait_until(lambda: (job.work / "unit").exists() is keep_part)


def test_a_job_whose_worker_died_is_tried_again_by_itself(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.errors = [WorkerDiedError("The worker process was ended by signal SIGSEGV during the job.")]
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.SUCCEEDED)
    assert manager.job(session, job.id).attempts == 2


def test_a_job_that_kills_its_worker_twice_at_the_same_frame_fails_and_the_queue_goes_on(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.errors = [WorkerDiedError("The worker process was ended by signal SIGSEGV during the job.")] * 2
    first, second = submit("a.mp4"), submit("b.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, second.id) is JobStatus.SUCCEEDED)
    assert _status(manager, session, first.id) is JobStatus.FAILED
    assert "SIGSEGV" in manager.job(session, first.id).message


def test_a_death_is_noted_with_the_frames_at_the_beginning_and_at_the_end_of_the_attempt(
    make_manager: MakeManager, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, session: str, wait_until: Wait
) -> None:
    def restore(source: Path, target: Path, *values: Any, work: Path) -> dict[str, Any]:
        report = values[1]
        for frames in (2, 5, 7):
            report(Progress(Stage.RESTORE, frames, 8))
        raise WorkerDiedError("Ended.")

    monkeypatch.setattr(engine, "restore", restore)
    manager = make_manager()
    upload = manager.uploads.begin(session, "a.mp4", 1, "")
    manager.uploads.append(session, upload.id, 0, b"a")
    (job,) = manager.submit(session, [upload.id], {})
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.FAILED)
    assert manager.job(session, job.id).deaths == (Death(2, 7), Death(2, 7))


def test_a_full_disk_pauses_the_job_and_it_can_go_on(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.errors = [OSError(errno.ENOSPC, "No space left on device")]
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.PAUSED)
    assert "disk is full" in manager.job(session, job.id).message
    manager.retry(session, job.id)
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.SUCCEEDED)


def test_no_job_is_started_while_the_disk_is_full(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    looks: list[bool] = []
    monkeypatch.setattr(runner, "POLL_S", 0.01)
    monkeypatch.setattr(Storage, "has_space", lambda self: bool(looks.append(True) or len(looks) > 2))
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.SUCCEEDED)
    assert len(looks) > 2


def test_waiting_jobs_can_be_reordered_by_their_owner_only(
    manager: SessionManager, submit: Submit, session: str
) -> None:
    a, b, c = (submit(f"{name}.mp4") for name in "abc")
    other = submit("x.mp4", session=new_id())

    def order() -> str:
        return "".join(job.source.stem for job in manager.jobs(session))

    manager.move(session, c.id, up=True)
    assert order() == "acb"
    manager.move(session, a.id, down=True)
    assert order() == "cab"
    manager.move(session, b.id, before=c.id)
    assert order() == "bca"
    manager.move(session, b.id, up=True)
    manager.move(session, a.id, down=True)
    assert order() == "bca"
    for act in (lambda: manager.move(session, other.id, up=True), lambda: manager.move(session, a.id, before=other.id)):
        with pytest.raises(RestoreError, match="Only a waiting job"):
            act()


def test_an_admin_can_put_a_job_before_all_others(manager: SessionManager, submit: Submit) -> None:
    submit("a.mp4", session=new_id())
    urgent = submit("b.mp4", session=new_id())
    manager.set_priority(urgent.id, 10)
    assert manager.num_ahead(urgent) == 0


def test_a_draft_waits_until_it_is_queued_with_its_last_settings(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    draft = submit("a.mp4", draft=True)
    manager.start()
    other = submit("b.mp4")
    wait_until(lambda: _status(manager, session, other.id) is JobStatus.SUCCEEDED)
    assert _status(manager, session, draft.id) is JobStatus.DRAFT
    manager.enqueue(session, draft.id, {"restore": {"factor": 4.0}})
    wait_until(lambda: _status(manager, session, draft.id) is JobStatus.SUCCEEDED)
    assert engine.settings[-1] == {"restore": {"factor": 4.0}}


def test_a_duplicate_is_a_job_of_its_own(
    manager: SessionManager, submit: Submit, session: str, wait_until: Wait
) -> None:
    job = submit("a.mp4", "pixels")
    copy = manager.duplicate(session, job.id, {"restore": {"factor": 3.0}})
    manager.cancel(session, job.id)
    manager.remove(session, job.id)
    manager.start()
    wait_until(lambda: _status(manager, session, copy.id) is JobStatus.SUCCEEDED)
    assert manager.job(session, copy.id).settings == {"restore": {"factor": 3.0}}
    assert copy.target.read_text() == "restored pixels"


def test_the_revision_grows_with_every_news_and_stays_without(
    manager: SessionManager, make_manager: MakeManager, engine: FakeEngine, submit: Submit, session: str,
    wait_until: Wait,
) -> None:  # fmt: skip
    engine.hold.clear()
    revisions = [manager.revision]
    job = submit("a.mp4")
    revisions.append(manager.revision)
    assert manager.revision == revisions[-1]
    manager.start()
    wait_until(lambda: manager.job(session, job.id).progress is not None)
    revisions.append(manager.revision)
    engine.hold.set()
    wait_until(lambda: _status(manager, session, job.id) is JobStatus.SUCCEEDED)
    revisions.append(manager.revision)
    manager.close()
    revisions.append(make_manager().revision)
    assert revisions == sorted(set(revisions))


def test_a_list_that_is_asked_for_again_is_not_read_again(
    manager: SessionManager, submit: Submit, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit("a.mp4")
    before = manager.jobs(session)
    monkeypatch.setattr(manager.store, "jobs", None)
    assert manager.jobs(session) == before


def test_a_file_that_could_not_be_taken_leaves_no_job(
    manager: SessionManager, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = manager.uploads.begin(session, "a.mp4", 3, "")
    manager.uploads.append(session, upload.id, 0, b"abc")

    def fail(*_: object) -> None:
        raise RestoreError("It is gone.")

    with monkeypatch.context() as patch:
        patch.setattr(manager.uploads, "take", fail)
        with pytest.raises(RestoreError, match="It is gone"):
            manager.submit(session, [upload.id], {})
    assert manager.jobs(session) == []
    assert list(manager.storage.job_folders()) == []
    assert len(manager.submit(session, [upload.id], {})) == 1
