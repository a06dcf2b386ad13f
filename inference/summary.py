"""What a finished job tells: one Summary, the same for the command line, Python and the worker."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A finished job. Sizes are in pixels; `fps` is an exact fraction as text ("30000/1001"), empty for an image.

    `seconds` holds wall-clock seconds per part and under "total"; parts that run side by side may add up to more.
    `peak_memory_bytes` is the most main memory that this process held, `peak_device_bytes` the CUDA memory of the job
    (None on CPU) of the device's `device_total_bytes`. `notes` says in sentences what was not kept or needs to be
    known.
    """

    source: str
    target: str
    frames: int
    width: int
    height: int
    fps: str
    shots: int
    seconds: dict[str, float]
    peak_memory_bytes: int
    peak_device_bytes: int | None
    device: str
    device_total_bytes: int | None = None
    precision: str
    model: str
    notes: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def frames_per_second(self) -> float:
        """Frames of the result per second of the whole job."""
        total = self.seconds.get("total", 0.0)
        return self.frames / total if total > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON-able values."""
        values = asdict(self) | {"notes": list(self.notes)}
        return values | {"frames_per_second": round(self.frames_per_second, 3)}
