"""Makes a low-resolution clip out of ground truth, in the two ways of the quality benchmark, as a file."""

from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.clips import Frames, resize, write_h264, write_lossless

BLUR_SIGMA = 0.6
"""Standard deviation of the Gaussian blur, in pixels of the low-resolution picture."""
NOISE_SIGMA = 0.008
"""Standard deviation of the Gaussian noise, as a part of the full range; new for every frame."""
QUALITY = 23
"""CRF of the H.264 encoder, preset medium."""


class Kind(StrEnum):
    """clean: antialiased bicubic down-scaling only. degraded: then blur, noise and H.264 at the low resolution."""

    CLEAN = "clean"
    DEGRADED = "degraded"


def down_scale(truth: Frames, scale: int) -> Frames:
    """``truth`` smaller by ``scale`` with Pillow's antialiased bicubic filter; its sides must be multiples of it."""
    _, height, width, _ = truth.shape
    return resize(truth, width // scale, height // scale, Image.Resampling.BICUBIC)


def blur_and_noise(frames: Frames, seed: int) -> Frames:
    """Gaussian blur, then Gaussian noise, rounded to 8 bit. The same seed gives the same frames."""
    random = np.random.default_rng(seed)
    blur = ImageFilter.GaussianBlur(BLUR_SIGMA)
    blurred = np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in frames])
    noise = random.standard_normal(frames.shape, dtype=np.float32) * (255 * NOISE_SIGMA)
    return (blurred + noise).round().clip(0, 255).astype(np.uint8)


def write_degraded(path: Path, truth: Frames, fps: Fraction, scale: int, kind: Kind, seed: int = 0) -> None:
    """Write the low-resolution version of ``truth`` to ``path`` (.mkv); ``clean`` loses nothing but the resolution."""
    small = down_scale(truth, scale)
    if kind is Kind.CLEAN:
        write_lossless(path, small, fps)
    else:
        write_h264(path, blur_and_noise(small, seed), fps, QUALITY)
