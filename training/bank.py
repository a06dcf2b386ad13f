"""Owns the pairs that are trained on: sharp clips beside their degraded versions, and the draw of a batch from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import Source
from training.degrade import Degradation, degrade, draw

Clip = NDArray[np.uint8]

GRID = 48
"""Sides of crops and clips are multiples of it, so that latent patches (16 pixels) and every scale tile them."""
NUM_FRAMES = 9
SCALES = (2, 2, 4, 4, 3)
"""Scales of the degraded versions of one clip, in turn."""
TRIES = 2
"""Places of a crop that are looked at; the liveliest is taken."""


@dataclass(frozen=True, slots=True)
class Pair:
    """`sharp (T, H, W, 3)` and `small (T, H / scale, W / scale, 3)`, uint8; `strength` of its back-projection."""

    sharp: Tensor
    small: Tensor
    scale: int
    strength: float
    activity: NDArray[np.float32]
    """Deviation of the luma in blocks of 48 pixels of the middle frame."""

    def to(self, device: torch.device) -> Pair:
        return replace(self, sharp=self.sharp.to(device), small=self.small.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops in [-1, 1]: `sharp (B, 3, T, H, W)`, `small (B, 3, T, H / scale, W / scale)`; `strength (B,)` in 0..1 of
    the back-projection that the program would do."""

    sharp: Tensor
    small: Tensor
    strength: Tensor


def make_pairs(sources: Iterable[Source], versions: int, seed: int, workers: int = 0) -> list[Pair]:
    """`versions` degraded versions of every source that is large enough, each drawn from `seed` and its place."""
    sources = [source for source in sources if min(source.frames.shape[1:3]) >= 2 * GRID]
    make = partial(_versions_of, versions=versions, seed=seed)
    if workers > 1:
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            made = list(pool.map(make, enumerate(sources)))
    else:
        made = list(map(make, enumerate(sources)))
    pairs = []
    for source, degraded in zip(sources, made, strict=True):
        sharp = torch.from_numpy(_trimmed(source.frames))
        activity = _activity(sharp)
        for degradation, small in degraded:
            pairs.append(Pair(sharp, torch.from_numpy(small), degradation.scale, strength_of(degradation), activity))
    return pairs


def strength_of(degradation: Degradation) -> float:
    """About what the program finds for such a clip (`inference.back_projection`)."""
    if degradation.is_clean:
        return 1.0
    return 0.1 if degradation.blur > 0.25 * degradation.scale else 0.6


def _versions_of(item: tuple[int, Source], *, versions: int, seed: int) -> list[tuple[Degradation, Clip]]:
    index, source = item
    sharp = _trimmed(source.frames)
    rng = np.random.default_rng((seed, index))
    drawn = [draw(SCALES[version % len(SCALES)], rng) for version in range(versions)]
    return [(degradation, degrade(sharp, degradation, int(rng.integers(2**31)))) for degradation in drawn]


def _trimmed(frames: Clip) -> Clip:
    """The middle of the clip, so that every scale divides it."""
    height, width = frames.shape[1:3]
    top, left = height % GRID // 2, width % GRID // 2
    return np.ascontiguousarray(frames[:, top : top + height // GRID * GRID, left : left + width // GRID * GRID])


def _activity(sharp: Tensor) -> NDArray[np.float32]:
    middle = sharp[len(sharp) // 2].float().mean(-1)
    blocks = middle.unfold(0, GRID, GRID).unfold(1, GRID, GRID)
    return blocks.std(dim=(-2, -1)).numpy()


class Sampler:
    """Draws batches of one scale and one crop size from the pairs that hold it."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def sample(self, scale: int, size: tuple[int, int], count: int, rng: np.random.Generator) -> Batch:
        """`count` random crops of `size` (height, width), turned and mirrored in space and time, lighter or darker.

        Raises ValueError when no pair of that scale is so large.
        """
        height, width = size
        fitting = [
            p for p in self.pairs if p.scale == scale and p.sharp.shape[1] >= height and p.sharp.shape[2] >= width
        ]
        if not fitting:
            raise ValueError(f"no clip of the training material holds crops of {width}x{height} at scale {scale}")
        sharp, small, strength = [], [], []
        for _ in range(count):
            pair = fitting[rng.integers(len(fitting))]
            crop = _crop(pair, size, rng)
            flips = [axis for axis in (0, 1, 2) if rng.random() < 0.5]
            gain, offset = rng.uniform(0.7, 1.0), rng.uniform(-0.15, 0.15)
            for part, clip in zip((sharp, small), crop, strict=True):
                part.append(to_video(clip.flip(flips)) * gain + offset)
            strength.append(pair.strength)
        sharp_batch, small_batch = torch.stack(sharp), torch.stack(small)
        if height == width and rng.random() < 0.5:
            sharp_batch, small_batch = sharp_batch.transpose(-1, -2), small_batch.transpose(-1, -2)
        return Batch(sharp_batch, small_batch, torch.tensor(strength, device=sharp_batch.device))


def _crop(pair: Pair, size: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    scale, (height, width) = pair.scale, size
    start = int(rng.integers(len(pair.sharp) - NUM_FRAMES + 1))
    sides = list(zip(pair.sharp.shape[1:3], size, strict=True))
    places = [[int(rng.integers((full - side) // scale + 1)) for full, side in sides] for _ in range(TRIES)]
    y, x = max(places, key=lambda place: _liveliness(pair, [scale * at for at in place], size))
    span = slice(start, start + NUM_FRAMES)
    small = pair.small[span, y : y + height // scale, x : x + width // scale]
    return pair.sharp[span, scale * y : scale * y + height, scale * x : scale * x + width], small


def _liveliness(pair: Pair, place: Sequence[int], size: tuple[int, int]) -> float:
    rows, columns = (slice(at // GRID, (at + side - 1) // GRID + 1) for at, side in zip(place, size, strict=True))
    return float(pair.activity[rows, columns].mean())


def to_video(clip: Tensor) -> Tensor:
    """`(T, H, W, 3) uint8` -> `(3, T, H, W)` float32 in [-1, 1]."""
    return clip.permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)
