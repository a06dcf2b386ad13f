"""The memory-bound steps of the transformer on packed tokens (L, C).

Each has a twin in plain PyTorch in ``token_ops.py``, which launches it. Arithmetic is float32; what is stored has the
type of its tensor.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_scale_shift_kernel(x, factor, offset, out, width, eps, BLOCK: tl.constexpr):
    """``rms_norm(x) * factor + offset`` of one row. Grid: (L,)."""
    row = tl.program_id(0).to(tl.int64) * width
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    value = tl.load(x + row + channel, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    scale = tl.load(factor + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + channel, (value * scale + shift).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_add_kernel(x, gate, residual, out, width, BLOCK: tl.constexpr):
    """``residual + gate * x`` of one row. Grid: (L,)."""
    row = tl.program_id(0).to(tl.int64) * width
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    value = tl.load(x + row + channel, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(gate + channel, mask=inside, other=0.0).to(tl.float32)
    rest = tl.load(residual + row + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + channel, (rest + scale * value).to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(gate, x, out, count, BLOCK: tl.constexpr):
    """``silu(gate) * x``, element by element."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    switch = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (switch / (1.0 + tl.exp(-switch)) * value).to(out.dtype.element_ty), mask=inside)


@triton.jit
def window_qkv_kernel(
    first, second, first_q, first_k, second_q, second_k, rotation, rows, q, k, v, num_rows, num_first, eps,
    N: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Normed and rotated queries and keys, and values, each (R, N, D), of the source rows that ``rows`` (R,) names.

    Sources are ``first`` (num_first, 3, N, D), then ``second``, each with norms of its own. ``rotation`` holds a cosine
    and a sine for each pair of channels, (sources, D / 2, 2). Grid: (blocks of ROWS rows, N).
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    channel = tl.arange(0, D)
    inside = row < num_rows
    source = tl.load(rows + row, mask=inside, other=0)
    is_first = source < num_first
    place = tl.where(is_first, source, source - num_first) * (3 * N * D) + head * D
    from_first, from_second = (inside & is_first)[:, None], (inside & (source >= num_first))[:, None]
    turn = tl.load(rotation + source[:, None] * D + channel[None, :], mask=inside[:, None], other=0.0)
    cosine, sine = tl.split(tl.reshape(turn, (ROWS, D // 2, 2)))
    target = (row.to(tl.int64) * N + head)[:, None] * D + channel[None, :]
    for which in tl.static_range(3):
        offset = (place + which * N * D)[:, None] + channel[None, :]
        value = tl.load(first + offset, mask=from_first, other=0.0).to(tl.float32)
        value += tl.load(second + offset, mask=from_second, other=0.0).to(tl.float32)
        if which < 2:
            if which == 0:
                weight, other_weight = tl.load(first_q + channel), tl.load(second_q + channel)
            else:
                weight, other_weight = tl.load(first_k + channel), tl.load(second_k + channel)
            scale = tl.where(is_first[:, None], weight.to(tl.float32)[None, :], other_weight.to(tl.float32)[None, :])
            value *= tl.rsqrt(tl.sum(value * value, axis=1) / D + eps)[:, None] * scale
            even, odd = tl.split(tl.reshape(value, (ROWS, D // 2, 2)))
            value = tl.reshape(tl.join(even * cosine - odd * sine, even * sine + odd * cosine), (ROWS, D))
        if which == 0:
            tl.store(q + target, value.to(q.dtype.element_ty), mask=inside[:, None])
        elif which == 1:
            tl.store(k + target, value.to(k.dtype.element_ty), mask=inside[:, None])
        else:
            tl.store(v + target, value.to(v.dtype.element_ty), mask=inside[:, None])
