"""Owns 3x3 convolutions that add bias and residual and take the moments of the result on their way out.

They save passes over memory, and cuDNN has no good kernel for few output channels, so they are the faster form there:
`is_faster` says where. On CUDA they are a Triton kernel (``kernels/convolutions.py``); the plain twin here is what the
kernel is tested against. Legend: T frames, H W pixels, C channels, N output channels, G norm groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fused_ops import add, combine, uses_kernels


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut: `pixels` of a row for one program, `depth` input channels in one step."""

    pixels: int
    depth: int
    stages: int
    warps: int


_HOPPER = 9
_ON_HOPPER = Tiling(pixels=256, depth=64, stages=4, warps=8)
_ELSEWHERE = Tiling(pixels=128, depth=32, stages=2, warps=8)
"""Small enough for the shared memory of every card, for float32 too."""

_OUTPUTS = 128
"""With fewer a program would do too little with what it fetches; with more, cuDNN is faster."""

PICTURE_CHANNELS = 16
"""What three colours are padded to: the least that the tensor cores take at once."""

_MOST_WASTE = 0.1
"""Share of the pixels of all tiles that may lie beyond the picture's right edge."""


_switch = {"on": True, "meta": False}


class Taps:
    """The weight (N, C, kt, 3, 3) of a convolution, as the kernel reads it: (kt 9 C, N)."""

    def __init__(self, weight: Tensor) -> None:
        self.depth = weight.shape[2]
        self.matrix = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[0]).contiguous()

    @property
    def weight(self) -> Tensor:
        """(N, C, kt, 3, 3), as convolutions of PyTorch take it."""
        return self.matrix.unflatten(0, (self.depth, 3, 3, -1)).permute(4, 3, 0, 1, 2)


def tiling(capability: int, dtype: torch.dtype) -> Tiling:
    """That of a card of this major `capability`."""
    return _ON_HOPPER if capability == _HOPPER and dtype.itemsize == 2 else _ELSEWHERE


def use_own(is_on: bool) -> None:
    """Whether `is_faster` may choose `convolve` from now on: a compiler that gets it wrong has cuDNN."""
    _switch["on"] = is_on


def may_use_own() -> bool:
    """Whether `is_faster` may choose `convolve`."""
    return _switch["on"]


@contextmanager
def planned_for(is_card: bool) -> Iterator[None]:
    """Inside this context tensors without values stand for those of a card for which `is_for` holds, or does not."""
    before, _switch["meta"] = _switch["meta"], is_card
    try:
        yield
    finally:
        _switch["meta"] = before


def is_for(like: Tensor) -> bool:
    """Whether `convolve` is the form for some convolutions of tensors like this one.

    That it is faster is measured on Hopper only (`benchmarks/results`); elsewhere it is correct, and nobody knows more.
    """
    is_half = like.dtype in (torch.bfloat16, torch.float16)
    if like.is_meta:
        return is_half and _switch["meta"]
    is_possible = _switch["on"] and is_half and uses_kernels(like)
    return is_possible and torch.cuda.get_device_capability(like.device)[0] == _HOPPER


def is_faster(weight: Tensor, width: int) -> bool:
    """Whether `convolve` with `weight` (N, C, kt, 3, 3) is faster than cuDNN and the passes after it."""
    if not is_for(weight):
        return False
    outputs, channels = weight.shape[:2]
    whole = _ceil_div(width, _ON_HOPPER.pixels) * _ON_HOPPER.pixels
    takes = outputs == _OUTPUTS and (channels % _ON_HOPPER.depth == 0 or channels == PICTURE_CHANNELS)
    return takes and whole - width <= _MOST_WASTE * whole


def convolve(
    x: Tensor, taps: Taps, bias: Tensor, residual: Tensor | None, num_groups: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A convolution of ``x`` (kt - 1 + T, H, W, C), padded with zeros at the edges of the picture: (T, H, W, N).

    Bias (N,) and ``residual`` (T, H, W, N) are added to it; returns that and its moments (T, 2, G) as `fused_ops.add`.
    The sum is written into ``out``, frames that may have gaps between rows, if there is one.
    """
    frames, (_, height, width, channels) = len(x) - taps.depth + 1, x.shape
    outputs = taps.matrix.shape[1]
    if out is None:
        out = x.new_empty(frames, height, width, outputs)
    if not (x.is_meta or uses_kernels(x)):
        result = F.conv3d(x.permute(3, 0, 1, 2)[None], taps.weight, None, padding=(0, 1, 1))[0].permute(1, 2, 3, 0)
        return add(result.contiguous(), bias, residual, num_groups, out)
    if x.is_meta:
        return out, torch.empty(frames, 2, num_groups, dtype=torch.float32, device=x.device)
    from triton.tools.tensor_descriptor import TensorDescriptor

    from models.kernels.convolutions import conv_kernel

    cut = tiling(torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 0, x.dtype)
    tiles, depth = height * _ceil_div(width, cut.pixels), min(cut.depth, channels)
    partial = torch.empty(frames, 3, num_groups, tiles, dtype=torch.float32, device=x.device)
    conv_kernel[(tiles, frames)](
        TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, cut.pixels, depth]),
        TensorDescriptor(taps.matrix, list(taps.matrix.shape), [outputs, 1], [depth, outputs]),
        bias, x if residual is None else residual, out, partial, height, width, out.stride(0), out.stride(1),
        C=channels, N=outputs, G=num_groups, KT=taps.depth, PIXELS=cut.pixels, BLOCK_C=depth,
        HAS_RESIDUAL=residual is not None, STAGES=cut.stages, num_warps=cut.warps,
    )  # fmt: skip
    return out, combine(partial)


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
