"""Owns transparency: enlarges an alpha channel with the restored picture as its guide (spec pipeline D8).

A gradient alpha is enlarged and guided-filtered (K. He et al., "Guided image filtering", 2010). A binary mask is then
sharpened near edges of the picture and made hard elsewhere. All in float32, each frame by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.sizes import Size
from inference.transforms import resize_bicubic, to_unit

_EPSILON = 0.002
_RADIUS_BINARY, _RADIUS_GRADIENT = 2, 3
_LUMA_WEIGHTS = (9798, 19235, 3735)  # 0.299, 0.587, 0.114 in 1/32768: 8-bit luma in whole numbers
_LUMA_SHIFT = 15


def refine_alpha(alpha: Tensor, restored: Tensor, *, zero_border: bool = False) -> Tensor:
    """Alpha `(T, 1, h, w)` in [0, 1] and restored pictures `(T', 3, H, W)` in [-1, 1] -> `(T, 1, H, W)` in [0, 1].

    Frames that were only added as padding at the end of `restored` are dropped; fewer frames than in `alpha` are an
    error. The pictures are known to be in [-1, 1], so they are always mapped to [0, 1], not only if one is negative.
    `zero_border` counts zeros outside the picture, as the port does, which makes an opaque picture transparent along
    its border; without it, means are over the part of the box inside the picture.
    """
    if restored.shape[0] < alpha.shape[0]:
        raise ValueError(f"{alpha.shape[0]} frames of alpha need as many pictures, got {restored.shape[0]}")
    picture = to_unit(restored[: alpha.shape[0]].float())
    binary = is_binary(alpha)
    enlarged = resize_bicubic(alpha.float(), Size(picture.shape[-1], picture.shape[-2])).clamp_(0.0, 1.0)
    radius = _RADIUS_BINARY if binary else _RADIUS_GRADIENT
    filtered = guided_filter(enlarged, picture.mean(1, keepdim=True), radius, zero_border=zero_border)
    return _harden(filtered, picture_edges(picture)) if binary else filtered.clamp_(0.0, 1.0)


def is_binary(alpha: Tensor) -> bool:
    """True if more than 95 % of the values are below 0.1 or above 0.9."""
    return float(((alpha < 0.1) | (alpha > 0.9)).float().mean()) > 0.95


def guided_filter(x: Tensor, guide: Tensor, radius: int, *, zero_border: bool = False) -> Tensor:
    """`x` `(T, 1, H, W)` as a local linear function of `guide`, fitted in boxes of 2 radius + 1 pixels a side."""

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 2 * radius + 1, stride=1, padding=radius, count_include_pad=zero_border)

    mean_guide, mean_x = mean(guide), mean(x)
    covariance = mean(guide * x) - mean_guide * mean_x
    variance = mean(guide * guide) - mean_guide * mean_guide
    slope = covariance / (variance + _EPSILON)
    offset = mean_x - slope * mean_guide
    return mean(slope) * guide + mean(offset)


def picture_edges(picture: Tensor) -> Tensor:
    """Sobel magnitude of the 8-bit luma of `(T, 3, H, W)` in [0, 1], `(T, 1, H, W)`, scaled to 1 in every frame.

    In steps of 1/255, truncated, as the reference stores it. A flat frame has no edges.
    """
    levels = (picture * 255).clamp(0, 255).to(torch.uint8).to(torch.int32)
    red, green, blue = (levels[:, c : c + 1] * weight for c, weight in enumerate(_LUMA_WEIGHTS))
    luma = (red + green + blue + (1 << (_LUMA_SHIFT - 1))) >> _LUMA_SHIFT
    padded = F.pad(luma.double(), (1, 1, 1, 1), mode="reflect" if min(luma.shape[-2:]) > 1 else "replicate")
    smooth_rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth_columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    magnitude = torch.hypot(
        smooth_rows[..., 2:] - smooth_rows[..., :-2], smooth_columns[..., 2:, :] - smooth_columns[..., :-2, :]
    )
    largest = magnitude.amax((-3, -2, -1), keepdim=True).clamp_(min=1e-12)
    return (magnitude * 255 / largest).to(torch.uint8).float().div_(255.0)


def _harden(filtered: Tensor, edges: Tensor) -> Tensor:
    near_edge = F.max_pool2d(edges, 3, stride=1, padding=1)
    steep = torch.sigmoid(12 * (filtered - 0.5))
    share = (edges / 0.25).clamp_(0.0, 1.0)
    mixed = filtered * (1 - share) + steep * share
    hard = torch.where(near_edge < 0.05, (filtered > 0.5).float(), mixed)
    hard = torch.where(near_edge < 0.03, (hard > 0.5).float(), hard)
    undecided = (hard > 0.3) & (hard < 0.7) & ~(edges > 0.15)
    return torch.where(undecided, (hard > 0.5).float(), hard).clamp_(0.0, 1.0)
