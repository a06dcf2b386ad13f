"""The memory-bound steps of the video VAE.

Each has a twin in plain PyTorch in ``fused_ops.py``, which launches it and documents what it computes. Frames are
channels last. A program reads tiles of ``PIXELS`` x ``C`` values once; statistics are means and squared deviations
of blocks, combined as by Chan, Golub and LeVeque (1979), not differences of large sums. Statistics and arithmetic are
float32; what is stored has the type of its tensor. No instruction is tied to one make of card.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_moments(
    partial, frame, sums, squares, pivot, count, C: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """Into ``partial`` (T, 3, G, blocks): count of values, mean, squared deviations.

    ``sums`` and ``squares`` (C,) are of the deviations of ``count`` pixels from ``pivot`` (C,), which is near them: a
    mean that is large against the deviations does not have to cancel.
    """
    off = sums / count
    channel_mean = tl.reshape(pivot + off, (G, C // G))
    mean = tl.sum(channel_mean, axis=1) / (C // G)
    between = channel_mean - mean[:, None]
    within = tl.reshape(squares - sums * off, (G, C // G))
    spread = tl.sum(within + count * between * between, axis=1)
    group = tl.arange(0, G)
    place = partial + (frame * 3 * G + group) * tl.num_programs(0) + tl.program_id(0)
    tl.store(place, tl.zeros((G,), tl.float32) + count * (C // G))
    tl.store(place + G * tl.num_programs(0), mean)
    tl.store(place + 2 * G * tl.num_programs(0), spread)


@triton.jit
def add_kernel(
    x, bias, residual, out, partial, num_pixels, width, out_frame, out_row,
    C: tl.constexpr, G: tl.constexpr, PIXELS: tl.constexpr, LOOP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_OUT: tl.constexpr,
):  # fmt: skip
    """``out = x + bias + residual`` and its moments. Grid: (blocks of LOOP tiles, frames)."""
    frame = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * LOOP * PIXELS
    channel = tl.arange(0, C)
    start = (frame * num_pixels + first) * C + channel
    pivot = tl.load(x + start).to(tl.float32)
    shift = tl.zeros((C,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + channel).to(tl.float32)
        pivot += shift
    if HAS_RESIDUAL:
        pivot += tl.load(residual + start).to(tl.float32)
    sums = tl.zeros((PIXELS, C), tl.float32)
    squares = tl.zeros((PIXELS, C), tl.float32)
    for i in range(LOOP):
        pixel = first + i * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < num_pixels)[:, None]
        offset = (frame * num_pixels + pixel)[:, None] * C + channel[None, :]
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            value += shift[None, :]
        if HAS_RESIDUAL:
            value += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
        if HAS_OUT:
            place = frame * out_frame + (pixel // width).to(tl.int64) * out_row + (pixel % width) * C
            rounded = value.to(out.dtype.element_ty)
            tl.store(out + place[:, None] + channel[None, :], rounded, mask=inside)
            value = rounded.to(tl.float32)
        off = tl.where(inside, value - pivot[None, :], 0.0)
        sums += off
        squares += off * off
    count = tl.minimum(num_pixels - first, LOOP * PIXELS).to(tl.float32)
    store_moments(partial, frame, tl.sum(sums, axis=0), tl.sum(squares, axis=0), pivot, count, C, G)


@triton.jit
def unfold_kernel(
    grid, bias, out, partial, height, width,
    C: tl.constexpr, G: tl.constexpr, Z: tl.constexpr, PIXELS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Frames of ``out`` (T, 2H, 2W, C) from ``grid`` (T / Z, H+1, W+1, 2, 2, Z, C), and their moments.

    ``bias`` (3, 3, 2, 2, Z, C) holds one row for each kind of grid row and column: first, inner, last.
    """
    frame = tl.program_id(1).to(tl.int64)
    phase, source = frame % Z, frame // Z
    num_pixels = 4 * height * width
    first = tl.program_id(0) * LOOP * PIXELS
    channel = tl.arange(0, C)
    pivot = tl.zeros((C,), tl.float32)
    sums = tl.zeros((PIXELS, C), tl.float32)
    squares = tl.zeros((PIXELS, C), tl.float32)
    for i in range(LOOP):
        pixel = first + i * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < num_pixels)[:, None]
        row, column = pixel // (2 * width), pixel % (2 * width)
        from_row, from_column = (row + 1) // 2, (column + 1) // 2
        part = ((row % 2) * 2 + column % 2) * Z + phase
        place = ((source * (height + 1) + from_row) * (width + 1) + from_column) * (4 * Z) + part
        value = tl.load(grid + place[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        row_kind = tl.where(from_row == 0, 0, tl.where(from_row == height, 2, 1))
        column_kind = tl.where(from_column == 0, 0, tl.where(from_column == width, 2, 1))
        line = (row_kind * 3 + column_kind) * (4 * Z) + part
        value += tl.load(bias + line[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(out.dtype.element_ty)
        offset = (frame * num_pixels + pixel)[:, None] * C + channel[None, :]
        tl.store(out + offset, rounded, mask=inside)
        value = rounded.to(tl.float32)
        if i == 0:
            is_first = (tl.arange(0, PIXELS) == 0)[:, None]
            pivot = tl.sum(tl.where(is_first, value, 0.0), axis=0)
        off = tl.where(inside, value - pivot[None, :], 0.0)
        sums += off
        squares += off * off
    count = tl.minimum(num_pixels - first, LOOP * PIXELS).to(tl.float32)
    store_moments(partial, frame, tl.sum(sums, axis=0), tl.sum(squares, axis=0), pivot, count, C, G)


@triton.jit
def picture_in_kernel(
    x, weight, bias, out, partial, height, width,
    C: tl.constexpr, G: tl.constexpr, PIXELS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """A 3x3x3 convolution of pictures, ``x`` (2 + T, 3, H, W), plus bias, and its moments.

    ``weight`` is (128, C): 27 taps of 3 colours, then zeros. All products of a tile are one matrix product.
    """
    frame = tl.program_id(1).to(tl.int64)
    num_pixels = height * width
    first = tl.program_id(0) * LOOP * PIXELS
    channel = tl.arange(0, C)
    entry = tl.arange(0, 128)
    tap, colour = entry // 3, entry % 3
    back, down, right = tap // 9, tap // 3 % 3 - 1, tap % 3 - 1
    kernel = tl.load(weight + entry[:, None] * C + channel[None, :])
    shift = tl.load(bias + channel).to(tl.float32)
    pivot = shift
    sums = tl.zeros((C,), tl.float32)
    squares = tl.zeros((C,), tl.float32)
    for i in range(LOOP):
        pixel = first + i * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < num_pixels)[:, None]
        row, column = pixel[:, None] // width + down[None, :], pixel[:, None] % width + right[None, :]
        seen = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width) & (tap < 27)[None, :]
        place = (((frame + back) * 3 + colour)[None, :] * height + row) * width + column
        values = tl.load(x + place, mask=seen, other=0.0)
        rounded = (tl.dot(values, kernel, input_precision="ieee") + shift[None, :]).to(out.dtype.element_ty)
        offset = (frame * num_pixels + pixel)[:, None] * C + channel[None, :]
        tl.store(out + offset, rounded, mask=inside)
        off = tl.where(inside, rounded.to(tl.float32) - pivot[None, :], 0.0)
        sums += tl.sum(off, axis=0)
        squares += tl.sum(off * off, axis=0)
    count = tl.minimum(num_pixels - first, LOOP * PIXELS).to(tl.float32)
    store_moments(partial, frame, sums, squares, pivot, count, C, G)


@triton.jit
def picture_out_kernel(x, bias, out, num_frames, height, width, TAPS: tl.constexpr, PIXELS: tl.constexpr):
    """``out`` (3, T, H, W): each colour is the sum of 27 values of ``x`` (2 + T, H, W, TAPS), one from each neighbour.

    The value for a neighbour's tap (t, y, x) and a colour stands at ``(9 t + 3 y + x) * 3 + colour``.
    """
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    num_pixels = height * width
    row, column = pixel // width, pixel % width
    red = tl.zeros((PIXELS,), tl.float32) + tl.load(bias).to(tl.float32)
    green = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + 1).to(tl.float32)
    blue = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + 2).to(tl.float32)
    for tap in tl.static_range(27):
        back, down, right = tap // 9, tap // 3 % 3 - 1, tap % 3 - 1
        from_row, from_column = row + down, column + right
        seen = (pixel < num_pixels) & (from_row >= 0) & (from_row < height)
        seen = seen & (from_column >= 0) & (from_column < width)
        place = x + (((frame + back) * height + from_row) * width + from_column) * TAPS + 3 * tap
        red += tl.load(place, mask=seen, other=0.0).to(tl.float32)
        green += tl.load(place + 1, mask=seen, other=0.0).to(tl.float32)
        blue += tl.load(place + 2, mask=seen, other=0.0).to(tl.float32)
    inside = pixel < num_pixels
    target = out + frame * num_pixels + pixel
    colour = (frame * 0 + num_frames) * num_pixels  # as int64, whether or not num_frames is a constant
    tl.store(target, red.to(out.dtype.element_ty), mask=inside)
    tl.store(target + colour, green.to(out.dtype.element_ty), mask=inside)
    tl.store(target + 2 * colour, blue.to(out.dtype.element_ty), mask=inside)


@triton.jit
def softmax_kernel(scores, out, length, scale, BLOCK: tl.constexpr):
    """``softmax(scale * scores)`` of each row (R, P). Grid: (R,)."""
    row = tl.program_id(0).to(tl.int64) * length
    largest = -float("inf")
    total = 0.0
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(scores + row + place, mask=place < length, other=-float("inf")) * scale
        above = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - above) + tl.sum(tl.exp(value - above), axis=0)
        largest = above
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(scores + row + place, mask=place < length, other=-float("inf")) * scale
        tl.store(out + row + place, (tl.exp(value - largest) / total).to(out.dtype.element_ty), mask=place < length)


