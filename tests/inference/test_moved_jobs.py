"""Work folders in other hands: on another machine, and with a process that still works in them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.durable import sha256_of_samples
from inference.errors import CancelledError, FolderInUseError
from inference.units import finished_units, identify_source, sole_use
from seedvr_ui import portable
from seedvr_ui.jobs import JobStatus
from seedvr_ui.sessions import Services, SessionManager
from seedvr_ui.storage import Storage
from tests.inference.test_resume import ROOT, SHOTS, UNIT, MortalJobs

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def jobs() -> Iterator[MortalJobs]:
    jobs = MortalJobs()
    yield jobs
    jobs.close()


@pytest.fixture
def source(make_clip: Any) -> Path:
    path: Path = make_clip("in.mp4", *SHOTS, height=36, width=64, sound=True)
    return path


def open_manager(folder: Path) -> SessionManager:
    def check(source: Path, thumbnail: Path) -> dict[str, Any]:
        return {"width": 64, "height": 36, "is_image": False, "num_frames": sum(SHOTS)}

    def never(*_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError("no job is run here")

    return SessionManager(Storage(folder), Services(check=check, restore=never, make_preview=never))


@pytest.mark.parametrize("record", ["000001.json", "000003.json"], ids=["in a shot", "in a later unit"])
def test_a_job_that_was_killed_goes_on_on_another_machine_to_the_same_bytes(
    jobs: MortalJobs, source: Path, tmp_path: Path, record: str
) -> None:
    here, there = open_manager(tmp_path / "here"), open_manager(tmp_path / "there")
    mine, other = "a" * 32, "b" * 32
    upload = here.uploads.begin(mine, source.name, source.stat().st_size)
    here.uploads.append(mine, upload.id, 0, source.read_bytes())
    job = here.submit(mine, [upload.id], {})[0]
    job.target.parent.mkdir()
    assert jobs.run(job.source, job.target, job.work, {"after": record})["code"] == -signal.SIGKILL
    units = finished_units(job.work)
    here.pause(mine, job.id)
    archive = portable.export_job(here, mine, job.id, tmp_path / "job.seedvr.tar")
    here.remove(mine, job.id)
    here.close()

    came = portable.import_job(there, other, archive)
    assert (came.status, came.frames_done) == (JobStatus.PAUSED, units[-1].stop)
    came.target.parent.mkdir()
    segments = {unit.path.name: unit.path.stat() for unit in finished_units(came.work)}
    ended = jobs.run(came.source, came.target, came.work, {"before": came.target.name})
    assert units[-1].stop <= ended["told"][1] < units[-1].stop + UNIT  # it begins where the other machine stood
    for name, before in segments.items():  # and made none of its units again
        now = (came.work / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    ended = jobs.run(came.source, came.target, came.work)
    assert (ended["code"], ended["error"]) == (0, "")
    assert came.target.read_bytes() == jobs.undisturbed(source)
    there.close()


# --- what a source is known by ---


def test_a_copy_of_a_source_is_the_same_source_and_a_changed_one_is_not(tmp_path: Path) -> None:
    original, copy = tmp_path / "a.mp4", tmp_path / "elsewhere" / "b.mp4"
    original.write_bytes(os.urandom(9 * 2**20))
    copy.parent.mkdir()
    shutil.copyfile(original, copy)
    os.utime(copy, (0, 0))
    assert identify_source(copy) == identify_source(original)
    with copy.open("r+b") as file:
        file.truncate(9 * 2**20 - 1)
    assert identify_source(copy) != identify_source(original)


@pytest.mark.parametrize("num_bytes", [1, 2**20, 3 * 2**20, 6 * 2**20])
def test_each_byte_of_a_small_file_counts(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(num_bytes))
    before = sha256_of_samples(path)
    for place in {0, num_bytes // 2, num_bytes * 2 // 3, num_bytes - 1}:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert sha256_of_samples(path) != before
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\0")
    assert sha256_of_samples(path) == before


def test_a_large_file_that_was_written_anew_in_the_middle_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(40 * 2**20))
    before = sha256_of_samples(path)
    with path.open("r+b") as file:
        file.seek(20 * 2**20)
        file.write(b"x" * 2**20)
    assert sha256_of_samples(path) != before


# --- one process at a time ---

_HOLD = """
import sys
from pathlib import Path
from inference.units import sole_use
with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def holder(work: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works in `work` until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(LIMIT_S)
    process.stdin.close()
    process.stdout.close()


def test_a_work_folder_in_use_is_refused_and_free_again_when_its_process_is_killed(
    holder: subprocess.Popen[str], work: Path
) -> None:
    with pytest.raises(FolderInUseError, match="Another process still works on this job"), sole_use(work, wait_s=0.2):
        pass
    holder.kill()
    holder.wait(LIMIT_S)
    with sole_use(work, wait_s=0.0):
        pass


def test_the_removal_of_a_work_folder_does_not_let_a_second_process_in(
    holder: subprocess.Popen[str], work: Path
) -> None:
    work.mkdir()
    shutil.rmtree(work)
    work.mkdir()
    with pytest.raises(FolderInUseError), sole_use(work, wait_s=0.0):
        pass


def test_waiting_for_a_work_folder_hears_a_cancellation(holder: subprocess.Popen[str], work: Path) -> None:
    def check() -> None:
        raise CancelledError()

    with pytest.raises(CancelledError), sole_use(work, check):
        pass


def test_a_job_waits_for_a_process_that_is_on_its_way_out(
    jobs: MortalJobs, holder: subprocess.Popen[str], source: Path, work: Path, tmp_path: Path
) -> None:
    assert holder.stdin is not None
    jobs.undisturbed(source)  # so that the program is there, and would begin at once
    ended: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: ended.append(jobs.run(source, tmp_path / "out.mp4", work)))
    thread.start()
    thread.join(1.5)
    assert ended == []
    assert not work.exists()  # it has touched nothing
    holder.stdin.close()
    thread.join(LIMIT_S)
    assert (ended[0]["code"], ended[0]["error"]) == (0, "")
    assert (tmp_path / "out.mp4").read_bytes() == jobs.undisturbed(source)
    assert not (tmp_path / "work.lock").exists()
