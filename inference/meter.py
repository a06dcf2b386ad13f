"""What a job cost: seconds per stage and peak memory, for the summary."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Meter:
    """Adds up wall-clock seconds per named part of the work.

    On CUDA the clock is stopped after the queued work is done, so that the parts are charged to who caused them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        if device.type == "cuda":
            torch.cuda.init()  # the next call fails in a process that has not used the card yet
            torch.cuda.reset_peak_memory_stats(device)

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Charge the time inside the block to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[part] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Seconds per part so far, to the millisecond."""
        return {part: round(seconds, 3) for part, seconds in self._seconds.items()}

    def peak_device_bytes(self) -> int | None:
        """The most CUDA memory that was allocated since this meter began; None on CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def peak_process_bytes() -> int:
    """The most main memory this process ever held (resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
