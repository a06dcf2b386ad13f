"""Jobs that travel from one data folder to another: whole, checked, and with nothing that is secret."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.errors import DiskFullError, RestoreError
from inference.units import finished_units
from seedvr_ui import archive_file, manifest, portable
from seedvr_ui.archive_file import DIGESTS, HEADER, ArchiveError
from seedvr_ui.jobs import Job, JobStatus, StateError
from seedvr_ui.sessions import Limits, Services, SessionManager, result_file
from seedvr_ui.storage import Storage, new_id
from seedvr_ui.store import UnknownJobError
from tests.ui.conftest import FakeEngine, Submit, Wait
from tests.ui.server import ROOT

Elsewhere = Callable[..., SessionManager]
NAME = "Ünï 映画 " + "x" * 90 + ".mp4"


@pytest.fixture
def elsewhere(tmp_path: Path, engine: FakeEngine) -> Any:
    """elsewhere(limits) is a manager of another machine, which has not been started."""
    managers: list[SessionManager] = []

    def make(limits: Limits | None = None) -> SessionManager:
        services = Services(check=engine.check, restore=engine.restore, make_preview=engine.make_preview)
        managers.append(SessionManager(Storage(tmp_path / "elsewhere"), services, limits))
        return managers[-1]

    yield make
    engine.hold.set()
    for manager in managers:
        manager.close()


def add_units(job: Job, *num_frames: int) -> None:
    """Finished units in the work folder of `job`, as the engine writes them down."""
    job.work.mkdir(exist_ok=True)
    (job.work / "plan.json").write_text(json.dumps({"format": 1, "identity": {}, "choices": {}}))
    first = 0
    for number, count in enumerate(num_frames):
        segment = job.work / f"{number:06d}.nut"
        segment.write_bytes(os.urandom(1000 + number))
        unit = {
            "number": number, "shot": 0, "first_frame": first, "num_frames": count, "path": segment.name,
            "num_bytes": segment.stat().st_size, "sha256": hashlib.sha256(segment.read_bytes()).hexdigest(),
        }  # fmt: skip
        bookmark = {
            "ends_shot": True, "num_frames": 1, "fingerprint": "", "recent": [], "state_bytes": None,
            "state_sha256": None,
        }  # fmt: skip
        (job.work / f"{number:06d}.json").write_text(json.dumps({"unit": unit, "bookmark": bookmark}))
        first += count


@pytest.fixture
def paused(manager: SessionManager, submit: Submit, session: str) -> Job:
    """A paused job with two finished units, and a file that was being written when it stopped."""
    job = submit(NAME, "pixels")
    add_units(job, 24, 12)
    (job.work / "000002.nut.part").write_bytes(b"half")
    manager.pause(session, job.id)
    return manager.job(session, job.id)


@pytest.fixture
def archive(manager: SessionManager, session: str, paused: Job, tmp_path: Path) -> Path:
    return portable.export_job(manager, session, paused.id, tmp_path / "job.seedvr.tar")


def is_untouched(manager: SessionManager) -> bool:
    """Whether nothing of a refused import is left."""
    left = list((manager.storage.root / "moving").glob("*"))
    return left == [] and list(manager.storage.job_folders()) == [] and manager.store.jobs("c" * 32) == []


def contents(job: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.work.iterdir() if path.suffix != ".part"}


# --- out and in ---


def test_a_paused_job_comes_to_another_machine_with_its_finished_units(
    elsewhere: Elsewhere, archive: Path, paused: Job
) -> None:
    there, owner = elsewhere(), new_id()
    job = portable.import_job(there, owner, archive)
    assert there.job(owner, job.id) == job
    assert (job.id, job.owner, job.status, job.source.name) == (paused.id, owner, JobStatus.PAUSED, NAME)
    assert job.source.read_text() == "pixels"
    assert contents(job) == contents(paused)
    assert (job.frames_done, len(finished_units(job.work))) == (36, 2)
    assert job.settings["restore"]["factor"] == 2.0
    assert [change.reason for change in job.history][-2:] == ["paused", "came from another place"]
    assert not list((there.storage.root / "moving").iterdir())
    assert manifest.read(job.folder)[0] == job


def test_with_start_an_imported_job_waits_in_the_queue_and_runs(
    elsewhere: Elsewhere, archive: Path, wait_until: Wait
) -> None:
    there, owner = elsewhere(), new_id()
    job = portable.import_job(there, owner, archive, start=True)
    assert job.status is JobStatus.QUEUED
    there.start()
    wait_until(lambda: there.job(owner, job.id).status is JobStatus.SUCCEEDED)
    assert result_file(there.job(owner, job.id)).read_text() == "restored pixels"


def test_a_job_that_has_succeeded_travels_with_its_result(
    manager: SessionManager, elsewhere: Elsewhere, submit: Submit, session: str, wait_until: Wait, tmp_path: Path
) -> None:
    mine = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, mine.id).status is JobStatus.SUCCEEDED)
    archive = portable.export_job(manager, session, mine.id, tmp_path / "a.tar")
    there, owner = elsewhere(), new_id()
    job = portable.import_job(there, owner, archive)
    assert result_file(job).read_text() == "restored pixels"
    assert (job.preview["video"], job.summary["frames"]) == ("preview.mp4", 8)
    assert (job.folder / "preview.mp4").read_bytes() == bytes(range(200))
    assert there.finished(owner)[0] == [job]


@pytest.mark.parametrize("status", [JobStatus.DRAFT, JobStatus.QUEUED, JobStatus.CANCELLED, JobStatus.FAILED])
def test_what_would_go_on_by_itself_is_paused_and_all_else_rests_as_it_did(
    manager: SessionManager, elsewhere: Elsewhere, submit: Submit, session: str, status: JobStatus, tmp_path: Path
) -> None:
    mine = submit("a.mp4", draft=status is JobStatus.DRAFT)
    if status is JobStatus.CANCELLED:
        manager.cancel(session, mine.id, keep_part=True)
    if status is JobStatus.FAILED:
        manager.store.change(mine.id, lambda job: job.start().fail("It is broken."))
    archive = portable.export_job(manager, session, mine.id, tmp_path / "a.tar")
    job = portable.import_job(elsewhere(), new_id(), archive)
    assert job.status is (JobStatus.PAUSED if status is JobStatus.QUEUED else status)
    again = portable.import_job(elsewhere(), new_id(), archive, start=True)
    assert (again.status, again.message) == (JobStatus.QUEUED, "")


def test_a_job_that_is_there_already_gets_another_id(elsewhere: Elsewhere, archive: Path, paused: Job) -> None:
    there = elsewhere()
    jobs = [portable.import_job(there, owner, archive) for owner in ("a" * 32, "a" * 32, "b" * 32)]
    assert jobs[0].id == paused.id
    assert len({job.id for job in jobs}) == 3
    assert len(there.store.jobs("a" * 32)) == 2
    assert all(job.source.read_text() == "pixels" for job in jobs)


def test_nothing_secret_and_nothing_of_the_machine_is_in_an_archive(
    manager: SessionManager, submit: Submit, session: str, tmp_path: Path
) -> None:
    mine = submit("a.mp4", draft=True)
    engine = {"weights": "/secret/models", "device": "cuda:7", "model": "nano"}
    manager.enqueue(session, mine.id, {"engine": engine, "restore": {"factor": 2.0}})
    content = portable.export_job(manager, session, mine.id, tmp_path / "a.tar").read_bytes()
    for secret in (session, "/secret/models", "cuda:7", str(tmp_path), manager.store.holder):
        assert secret.encode() not in content
    assert b"nano" in content


def test_an_imported_job_has_the_engine_settings_of_the_machine_that_it_comes_to(
    elsewhere: Elsewhere, archive: Path
) -> None:
    there = elsewhere()
    there.engine = {"weights": "/models", "threads": 3, "model": "seedvr2-3b"}
    engine = portable.import_job(there, new_id(), archive).settings["engine"]
    assert (engine["weights"], engine["threads"], engine["model"]) == ("/models", 3, "auto")


def test_people_can_look_into_an_archive(archive: Path) -> None:
    with tarfile.open(archive) as content:
        names = content.getnames()
    assert (names[0], names[1], names[-1]) == (HEADER, manifest.NAME, DIGESTS)
    assert names[2].startswith("source/Ünï 映画")
    assert names[2].endswith(".mp4")


# --- while other things happen ---


def test_a_running_job_is_not_exported(
    manager: SessionManager, engine: FakeEngine, submit: Submit, session: str, wait_until: Wait, tmp_path: Path
) -> None:
    engine.hold.clear()
    job = submit("a.mp4")
    manager.start()
    wait_until(lambda: manager.job(session, job.id).status is JobStatus.RUNNING)
    with pytest.raises(StateError, match="pause it"):
        portable.export_job(manager, session, job.id, tmp_path / "a.tar")
    assert list(tmp_path.glob("a.tar*")) == []


def test_the_job_of_somebody_else_is_unknown(manager: SessionManager, paused: Job, tmp_path: Path) -> None:
    with pytest.raises(UnknownJobError):
        portable.export_job(manager, new_id(), paused.id, tmp_path / "a.tar")


def test_a_job_that_is_removed_while_it_is_exported_is_in_the_archive_as_it_was(
    manager: SessionManager, elsewhere: Elsewhere, session: str, paused: Job, tmp_path: Path
) -> None:
    units = contents(paused)

    def remove() -> None:
        if paused.folder.exists():
            manager.cancel(session, paused.id)
            manager.remove(session, paused.id)

    archive = portable.export_job(manager, session, paused.id, tmp_path / "a.tar", remove)
    assert not paused.folder.exists()
    assert contents(portable.import_job(elsewhere(), new_id(), archive)) == units


def test_an_export_that_is_stopped_leaves_nothing(
    manager: SessionManager, session: str, paused: Job, tmp_path: Path
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        portable.export_job(manager, session, paused.id, tmp_path / "a.tar", stop)
    assert list(tmp_path.glob("a.tar*")) == []
    assert list((manager.storage.root / "moving").iterdir()) == []


def test_a_folder_that_is_not_there_is_a_sentence(manager: SessionManager, session: str, paused: Job) -> None:
    with pytest.raises(RestoreError, match="check the folder"):
        portable.export_job(manager, session, paused.id, Path("/nowhere/at/all/a.tar"))


_DIE_WHILE_IMPORTING = """
import os, signal, sys
from pathlib import Path
from seedvr_ui import manifest, portable
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.storage import Storage