@triton.jit
def combine_kernel(partial, moments, num_blocks, G: tl.constexpr, BLOCKS: tl.constexpr):
    """``partial`` (T, 3, G, blocks) -> ``moments`` (T, 2, G): mean and biased variance. Grid: (G, frames)."""
    group, frame = tl.program_id(0), tl.program_id(1)
    counts = partial + (frame * 3 * G + group) * num_blocks
    total = 0.0
    weighted = 0.0
    for start in range(0, num_blocks, BLOCKS):
        place = start + tl.arange(0, BLOCKS)
        inside = place < num_blocks
        count = tl.load(counts + place, mask=inside, other=0.0)
        total += tl.sum(count, axis=0)
        weighted += tl.sum(count * tl.load(counts + G * num_blocks + place, mask=inside, other=0.0), axis=0)
    mean = weighted / total
    spread = 0.0
    for start in range(0, num_blocks, BLOCKS):
        place = start + tl.arange(0, BLOCKS)
        inside = place < num_blocks
        count = tl.load(counts + place, mask=inside, other=0.0)
        off = tl.load(counts + G * num_blocks + place, mask=inside, other=0.0) - mean
        within = tl.load(counts + 2 * G * num_blocks + place, mask=inside, other=0.0)
        spread += tl.sum(within + count * off * off, axis=0)
    tl.store(moments + frame * 2 * G + group, mean)
    tl.store(moments + frame * 2 * G + G + group, spread / total)


