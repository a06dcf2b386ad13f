"""Owns shot detection: finds hard cuts while frames stream by. Dissolves and fades are left inside their shot.

Two measures on thumbnails of 64 x 36: the mean absolute difference of colours, which is large at a cut but also in fast
motion, and the loss of structure, one minus the correlation of luma, which a change of light leaves small. Motion is
told from a cut by the differences just before it: a cut stands out of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT = 64, 36
_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_RECENT = 8  # differences that the next one is compared with
_MIN_DIFFERENCE = 0.03  # of full scale: smaller ones are noise or flicker
_MIN_STRUCTURE_LOSS = 0.2
_STANDS_OUT = 2.2  # times the largest recent difference
_UNRELATED = 0.6  # structure loss that motion hardly reaches ...
_STANDS_OUT_UNRELATED = 1.4  # ... so less has to stand out
_NO_HISTORY = 0.04  # recent difference that is assumed while there is none
_NOISE_VARIANCE = 4e-4  # of luma: keeps the correlation of flat and black pictures from being one of noise


class ShotDetector:
    """Streaming cut detector.

        detector = ShotDetector()
        for frame in frames:
            if detector.push(frame.thumbnail): ...   # frame starts a new shot

    The first frame always starts a shot. `previous` and `recent`, the thumbnail of the latest frame and the value of
    `recent` of another detector, let this one go on where that one stopped.
    """

    def __init__(self, previous: NDArray[np.float32] | None = None, recent: Iterable[float] = ()) -> None:
        self._previous = previous
        self._recent: deque[float] = deque(recent, maxlen=_RECENT)

    @property
    def recent(self) -> tuple[float, ...]:
        """The latest differences within the shot, which the next one is compared with."""
        return tuple(self._recent)

    def push(self, current: NDArray[np.float32]) -> bool:
        """Look at the `thumbnail` of the next frame; True when it starts a new shot."""
        previous, self._previous = self._previous, current
        if previous is None:
            return True
        difference = float(np.abs(current - previous).mean())
        if self._is_cut(difference, structure_loss(previous, current)):
            self._recent.clear()
            return True
        self._recent.append(difference)
        return False

    def _is_cut(self, difference: float, loss: float) -> bool:
        usual = max(self._recent, default=_NO_HISTORY)
        factor = _STANDS_OUT_UNRELATED if loss > _UNRELATED else _STANDS_OUT
        return difference > max(_MIN_DIFFERENCE, factor * usual) and loss > _MIN_STRUCTURE_LOSS


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A frame of any size, (h, w, 3) uint8 -> (36, 64, 3) in 0..1.

    Each pixel is the mean of its area, of large frames the mean of every k-th pixel in it.
    """
    rows, columns = max(1, pixels.shape[0] // (4 * _HEIGHT)), max(1, pixels.shape[1] // (4 * _WIDTH))
    small = pixels[::rows, ::columns].astype(np.float32)
    small = np.add.reduceat(small, _edges(small.shape[0], _HEIGHT), axis=0)
    small = np.add.reduceat(small, _edges(small.shape[1], _WIDTH), axis=1)
    heights = _spans(pixels[::rows].shape[0], _HEIGHT)
    widths = _spans(pixels[:, ::columns].shape[1], _WIDTH)
    return small / (255 * heights[:, None, None] * widths[None, :, None])


def structure_loss(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """1 - correlation of the luma of two thumbnails: 0 same structure, 1 unrelated, 2 inverted."""
    luma_a, luma_b = a @ _LUMA, b @ _LUMA
    luma_a, luma_b = luma_a - luma_a.mean(), luma_b - luma_b.mean()
    variance = np.sqrt((np.mean(luma_a**2) + _NOISE_VARIANCE) * (np.mean(luma_b**2) + _NOISE_VARIANCE))
    return 1 - float((np.mean(luma_a * luma_b) + _NOISE_VARIANCE) / variance)


def _edges(length: int, parts: int) -> NDArray[np.intp]:
    """First index of each part; parts of pictures smaller than the thumbnail repeat pixels."""
    return (np.arange(parts) * length // parts).astype(np.intp)


def _spans(length: int, parts: int) -> NDArray[np.float32]:
    edges = np.append(_edges(length, parts), length)
    return np.maximum(np.diff(edges), 1).astype(np.float32)
