"""How much one owner may have, and what is deleted when."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from inference.errors import RestoreError
from seedvr_ui import manifest
from seedvr_ui.jobs import JobStatus
from seedvr_ui.retention import plan_expiry
from seedvr_ui.sessions import Limits, SessionManager
from seedvr_ui.storage import new_id
from seedvr_ui.store import Resting
from tests.ui.conftest import FakeEngine, MakeManager, Submit, Wait

DAY_S = 86400.0
NOW = 100 * DAY_S


def _resting(name: str, days: float, num_bytes: int = 10, *, is_unseen: bool = False) -> Resting:
    return Resting(name, NOW - days * DAY_S, num_bytes, is_unseen)


def _plan(jobs: list[Resting], keep_days: float = 7, too_many_bytes: int = 0) -> list[str]:
    return [job.id for job in plan_expiry(jobs, NOW, keep_days * DAY_S, too_many_bytes)]


# --- the plan ---


def test_what_is_past_its_time_goes() -> None:
    assert _plan([_resting("old", 8), _resting("new", 6)]) == ["old"]


def test_a_result_that_nobody_saw_stays_twice_as_long() -> None:
    jobs = [_resting("seen", 8), _resting("unseen", 8, is_unseen=True), _resting("forgotten", 15, is_unseen=True)]
    assert _plan(jobs) == ["seen", "forgotten"]


def test_for_want_of_space_what_rests_longest_goes_first() -> None:
    jobs = [_resting("new", 1), _resting("older", 3), _resting("old", 2)]
    assert _plan(jobs, too_many_bytes=1) == ["older"]
    assert _plan(jobs, too_many_bytes=11) == ["older", "old"]


def test_results_that_nobody_saw_go_last_for_want_of_space() -> None:
    jobs = [_resting("unseen", 5, is_unseen=True), _resting("seen", 1)]
    assert _plan(jobs, too_many_bytes=10) == ["seen"]
    assert _plan(jobs, too_many_bytes=11) == ["seen", "unseen"]


def test_what_is_past_its_time_counts_towards_the_space() -> None:
    assert _plan([_resting("old", 9, 100), _resting("new", 1, 100)], too_many_bytes=50) == ["old"]


def test_a_job_without_bytes_frees_no_space() -> None:
    assert _plan([_resting("empty", 3, 0), _resting("full", 1)], too_many_bytes=5) == ["full"]


# --- what is really deleted ---


def test_rested_jobs_expire_and_those_at_work_do_not(manager: SessionManager, submit: Submit, session: str) -> None:
    old, waiting, paused = submit("a.mp4"), submit("b.mp4"), submit("c.mp4")
    manager.cancel(session, old.id)
    manager.pause(session, paused.id)
    manager.limits = Limits(keep_s=-1, keep_bytes=0)
    manager.expire()
    assert [job.id for job in manager.jobs(session)] == [waiting.id, paused.id]
    assert [job.folder.exists() for job in (old, waiting, paused)] == [False, True, True]
    assert list((manager.storage.root / "trash").iterdir()) == []


def test_a_running_job_never_expires(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait
) -> None:
    engine.hold.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.RUNNING)
    manager.limits = Limits(keep_s=-1, keep_bytes=0)
    manager.expire()
    assert job.source.exists()


def test_space_is_made_from_seen_results_first(
    manager: SessionManager, submit: Submit, session: str, wait_until: Wait
) -> None:
    jobs = [submit(f"{number}.mp4", "pixels" * 100) for number in range(3)]
    manager.start()
    wait_until(lambda: all(job.status is JobStatus.SUCCEEDED for job in manager.jobs(session)))
    manager.see(session, jobs[2].id)
    manager.limits = Limits(keep_bytes=manager.store.total_bytes() - 1)
    manager.expire()
    assert {job.id for job in manager.jobs(session)} == {jobs[0].id, jobs[1].id}


def test_a_fresh_draft_stays_and_a_forgotten_one_goes(manager: SessionManager, submit: Submit, session: str) -> None:
    draft = submit("a.mp4", draft=True)
    manager.expire()
    assert [job.id for job in manager.jobs(session)] == [draft.id]
    manager.limits = Limits(keep_s=-1)
    manager.expire()
    assert manager.jobs(session) == []


def test_folders_without_a_job_go_but_never_one_with_a_damaged_manifest(manager: SessionManager, session: str) -> None:
    stray, damaged = (manager.storage.job_folder(session, new_id()) for _ in range(2))
    for folder in (stray, damaged):
        folder.mkdir(parents=True)
        (folder / "film.mp4").touch()
    (damaged / manifest.NAME).write_text("{")
    manager.store.reindex()
    assert manifest.has_one_aside(damaged)
    long_ago = time.time() - 30 * DAY_S
    for folder in (stray, damaged):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (long_ago, long_ago))
    manager.expire()
    assert (stray.exists(), damaged.exists()) == (False, True)


def test_the_bytes_of_a_job_include_its_result(
    manager: SessionManager, submit: Submit, session: str, wait_until: Wait
) -> None:
    job = submit("a.mp4", "pixels")
    assert manager.store.usage(session).num_bytes == 6
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)
    assert manager.store.usage(session).num_bytes > 6 + len("restored pixels") + 200


# --- limits ---


def test_a_full_queue_says_how_to_go_on_and_others_may_still_submit(manager: SessionManager, submit: Submit) -> None:
    jobs = [submit(f"{number}.mp4") for number in range(5)]
    with pytest.raises(RestoreError, match=r"at most 5 jobs .* wait until one is done, or cancel one"):
        submit("6.mp4")
    submit("x.mp4", session=new_id())
    manager.cancel(jobs[0].owner, jobs[0].id)
    submit("6.mp4")
    with pytest.raises(RestoreError, match="at most 5 jobs"):
        manager.retry(jobs[0].owner, jobs[0].id)


def test_uploads_that_wait_are_limited_together(make_manager: MakeManager, session: str) -> None:
    manager = make_manager(Limits(max_uploading_bytes=10 * 10**9, max_upload_bytes=10**12))
    uploads = manager.uploads
    first = uploads.begin(session, "a.mp4", 6 * 10**9, "f")
    with pytest.raises(RestoreError, match=r"6\.0 GB wait .* limit for both is 10\.0 GB. Start or discard"):
        uploads.begin(session, "b.mp4", 5 * 10**9, "f")
    uploads.append(session, first.id, 0, b"abc")  # to go on with it is always allowed
    uploads.discard(session, first.id)
    uploads.begin(session, "b.mp4", 5 * 10**9, "f")


def test_what_an_owner_stores_is_limited(
    make_manager: MakeManager, session: str, tmp_path: Path, wait_until: Wait
) -> None:
    manager = make_manager(Limits(max_stored_bytes=1000))
    upload = manager.uploads.begin(session, "a.mp4", 600, "")
    manager.uploads.append(session, upload.id, 0, b"x" * 600)
    (job,) = manager.submit(session, [upload.id], {})
    with pytest.raises(RestoreError, match="remove finished jobs and try again"):
        manager.uploads.begin(session, "b.mp4", 500, "")
    with pytest.raises(RestoreError, match="remove finished jobs and try again"):
        manager.duplicate(session, job.id)
    manager.uploads.begin(new_id(), "b.mp4", 500, "")
    manager.cancel(session, job.id)
    manager.remove(session, job.id)
    manager.uploads.begin(session, "b.mp4", 500, "")


def test_a_result_is_seen_once_somebody_looked(
    manager: SessionManager, submit: Submit, session: str, wait_until: Wait
) -> None:
    job = submit("a.mp4")
    manager.see(session, job.id)  # nothing to see yet
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.SUCCEEDED)
    assert manager.job(session, job.id).is_unseen_result
    manager.see(session, job.id)
    assert manifest.read(job.folder)[0] == replace(manager.job(session, job.id), is_seen=True)
