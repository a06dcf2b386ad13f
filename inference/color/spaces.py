"""Owns sRGB <-> CIE Lab (D65), from the formulas of spec pipeline C4. RGB in [0, 1], channels in dimension 1."""

from __future__ import annotations

import torch
from torch import Tensor

_XYZ_FROM_RGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_RGB_FROM_XYZ = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
_WHITE = (0.95047, 1.0, 1.08883)
_EPSILON = 6 / 29
_KAPPA = (29 / 3) ** 3


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """`(T, 3, H, W)` sRGB in [0, 1] -> Lab: L in 0..100, a and b about -128..127."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp_(min=0).pow(2.4), rgb / 12.92)
    t = _mix(linear, _XYZ_FROM_RGB) / _column(_WHITE, rgb)
    f = torch.where(t > _EPSILON**3, t.clamp(min=0).pow(1 / 3), (_KAPPA * t + 16) / 116)
    f_x, f_y, f_z = f.unbind(1)
    return torch.stack((116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)), 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """`(T, 3, H, W)` Lab -> sRGB, clamped to [0, 1]."""
    lightness, a, b = lab.unbind(1)
    f_y = (lightness + 16) / 116
    f = torch.stack((a / 500 + f_y, f_y, f_y - b / 200), 1)
    t = torch.where(f > _EPSILON, f**3, (116 * f - 16) / _KAPPA)
    linear = _mix(t * _column(_WHITE, lab), _RGB_FROM_XYZ)
    encoded = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0).pow(1 / 2.4) - 0.055, 12.92 * linear)
    return encoded.clamp_(0.0, 1.0)


def _mix(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.stack([sum(w * c for w, c in zip(row, x.unbind(1), strict=True)) for row in matrix], 1)  # type: ignore[misc]


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
