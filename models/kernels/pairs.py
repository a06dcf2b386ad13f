"""What goes into and comes out of convolutions by minimal filtering in time, pair of frames after pair of frames.

Each has a twin in plain PyTorch in ``pair_ops.py``, which launches it and documents what it computes. Frames are
channels last; arithmetic is float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.kernels.frames import norm_terms, store_moments


@triton.jit
def _normed(
    x, x_bias, moments, weight, bias, frame, offset, inside, num_pixels, eps,
    C: tl.constexpr, G: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """``silu(norm(x + x_bias))`` of pixels of one frame, rounded to the type of ``x``, as float32."""
    factor, shift = norm_terms(moments, weight, bias, x_bias, frame, eps, C, G, HAS_BIAS)
    value = tl.load(x + frame.to(tl.int64) * num_pixels * C + offset, mask=inside, other=0.0).to(tl.float32)
    value = value * factor[None, :] + shift[None, :]
    value = value / (1.0 + tl.exp(-value))
    return value.to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def norm_silu_pairs_kernel(
    x, x_bias, moments, weight, bias, history, first, second, third, fourth, head, tail, num_pixels, num_pairs, eps,
    C: tl.constexpr, G: tl.constexpr, PIXELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_HISTORY: tl.constexpr, HAS_REST: tl.constexpr,
):  # fmt: skip
    """Norm and SiLU of all frames, and what the four products of each pair of frames are made of. Grid: (tiles,)."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel < num_pixels)[:, None]
    offset = pixel.to(tl.int64)[:, None] * C + tl.arange(0, C)[None, :]
    size = num_pixels.to(tl.int64) * C
    kind = x.dtype.element_ty
    frame = tl.program_id(0) * 0
    if HAS_HISTORY:
        a = tl.load(history + offset, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(history + size + offset, mask=inside, other=0.0).to(tl.float32)
    else:
        a = _normed(x, x_bias, moments, weight, bias, frame, offset, inside, num_pixels, eps, C, G, HAS_BIAS)
        b = a
        tl.store(head + offset, a.to(kind), mask=inside)
        frame += 1
    for pair in range(num_pairs):
        c = _normed(x, x_bias, moments, weight, bias, frame, offset, inside, num_pixels, eps, C, G, HAS_BIAS)
        d = _normed(x, x_bias, moments, weight, bias, frame + 1, offset, inside, num_pixels, eps, C, G, HAS_BIAS)
        place = pair * size + offset
        tl.store(first + place, (a - c).to(kind), mask=inside)
        tl.store(second + place, (b + c).to(kind), mask=inside)
        tl.store(third + place, (c - b).to(kind), mask=inside)
        tl.store(fourth + place, (b - d).to(kind), mask=inside)
        a = c
        b = d
        frame += 2
    tl.store(tail + offset, a.to(kind), mask=inside)
    tl.store(tail + size + offset, b.to(kind), mask=inside)
    if HAS_REST:
        a = _normed(x, x_bias, moments, weight, bias, frame, offset, inside, num_pixels, eps, C, G, HAS_BIAS)
        tl.store(tail + 2 * size + offset, a.to(kind), mask=inside)


@triton.jit
def join_pairs_kernel(
    first, second, third, fourth, bias, residual, out, partial, num_pixels, width, out_frame, out_row,
    C: tl.constexpr, G: tl.constexpr, PIXELS: tl.constexpr, LOOP: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Frames from the four products of each pair, plus bias and residual, and their moments. Grid: (blocks, pairs)."""
    pair = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * LOOP * PIXELS
    channel = tl.arange(0, C)
    shift = tl.load(bias + channel).to(tl.float32)
    kind = out.dtype.element_ty
    is_first = (tl.arange(0, PIXELS) == 0)[:, None]
    pivot = shift
    other_pivot = shift
    sums = tl.zeros((PIXELS, C), tl.float32)
    squares = tl.zeros((PIXELS, C), tl.float32)
    other_sums = tl.zeros((PIXELS, C), tl.float32)
    other_squares = tl.zeros((PIXELS, C), tl.float32)
    for i in range(LOOP):
        pixel = start + i * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < num_pixels)[:, None]
        offset = (pair * num_pixels + pixel)[:, None] * C + channel[None, :]
        middle = tl.load(second + offset, mask=inside, other=0.0).to(tl.float32)
        side = tl.load(third + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(first + offset, mask=inside, other=0.0).to(tl.float32) + middle + side + shift[None, :]
        other = middle - side - tl.load(fourth + offset, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
        if HAS_RESIDUAL:
            same = (2 * pair * num_pixels + pixel)[:, None] * C + channel[None, :]
            value += tl.load(residual + same, mask=inside, other=0.0).to(tl.float32)
            other += tl.load(residual + num_pixels.to(tl.int64) * C + same, mask=inside, other=0.0).to(tl.float32)
        place = 2 * pair * out_frame + (pixel // width).to(tl.int64) * out_row + (pixel % width) * C
        place = place[:, None] + channel[None, :]
        tl.store(out + place, value.to(kind), mask=inside)
        tl.store(out + out_frame + place, other.to(kind), mask=inside)
        value = value.to(kind).to(tl.float32)
        other = other.to(kind).to(tl.float32)
        if i == 0:
            pivot = tl.sum(tl.where(is_first, value, 0.0), axis=0)
            other_pivot = tl.sum(tl.where(is_first, other, 0.0), axis=0)
        off = tl.where(inside, value - pivot[None, :], 0.0)
        sums += off
        squares += off * off
        off = tl.where(inside, other - other_pivot[None, :], 0.0)
        other_sums += off
        other_squares += off * off
    count = tl.minimum(num_pixels - start, LOOP * PIXELS).to(tl.float32)
    store_moments(partial, 2 * pair, tl.sum(sums, axis=0), tl.sum(squares, axis=0), pivot, count, C, G)
    other_sum, other_square = tl.sum(other_sums, axis=0), tl.sum(other_squares, axis=0)
    store_moments(partial, 2 * pair + 1, other_sum, other_square, other_pivot, count, C, G)
