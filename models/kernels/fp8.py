"""Steps of the transformer whose result is rows in e4m3 with a scale for each: the input of a product in 8 bits.

Each reads its input once: a program holds a whole row, so that the largest value is known before anything is written.
Each has a twin in plain PyTorch in ``fp8_ops.py``, which launches it. Arithmetic is float32. Capability 8.9 or newer.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quantize_rows_kernel(x, rows, out, scales, width, HAS_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Row ``rows[i]`` of ``x``, or row i. Grid: (L,)."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    source = tl.load(rows + row).to(tl.int64) if HAS_ROWS else row
    value = tl.load(x + source * width + channel, mask=inside, other=0.0).to(tl.float32)
    _store(value, out, scales, row, width, channel, inside)


@triton.jit
def norm_scale_shift_fp8_kernel(x, factor, offset, out, scales, width, eps, BLOCK: tl.constexpr):
    """``rms_norm(x) * factor + offset`` of one row. Grid: (L,)."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    value = tl.load(x + row * width + channel, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    scale = tl.load(factor + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    _store(value * scale + shift, out, scales, row, width, channel, inside)


@triton.jit
def silu_mul_fp8_kernel(gate, x, out, scales, width, BLOCK: tl.constexpr):
    """``silu(gate) * x`` of one row. Grid: (L,)."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    switch = tl.load(gate + row * width + channel, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + row * width + channel, mask=inside, other=0.0).to(tl.float32)
    _store(switch / (1.0 + tl.exp(-switch)) * value, out, scales, row, width, channel, inside)


@triton.jit
def gelu_fp8_kernel(x, out, scales, width, BLOCK: tl.constexpr):
    """The tanh form of GELU, ``x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))``, of one row. Grid: (L,)."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    value = tl.load(x + row * width + channel, mask=inside, other=0.0).to(tl.float32)
    turn = 1.5957691216057308 * value * (1.0 + 0.044715 * value * value)
    _store(value / (1.0 + tl.exp(-turn)), out, scales, row, width, channel, inside)


@triton.jit
def _store(value, out, scales, row, width, channel, inside):
    """Writes a row and its scale: the largest value becomes 448, the largest of e4m3. ``value`` is 0 outside."""
    largest = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12)
    tl.store(scales + row, largest / 448.0)
    tl.store(out + row * width + channel, (value * (448.0 / largest)).to(out.dtype.element_ty), mask=inside)
