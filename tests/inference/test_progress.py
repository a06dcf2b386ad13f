"""Progress, cancellation and speed."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from inference.console import to_clock, to_numbers
from inference.errors import CancelledError
from inference.meter import Meter, peak_process_bytes
from inference.progress import Cancellation, Progress, Stage
from inference.tracker import Tracker, Work
from inference.worker_process import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_snapshot_survives_json() -> None:
    progress = Progress(Stage.RESTORE, 3, 10, 1.5, 4.7, 1, None)

    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress


def test_a_cancellation_is_quiet_until_another_thread_asks() -> None:
    cancellation = Cancellation()
    cancellation.check()

    thread = threading.Thread(target=cancellation.cancel)
    thread.start()

    assert cancellation.wait(10)
    thread.join(10)
    with pytest.raises(CancelledError):
        cancellation.check()


def test_the_tracker_tells_the_shots_found_so_far() -> None:
    told: list[Progress] = []
    tracker = Tracker(Meter(torch.device("cpu")), told.append)
    tracker.enter(Stage.RESTORE, 10)
    assert told[-1].num_shots is None
    tracker.begin_shot(0)
    tracker.find_shot()
    tracker.finish_unit()
    assert (told[-1].shot, told[-1].num_shots) == (0, 2)
    tracker.begin_shot(1)
    tracker.finish_unit()
    assert (told[-1].shot, told[-1].num_shots) == (1, 2)


def test_the_tracker_counts_what_was_done_before_and_finished_units() -> None:
    told: list[Progress] = []
    tracker = Tracker(Meter(torch.device("cpu")), told.append)
    tracker.enter(Stage.RESTORE, 10)

    tracker.go_on_from(dict.fromkeys(Work, 5), units=2)
    tracker.finish_unit()

    assert [(progress.frames_done, progress.units) for progress in told] == [(0, 0), (5, 2), (5, 3)]


def test_the_tracker_counts_finished_work_in_frames() -> None:
    told: list[Progress] = []
    tracker = Tracker(Meter(torch.device("cpu")), told.append)
    tracker.enter(Stage.RESTORE, 10)
    for work in Work:
        tracker.advance(work, 10)

    done = [progress.frames_done for progress in told]
    assert done == [0, 3, 5, 10]
    assert told[-1].eta_s in (0.0, None)


def test_the_total_grows_if_a_file_has_more_frames_than_it_says() -> None:
    told: list[Progress] = []
    tracker = Tracker(Meter(torch.device("cpu")), told.append)
    tracker.enter(Stage.RESTORE, 4)
    for work in Work:
        tracker.advance(work, 6)

    assert (told[-1].frames_done, told[-1].frames_total) == (6, 6)


def test_the_tracker_stops_a_cancelled_job() -> None:
    cancellation = Cancellation()
    tracker = Tracker(Meter(torch.device("cpu")), None, cancellation)
    cancellation.cancel()

    with pytest.raises(CancelledError):
        tracker.advance(Work.ENCODE, 1)


def test_the_meter_adds_up_each_part_and_counts_failed_blocks_too() -> None:
    meter = Meter(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), meter.measure("a"):
        _ = 1 / 0
    with meter.measure("b"):
        pass

    assert set(meter.seconds()) == {"a", "b"}
    assert meter.peak_device_bytes() is None
    assert peak_process_bytes() > 2**20


def test_throttled_progress_keeps_each_stage_and_a_few_snapshots_a_second() -> None:
    clock = Clock()
    sent: list[Progress] = []
    throttle = Throttle(sent.append, clock)
    for stage in (Stage.LOAD, Stage.RESTORE):
        for frame in range(100):
            throttle(Progress(stage, frame))
            clock.now += 0.01

    assert len(sent) == 8
    assert {progress.stage for progress in sent} == {Stage.LOAD, Stage.RESTORE}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--"), (0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3725, "1:02:05")]
)
def test_time_left_reads_like_a_clock(seconds: float | None, text: str) -> None:
    assert to_clock(seconds) == text


def test_the_console_tells_frames_speed_and_time_left_only_while_restoring() -> None:
    assert to_numbers(Progress(Stage.RESTORE, 3, None, 1.25, 70)) == "3/? frames  1.25 frames/s  1:10 left"
    assert to_numbers(Progress(Stage.LOAD)) == ""
