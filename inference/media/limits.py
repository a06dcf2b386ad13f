"""Owns the largest picture that is read: bigger ones are damaged or hostile headers far more often than real."""

from __future__ import annotations

from pathlib import Path

from inference.errors import MediaError

MAX_SIDE = 16_384
MAX_PIXELS = 200_000_000


def check_dimensions(path: Path, width: int, height: int) -> None:
    """Raise MediaError when a declared size has no pixels, a side over 16 384, or over 200 megapixels."""
    if width < 1 or height < 1:
        raise MediaError(f"'{path.name}' declares a picture without pixels; check that it plays in a video player.")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise MediaError(
            f"'{path.name}' declares an absurd picture size of {width}x{height}; "
            f"reduce it to at most {MAX_SIDE} pixels a side and {MAX_PIXELS // 1_000_000} megapixels."
        )
