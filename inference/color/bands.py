"""Owns the low bands of pictures `(T, 3, H, W)`: the wavelet ladder of the reference, and a cheaper smooth one."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_LADDER = (1, 2, 4, 8, 16)
_CELL = 16  # pixels of a cell of the coarse grid; the low band then has a standard deviation of about 10 pixels


def wavelet_low(x: Tensor, *, limit_dilation: bool = False) -> Tensor:
    """Spec C1: five 3x3 binomial blurs of dilation 1, 2, 4, 8, 16, borders replicated; linear in `x`.

    `limit_dilation` keeps the dilation below an eighth of the short side (spec C3).
    """
    most = max(1, min(x.shape[-2:]) // 8) if limit_dilation else _LADDER[-1]
    for dilation in _LADDER:
        x = _binomial(x, min(dilation, most))
    return x


def smooth_low(x: Tensor) -> Tensor:
    """Low band through a coarse grid: mean of cells of 16 pixels, then a cubic B-spline surface over their centres.

    Linear in `x`, exact for constants, about a tenth of the cost of `wavelet_low`. A small picture gets smaller cells.
    """
    height, width = x.shape[-2:]
    cell = max(1, min(_CELL, min(height, width) // 8))
    grid = F.avg_pool2d(x, cell, ceil_mode=True, count_include_pad=False)
    rows = _spline(height, grid.shape[-2], cell, x.dtype, x.device)
    columns = _spline(width, grid.shape[-1], cell, x.dtype, x.device)
    return (rows @ grid) @ columns.T


def _binomial(x: Tensor, dilation: int) -> Tensor:
    d = dilation
    padded = F.pad(x, (d, d, d, d), mode="replicate")
    tall = padded[..., d:-d].mul(2.0).add_(padded[..., : -2 * d]).add_(padded[..., 2 * d :])
    wide = tall[..., d:-d, :].mul(2.0).add_(tall[..., : -2 * d, :]).add_(tall[..., 2 * d :, :])
    return wide.mul_(1 / 16)


@lru_cache(maxsize=16)
def _spline(length: int, cells: int, cell: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix `(length, cells)`: cubic B-spline through-smoothing of cell means at each pixel, borders replicated."""
    position = (torch.arange(length, dtype=torch.float64) + 0.5) / cell - 0.5
    base = position.floor()
    u = position - base
    weights = torch.stack(((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3), 1).div_(6)
    index = (base.long()[:, None] + torch.arange(-1, 3)).clamp_(0, cells - 1)
    matrix = torch.zeros(length, cells, dtype=torch.float64).scatter_add_(1, index, weights)
    return matrix.to(device=device, dtype=dtype)
