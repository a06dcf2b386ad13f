"""The manifest of a job: everything in it, never half of it, and what happens to old, new and damaged ones."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.errors import DiskFullError
from inference.progress import Progress, Stage
from seedvr_ui import manifest
from seedvr_ui.jobs import Death, Job, Wish


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with something in every field."""
    job = Job(
        id="a" * 32, owner="b" * 32, folder=tmp_path, source=tmp_path / "source" / "Ünï 映画.mp4",
        target=tmp_path / "result" / "b.mp4", settings={"restore": {"factor": 2.0}}, media={"width": 64},
        priority=3, deaths=(Death(0, 5), Death(5, 7)), num_bytes=12, is_seen=True, keeps_part=True,
    ).queue(1.5)  # fmt: skip
    running = job.start("somebody").advance(Progress(Stage.RESTORE, 5, 10, 2.5, 2.0, 1, 3)).want(Wish.CANCEL_KEEP)
    return replace(running, message="Hello.", summary={"frames": 3}, preview={"kind": "video"}, finished_at=5.0)


def _document(job: Job) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((job.folder / manifest.NAME).read_text())
    return document


def test_a_job_comes_back_as_it_was_written(job: Job) -> None:
    stamp = manifest.write(job)
    assert manifest.read(job.folder) == (job, stamp)
    assert not (job.folder / "manifest.json.part").exists()


def test_every_field_of_a_job_is_in_its_manifest(job: Job) -> None:
    fields = set(Job.__dataclass_fields__) - {"folder"}
    assert fields == set(manifest.to_document(job)) - {"version"}


def test_a_folder_may_be_moved_with_its_manifest(job: Job, tmp_path: Path) -> None:
    manifest.write(job)
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert manifest.read(moved)[0].source == moved / "source" / "Ünï 映画.mp4"


def test_each_writing_has_another_stamp(job: Job) -> None:
    stamps = [manifest.write(job) for _ in range(20)]
    assert all(stamps[index] != stamps[index + 1] for index in range(19))


def test_a_manifest_of_the_first_form_is_brought_up_to_date(job: Job) -> None:
    manifest.write(job)
    document = _document(job) | {"version": 1, "started_at": 100.0, "finished_at": 130.0}
    for key in ("num_bytes", "is_seen", "keeps_part", "worked_s"):
        del document[key]
    (job.folder / manifest.NAME).write_text(json.dumps(document))
    (job.folder / "source").mkdir()
    (job.folder / "source" / "a.mp4").write_bytes(bytes(1000))
    read, _ = manifest.read(job.folder)
    assert (read.worked_s, read.is_seen, read.keeps_part, read.settings) == (30.0, False, False, job.settings)
    assert read.num_bytes == 1000 + (job.folder / manifest.NAME).stat().st_size
    manifest.write(read)
    assert _document(job)["version"] == manifest.VERSION


def test_a_manifest_of_a_newer_program_is_left_as_it_is(job: Job) -> None:
    (job.folder / manifest.NAME).write_text(json.dumps({"version": manifest.VERSION + 1, "id": "x"}))
    with pytest.raises(manifest.NewerError, match="newer SeedVR Studio"):
        manifest.read(job.folder)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "\x00" * 50, "{}", '{"version": "two"}', '{"version": 0}', '{"version": 2}',
        '{"version": null}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_said_to_be_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(manifest.UnreadableError, match="damaged"):
        manifest.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "sleeping"}, {"source": "../../x"}, {"target": "/etc/passwd"}, {"history": [{"status": "queued"}]},
        {"unknown": 1}, {"progress": {"stage": "dance"}},
    ],
)  # fmt: skip
def test_a_manifest_that_says_what_cannot_be_is_damaged(job: Job, change: dict[str, Any]) -> None:
    manifest.write(job)
    (job.folder / manifest.NAME).write_text(json.dumps(_document(job) | change))
    with pytest.raises(manifest.UnreadableError):
        manifest.read(job.folder)


def test_damaged_manifests_are_kept_one_beside_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not manifest.has_one_aside(tmp_path)
    for content in ("one", "two"):
        (tmp_path / manifest.NAME).write_text(content)
        manifest.set_aside(tmp_path)
    assert sorted(path.read_text() for path in tmp_path.glob("manifest.unreadable.*.json")) == ["one", "two"]
    assert manifest.has_one_aside(tmp_path)
    assert not (tmp_path / manifest.NAME).exists()
    assert len(caplog.records) == 2


def test_a_full_disk_is_said_and_the_old_manifest_stays(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest.write(job)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="disk is full"):
        manifest.write(job.rank(9))
    assert manifest.read(job.folder)[0].priority == 3