def check(source, thumbnail):
    if sys.argv[3] == "check":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"width": 64, "height": 48, "is_image": False}

replace = os.replace
def deadly(part, target):
    replace(part, target)
    if sys.argv[3] == "move" and Path(target).parent.name == "jobs":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = deadly
manager = SessionManager(Storage(Path(sys.argv[1])), Services(check=check, restore=None, make_preview=None))
portable.import_job(manager, "c" * 32, Path(sys.argv[2]))
"""


@pytest.mark.parametrize(("moment", "number"), [("check", 0), ("move", 1)])
def test_a_power_cut_during_an_import_leaves_a_whole_job_or_none(
    elsewhere: Elsewhere, archive: Path, paused: Job, tmp_path: Path, moment: str, number: int
) -> None:
    program = [sys.executable, "-c", _DIE_WHILE_IMPORTING, str(tmp_path / "elsewhere"), str(archive), moment]
    ended = subprocess.run(program, cwd=ROOT, timeout=60, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL
    there = elsewhere()
    jobs = there.store.jobs("c" * 32)
    assert len(jobs) == number
    assert all(contents(job) == contents(paused) for job in jobs)
    for hold in (there.storage.root / "moving").iterdir():
        os.utime(hold, (0, 0))
    there.expire()
    assert list((there.storage.root / "moving").iterdir()) == []


# --- what is not let in ---


def rewritten(archive: Path, edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> Path:
    """The archive with its entries as `edit` leaves them; list and digests are as before unless it changes them."""
    with tarfile.open(archive) as content:
        entries = [(info, content.extractfile(info).read()) for info in content]  # type: ignore[union-attr]
    edit(entries)
    changed = archive.with_name("changed.tar")
    with tarfile.open(changed, "w", format=tarfile.GNU_FORMAT) as content:
        for info, data in entries:
            info.size = len(data)  # also of a link, whose content would then be taken for a file's
            content.addfile(info, io.BytesIO(data))
    return changed


def forged(archive: Path, files: dict[str, bytes]) -> Path:
    """An archive whose list and digests are right, with `files` added to those of `archive` or in their place."""
    with tarfile.open(archive) as content:
        head = json.load(content.extractfile(HEADER))  # type: ignore[arg-type]
        inside = content.getmembers()[1:-1]
        known = {
            listed["name"]: content.extractfile(info).read()  # type: ignore[union-attr]
            for listed, info in zip(head["files"], inside, strict=True)
        }
    changed = archive.with_name("forged.tar")
    packed = [archive_file.Packed(name, data, len(data)) for name, data in (known | files).items()]
    archive_file.write(packed, changed)
    return changed


def with_document(archive: Path, **values: Any) -> Path:
    with tarfile.open(archive) as content:
        document = json.load(content.extractfile(manifest.NAME))  # type: ignore[arg-type]
    return forged(archive, {manifest.NAME: json.dumps(document | values).encode()})


@pytest.mark.parametrize(
    "name",
    [
        "../../evil", "/etc/evil", "source/../../../evil", "work/../evil", "C:\\evil", "work\\evil.nut", "a/b/c", "",
        ".", "..", "source/", "/", "work/.ssh", "work/000001.py", "index.sqlite3", "upload.json", "result/.bashrc",
        "part/x.mp4", "source/second.mp4", "preview.exe", "thumbnail.jpg", "Manifest.json", "work/000001.nut.part",
        "source/a\nb.mp4",
    ],
)  # fmt: skip
def test_no_other_names_than_those_of_a_job_come_in(elsewhere: Elsewhere, archive: Path, name: str) -> None:
    there = elsewhere()
    with pytest.raises(ArchiveError):
        portable.import_job(there, "c" * 32, forged(archive, {name: b"evil"}))
    assert is_untouched(there)
    assert [path.name for path in archive.parent.rglob("evil*")] == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("index", [0, 1, 2, -1])
def test_links_devices_and_folders_do_not_come_in(elsewhere: Elsewhere, archive: Path, kind: bytes, index: int) -> None:
    def edit(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries[index][0].type = kind
        entries[index][0].linkname = "/etc/passwd"

    there = elsewhere()
    with pytest.raises(ArchiveError):
        portable.import_job(there, "c" * 32, rewritten(archive, edit))
    assert is_untouched(there)


@pytest.mark.parametrize("index", range(8))
def test_a_changed_byte_is_noticed_wherever_it_is(elsewhere: Elsewhere, archive: Path, index: int) -> None:
    def edit(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info, data = entries[index]
        entries[index] = info, data[:-1] + bytes([data[-1] ^ 1])

    there = elsewhere()
    with pytest.raises(ArchiveError):
        portable.import_job(there, "c" * 32, rewritten(archive, edit))
    assert is_untouched(there)


def test_a_file_that_is_longer_or_missing_or_in_another_place_is_noticed(elsewhere: Elsewhere, archive: Path) -> None:
    def lengthen(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries[2] = entries[2][0], entries[2][1] + b"x"

    def drop(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        del entries[3]

    def swap(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries[1], entries[2] = entries[2], entries[1]

    there = elsewhere()
    for edit in (lengthen, drop, swap):
        with pytest.raises(ArchiveError):
            portable.import_job(there, "c" * 32, rewritten(archive, edit))
        assert is_untouched(there)


def test_an_archive_that_ends_anywhere_too_early_is_refused(elsewhere: Elsewhere, archive: Path) -> None:
    there, whole = elsewhere(), archive.read_bytes()
    short = archive.with_name("short.tar")
    for length in [*range(0, len(whole) - 2048, 700), 511, 513]:
        short.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            portable.import_job(there, "c" * 32, short)
    assert is_untouched(there)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 4096, b"\xff" * 4096, b"PK\x03\x04" * 500])
def test_another_file_is_refused_with_a_sentence(elsewhere: Elsewhere, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ArchiveError, match="cannot be imported"):
        portable.import_job(elsewhere(), "c" * 32, tmp_path / "other")


@pytest.mark.parametrize(
    "values",
    [
        {"version": 99}, {"version": "x"}, {"status": "running"}, {"status": "dancing"}, {"target": "result/a.sh"},
        {"settings": {"engine": {"nonsense": 1}}}, {"settings": []}, {"attempts": -1}, {"created_at": "now"},
        {"worked_s": float("nan")}, {"history": [{"status": "queued"}]}, {"message": "x" * 10**4}, {"summary": 3},
        {"status": "succeeded"}, {"settings": {"restore": {"factor": 1e9}}},
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_true_is_refused(elsewhere: Elsewhere, archive: Path, values: dict[str, Any]) -> None:
    there = elsewhere()
    with pytest.raises(RestoreError):
        portable.import_job(there, "c" * 32, with_document(archive, **values))
    assert is_untouched(there)


def test_a_manifest_says_nothing_that_its_reader_did_not_allow(elsewhere: Elsewhere, archive: Path) -> None:
    """Whose it is, who goes first, who works on it, where its files are, what the page shows of the file."""
    job = portable.import_job(
        elsewhere(), "c" * 32,
        with_document(
            archive, owner="d" * 32, priority=99, token=10**12, holder="me", wish="cancel", is_told=False, base=5,
            source="../../../etc/passwd", target="../../x.mp4", media={"width": "<script>"}, progress={"stage": "x"},
            preview={"kind": "video", "video": "../../secret.mp4"}, deaths=[[1, 1]], crashes=[1, 1], num_bytes=-5,
            place=1e300, id="../../..", anything="else",
        ),
    )  # fmt: skip
    assert (job.owner, job.priority, job.token, job.holder, job.wish) == ("c" * 32, 0, 0, "", "")
    assert (job.source.parent, job.target) == (job.folder / "source", job.folder / "result" / "x.mp4")
    assert (job.media["width"], job.preview, job.deaths, job.crashes) == (64, {}, (), ())
    assert job.num_bytes > 6
    assert job.place < 1e12


def test_a_record_cannot_name_a_file_elsewhere(elsewhere: Elsewhere, archive: Path, paused: Job) -> None:
    values = json.loads((paused.work / "000000.json").read_text())
    values["unit"]["path"] = "/etc/passwd"
    job = portable.import_job(
        elsewhere(), "c" * 32, forged(archive, {"work/000000.json": json.dumps(values).encode()})
    )  # fmt: skip
    assert finished_units(job.work)[0].path == job.work / "000000.nut"


def test_a_source_that_is_no_video_is_refused(elsewhere: Elsewhere, archive: Path, paused: Job) -> None:
    there = elsewhere()
    with pytest.raises(RestoreError, match="choose another file"):
        portable.import_job(there, "c" * 32, forged(archive, {f"source/{NAME}": b"bad"}))
    assert is_untouched(there)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_jobs=0), "holds at most 0"),
        (Limits(max_stored_bytes=100), "the limit is"),
        (Limits(max_upload_bytes=3), "the limit is"),
    ],
    ids=["jobs", "bytes", "one file"],
)
def test_the_limits_of_the_importer_count(elsewhere: Elsewhere, archive: Path, limits: Limits, words: str) -> None:
    there = elsewhere(limits)
    with pytest.raises(RestoreError, match=words):
        portable.import_job(there, "c" * 32, archive)
    assert is_untouched(there)


def test_a_full_disk_refuses_before_anything_is_written(
    elsewhere: Elsewhere, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = elsewhere()
    monkeypatch.setattr("seedvr_ui.storage._RESERVED_BYTES", 10**18)
    with pytest.raises(DiskFullError):
        portable.import_job(there, "c" * 32, archive)
    assert is_untouched(there)


def test_the_length_of_an_archive_is_known_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(513))
    files = [archive_file.Packed("a", b"", 0), archive_file.Packed("Ünï", tmp_path / "b", 513)]
    assert archive_file.length(files) == sum(map(len, archive_file.pack(files)))


def test_a_file_that_changes_while_it_is_packed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(bytes(10))
    for size in (9, 11):
        with pytest.raises(RestoreError, match="has changed"):
            list(archive_file.pack([replace(archive_file.Packed("b", tmp_path / "b", 10), num_bytes=size)]))