@triton.jit
def norm_terms(moments, weight, bias, x_bias, frame, eps, C: tl.constexpr, G: tl.constexpr, HAS_BIAS: tl.constexpr):
    """``factor`` and ``shift``, both (C,): ``norm(x + x_bias)`` of a frame is ``x * factor + shift``."""
    channel = tl.arange(0, C)
    group = channel // (C // G)
    mean = tl.load(moments + frame * 2 * G + group)
    variance = tl.load(moments + frame * 2 * G + G + group)
    factor = tl.load(weight + channel).to(tl.float32) / tl.sqrt(variance + eps)
    if HAS_BIAS:
        mean -= tl.load(x_bias + channel).to(tl.float32)
    return factor, tl.load(bias + channel).to(tl.float32) - mean * factor


@triton.jit
def norm_silu_kernel(
    x, x_bias, moments, weight, bias, out, num_pixels, eps,
    C: tl.constexpr, G: tl.constexpr, PIXELS: tl.constexpr, LOOP: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SILU: tl.constexpr,
):  # fmt: skip
    """``silu(norm(x + x_bias))`` with known moments. Grid: (blocks of LOOP tiles, frames)."""
    block, frame = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, C)
    factor, shift = norm_terms(moments, weight, bias, x_bias, frame, eps, C, G, HAS_BIAS)
    for i in range(LOOP):
        pixel = (block * LOOP + i) * PIXELS + tl.arange(0, PIXELS)
        inside = pixel < num_pixels
        offset = (frame * num_pixels + pixel)[:, None] * C + channel[None, :]
        value = tl.load(x + offset, mask=inside[:, None], other=0.0).to(tl.float32)
        value = value * factor[None, :] + shift[None, :]
        if HAS_SILU:
            value = value / (1.0 + tl.exp(-value))
        tl.store(out + offset, value.to(out.dtype.element_ty), mask=inside[:, None])
