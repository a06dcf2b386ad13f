"""The store: what is written stays, who is next, and who may work on what. Over SQLite, and Postgres if it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from inference.errors import RestoreError
from inference.progress import Progress, Stage
from seedvr_ui import manifest, rows
from seedvr_ui.jobs import Ending, Job, JobStatus, Outcome, Wish
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.store import LeaseLostError, Store, UnknownJobError
from tests.ui.server import ROOT
from tests.ui.stores import OpenStore, database_url, make_job, open_store, postgres, storage, store

__all__ = ["database_url", "open_store", "postgres", "storage", "store"]  # fixtures

ANN, BOB, CYD = (letter * 32 for letter in "abc")
DONE = Outcome(ending=Ending.DONE, summary={"frames": 3})


def _add(store: Store, storage: Storage, owner: str, place: float, name: str = "a.mp4") -> Job:
    return store.add(make_job(storage, owner, place, name))


def _claim_names(store: Store) -> list[str]:
    names = []
    while (job := store.claim()) is not None:
        names.append(job.source.name)
    return names


def test_a_job_is_the_same_in_another_process(store: Store, open_store: OpenStore, storage: Storage) -> None:
    job = _add(store, storage, ANN, 1.0)
    assert open_store().job(job.id) == job
    assert open_store().jobs(ANN) == [job]
    assert open_store().jobs(BOB) == []


def test_a_change_is_in_the_manifest_and_in_the_index(store: Store, storage: Storage) -> None:
    job = _add(store, storage, ANN, 1.0)
    changed = store.change(job.id, lambda job: job.rank(7))
    assert changed.priority == 7
    assert store.job(job.id) == changed == manifest.read(job.folder)[0]


def test_an_edit_that_raises_changes_nothing(store: Store, storage: Storage) -> None:
    job = _add(store, storage, ANN, 1.0)
    with pytest.raises(RestoreError):
        store.change(job.id, lambda job: job.succeed({}, {}))
    assert store.job(job.id) == job == manifest.read(job.folder)[0]


@pytest.mark.parametrize("owner", [BOB, "0" * 32])
def test_another_owner_cannot_change_a_job(store: Store, storage: Storage, owner: str) -> None:
    job = _add(store, storage, ANN, 1.0)
    with pytest.raises(UnknownJobError):
        store.change(job.id, Job.cancel, owner=owner)
    with pytest.raises(UnknownJobError):
        store.remove(job.id, owner)
    assert store.job(job.id) == job


def test_every_change_makes_the_revision_grow_and_looking_does_not(store: Store, storage: Storage) -> None:
    revisions = [store.revision()]
    job = _add(store, storage, ANN, 1.0)
    for act in (lambda: store.change(job.id, lambda job: job.rank(1)), store.claim, lambda: store.remove(job.id)):
        act()
        revisions.append(store.revision())
    assert revisions == sorted(set(revisions))
    store.counts(), store.jobs(ANN), store.line()
    assert store.revision() == revisions[-1]


# --- who is next ---


def test_owners_take_turns(store: Store, storage: Storage) -> None:
    for number in range(3):
        _add(store, storage, ANN, number, f"ann{number}")
    for number in range(2):
        _add(store, storage, BOB, 10 + number, f"bob{number}")
    assert _claim_names(store) == ["ann0", "bob0", "ann1", "bob1", "ann2"]


def test_a_newcomer_goes_before_those_who_were_served(store: Store, storage: Storage) -> None:
    for number in range(3):
        _add(store, storage, ANN, number, f"ann{number}")
        _add(store, storage, BOB, number + 0.5, f"bob{number}")
    assert [job.source.name for job in (store.claim(), store.claim()) if job] == ["ann0", "bob0"]
    _add(store, storage, CYD, 100, "cyd0")
    assert _claim_names(store) == ["cyd0", "ann1", "bob1", "ann2", "bob2"]


def test_turns_are_remembered_when_the_index_is_built_anew(
    store: Store, open_store: OpenStore, storage: Storage
) -> None:
    for number in range(2):
        _add(store, storage, ANN, number, f"ann{number}")
    job = store.claim()
    assert job is not None
    store.change(job.id, lambda job: job.finish(DONE))
    _add(store, storage, BOB, 10, "bob0")
    assert store.reindex() == 3
    assert _claim_names(store) == ["bob0", "ann1"]


def test_a_higher_priority_goes_first_whoever_owns_it(store: Store, storage: Storage) -> None:
    jobs = [_add(store, storage, owner, place, name) for owner, place, name in [(ANN, 1, "x"), (ANN, 2, "y")]]
    _add(store, storage, BOB, 0, "bob")
    store.change(jobs[1].id, lambda job: job.rank(5))
    assert _claim_names(store) == ["y", "bob", "x"]


def test_the_line_is_the_order_in_which_jobs_are_taken(store: Store, storage: Storage) -> None:
    jobs = [_add(store, storage, [ANN, BOB, CYD][number % 5 % 3], number, f"{number}") for number in range(12)]
    store.change(jobs[7].id, lambda job: job.rank(1))
    names = {job.id: job.source.name for job in jobs}
    line = store.line()
    assert sorted(line.values()) == list(range(12))
    assert [names[job_id] for job_id in sorted(line, key=lambda job_id: line[job_id])] == _claim_names(store)


def test_waiting_jobs_can_be_moved(store: Store, storage: Storage) -> None:
    jobs = [_add(store, storage, ANN, number, f"{number}") for number in range(4)]
    store.move(jobs[3].id, ANN, lambda ids: [ids[3], *ids[:3]])
    assert [job.place for job in sorted(store.jobs(ANN), key=lambda job: job.source.name)] == [1, 2, 3, 0]
    assert store.reindex() == 4  # the manifests say the same
    assert _claim_names(store) == ["3", "0", "1", "2"]


# --- leases ---


def test_a_job_is_taken_once_by_however_many_threads(open_store: OpenStore, storage: Storage) -> None:
    stores = [open_store(), open_store()]
    for number in range(40):
        _add(stores[0], storage, [ANN, BOB][number % 2], number)
    taken: list[str] = []

    def work(store: Store) -> None:
        while (job := store.claim()) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(set(taken)) == 40


_CLAIM_ALL = """
import sys
from pathlib import Path
from seedvr_ui.storage import Storage
from seedvr_ui.store import Store
store = Store(Storage(Path(sys.argv[1])), sys.argv[2])
store.open()
print("ready", flush=True)
sys.stdin.readline()
while (job := store.claim()) is not None:
    print(job.id, job.token, flush=True)
