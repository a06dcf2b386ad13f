"""What a job will take, from what others took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference.errors import SettingsError
from inference.sizes import Size
from seedvr_ui.estimate import Room, Sample, Task, estimate, make_task, samples_for, shortages, warn

CLIP = {"width": 640, "height": 360, "num_frames": 100, "fps": 25.0, "duration": 4.0, "is_image": False}
SAMPLE = Sample(
    asked="auto", model="nano", device="cpu", pixels=1280 * 720, frames=100, seconds=92.16, load_s=2.0,
    host_bytes=2 * 10**9, device_bytes=None, device_total=None, result_bytes=9_216_000, quality=16, is_image=False,
    is_test=False, at=1.0,
)  # fmt: skip
ROOM = Room(disk=10**12, memory=10**12, device=None, stored=10**12)
TASK = Task(size=Size(1280, 720), num_frames=100, is_image=False, quality=16)


def test_a_task_has_the_size_of_the_result_and_the_length_of_the_file() -> None:
    task = make_task(CLIP, {"factor": 2.0})
    assert (task.size, task.num_frames) == (Size(1280, 720), 100)
    assert make_task({**CLIP, "num_frames": None}, {"resolution": 1080}).num_frames == 100
    assert make_task({**CLIP, "num_frames": None, "duration": None}, {}).num_frames is None
    with pytest.raises(SettingsError, match="8192"):
        make_task(CLIP, {"factor": 16.0})


def test_equal_work_takes_about_what_it_took_before_and_the_range_holds_it() -> None:
    seconds = estimate([TASK], [SAMPLE]).seconds
    assert seconds is not None
    assert seconds[0] < 92.16 < seconds[1]


def test_twice_the_frames_take_twice_the_time() -> None:
    sample = replace(SAMPLE, load_s=0.0)
    one, two = (estimate([replace(TASK, num_frames=n)], [sample]).seconds for n in (100, 200))
    assert one is not None
    assert two == (2 * one[0], 2 * one[1])
    assert estimate([TASK, TASK], [sample]).seconds == two


def test_the_range_narrows_with_more_jobs_and_widens_with_their_spread() -> None:
    def width(*samples: Sample) -> float:
        seconds = estimate([TASK], samples).seconds
        assert seconds is not None
        return seconds[1] / seconds[0]

    assert width(SAMPLE, SAMPLE, SAMPLE) < width(SAMPLE) < width(replace(SAMPLE, is_test=True))
    assert width(SAMPLE, SAMPLE, replace(SAMPLE, seconds=200.0)) > width(SAMPLE, SAMPLE, SAMPLE)


def test_nothing_is_claimed_where_nothing_is_known() -> None:
    need = estimate([TASK], [])
    assert (need.seconds, need.memory) == (None, None)
    assert estimate([replace(TASK, num_frames=None)], [SAMPLE]).seconds is None


def test_samples_are_those_of_the_model_on_its_latest_device_and_jobs_rather_than_tests() -> None:
    old_card = replace(SAMPLE, device="cuda:0", at=0.0)
    other = replace(SAMPLE, asked="seedvr2-3b", model="seedvr2-3b", at=9.0)
    test = replace(SAMPLE, is_test=True, at=2.0)
    assert samples_for([old_card, other, SAMPLE, test], "auto") == [SAMPLE]
    assert samples_for([old_card, test], "nano") == [test]
    assert samples_for([SAMPLE], "seedvr2-7b") == []


def test_a_better_quality_makes_a_larger_result() -> None:
    usual, better = (estimate([replace(TASK, quality=quality)], []).result_bytes for quality in (16, 10))
    assert better == pytest.approx((2 * usual[0], 2 * usual[1]))


def test_memory_between_two_pictures_lies_between_their_peaks_and_grows_beyond() -> None:
    small = replace(SAMPLE, pixels=320 * 180, host_bytes=10**9)
    between = estimate([replace(TASK, size=Size(640, 360))], [small, SAMPLE]).memory
    beyond = estimate([replace(TASK, size=Size(2560, 1440))], [small, SAMPLE]).memory
    assert between == (10**9, 2 * 10**9)
    assert beyond is not None
    assert 4 * 10**9 < beyond[1] < 8 * 10**9


def test_on_a_card_the_work_is_cut_to_fit_down_to_a_least_piece() -> None:
    card = replace(SAMPLE, device="cuda:0", device_bytes=20 * 10**9, device_total=24 * 10**9)
    fits = estimate([replace(TASK, size=Size(1920, 1080))], [card], 7 * 10**9)
    assert fits.memory is not None
    assert fits.memory[1] <= 24 * 10**9
    too_large = estimate([replace(TASK, size=Size(3840, 2160))], [card], 7 * 10**9)
    room = replace(ROOM, device=24 * 10**9)
    assert shortages(fits, room) == []
    assert [what for what, _, _ in shortages(too_large, room)] == ["device"]


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (replace(ROOM, disk=10**6), "on the disk and 1.0 MB are free: choose 720p, or free"),
        (replace(ROOM, memory=10**9), "of memory and 1.0 GB are free: choose 720p, or close"),
        (replace(ROOM, stored=10**6), "you may store 1.0 MB more: choose 720p, or remove finished jobs"),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_change(room: Room, words: str) -> None:
    (warning,) = warn(estimate([TASK], [SAMPLE]), room, "720p")
    assert words in warning


def test_what_fits_is_not_warned_about() -> None:
    assert warn(estimate([TASK], [SAMPLE]), ROOM, None) == []
