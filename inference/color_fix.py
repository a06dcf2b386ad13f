"""Owns the colour fix: ties the colours of the restored picture to those of the source.

All methods take `content` (restored) and `style` (source resized to the same size), `(T, 3, H, W)` in [-1, 1], work
frame by frame, so a clip may be cut anywhere, and return unclamped float32. Formulas: spec pipeline C.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inference.color.bands import smooth_low, wavelet_low
from inference.color.histogram import match_histogram
from inference.color.spaces import lab_to_rgb, rgb_to_lab
from inference.settings import ColorFix

_LUMINANCE_WEIGHT = 0.8


def color_fix(kind: ColorFix, content: Tensor, style: Tensor) -> Tensor:
    """`content` with the colours of `style` by the method `kind`; `ColorFix.NONE` returns `content` itself."""
    if content.shape != style.shape:
        raise ValueError(f"content {tuple(content.shape)} and style {tuple(style.shape)} must have the same shape")
    if kind is ColorFix.NONE:
        return content
    method = _METHODS[kind]
    fixed = torch.empty_like(content, dtype=torch.float32)
    for index in range(content.shape[0]):
        fixed[index] = method(content[index : index + 1].float(), style[index : index + 1].float())[0]
    return fixed


def balanced(content: Tensor, style: Tensor) -> Tensor:
    """The default: adds the low band of the difference to the source.

    Brightness and colour of any region wider than about 20 pixels become those of the source; noise, blur and blocks
    of the source are narrower and stay out. The decoder's overshoot beyond [-1, 1] is ignored in the difference: it is
    clipped when written, and counting it would darken the surroundings of every highlight.
    """
    return smooth_low(style - content.clamp(-1.0, 1.0)).add_(content)


def wavelet(content: Tensor, style: Tensor) -> Tensor:
    """Spec C1, high(content) + low(style), as content + low(style - content): the blurs are linear, one is saved."""
    return wavelet_low(style - content).add_(content)


def limited_wavelet(content: Tensor, style: Tensor) -> Tensor:
    """Spec C3: `wavelet` with dilations suited to small pictures, clamped to [-1, 1]."""
    return wavelet_low(style - content, limit_dilation=True).add_(content).clamp_(-1.0, 1.0)


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Spec C2: mean and standard deviation of each frame and channel become those of the source."""
    mean, deviation = _statistics(content)
    style_mean, style_deviation = _statistics(style)
    return (content - mean) / deviation * style_deviation + style_mean


def lab(content: Tensor, style: Tensor) -> Tensor:
    """Spec C4: after C3, histograms of a and b become those of the source, and 20 % of that of L. In [-1, 1].

    The histograms are over all frames given, so `color_fix` gives one frame at a time.
    """
    x = rgb_to_lab(to_unit_range(limited_wavelet(content, style)))
    reference = rgb_to_lab(to_unit_range(style))
    matched = torch.stack([match_histogram(x[:, c], reference[:, c]) for c in range(3)], 1)
    matched[:, 0].mul_(1 - _LUMINANCE_WEIGHT).add_(x[:, 0], alpha=_LUMINANCE_WEIGHT)
    return lab_to_rgb(matched).mul_(2.0).sub_(1.0)


def to_unit_range(x: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped (spec C4.1)."""
    return ((x + 1) / 2).clamp_(0.0, 1.0)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=min(1, x.shape[-2] * x.shape[-1] - 1), keepdim=True)
    return mean, (variance + 1e-5).sqrt()


_METHODS: dict[ColorFix, Callable[[Tensor, Tensor], Tensor]] = {
    ColorFix.BALANCED: balanced,
    ColorFix.WAVELET: wavelet,
    ColorFix.ADAIN: adain,
    ColorFix.LAB: lab,
}
