"""Attention windows of the transformer: how a grid of patch tokens is cut into boxes. Pure Python.

A grid is `(t, h, w)` in patch tokens. Windows are the product of three axis partitions, so everything that
depends on the place inside a window (the rotary positions above all) follows from the partitions alone.
Source of the formulas: specification of the transformer, section 7.
"""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import TypeAlias

Size3: TypeAlias = tuple[int, int, int]
Interval: TypeAlias = tuple[int, int]
Partition: TypeAlias = tuple[Interval, ...]

MAX_WINDOW_FRAMES = 30
"""A window never spans more than a quarter (for count 4) of this many latent frames."""

TOKENS_720P = 45 * 80
"""Spatial window sizes are fractions of a grid with this many tokens and the aspect of the actual one."""


def window_size(grid: Size3, counts: Size3) -> Size3:
    """Tokens per window along t, h, w. `counts` divides a 720p-equivalent grid of the same aspect."""
    frames, height, width = grid
    scale = math.sqrt(TOKENS_720P / (height * width))
    count_t, count_h, count_w = counts
    return (
        math.ceil(min(frames, MAX_WINDOW_FRAMES) / count_t),
        max(math.ceil(round(height * scale) / count_h), 1),
        max(math.ceil(round(width * scale) / count_w), 1),
    )


def partition_axis(length: int, size: int, *, shifted: bool) -> Partition:
    """Half-open intervals that cover `range(length)`; a shifted partition starts with half a window."""
    if size >= length:
        return ((0, length),)
    if shifted:
        inner = range(1, length // size + 2)
        cuts = [0, *(min((2 * i - 1) * size // 2, length) for i in inner), length]
    else:
        cuts = [*range(0, length, size), length]
    ordered = sorted(set(cuts))
    return tuple(pairwise(ordered))


def partition_grid(grid: Size3, counts: Size3, *, shifted: bool) -> tuple[Partition, Partition, Partition]:
    """The partitions of the three axes t, h, w."""
    size_t, size_h, size_w = window_size(grid, counts)
    frames, height, width = grid
    return (
        partition_axis(frames, size_t, shifted=shifted),
        partition_axis(height, size_h, shifted=shifted),
        partition_axis(width, size_w, shifted=shifted),
    )


def plan_windows(grid: Size3, counts: Size3, *, shifted: bool) -> list[tuple[Interval, Interval, Interval]]:
    """All windows as (t, h, w) intervals, w outermost and t innermost (the order of the published networks)."""
    axis_t, axis_h, axis_w = partition_grid(grid, counts, shifted=shifted)
    return [(t, h, w) for w, h, t in product(axis_w, axis_h, axis_t)]
