"""Owns what computes in 8 bits: rows in e4m3 with a scale for each, the steps that make them, and their product.

A row is divided by its scale, so that its largest value is 448, the largest of e4m3; for activations that is done
whenever they are computed, by the step that computes them anyway, so that it costs no pass over memory. On CUDA a step
is a Triton kernel (``kernels/fp8.py``) where ``token_ops`` uses kernels; else it is plain PyTorch, which is also what
the kernels are tested against. Legend: L rows, K channels in, N channels out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models import token_ops

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
SMALLEST_ROW = 1e-12
"""A row whose largest value is less than this has the scale of this one: zeros stay zeros."""

MULTIPLE = 16
"""K and N of a product are multiples of this: its rows are read 16 bytes at a time."""

FAST_ACCUM = True
"""Sums stay in the tensor cores, which on Hopper keep about 14 bits of them, and are not moved to float32 every 128
channels. Beside the 3 bits that e4m3 keeps of each factor, what it loses does not show; what it gains is the speed."""

_WIDE_ROW = 8192


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """``values`` (L, K) e4m3 times ``scales`` (L, 1) float32."""

    values: Tensor
    scales: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def dequantize(self) -> Tensor:
        """(L, K) float32."""
        return self.values.float() * self.scales


def quantize_rows(x: Tensor, rows: Tensor | None = None) -> Fp8Rows:
    """``x`` (L', K), or its ``rows`` (L,)."""
    out = _empty(x, len(x) if rows is None else len(rows))
    _quantize_into(out, x, rows)
    return out


def quantize_joined(x: Tensor, rows: Tensor, tail: Tensor) -> Fp8Rows:
    """The ``rows`` of ``x`` (L', K), then all of ``tail``."""
    out, count = _empty(x, len(rows) + len(tail)), len(rows)
    _quantize_into(Fp8Rows(out.values[:count], out.scales[:count]), x, rows)
    _quantize_into(Fp8Rows(out.values[count:], out.scales[count:]), tail, None)
    return out


def norm_scale_shift(x: Tensor, factor: Tensor, offset: Tensor) -> Fp8Rows:
    """``token_ops.norm_scale_shift`` as rows in 8 bits."""
    if not (token_ops.is_one_step(x) and len(factor) == 1):
        return quantize_rows(token_ops.norm_scale_shift(x, factor, offset))
    x, out = x.contiguous(), _empty(x, len(x))
    if not x.is_meta:
        from models.kernels import fp8

        fp8.norm_scale_shift_fp8_kernel[(len(x),)](
            x, factor, offset, out.values, out.scales, x.shape[1], token_ops.EPS, **_block(x)
        )
    return out


def silu_mul(gate: Tensor, x: Tensor) -> Fp8Rows:
    """``silu(gate) * x`` as rows in 8 bits."""
    if not token_ops.is_one_step(x):
        return quantize_rows(token_ops.silu_mul(gate, x))
    gate, x, out = gate.contiguous(), x.contiguous(), _empty(x, len(x))
    if not x.is_meta:
        from models.kernels import fp8

        fp8.silu_mul_fp8_kernel[(len(x),)](gate, x, out.values, out.scales, x.shape[1], **_block(x))
    return out


def gelu(x: Tensor) -> Fp8Rows:
    """The tanh form of GELU as rows in 8 bits."""
    if not token_ops.is_one_step(x):
        return quantize_rows(F.gelu(x, approximate="tanh"))
    x, out = x.contiguous(), _empty(x, len(x))
    if not x.is_meta:
        from models.kernels import fp8

        fp8.gelu_fp8_kernel[(len(x),)](x, out.values, out.scales, x.shape[1], **_block(x))
    return out


def product(x: Fp8Rows, weight: Fp8Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x W^T + bias`` (L, N) in ``dtype``, for a ``weight`` of N rows. On CUDA ``dtype`` is bfloat16."""
    if x.values.is_meta:
        return x.values.new_empty(len(x), len(weight), dtype=dtype)
    if not x.values.is_cuda:
        total = F.linear(x.values.float(), weight.values.float()) * x.scales * weight.scales.t()
        return (total if bias is None else total + bias).to(dtype)
    result: Tensor = torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scales, scale_b=weight.scales.t(), bias=bias, out_dtype=dtype,
        use_fast_accum=FAST_ACCUM,
    )  # fmt: skip
    return result


def _quantize_into(out: Fp8Rows, x: Tensor, rows: Tensor | None) -> None:
    if x.is_meta:
        return
    if not token_ops.takes_kernels(x):
        wide = (x if rows is None else x.index_select(0, rows)).float()
        largest = wide.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_ROW)
        out.scales.copy_(largest / LARGEST)
        out.values.copy_((wide * (LARGEST / largest)).to(E4M3))
        return
    from models.kernels import fp8

    x = x.contiguous()
    fp8.quantize_rows_kernel[(len(out),)](
        x, x if rows is None else rows, out.values, out.scales, x.shape[1], HAS_ROWS=rows is not None, **_block(x)
    )


def _empty(like: Tensor, count: int) -> Fp8Rows:
    values = torch.empty(count, like.shape[1], dtype=E4M3, device=like.device)
    return Fp8Rows(values, torch.empty(count, 1, dtype=torch.float32, device=like.device))


def _block(x: Tensor) -> dict[str, int]:
    """How a kernel holds a row: at most 32 values of it in a thread."""
    block = 1 << (x.shape[1] - 1).bit_length()
    return {"BLOCK": block, "num_warps": 8 if block <= _WIDE_ROW else 16}
