"""Owns minimal filtering in time, F(2, 3): two frames of a 3-tap convolution from four products in place of six.

With taps g0, g1, g2 and frames a, b, c, d, the two results are ``m0 + m1 + m2`` and ``m1 - m2 - m3`` of the products

    m0 = g0 (a - c)    m1 = (g0 + g1 + g2) / 2 (b + c)    m2 = (g0 - g1 + g2) / 2 (c - b)    m3 = g2 (b - d)

(Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308), where each product is a convolution over space. The norm before
it writes what the products are made of, and the sum after it adds bias and residual and takes moments, so it costs one
write more. On CUDA these are Triton kernels (``kernels/pairs.py``) where those of ``fused_ops.py`` are.
Legend: T frames, P pairs, H W pixels, C channels, G norm groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import fused_ops
from models.fused_ops import add, combine, norm_silu

_TILE = 2048
"""Values of one tile: half of those of steps that have one frame at a time in registers."""

_LOOP = 16


@dataclass(frozen=True, slots=True)
class Pairs:
    """Normed frames of a slice, as pairs.

    factors: four tensors (P, H, W, C), what the products are made of. head (1, H, W, C): a clip's first frame, which no
    pair has. tail (2 or 3, H, W, C): the last two frames of the last pair, and the one after them if there is one.
    """

    factors: list[Tensor]
    head: Tensor | None
    tail: Tensor


def pair_taps(weight: Tensor) -> list[Tensor]:
    """The taps of the four products, (C', C, kh, kw) each, of a weight (C', C, 3, kh, kw)."""
    first, second, third = weight.detach().double().unbind(2)
    taps = (first, (first + second + third) / 2, (first - second + third) / 2, third)
    return [tap.to(weight.dtype).contiguous(memory_format=torch.channels_last) for tap in taps]


def num_pairs(num_frames: int, *, starts_clip: bool) -> int:
    """Pairs in a slice of so many frames: a clip's first frame is none of them."""
    return (num_frames - starts_clip) // 2


def norm_silu_pairs(
    x: Tensor, bias: Tensor | None, moments: Tensor, norm: nn.GroupNorm, history: Tensor | None
) -> Pairs:
    """``silu(norm(x + bias))`` of ``x`` (T, H, W, C) as pairs; ``moments`` are those of ``x + bias``.

    ``history`` (2, H, W, C) are the two normed frames before, whose memory the new ones may take; without one, ``x``
    starts a clip, and its first frame is its own past.
    """
    starts_clip, frame = history is None, x.shape[1:]
    count = num_pairs(len(x), starts_clip=starts_clip)
    rest = (len(x) - starts_clip) % 2
    if not x.is_meta and not fused_ops.takes(x, norm.num_groups):
        return _split_plainly(x, bias, moments, norm, history, count)
    factors = [x.new_empty(count, *frame) for _ in range(4)]
    head = x.new_empty(1, *frame) if starts_clip else None
    # The thread that writes a pixel's new history has read its old one: both are accessed by the same layout.
    tail = x.new_empty(2 + rest, *frame) if history is None or rest else history
    if not x.is_meta:
        from models.kernels import pairs as kernels

        pixels, channels = frame[0] * frame[1], frame[2]
        tile = max(1, _TILE // channels)
        kernels.norm_silu_pairs_kernel[(-(-pixels // tile),)](
            x, x if bias is None else bias, moments, norm.weight, norm.bias, x if history is None else history,
            *factors, x if head is None else head, tail, pixels, count, norm.eps,
            C=channels, G=norm.num_groups, PIXELS=tile, HAS_BIAS=bias is not None, HAS_HISTORY=history is not None,
            HAS_REST=rest == 1, num_warps=4,
        )  # fmt: skip
    return Pairs(factors, head, tail)


def join_pairs(
    products: Sequence[Tensor], bias: Tensor, residual: Tensor | None, num_groups: int, out: Tensor
) -> Tensor:
    """Writes the frames (2P, H, W, C) of four ``products`` (P, H, W, C), plus bias and residual; returns their moments.

    ``out`` may have gaps between rows; ``residual`` has none.
    """
    first, second, third, fourth = products
    if not first.is_meta and not fused_ops.takes(first, num_groups):
        wide = [product.to(torch.promote_types(product.dtype, torch.float32)) for product in products]
        pairs = torch.stack([wide[0] + wide[1] + wide[2], wide[1] - wide[2] - wide[3]], dim=1)
        return add(pairs.flatten(0, 1), bias, residual, num_groups, out)[1]
    count, height, width, channels = first.shape
    if first.is_meta:
        return torch.empty(2 * count, 2, num_groups, dtype=torch.float32, device=first.device)
    from models.kernels import pairs as kernels

    tile = max(1, _TILE // channels)
    blocks = -(-height * width // (tile * _LOOP))
    partial = torch.empty(2 * count, 3, num_groups, blocks, dtype=torch.float32, device=first.device)
    kernels.join_pairs_kernel[(blocks, count)](
        *products, bias, first if residual is None else residual, out, partial, height * width, width,
        out.stride(0), out.stride(1),
        C=channels, G=num_groups, PIXELS=tile, LOOP=_LOOP, HAS_RESIDUAL=residual is not None, num_warps=4,
    )  # fmt: skip
    return combine(partial)


def _split_plainly(
    x: Tensor, bias: Tensor | None, moments: Tensor, norm: nn.GroupNorm, history: Tensor | None, count: int
) -> Pairs:
    normed = torch.empty_like(x)
    norm_silu(x, bias, moments, norm, normed)
    head = normed[:1] if history is None else None
    frames = torch.cat([normed[:1], normed] if history is None else [history, normed])
    a, b, c, d = (frames[start : start + 2 * count : 2] for start in range(4))
    return Pairs([a - c, b + c, c - b, b - d], head, frames[2 * count :].clone())