store.close()
"""


def test_two_processes_never_take_the_same_job(store: Store, storage: Storage, database_url: str) -> None:
    for number in range(30):
        _add(store, storage, ANN, number)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIM_ALL, str(storage.root), database_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        outputs = [child.communicate("go\n", timeout=60)[0].split("\n")[:-1] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    taken = outputs[0] + outputs[1]
    assert len(taken) == len({line.split()[0] for line in taken}) == 30
    assert {line.split()[1] for line in taken} == {"1"}


def test_the_lease_of_a_living_process_is_respected(store: Store, open_store: OpenStore, storage: Storage) -> None:
    _add(store, storage, ANN, 1.0)
    other = open_store()
    assert store.claim() is not None
    assert other.claim() is None
    assert other.recover() == []


def test_a_lease_that_ran_out_is_taken_over_and_the_old_holder_turned_away(
    open_store: OpenStore, storage: Storage
) -> None:
    slow, other = open_store(lease_s=0.05), open_store()
    _add(slow, storage, ANN, 1.0)
    first = slow.claim()
    assert first is not None
    time.sleep(0.1)
    assert [job.status for job in other.recover()] == [JobStatus.QUEUED]
    second = other.claim()
    assert second is not None
    assert (second.id, second.token, second.place) == (first.id, first.token + 1, first.place)
    with pytest.raises(LeaseLostError):
        slow.renew(first, None)
    with pytest.raises(LeaseLostError):
        slow.change(first.id, lambda job: job.finish(DONE), token=first.token)
    assert other.renew(second, None) is Wish.NONE
    assert other.change(second.id, lambda job: job.finish(DONE), token=second.token).status is JobStatus.SUCCEEDED


def test_a_lease_that_is_renewed_does_not_run_out(open_store: OpenStore, storage: Storage) -> None:
    store, other = open_store(lease_s=0.6), open_store()
    _add(store, storage, ANN, 1.0)
    job = store.claim()
    assert job is not None
    for _ in range(4):
        time.sleep(0.2)
        store.renew(job, None)
    assert other.recover() == []


def test_the_holder_learns_what_was_wished_for_elsewhere(store: Store, open_store: OpenStore, storage: Storage) -> None:
    job = _add(store, storage, ANN, 1.0)
    running = store.claim()
    assert running is not None
    open_store().change(job.id, lambda job: job.want(Wish.PAUSE))
    assert store.renew(running, None) is Wish.PAUSE


def test_progress_is_seen_by_other_processes_and_survives_other_changes(
    store: Store, open_store: OpenStore, storage: Storage
) -> None:
    job = _add(store, storage, ANN, 1.0)
    running = store.claim()
    assert running is not None
    store.renew(running, Progress(Stage.RESTORE, 5, 10))
    other = open_store()
    assert other.job(job.id).frames_done == 5
    other.change(job.id, lambda job: job.rank(1))
    assert other.job(job.id).frames_done == 5


def test_a_wish_that_nobody_could_grant_is_granted_afterwards(open_store: OpenStore, storage: Storage) -> None:
    store = open_store(lease_s=0.05)
    job = _add(store, storage, ANN, 1.0)
    store.claim()
    store.change(job.id, lambda job: job.want(Wish.CANCEL))
    time.sleep(0.1)
    assert [job.status for job in open_store().recover()] == [JobStatus.CANCELLED]


# --- manifests win ---


def test_nothing_is_read_again_when_nothing_has_changed(
    store: Store, open_store: OpenStore, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        _add(store, storage, ANN, number)
    read: list[Path] = []
    original = manifest.read
    monkeypatch.setattr(manifest, "read", lambda folder: (read.append(folder), original(folder))[1])
    open_store()
    assert read == []


def test_a_manifest_that_is_ahead_of_the_index_wins(store: Store, open_store: OpenStore, storage: Storage) -> None:
    job = _add(store, storage, ANN, 1.0)
    manifest.write(job.start())  # what a process leaves that is killed between the manifest and the index
    assert open_store().job(job.id).status is JobStatus.RUNNING


def test_a_job_folder_that_was_brought_here_appears_and_one_taken_away_disappears(
    store: Store, open_store: OpenStore, storage: Storage
) -> None:
    gone = _add(store, storage, ANN, 1.0)
    brought = make_job(storage, BOB)
    manifest.write(brought)
    storage.throw_away(gone.folder)
    other = open_store()
    assert (other.jobs(ANN), other.jobs(BOB)) == ([], [brought])


def test_a_change_that_the_index_did_not_take_is_mended(
    store: Store, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _add(store, storage, ANN, 1.0)

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("statement", {}, Exception("the connection was lost"))

    with monkeypatch.context() as patch:
        patch.setattr(rows, "upsert", fail)
        with pytest.raises(RestoreError, match="does not answer"):
            store.change(job.id, lambda job: job.rank(3))
    assert store.job(job.id).priority == 0
    store.recover()
    assert store.job(job.id).priority == 3


def test_an_unreadable_manifest_takes_only_its_own_job_with_it(
    store: Store, open_store: OpenStore, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = _add(store, storage, ANN, 1.0, "bad"), _add(store, storage, ANN, 2.0, "good")
    (bad.folder / manifest.NAME).write_text('{"version": 2, "id"')
    other = open_store()
    assert _claim_names(other) == ["good"]
    assert manifest.has_one_aside(bad.folder)
    assert bad.source.exists()
    assert "put a good copy back" in caplog.text
    assert good.id in {job.id for job in other.jobs(ANN)}


def test_a_manifest_that_breaks_while_the_store_is_open_does_not_stop_the_queue(store: Store, storage: Storage) -> None:
    bad = _add(store, storage, ANN, 1.0, "bad")
    _add(store, storage, ANN, 2.0, "good")
    (bad.folder / manifest.NAME).write_bytes(b"\x00" * 100)
    assert _claim_names(store) == ["good"]
    with pytest.raises(UnknownJobError):
        store.job(bad.id)


def test_a_job_in_a_foreign_folder_is_left_out(store: Store, open_store: OpenStore, storage: Storage) -> None:
    job = _add(store, storage, ANN, 1.0)
    copy = storage.job_folder(BOB, new_id())
    copy.mkdir(parents=True)
    (copy / manifest.NAME).write_text((job.folder / manifest.NAME).read_text())
    other = open_store()
    assert (other.jobs(ANN), other.jobs(BOB)) == ([job], [])


def test_a_submission_that_was_cut_off_before_the_file_came_is_cleared_later(
    store: Store, open_store: OpenStore, storage: Storage
) -> None:
    job = make_job(storage, ANN)
    job.source.unlink()
    manifest.write(job)
    assert open_store().jobs(ANN) == []
    assert job.folder.exists()  # it may be in the making by another process
    document = json.loads((job.folder / manifest.NAME).read_text())
    (job.folder / manifest.NAME).write_text(json.dumps({**document, "created_at": time.time() - 3600}))
    assert open_store().jobs(ANN) == []
    assert not job.folder.exists()


# --- adding up ---


def test_counts_and_usage_add_up(store: Store, storage: Storage) -> None:
    for number in range(3):
        _add(store, storage, ANN, number)
    job = store.claim()
    assert job is not None
    store.change(job.id, lambda job: job.finish(DONE).weigh(1000))
    assert {status: number for status, number in store.counts().items() if number} == {"queued": 2, "succeeded": 1}
    usage = store.usage(ANN)
    assert (usage.num_unfinished, usage.num_bytes, store.total_bytes()) == (2, 1012, 1012)
    assert (store.usage(BOB).num_unfinished, store.usage(BOB).num_bytes) == (0, 0)


def test_what_rests_is_told_with_its_age_and_whether_it_was_seen(store: Store, storage: Storage) -> None:
    for number in range(2):
        _add(store, storage, ANN, number)
    job = store.claim()
    assert job is not None
    finished = store.change(job.id, lambda job: job.finish(DONE))
    (resting,) = store.resting()
    assert (resting.id, resting.is_unseen, resting.num_bytes) == (job.id, True, 6)
    assert resting.since == finished.finished_at
    store.change(job.id, Job.see)
    assert not store.resting()[0].is_unseen
