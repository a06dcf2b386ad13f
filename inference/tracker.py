"""Follows one job: counts work, reports progress, and stops the job when asked to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum

from inference.meter import Meter
from inference.pace import Pace
from inference.progress import Cancellation, Progress, Report, Stage


class Work(StrEnum):
    """The parts that restoring a frame consists of."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


# Rough shares of the time a frame takes. They only smooth the display: a window of frames, or a whole turn, is encoded,
# denoised and decoded one after the other, and without shares the frame count would stand still and then jump.
_SHARES: dict[str, float] = {Work.ENCODE: 0.3, Work.DENOISE: 0.2, Work.DECODE: 0.5}


class Tracker:
    """What the data path tells about its work. `frames_done` in its reports is finished work, in frames."""

    def __init__(self, meter: Meter, report: Report | None = None, cancellation: Cancellation | None = None) -> None:
        self._meter, self._report = meter, report
        self._cancellation = cancellation or Cancellation()
        self._pace: Pace | None = None
        self._work: dict[Work, int] = defaultdict(int)
        self._total: int | None = None
        self._stage, self._shot, self._units = Stage.PREPARE, 0, 0
        self._num_shots: int | None = None

    def check(self) -> None:
        """Raise CancelledError if the job was asked to stop."""
        self._cancellation.check()

    def measure(self, part: str) -> AbstractContextManager[None]:
        """Charge the time inside the block to `part` of the summary."""
        return self._meter.measure(part)

    def enter(self, stage: Stage, frames_total: int | None = None) -> None:
        """Begin `stage`; `frames_total` is the number of frames of the job where it is known."""
        self.check()
        self._stage = stage
        self._total = frames_total if frames_total is not None else self._total
        if stage is Stage.RESTORE:
            self._pace = Pace(_SHARES)
        self._tell()

    def loaded(self, done: int, total: int) -> None:
        """`done` of `total` bytes of the model have been fetched or checked."""
        self.check()
        if self._report is not None:
            self._report(Progress(self._stage, 0, self._total, bytes_done=done, bytes_total=total))

    def go_on_from(self, frames: Mapping[Work, int], units: int) -> None:
        """An earlier run of the job has done that much work; the speed counts from here."""
        self._work.update(frames)
        self._units = units
        self._pace = Pace(_SHARES)
        self._tell()

    def finish_unit(self) -> None:
        """One more piece of the result is finished."""
        self._units += 1
        self._tell()

    def begin_shot(self, shot: int) -> None:
        """Work goes on with shot number `shot`, counted from 0."""
        self._shot = shot
        self._num_shots = max(self._num_shots or 0, shot + 1)

    def find_shot(self) -> None:
        """A cut was found: there is at least one shot after the one at work."""
        self._num_shots = max(self._num_shots or 0, self._shot + 2)

    def advance(self, work: Work, num_frames: int) -> None:
        """`num_frames` more frames have had `work` done."""
        self.check()
        self._work[work] += num_frames
        if self._pace is not None:
            self._pace.add(work, num_frames)
        self._tell()

    def warmed_up(self) -> None:
        """What was done since the last call does not tell how long the rest takes."""
        if self._pace is not None:
            self._pace.skip()

    def _tell(self) -> None:
        done = self._done()
        total = self._total if self._total is None else max(self._total, done)
        left: dict[str, int] = {work: max(0, (total or 0) - self._work[work]) for work in Work}
        estimate = None if self._pace is None else self._pace.estimate(left)
        speed = seconds = low = high = None
        if estimate is not None:
            speed = estimate.frames_per_second
        if estimate is not None and total is not None:
            seconds, low, high = estimate.seconds, estimate.low, estimate.high
        if self._report is not None:
            self._report(
                Progress(
                    self._stage, done, total, speed, seconds, self._shot, self._num_shots,
                    units=self._units, eta_low_s=low, eta_high_s=high,
                )
            )  # fmt: skip

    def _done(self) -> int:
        return int(sum(_SHARES[work] * self._work[work] for work in Work) + 1e-6)
