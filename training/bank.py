"""Owns the pairs that are trained on: sharp clips beside their degraded versions, and the draw of a batch from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.back_projection import estimate_noise, strength_for
from training.data import Source
from training.degrade import degrade, draw

Clip = NDArray[np.uint8]

CROP = 96
"""Side of a crop; a multiple of 16 that divides by every scale."""
NUM_FRAMES = 9
SCALES = (2, 2, 4, 4, 3)
"""Scales of the degraded versions of one clip; the last one is drawn for every third clip only."""
_GRID = 48


@dataclass(frozen=True, slots=True)
class Pair:
    """`sharp (T, H, W, 3)` and `small (T, H / scale, W / scale, 3)`, uint8; `strength` of its back-projection."""

    sharp: Clip
    small: Clip
    scale: int
    strength: float


class Example(NamedTuple):
    """Crops in [-1, 1]: `sharp (3, T, H, W)`, `small (3, T, H / scale, W / scale)`."""

    sharp: Tensor
    small: Tensor
    strength: float


def make_pairs(sources: Iterable[Source], seed: int) -> list[Pair]:
    """Degraded versions of every source that is large enough, each drawn from `seed` and its place."""
    pairs = []
    for index, source in enumerate(sources):
        sharp = _trimmed(source.frames)
        if min(sharp.shape[1:3]) < CROP:
            continue
        rng = np.random.default_rng((seed, index))
        for scale in SCALES if index % 3 == 0 else SCALES[:-1]:
            small = degrade(sharp, draw(scale, rng), int(rng.integers(2**31)))
            pairs.append(Pair(sharp, small, scale, strength_for(estimate_noise(small[:3]), 1.0)))
    return pairs


def _trimmed(frames: Clip) -> Clip:
    """The middle of the clip, so that every scale divides it."""
    height, width = frames.shape[1:3]
    top, left = height % _GRID // 2, width % _GRID // 2
    return np.ascontiguousarray(frames[:, top : top + height // _GRID * _GRID, left : left + width // _GRID * _GRID])


def sample(pairs: list[Pair], rng: np.random.Generator) -> Example:
    """A random crop of a random pair, the livelier of two, turned and mirrored in space and time at random."""
    pair = pairs[rng.integers(len(pairs))]
    start = int(rng.integers(len(pair.sharp) - NUM_FRAMES + 1))
    sharp, small = max((_crop(pair, start, rng) for _ in range(2)), key=lambda crop: float(crop[0][0].std()))
    flips = rng.random(3) < 0.5
    for axis in (0, 2):
        if flips[axis // 2]:
            sharp, small = np.flip(sharp, axis), np.flip(small, axis)
    if flips[2]:
        sharp, small = sharp.swapaxes(1, 2), small.swapaxes(1, 2)
    return Example(to_video(sharp), to_video(small), pair.strength)


def _crop(pair: Pair, start: int, rng: np.random.Generator) -> tuple[Clip, Clip]:
    side = CROP // pair.scale
    y = int(rng.integers(pair.small.shape[1] - side + 1))
    x = int(rng.integers(pair.small.shape[2] - side + 1))
    span = slice(start, start + NUM_FRAMES)
    small = pair.small[span, y : y + side, x : x + side]
    y, x = y * pair.scale, x * pair.scale
    return pair.sharp[span, y : y + CROP, x : x + CROP], small


def to_video(clip: Clip) -> Tensor:
    """`(T, H, W, 3) uint8` -> `(3, T, H, W)` float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clip)).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)
