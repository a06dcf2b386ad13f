"""What the page says about a job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference.progress import Progress, Stage
from seedvr_ui.jobs import Job
from seedvr_ui.player import Display, job_view, preview_file
from seedvr_ui.price import Price
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


def test_a_running_job_says_stage_shot_speed_and_time_left_as_a_range(job: Job) -> None:
    progress = Progress(Stage.RESTORE, 30, 120, 2.5, 90.0, 1, 3, eta_low_s=170, eta_high_s=290)
    view = job_view(job.start().advance(progress))
    assert view["text"] == "Restoring · shot 2 of 3 so far · 2.5 frames/s · about 2–5 min left"
    assert view["percent"] == 25
    counted = job_view(job.start().advance(replace(progress, shots_total=5)))
    assert counted["text"].startswith("Restoring · shot 2 of 5 · ")


def test_no_time_is_told_before_something_is_known(job: Job) -> None:
    view = job_view(job.start().advance(Progress(Stage.RESTORE, 1, 120, 2.5, 90.0)))
    assert view["text"] == "Restoring · 2.5 frames/s"


def test_a_price_shows_what_was_spent_and_what_it_will_be(job: Job) -> None:
    display = Display(price=Price(3600.0, after=" USD"), expect=lambda job: (60.0, 120.0))
    assert job_view(job, display=display)["cost"] == "about 60.00–120.00 USD"
    done = replace(job.start().succeed({}, {}), worked_s=90.0)
    assert job_view(done, display=display)["cost"] == "90.00 USD"
    running = replace(job.start(), worked_s=0.0).advance(
        Progress(Stage.RESTORE, 30, 120, 2.5, 90.0, eta_low_s=1e6, eta_high_s=1e6)
    )
    assert "so far, about 10000" in job_view(running, display=display)["cost"]
    assert job_view(job)["cost"] == ""


def test_a_waiting_job_says_how_long_it_will_take(job: Job) -> None:
    text = job_view(job, 1, Display(expect=lambda job: (130.0, 290.0)))["text"]
    assert text == "Waiting, 1 ahead · takes about 2–5 min"


def test_a_result_that_was_not_seen_stays_twice_as_long(job: Job) -> None:
    done = job.start().succeed({}, {})
    assert done.finished_at is not None
    display = Display(keep_s=100.0)
    assert job_view(done, display=display)["staysUntil"] == done.finished_at + 200
    assert job_view(done.see(), display=display)["staysUntil"] == done.finished_at + 100
    assert job_view(job, display=display)["staysUntil"] is None


def test_what_is_finished_can_be_watched_while_the_job_runs_and_when_it_was_kept(job: Job) -> None:
    running = job.start().advance(Progress(Stage.RESTORE, 30, 120, units=2))
    part = f"studio/jobs/{job.id}/part"
    assert job_view(job.start())["part"] == ""
    assert job_view(running)["part"] == part
    assert job_view(running.cancel(keep_part=True))["part"] == part
    assert job_view(running.cancel())["part"] == ""
    assert job_view(running.succeed({}, {}))["part"] == ""
    again = running.cancel(keep_part=True).retry(2.0)
    assert job_view(again)["part"] == part, "it waits, and what it goes on from is still there"
    assert job_view(again.start().advance(Progress(Stage.LOAD)))["part"] == part


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
