"""Owns the memory-bound steps of the transformer on packed tokens, each in one pass over memory.

On CUDA a step is a Triton kernel (``kernels/tokens.py``), where Triton is there and no gradient is wanted; else it is
plain PyTorch, with the roundings of the published network, which is also what the kernels are tested against. A kernel
rounds once where the plain form rounds after every operation. On meta tensors each step allocates what it would on
CUDA. Legend: L packed tokens, R rows in window order, C channels, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fused_ops import uses_kernels
from models.rope import rotate

EPS = 1e-5
_ELEMENTS = 4096
_ROWS = 16


@dataclass(frozen=True, slots=True)
class ProjectedTokens:
    """Queries, keys and values of one stream, ``qkv`` (L, 3 N D), and the weights (D,) of their norms."""

    qkv: Tensor
    norm_q: Tensor
    norm_k: Tensor


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + 1e-5) * weight`` over the last axis; statistics in float32, dtype of ``x`` kept."""
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def norm_scale_shift(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """``rms_norm(x) * factor + offset``; (L, C), and one row for all tokens or one for each."""
    if not (is_one_step(x) and len(factor) == 1):
        return scale_shift(rms_norm(x), factor, offset)
    x, out = x.contiguous(), torch.empty_like(x)
    if x.is_meta:
        return out
    from models.kernels import tokens

    block = 1 << (x.shape[1] - 1).bit_length()
    tokens.norm_scale_shift_kernel[(len(x),)](x, factor, offset, out, x.shape[1], EPS, BLOCK=block, num_warps=8)
    return out


def scale_shift(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """``x * factor + offset``."""
    if x.dtype is torch.float32:
        # Two roundings, like the published network: with a fused one, queries and keys that lie on a tie round to the
        # other bfloat16 value before attention, and whole rows of the result then differ.
        return (x * factor).add_(offset)
    return torch.addcmul(offset, x, factor)


def gate_add(x: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    """``residual + gate * x``; (L, C), and one row for all tokens or one for each."""
    if not (is_one_step(x) and len(gate) == 1):
        return torch.addcmul(residual, x, gate)
    x, residual, out = x.contiguous(), residual.contiguous(), torch.empty_like(x)
    if x.is_meta:
        return out
    from models.kernels import tokens

    block = 1 << (x.shape[1] - 1).bit_length()
    tokens.gate_add_kernel[(len(x),)](x, gate, residual, out, x.shape[1], BLOCK=block, num_warps=8)
    return out


def silu_mul(gate: Tensor, x: Tensor) -> Tensor:
    """``silu(gate) * x``."""
    if not is_one_step(x):
        return F.silu(gate) * x
    gate, x, out = gate.contiguous(), x.contiguous(), torch.empty_like(x)
    if x.is_meta:
        return out
    from models.kernels import tokens

    blocks = -(-x.numel() // _ELEMENTS)
    tokens.silu_mul_kernel[(blocks,)](gate, x, out, x.numel(), BLOCK=_ELEMENTS, num_warps=8)
    return out


def window_qkv(
    streams: Sequence[ProjectedTokens], rotation: Tensor, rows: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated queries and keys, and values, each (R, N, D), for the ``rows`` (R,) of one or two streams.

    Rows count through the streams one after the other; ``rotation`` is (L, D // 2) complex for all of them.
    """
    first, second = streams[0], streams[-1]
    dim = first.norm_q.shape[0]
    if not (is_one_step(first.qkv) and dim & (dim - 1) == 0):
        whole = _all_qkv(streams, rotation, num_heads)
        q, k, v = (part.index_select(0, rows) for part in whole)
        return q, k, v
    q, k, v = (first.qkv.new_empty(len(rows), num_heads, dim) for _ in range(3))
    if first.qkv.is_meta:
        return q, k, v
    from models.kernels import tokens

    tokens.window_qkv_kernel[(-(-len(rows) // _ROWS), num_heads)](
        first.qkv.contiguous(), second.qkv.contiguous(), first.norm_q, first.norm_k, second.norm_q, second.norm_k,
        torch.view_as_real(rotation), rows, q, k, v, len(rows),
        len(first.qkv) if len(streams) == 2 else sum(len(stream.qkv) for stream in streams), EPS,
        N=num_heads, D=dim, ROWS=_ROWS, num_warps=4,
    )  # fmt: skip
    return q, k, v


def _all_qkv(streams: Sequence[ProjectedTokens], rotation: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """As ``window_qkv``, for all rows in their own order."""
    queries, keys, values = [], [], []
    for stream, table in zip(streams, rotation.split([len(stream.qkv) for stream in streams]), strict=True):
        q, k, v = stream.qkv.unflatten(-1, (3, num_heads, -1)).unbind(1)
        queries.append(rotate(rms_norm(q, stream.norm_q), table).to(v.dtype))
        keys.append(rotate(rms_norm(k, stream.norm_k), table).to(v.dtype))
        values.append(v)
    if len(streams) == 1:
        return queries[0], keys[0], values[0]
    return torch.cat(queries), torch.cat(keys), torch.cat(values)


def is_one_step(x: Tensor) -> bool:
    """Whether a step over ``x`` is one kernel, or stands for one."""
    return x.is_meta or takes_kernels(x)


def takes_kernels(x: Tensor) -> bool:
    """Whether the kernels compute with ``x``."""
    return uses_kernels(x) and not torch.is_grad_enabled()
