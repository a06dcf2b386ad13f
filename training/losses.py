"""Owns what restoration training minimises, and the measure that it reports.

All videos are `(B, 3, T, H, W)` in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-3
"""Charbonnier's rounding of the absolute difference, in units of the value."""
LUMA = (0.257, 0.504, 0.098)
"""Weights of R, G and B in BT.601 luma of limited range."""


def charbonnier(difference: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + eps^2)."""
    return torch.sqrt(difference.square() + EPSILON**2).mean()


def luma(video: Tensor) -> Tensor:
    """`(B, T, H, W)`, in units in which black to white is 0.859 * 2."""
    red, green, blue = video.unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def pixel_loss(restored: Tensor, sharp: Tensor) -> Tensor:
    """Charbonnier of colour and of luma, and absolute error of the differences in space (edges) and time (flicker)."""
    error = restored - sharp
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return charbonnier(error) + 2.0 * charbonnier(luma(error)) + 0.5 * edges + 0.6 * error.diff(dim=2).abs().mean()


def psnr_y(restored: Tensor, sharp: Tensor) -> Tensor:
    """PSNR of luma in dB, one value a clip `(B,)`, from values that are clamped but not rounded."""
    error = luma(restored.clamp(-1, 1) - sharp) / 2
    return -10 * torch.log10(error.square().mean(dim=(1, 2, 3)) + 1e-10)
