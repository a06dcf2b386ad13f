"""Speed and time left of a job whose parts take turns of many frames."""

from __future__ import annotations

import pytest

from inference.pace import Pace

SHARES = {"encode": 0.3, "denoise": 0.2, "decode": 0.5}


class Job:
    """Works off `total` frames with a clock of its own; `cost`: seconds for a frame of each part."""

    def __init__(self, total: int = 1000) -> None:
        self.now, self.total = 100.0, total
        self.left = dict.fromkeys(SHARES, total)
        self.pace = Pace(SHARES, lambda: self.now)

    def work(self, part: str, num_frames: int, cost: float, step: int = 4) -> None:
        for start in range(0, num_frames, step):
            count = min(step, num_frames - start)
            self.now += count * cost
            self.left[part] -= count
            self.pace.add(part, count)

    def turn(self, num_frames: int, **costs: float) -> None:
        for part, cost in costs.items():
            self.work(part, num_frames, cost, step=num_frames if part == "denoise" else 4)


def test_speed_and_time_left_follow_from_the_parts() -> None:
    job = Job(100)
    assert job.pace.estimate(job.left) is None
    job.turn(40, encode=0.01, denoise=0.02, decode=0.07)

    estimate = job.pace.estimate(job.left)

    assert estimate is not None
    assert (estimate.frames_per_second, estimate.seconds) == pytest.approx((10, 6))
    assert (estimate.low, estimate.high) == (None, None)  # in the first seconds


def test_what_was_not_at_work_yet_is_counted_by_its_share_and_no_range_is_told() -> None:
    job = Job(1000)
    job.work("encode", 400, 0.03)

    estimate = job.pace.estimate(job.left)

    assert estimate is not None
    assert estimate.seconds == pytest.approx(600 * 0.03 + 1000 * 0.07)
    assert estimate.low is None
    job.left |= {"denoise": 0, "decode": 0}
    estimate = job.pace.estimate(job.left)
    assert estimate is not None
    assert estimate.low is not None


def test_one_window_of_few_new_frames_does_not_set_the_time_left() -> None:
    """The last one of a shot reaches back, so that its few frames take as long as many."""
    job = Job(2000)
    for _ in range(8):
        job.turn(90, encode=0.1, denoise=0.7, decode=0.2)
        job.work("denoise", 5, 6.0, step=5)

    estimate = job.pace.estimate({"encode": 0, "denoise": 950, "decode": 0})

    assert estimate is not None
    truth = 10 * (90 * 0.7 + 5 * 6.0)
    assert estimate.seconds == pytest.approx(truth, rel=0.02)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < truth < estimate.high


def test_a_warm_up_is_charged_to_nothing() -> None:
    job = Job(100)
    job.now += 30
    job.pace.skip()
    job.turn(40, encode=0.01, denoise=0.02, decode=0.07)

    estimate = job.pace.estimate(job.left)

    assert estimate is not None
    assert estimate.seconds == pytest.approx(6)


@pytest.mark.parametrize("turn", [92, 400])
def test_time_left_is_right_in_any_part_of_a_long_turn(turn: int) -> None:
    """Other parts than the shares say: where frames are counted, the speed of the last seconds is that of one part."""
    costs = {"encode": 0.1, "denoise": 0.22, "decode": 0.2}
    job = Job(2000)
    job.turn(turn, **costs)
    for part, cost in costs.items():
        for _ in range(turn // 4):
            job.work(part, 4, cost)
            estimate = job.pace.estimate(job.left)
            truth = sum(job.left[name] * costs[name] for name in costs)
            assert estimate is not None
            assert estimate.seconds == pytest.approx(truth)
            assert estimate.low is not None
            assert estimate.high is not None
            assert estimate.low < truth < estimate.high


def test_speed_forgets_what_is_long_ago() -> None:
    job = Job(4000)
    for cost in (0.1, 0.02):
        for _ in range(8):
            job.turn(100, encode=cost, denoise=cost, decode=cost)

    estimate = job.pace.estimate(job.left)

    assert estimate is not None
    assert estimate.frames_per_second == pytest.approx(1 / 0.06)


def test_the_range_goes_from_the_slowest_to_the_fastest_recent_cost() -> None:
    job = Job(4000)
    job.turn(4, denoise=0.1, decode=0.1)
    job.work("encode", 400, 0.2)
    job.work("encode", 80, 0.1)  # faster in the last 8 seconds

    estimate = job.pace.estimate({"encode": 1000, "denoise": 0, "decode": 0})

    assert estimate is not None
    assert estimate.low == pytest.approx(0.9 * 1000 * 0.1)
    assert estimate.high == pytest.approx(1.1 * 1000 * 60 / 340, rel=0.02)  # of the last minute


def test_time_without_a_frame_is_charged_to_the_next_one() -> None:
    job = Job()
    job.pace.add("encode", 0)
    assert job.pace.estimate(job.left) is None
    job.now += 3
    job.pace.add("encode", 0)
    job.now += 1
    job.pace.add("encode", 4)

    estimate = job.pace.estimate({"encode": 8, "denoise": 0, "decode": 0})

    assert estimate is not None
    assert estimate.seconds == pytest.approx(8)
