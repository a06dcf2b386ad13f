"""How a running job tells where it is, and how it is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from inference.errors import CancelledError


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
