"""Owns the memory-bound steps of the video VAE on channels-last frames, each in one pass over memory.

On CUDA a step is a Triton kernel (``kernels.py``), where Triton is there, the type is a float of at most 32 bits and
channels and groups are powers of two; else it is plain PyTorch, which is also what the kernels are tested against.
Legend: T frames, H W pixels, C channels, G norm groups. Frames are ``(T, H, W, C)``; moments are ``(T, 2, G)`` float32
(float64 for float64 frames): mean and biased variance of each frame's groups. On meta tensors each step allocates what
it would on CUDA, so that a run of the network on them tells its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

_TILE = 4096
"""Values of one tile; four 16-byte loads for each thread of four warps."""

_LOOP = 16
_COMBINED = 1024
_PICTURE_TILE = 128
_SOFTMAX_BLOCK = 4096
PICTURE_TAPS = 88
"""27 taps of 3 colours, padded to a multiple of 8."""


_switch = {"kernels": True}


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Inside this context no kernel is used, whatever could be: for comparisons and for a card that refuses them."""
    before, _switch["kernels"] = _switch["kernels"], False
    try:
        yield
    finally:
        _switch["kernels"] = before


def use_kernels(is_on: bool) -> None:
    """Whether kernels are used from now on, where they can be: a card that refuses them has plain PyTorch."""
    _switch["kernels"] = is_on


def may_use_kernels() -> bool:
    """Whether kernels are used where they can be."""
    return _switch["kernels"]


def uses_kernels(x: Tensor) -> bool:
    """Whether Triton kernels compute with ``x``, as far as its type and place go."""
    return x.is_cuda and x.dtype is not torch.float64 and _switch["kernels"] and _has_triton()


@cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def add(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, num_groups: int, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``x + bias + residual`` and its moments over ``num_groups``.

    The sum is written into ``out``, frames that may have gaps between rows (a padded picture); without one, over ``x``.
    """
    if out is None:
        out = x
    if x.is_meta:
        return out, _no_moments(x, num_groups)
    if not takes(x, num_groups):
        total = x.to(_wide(x.dtype))
        total = total if bias is None else total + bias
        out.copy_(total if residual is None else total + residual)
        return out, _moments(out, num_groups)
    return out, _launch_add(x, bias, residual, out, num_groups)


def moments(x: Tensor, bias: Tensor | None, num_groups: int) -> Tensor:
    """Moments of ``x + bias``, which is not written anywhere."""
    if x.is_meta:
        return _no_moments(x, num_groups)
    if not takes(x, num_groups):
        wide = x.to(_wide(x.dtype))
        return _moments(wide if bias is None else wide + bias, num_groups)
    return _launch_add(x, bias, None, None, num_groups)


def norm_silu(
    x: Tensor, bias: Tensor | None, moments: Tensor, norm: torch.nn.GroupNorm, out: Tensor, *, silu: bool = True
) -> None:
    """``silu(norm(x + bias))`` into ``out``, frames without gaps; ``moments`` are those of ``x + bias``."""
    if x.is_meta:
        return
    if not takes(x, norm.num_groups):
        mean, variance = moments.repeat_interleave(x.shape[3] // norm.num_groups, dim=2)[:, :, None, None].unbind(1)
        value = x.to(moments.dtype) if bias is None else x.to(moments.dtype) + bias
        value = (value - mean) * (variance + norm.eps).rsqrt() * norm.weight + norm.bias
        out.copy_(F.silu(value) if silu else value)
        return
    from models.kernels import frames as kernels

    channels, pixels = x.shape[3], x.shape[1] * x.shape[2]
    tile = max(1, _TILE // channels)
    grid = (_ceil_div(pixels, tile * _LOOP), len(x))
    kernels.norm_silu_kernel[grid](
        x, x if bias is None else bias, moments, norm.weight, norm.bias, out, pixels, norm.eps,
        C=channels, G=norm.num_groups, PIXELS=tile, LOOP=_LOOP, HAS_BIAS=bias is not None, HAS_SILU=silu, num_warps=4,
    )  # fmt: skip


def unfold(grid: Tensor, bias: Tensor, num_phases: int, num_groups: int, out: Tensor) -> Tensor:
    """Writes the frames (zT, 2H, 2W, C) of a merged upsampler's grid (T, H+1, W+1, 4zC); returns their moments.

    ``bias`` is (3, 3, 4zC), one row for each kind of grid row and column: first, inner, last.
    """
    frames, height, width = grid.shape[0], grid.shape[1] - 1, grid.shape[2] - 1
    channels = grid.shape[3] // (4 * num_phases)
    if out.is_meta:
        return _no_moments(out, num_groups)
    if not takes(out, num_groups):
        rows, columns = _kinds(height + 1, grid.device), _kinds(width + 1, grid.device)
        whole = grid.to(_wide(grid.dtype)) + bias[rows][:, columns]
        phases = whole.unflatten(3, (2, 2, num_phases, channels))
        spread = out.new_empty(frames, num_phases, height, 2, width, 2, channels)
        for x in (0, 1):
            for y in (0, 1):
                spread[:, :, :, x, :, y] = phases[:, x : x + height, y : y + width, x, y].movedim(3, 1)
        out.copy_(spread.flatten(0, 1).flatten(3, 4).flatten(1, 2))
        return _moments(out, num_groups)
    from models.kernels import frames as kernels

    tile = max(1, _TILE // channels)
    blocks = _ceil_div(4 * height * width, tile * _LOOP)
    partial = torch.empty(len(out), 3, num_groups, blocks, dtype=torch.float32, device=grid.device)
    kernels.unfold_kernel[(blocks, len(out))](
        grid, bias, out, partial, height, width,
        C=channels, G=num_groups, Z=num_phases, PIXELS=tile, LOOP=_LOOP, num_warps=4,
    )  # fmt: skip
    return combine(partial)


def picture_in(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """A causal 3x3x3 convolution of pictures, ``x`` (2 + T, 3, H, W), with its bias: (T, H, W, C) and moments.

    ``weight`` is (C, 3, 3, 3, 3).
    """
    channels = len(weight)
    frames, height, width = x.shape[0] - 2, x.shape[2], x.shape[3]
    like = x.new_empty((1, 1, 1, channels))
    if x.is_meta:
        return x.new_empty(frames, height, width, channels), _no_moments(x[2:], num_groups)
    if not takes(like, num_groups) or channels < 16:
        out = F.conv3d(x.transpose(0, 1)[None], weight, None, padding=(0, 1, 1))[0].permute(1, 2, 3, 0)
        return add(out.contiguous(), bias, None, num_groups)
    from models.kernels import frames as kernels

    taps = F.pad(weight.permute(2, 3, 4, 1, 0).reshape(-1, channels), (0, 0, 0, 128 - 27 * 3)).contiguous()
    out = x.new_empty(frames, height, width, channels)
    blocks = _ceil_div(height * width, _PICTURE_TILE * _LOOP)
    partial = torch.empty(frames, 3, num_groups, blocks, dtype=torch.float32, device=x.device)
    kernels.picture_in_kernel[(blocks, frames)](
        x, taps, bias, out, partial, height, width,
        C=channels, G=num_groups, PIXELS=_PICTURE_TILE, LOOP=_LOOP, num_warps=8,
    )  # fmt: skip
    return out, combine(partial)


def picture_out(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A causal 3x3x3 convolution to three colours, ``x`` (2 + T, H, W, C), with its bias: (3, T, H, W).

    ``weight`` is (3, C, 3, 3, 3). For so few outputs a convolution wastes the tensor cores; the products with all 27
    taps are one matrix product instead, and each pixel adds up what its neighbours have for it.
    """
    channels = weight.shape[1]
    if not x.is_meta and not takes(x, 1):
        return F.conv3d(x.permute(3, 0, 1, 2)[None], weight, bias, padding=(0, 1, 1))[0]
    taps = F.pad(weight.permute(2, 3, 4, 0, 1).reshape(-1, channels), (0, 0, 0, PICTURE_TAPS - 81))
    products = F.linear(x, taps)
    frames, height, width = x.shape[0] - 2, x.shape[1], x.shape[2]
    out = x.new_empty(3, frames, height, width)
    if x.is_meta:
        return out
    from models.kernels import frames as kernels

    kernels.picture_out_kernel[(_ceil_div(height * width, 256), frames)](
        products, bias, out, frames, height, width, TAPS=PICTURE_TAPS, PIXELS=256, num_warps=4
    )
    return out


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``softmax(scale * scores)`` over the last axis of (R, P) float32 (or wider), in ``dtype``."""
    if scores.is_meta:
        return torch.empty_like(scores, dtype=dtype)
    if not (uses_kernels(scores) and scores.dtype is torch.float32):
        return (scores * scale).softmax(dim=-1).to(dtype)
    from models.kernels import frames as kernels

    out = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    kernels.softmax_kernel[(len(scores),)](scores, out, scores.shape[1], scale, BLOCK=_SOFTMAX_BLOCK, num_warps=8)
    return out


def _launch_add(x: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None, num_groups: int) -> Tensor:
    from models.kernels import frames as kernels

    frames, height, width, channels = x.shape
    tile = max(1, _TILE // channels)
    blocks = _ceil_div(height * width, tile * _LOOP)
    partial = torch.empty(frames, 3, num_groups, blocks, dtype=torch.float32, device=x.device)
    kernels.add_kernel[(blocks, frames)](
        x, x if bias is None else bias, x if residual is None else residual, x if out is None else out, partial,
        height * width, width, 0 if out is None else out.stride(0), 0 if out is None else out.stride(1),
        C=channels, G=num_groups, PIXELS=tile, LOOP=_LOOP,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, HAS_OUT=out is not None, num_warps=4,
    )  # fmt: skip
    return combine(partial)


def combine(partial: Tensor) -> Tensor:
    """Moments (T, 2, G) of frames from those of their blocks, (T, 3, G, blocks): count, mean, squared deviations."""
    from models.kernels import frames as kernels

    frames, _, num_groups, blocks = partial.shape
    moments = torch.empty(frames, 2, num_groups, dtype=torch.float32, device=partial.device)
    kernels.combine_kernel[(num_groups, frames)](partial, moments, blocks, G=num_groups, BLOCKS=_COMBINED, num_warps=4)
    return moments


def _no_moments(x: Tensor, num_groups: int) -> Tensor:
    """Moments of frames that have no values: memory is planned by running the network on meta tensors."""
    return torch.empty(len(x), 2, num_groups, dtype=torch.float32, device="meta")


def _moments(x: Tensor, num_groups: int) -> Tensor:
    groups = x.to(_wide(x.dtype)).unflatten(3, (num_groups, -1))
    variance, mean = torch.var_mean(groups, dim=(1, 2, 4), correction=0)
    return torch.stack([mean, variance], dim=1)


def takes(x: Tensor, num_groups: int) -> bool:
    """Whether the kernels compute this."""
    channels = x.shape[3]
    fits = channels & (channels - 1) == 0 and num_groups & (num_groups - 1) == 0 and channels <= _TILE
    return fits and uses_kernels(x)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _kinds(length: int, device: torch.device) -> Tensor:
    """First, inner, last of a row of positions."""
    kinds = torch.ones(length, dtype=torch.long, device=device)
    kinds[0] = 0
    kinds[-1] = 2
    return kinds


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
