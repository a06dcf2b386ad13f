"""What the page says about a job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference.progress import Progress, Stage
from seedvr_ui.jobs import Job
from seedvr_ui.player import job_view, preview_file
from seedvr_ui.wording import media_facts, to_size, to_words


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        id="a" * 32, owner="b" * 32, folder=tmp_path, source=tmp_path / "in.mp4", target=tmp_path / "out.mp4",
        settings={},
    ).queue(1.0)  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (2, "2 s"), (42, "42 s"), (200, "3 min 20 s"), (120, "2 min"), (7500, "2 h 5 min")],
)
def test_times_are_said_like_a_person_would(seconds: float, words: str) -> None:
    assert to_words(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(10, "1 kB"), (161_000, "161 kB"), (2_500_000, "2.5 MB"), (3 * 10**9, "3.0 GB")]
)
def test_sizes_are_said_like_a_person_would(num_bytes: int, words: str) -> None:
    assert to_size(num_bytes) == words


def test_an_image_has_neither_rate_nor_sound() -> None:
    assert media_facts({"width": 640, "height": 480, "is_image": True, "fps": 25.0}) == "640×480"


def test_a_waiting_job_says_its_place(job: Job) -> None:
    assert job_view(job, 2)["text"] == "Waiting, 2 ahead"
    assert job_view(job, 0)["text"] == "Waiting, next in line"


def test_a_running_job_says_stage_speed_and_time_left(job: Job) -> None:
    view = job_view(job.start().advance(Progress(Stage.RESTORE, 30, 120, 2.5, 90.0)))
    assert (view["text"], view["percent"]) == ("Restoring · 2.5 frames/s · 1 min 30 s left", 25)


def test_an_unknown_length_has_no_percent(job: Job) -> None:
    assert job_view(job.start().advance(Progress(Stage.RESTORE, 30, None)))["percent"] is None


def test_a_running_job_is_never_shown_as_complete(job: Job) -> None:
    assert job_view(job.start().advance(Progress(Stage.RESTORE, 120, 120)))["percent"] == 99


def test_a_failed_job_shows_its_sentence_and_may_be_tried_again(job: Job) -> None:
    view = job_view(job.start().fail("It is broken; choose another."))
    assert (view["text"], view["canRetry"], view["canCancel"]) == ("It is broken; choose another.", True, False)


def test_addresses_are_relative_so_that_any_proxy_path_works(job: Job) -> None:
    view = job_view(job.start().succeed({}, {"kind": "video", "video": "preview.mp4", "width": 2, "height": 2}))
    assert view["download"] == f"studio/jobs/{job.id}/download"
    assert view["preview"]["video"] == f"studio/jobs/{job.id}/files/preview.mp4"


def test_only_files_that_the_preview_names_are_given_out(job: Job) -> None:
    for name in ("preview.mp4", "other.mp4"):
        (job.folder / name).touch()
    done = job.start().succeed({}, {"kind": "video", "video": "preview.mp4"})
    assert preview_file(done, "preview.mp4") == job.folder / "preview.mp4"
    assert preview_file(done, "other.mp4") is None


def _flags(job: Job) -> set[str]:
    view = job_view(job)
    return {name for name in ("canCancel", "canPause", "canResume", "canRetry", "canRemove") if view[name]}


def test_each_state_offers_what_can_be_done(job: Job) -> None:
    running = job.start()
    assert _flags(job) == _flags(running) == {"canCancel", "canPause"}
    assert _flags(job.pause()) == {"canCancel", "canResume", "canRemove"}
    assert _flags(running.succeed({}, {})) == {"canRemove"}
    assert _flags(running.fail("x")) == _flags(job.cancel()) == {"canRetry", "canRemove"}


def test_a_paused_job_says_why(job: Job) -> None:
    assert job_view(job.pause())["text"] == "Paused"
    assert job_view(job.pause("The disk is full."))["text"] == "The disk is full."


def test_the_time_of_a_job_is_that_of_the_work_on_it(job: Job) -> None:
    done = replace(job.start().succeed({}, {}), worked_s=90.0)
    assert job_view(done)["text"] == "Done in 1 min 30 s"
