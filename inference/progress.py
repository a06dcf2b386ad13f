"""How a running job tells where it is, and how it is asked to stop."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from inference.errors import CancelledError

_SPEED_WINDOW_S = 30.0
_SPREAD_WINDOWS_S = (15.0, 30.0, 60.0, 180.0)
_LEAST_SPREAD_S = 10.0
_MARK_EVERY_S = 1.0
_MARGIN = 0.1


class Stage(StrEnum):
    """What a job is doing, in the order in which it happens."""

    PREPARE = "prepare"
    LOAD = "load"
    RESTORE = "restore"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Progress:
    """One snapshot of a job. `frames_total`, speed, time left and `num_shots` are None while they are unknown.

    `shot` counts from 0; `num_shots` is the number of shots found so far, since cuts are found on the way, and
    `shots_total` that of all, which whoever follows the job may count beside it. `eta_s` is
    in seconds, and `eta_low_s` to `eta_high_s` is where it lies if the work goes on at any of its recent speeds. While
    a model is loaded, `bytes_done` of `bytes_total` have come. `units` counts the finished pieces of the result, which
    need not be done again if the job dies.
    """

    stage: Stage
    frames_done: int = 0
    frames_total: int | None = None
    frames_per_second: float | None = None
    eta_s: float | None = None
    shot: int = 0
    num_shots: int | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    units: int = 0
    eta_low_s: float | None = None
    eta_high_s: float | None = None
    shots_total: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The snapshot as JSON-able values."""
        return asdict(self) | {"stage": self.stage.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """The inverse of `to_dict`."""
        return cls(**{**values, "stage": Stage(values["stage"])})


Report = Callable[[Progress], None]


class Cancellation:
    """A request to stop that any thread may make; the job calls `check()` at every step."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the job to stop at its next step."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the job was asked to stop."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise CancelledError if the job was asked to stop."""
        if self._event.is_set():
            raise CancelledError()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the job is asked to stop, at most `timeout_s` seconds; returns `is_set()`."""
        return self._event.wait(timeout_s)


class Speedometer:
    """Frames per second over the last half minute, and the time left that follows from it.

    `frames_done` frames were there before the clock started.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, frames_done: int = 0) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), frames_done)])
        self._history: deque[tuple[float, int]] = deque(self._marks)  # thinner and longer, for the spread

    def update(self, frames_done: int, frames_total: int | None) -> tuple[float | None, float | None]:
        """`frames_done` frames are finished now; returns (frames per second, seconds left), None while unknown."""
        now = self._clock()
        self._marks.append((now, frames_done))
        if now - self._history[-1][0] >= _MARK_EVERY_S:
            self._history.append((now, frames_done))
        while len(self._history) > 2 and now - self._history[1][0] > _SPREAD_WINDOWS_S[-1]:
            self._history.popleft()
        while len(self._marks) > 2 and now - self._marks[1][0] > _SPEED_WINDOW_S:
            self._marks.popleft()
        then, before = self._marks[0]
        if now <= then or frames_done <= before:
            return None, None
        speed = (frames_done - before) / (now - then)
        left = None if frames_total is None else max(0, frames_total - frames_done) / speed
        return speed, left

    def spread(self, frames_done: int, frames_total: int | None) -> tuple[float, float] | None:
        """(fewest, most) seconds left if the work goes on as fast as in any of the last quarter, half and whole minute
        and three minutes, and a tenth beyond; None in the first seconds, or when nothing moved in one of those spans.
        """
        now, (began, _) = self._clock(), self._history[0]
        if frames_total is None or now - began < _LEAST_SPREAD_S:
            return None
        speeds = []
        for span in _SPREAD_WINDOWS_S:
            then, before = next(mark for mark in self._history if now - mark[0] <= span or mark is self._history[-1])
            if now > then:
                speeds.append((frames_done - before) / (now - then))
        if not speeds or min(speeds) <= 0:
            return None
        left = max(0, frames_total - frames_done)
        return (1 - _MARGIN) * left / max(speeds), (1 + _MARGIN) * left / min(speeds)
