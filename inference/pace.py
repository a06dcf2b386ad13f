"""Owns how fast a job is lately, and the time left that follows: from what each part of its work takes for a frame.

Every frame needs every part, but one part is done for many frames, up to hundreds, before the next one begins. So the
frames that were finished in the last seconds say little; what each part took for a frame, whenever it was last at work,
says how long the rest takes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_SPANS = ((5.0, 1), (10.0, 4), (20.0, 6), (60.0, 12))
"""Of work on a part, over which its cost for a frame is averaged, for the range: so many seconds, and at least so many
samples, since the last window of a shot may have few frames that are new."""
_TOLD_SPAN = _SPANS[1]
_LEAST_SPREAD_S = 10.0
_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """frames_per_second: through all parts. seconds: left. low, high: where that lies if the parts go on as fast as in
    any of their recent spans, and a tenth beyond; None in the first seconds, and until every part was at work."""

    frames_per_second: float
    seconds: float
    low: float | None
    high: float | None


class Pace:
    """What each part of the work takes for a frame. `shares`, roughly, of the time a frame takes, are counted with for
    parts that were not at work yet."""

    def __init__(self, shares: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._shares, self._clock = dict(shares), clock
        self._began = self._last = clock()
        self._samples: dict[str, deque[tuple[float, int]]] = {part: deque() for part in shares}

    def add(self, part: str, num_frames: int) -> None:
        """The time since the last call went into `part` of so many frames."""
        now = self._clock()
        samples = self._samples[part]
        samples.append((now - self._last, num_frames))
        self._last = now
        seconds, count = _SPANS[-1]
        total = sum(some_seconds for some_seconds, _ in samples)
        while total - samples[0][0] >= seconds and len(samples) > count:
            total -= samples.popleft()[0]

    def skip(self) -> None:
        """The time since the last call went into none of the parts."""
        self._last = self._clock()

    def estimate(self, left: Mapping[str, int]) -> Estimate | None:
        """For `left` frames of each part; None before the first frame of the first part."""
        told = self._costs(_TOLD_SPAN)
        if told is None or sum(told.values()) <= 0:
            return None
        speed, seconds = 1 / sum(told.values()), sum(left[part] * cost for part, cost in told.items())
        is_known = all(samples for part, samples in self._samples.items() if left[part] > 0)
        if not is_known or self._last - self._began < _LEAST_SPREAD_S:
            return Estimate(speed, seconds, None, None)
        recent = [costs for span in _SPANS if (costs := self._costs(span)) is not None]
        low, high = (sum(left[part] * pick(costs[part] for costs in recent) for part in left) for pick in (min, max))
        return Estimate(speed, seconds, (1 - _MARGIN) * low, (1 + _MARGIN) * high)

    def _costs(self, span: tuple[float, int]) -> dict[str, float] | None:
        """Seconds for a frame in each part, over the last `span` of work on it."""
        known = {part: cost for part, samples in self._samples.items() if (cost := _cost(samples, span)) is not None}
        if not known:
            return None
        whole = sum(known.values()) / sum(self._shares[part] for part in known)
        return {part: known.get(part, share * whole) for part, share in self._shares.items()}


def _cost(samples: Sequence[tuple[float, int]], span: tuple[float, int]) -> float | None:
    seconds, frames = 0.0, 0
    for count, (some_seconds, some_frames) in enumerate(reversed(samples), 1):
        seconds, frames = seconds + some_seconds, frames + some_frames
        if seconds >= span[0] and count >= span[1] and frames > 0:
            break
    return seconds / frames if frames > 0 else None
