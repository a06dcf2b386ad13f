"""Owns how much of pictures is held: the largest one that is read, and how many of them may wait for one another.

Bigger pictures are damaged or hostile headers far more often than real ones.
"""

from __future__ import annotations

from pathlib import Path

from inference.errors import MediaError
from inference.sizes import Size

MAX_SIDE = 16_384
MAX_PIXELS = 200_000_000
_LEAST_FRAMES, _MOST_FRAMES = 4, 64


def check_dimensions(path: Path, width: int, height: int) -> None:
    """Raise MediaError when a declared size has no pixels, a side over 16 384, or over 200 megapixels."""
    if width < 1 or height < 1:
        raise MediaError(f"'{path.name}' declares a picture without pixels; check that it plays in a video player.")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise MediaError(
            f"'{path.name}' declares an absurd picture size of {width}x{height}; "
            f"reduce it to at most {MAX_SIDE} pixels a side and {MAX_PIXELS // 1_000_000} megapixels."
        )


def num_waiting_frames(size: Size, num_bytes: int) -> int:
    """How many RGB frames of `size` a queue of about `num_bytes` holds: at least 4, at most 64."""
    return max(_LEAST_FRAMES, min(_MOST_FRAMES, num_bytes // (3 * size.pixels)))
