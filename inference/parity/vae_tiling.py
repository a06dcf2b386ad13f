"""The published port's approximate spatial tiling of the VAE, for comparison with its stored results only.

The product never tiles in space: norms and attention would see tiles instead of frames, so the picture would change.
Sizes are (height, width) in pixels (specification of the VAE, section 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 8
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis, in latents: [start, end) of ``length``."""

    start: int
    end: int
    length: int


def plan_spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles along an axis of ``length`` latents; ``tile`` and ``overlap`` in pixels."""
    size = max(1, tile // FACTOR)
    shared = max(0, min(overlap // FACTOR, size - 1))
    spans = [Span(start, min(start + size, length), length) for start in range(0, length, max(1, size - shared))]
    return [span for span in spans if span.start == 0 or span.end - span.start > shared]


def ramp_weights(span: Span, scale: int, ramp_length: int) -> Tensor:
    """Blend weights of a tile on its output grid, ``scale`` values per latent."""
    length = (span.end - span.start) * scale
    steps = torch.arange(ramp_length, dtype=torch.float64) / max(ramp_length - 1, 1)
    ramp = (0.5 - 0.5 * torch.cos(math.pi * steps))[: max(0, min(ramp_length, length - 1))]
    weights = torch.ones(length, dtype=torch.float64)
    if span.start > 0:
        weights[: len(ramp)] = ramp
    if span.end < span.length and len(ramp):
        weights[-len(ramp) :] = 1 - ramp
    return weights


def tiled_encode(run: Callable[[Tensor], Tensor], video: Tensor, tile: Size, overlap: Size) -> Tensor:
    """Moments of ``video`` (B, 3, T, H, W) from ``run`` on tiles of it."""
    height, width = video.shape[3:]
    if height <= tile[0] and width <= tile[1]:
        return run(video)
    grid = (math.ceil(height / FACTOR), math.ceil(width / FACTOR))
    shared = tuple(max(0, min(o // FACTOR, max(1, t // FACTOR) - 1)) for o, t in zip(overlap, tile, strict=True))

    def tiles() -> Iterator[tuple[Span, Span, Tensor]]:
        for y in plan_spans(grid[0], tile[0], overlap[0]):
            for x in plan_spans(grid[1], tile[1], overlap[1]):
                rows, columns = slice(FACTOR * y.start, FACTOR * y.end), slice(FACTOR * x.start, FACTOR * x.end)
                yield y, x, run(video[..., rows, columns])

    return _blend(tiles(), grid, 1, (shared[0], shared[1]))


def tiled_decode(run: Callable[[Tensor], Tensor], latent: Tensor, tile: Size, overlap: Size) -> Tensor:
    """Video of ``latent`` (B, C, t, h, w) from ``run`` on tiles of it."""
    height, width = latent.shape[3:]
    if height <= max(1, tile[0] // FACTOR) and width <= max(1, tile[1] // FACTOR):
        return run(latent)

    def tiles() -> Iterator[tuple[Span, Span, Tensor]]:
        for y in plan_spans(height, tile[0], overlap[0]):
            for x in plan_spans(width, tile[1], overlap[1]):
                yield y, x, run(latent[..., y.start : y.end, x.start : x.end])

    return _blend(tiles(), (height, width), FACTOR, overlap)


def _blend(tiles: Iterator[tuple[Span, Span, Tensor]], grid: Size, scale: int, ramp_length: Size) -> Tensor:
    total, weight_sum = None, None
    for y, x, out in tiles:
        if total is None or weight_sum is None:
            total = out.new_zeros(*out.shape[:3], grid[0] * scale, grid[1] * scale)
            weight_sum = total.new_zeros(total.shape[3:])
        weights = torch.outer(ramp_weights(y, scale, ramp_length[0]), ramp_weights(x, scale, ramp_length[1])).to(out)
        rows, columns = slice(y.start * scale, y.end * scale), slice(x.start * scale, x.end * scale)
        total[..., rows, columns] += weights * out
        weight_sum[rows, columns] += weights
    assert total is not None
    assert weight_sum is not None
    return total / weight_sum.clamp(min=1e-6)
