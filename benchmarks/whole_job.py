"""One whole job on a card, file to file, with the networks of `benchmarks/gpu.py`: how much the pipeline adds to them.

Not a benchmark by itself: `./run.sh bench gpu` ends with it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from benchmarks.clips import GROUND_TRUTH, crop_to_multiple, find_clips, read_clip, repeat_to, write_h264
from inference.catalogue import find_model
from inference.checkpoint import Models
from inference.meter import Meter
from inference.pipeline import prepare, run
from inference.settings import RestoreSettings
from inference.tracker import Tracker
from models.dit import DiT
from models.video_vae import VideoVAE

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
NETWORK_PARTS = ("encode", "denoise", "decode")
WAITING_PARTS = {"reading": ("read",), "writing": ("hand over", "take down", "write")}
"""Parts of a job in which the thread that drives the card waits for files: for frames of the source; for the encoder,
the state that goes to the disk with each unit, and the last unit and the joining of all at the end."""

QUIET = 0.01
"""Random weights give noise; this much of it leaves a picture that an encoder meets in practice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """seconds: of each part of the job, as its summary has them; `total` is the wall clock.

    peak_bytes: most device memory allocated in the job, weights included; 0 on a CPU.
    """

    clip: str
    num_frames: int
    size: tuple[int, int]
    seconds: dict[str, float]
    peak_bytes: int = 0

    @property
    def frames_per_second(self) -> float:
        """Of the whole job, without loading the model."""
        return self.num_frames / self.seconds["total"]

    @property
    def share(self) -> float:
        """What the job reaches of the throughput that the networks alone have in it."""
        return sum(self.seconds[part] for part in NETWORK_PARTS) / self.seconds["total"]

    @property
    def waits(self) -> dict[str, float]:
        """Seconds in which the card gets no work: for `reading`, `writing`, and `other`, of no part."""
        waits = {kind: sum(self.seconds.get(part, 0.0) for part in parts) for kind, parts in WAITING_PARTS.items()}
        measured = sum(seconds for part, seconds in self.seconds.items() if part != "total")
        return {**waits, "other": self.seconds["total"] - measured}


def measure_job(
    model: str, dit: DiT, vae: VideoVAE, text: torch.Tensor, short_side: int, seconds: float, clip: Path | None
) -> JobFigures:
    """Restore `seconds` of a real clip of half the size to `short_side`, twice; figures of the second time.

    With a work folder, as jobs of the app have one, so that what going on after a crash costs is in it.
    """
    entry = find_model(model)
    models = Models(dit, vae, text, entry.latent_scale, entry)
    source = clip or (find_clips(GROUND_TRUTH) if GROUND_TRUTH.is_dir() else find_clips(SAMPLES))[-1]
    frames, fps = read_clip(source)
    frames = repeat_to(crop_to_multiple(frames, 2), round(seconds * fps))
    with tempfile.TemporaryDirectory() as folder, quiet(vae):
        small = Path(folder) / "in.mp4"
        write_h264(small, frames, Fraction(fps), 18)
        for name in ("warm.mp4", "out.mp4"):
            meter = Meter(next(vae.parameters()).device)
            job = prepare(small, Path(folder) / name, RestoreSettings(resolution=short_side))
            start = time.perf_counter()
            result = run(job, models, Tracker(meter), Path(folder) / "work")
            total = time.perf_counter() - start
    return JobFigures(
        clip=source.name,
        num_frames=result.frames,
        size=(job.size.width, job.size.height),
        seconds={**meter.seconds(), "total": total},
        peak_bytes=meter.peak_device_bytes() or 0,
    )


@contextmanager
def quiet(vae: VideoVAE, *, is_quiet: bool = True) -> Iterator[None]:
    """The decoder's last weights made small for a while; those of the fast form are the same tensors."""
    factor = QUIET if is_quiet else 1.0
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(factor)
        try:
            yield
        finally:
            vae.decoder.conv_out.weight.div_(factor)
