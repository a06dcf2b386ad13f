"""Convolutions of channels-last frames as one matrix product, with what comes after them done on the way out.

One program makes all output channels of neighbouring pixels of a row; the taps and channels of the input are its inner
dimension. Tensor descriptors fetch the taps (on Hopper the hardware does, and gives zeros beyond the picture's edges),
so no column matrix and no padded copy is made. Accumulation is float32. ``conv_ops.py`` launches this.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def conv_kernel(
    x, weight, bias, residual, out, partial, height, width, out_frame, out_row,
    C: tl.constexpr, N: tl.constexpr, G: tl.constexpr, KT: tl.constexpr, PIXELS: tl.constexpr, BLOCK_C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A KT x 3 x 3 convolution plus bias and residual, and its moments. Grid: (tiles of PIXELS of a row, frames).

    ``x`` describes (KT - 1 + T, H, W, C) in blocks (1, 1, PIXELS, BLOCK_C), ``weight`` (KT 9 C, N) in blocks
    (BLOCK_C, N). ``out`` (T, H, W, N) has strides ``out_frame`` and ``out_row``, ``residual`` has no gaps.
    """
    tile, frame = tl.program_id(0), tl.program_id(1)
    across = tl.cdiv(width, PIXELS)
    row, left = tile // across, tile % across * PIXELS

    total = tl.zeros((PIXELS, N), tl.float32)
    for step in tl.range(0, KT * 9 * (C // BLOCK_C), num_stages=STAGES):
        tap = step // (C // BLOCK_C)
        channel = step % (C // BLOCK_C) * BLOCK_C
        seen = x.load([frame + tap // 9, row + tap // 3 % 3 - 1, left + tap % 3 - 1, channel])
        taps = weight.load([step * BLOCK_C, 0])
        total = tl.dot(tl.reshape(seen, (PIXELS, BLOCK_C)), taps, total, input_precision="ieee")

    line = tl.arange(0, N)
    column = left + tl.arange(0, PIXELS)
    inside = (column < width)[:, None]
    total += tl.load(bias + line).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        place = ((frame.to(tl.int64) * height + row) * width + column) * N
        total += tl.load(residual + place[:, None] + line[None, :], mask=inside, other=0.0).to(tl.float32)
    rounded = total.to(out.dtype.element_ty)
    place = frame.to(tl.int64) * out_frame + row.to(tl.int64) * out_row + column * N
    tl.store(out + place[:, None] + line[None, :], rounded, mask=inside)

    # Mean and squared deviations of this block's groups, combined later as those of ``frames.py`` are.
    SIZE: tl.constexpr = N // G
    value = tl.where(inside, rounded.to(tl.float32), 0.0)
    count = tl.minimum(width - left, PIXELS).to(tl.float32) * SIZE
    mean = tl.sum(tl.reshape(tl.sum(value, axis=0), (G, SIZE)), axis=1) / count
    means = tl.reshape(tl.broadcast_to(mean[:, None], (G, SIZE)), (N,))
    off = tl.where(inside, value - means[None, :], 0.0)
    spread = tl.sum(tl.reshape(tl.sum(off * off, axis=0), (G, SIZE)), axis=1)
    entry = partial + (frame * 3 * G + tl.arange(0, G)) * tl.num_programs(0) + tile
    tl.store(entry, tl.zeros((G,), tl.float32) + count)
    tl.store(entry + G * tl.num_programs(0), mean)
    tl.store(entry + 2 * G * tl.num_programs(0), spread)
