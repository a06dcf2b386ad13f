"""Owns the formulas of the ComfyUI port that the product replaces (spec pipeline C5, C6, D): for the parity command.

Batches with cross-faded pixels gave way to one streamed VAE pass per shot with latents shared between windows; HSV and
adaptive wavelet colours gave way to simpler ones. They are kept here so that stored port results can still be checked
as far as they rest on code that the product does use: resize, mirror rules, wavelet, histogram matching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.color.histogram import match_histogram
from inference.color_fix import adain, lab, limited_wavelet, to_unit_range
from inference.sizes import Size, even_size, shortest_edge_sizes
from inference.temporal import batch_spans, mirror_after, mirror_before, mirror_to_4n1
from inference.transforms import crop, resize_bicubic

_HUE_BINS = 12
_ENOUGH_MEMBERS = 100


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """Spec C5: `(T, 3, H, W)` in [0, 1] -> hue, saturation, value in [0, 1]."""
    red, green, blue = rgb.unbind(1)
    value, least = rgb.amax(1), rgb.amin(1)
    delta = value - least
    safe = torch.where(delta > 1e-10, delta, 1.0)
    hue = torch.zeros_like(value)
    hue = torch.where(red == value, torch.remainder((green - blue) / safe, 6), hue)
    hue = torch.where(green == value, (blue - red) / safe + 2, hue)
    hue = torch.where(blue == value, (red - green) / safe + 4, hue)
    hue = torch.where(delta > 1e-10, hue, 0.0) / 6
    saturation = torch.where(value > 1e-10, delta / value.clamp(min=1e-10), 0.0)
    return torch.stack((hue, saturation, value), 1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Spec C5, back: `(T, 3, H, W)` -> RGB clamped to [0, 1]."""
    hue, s, v = hsv.unbind(1)
    h = hue * 6
    sector = torch.floor(h)
    f = h - sector
    p, q, t = v * (1 - s), v * (1 - s * f), v * (1 - s * (1 - f))
    choices = torch.stack(
        [torch.stack(c, 1) for c in ((v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q))]
    )
    index = torch.remainder(sector, 6).long()[:, None].expand(-1, 3, -1, -1)
    return choices.gather(0, index[None])[0].clamp(0.0, 1.0)


def hsv(content: Tensor, style: Tensor) -> Tensor:
    """Spec C5: saturation matched to the source within each of 12 hue bins, over all frames given. In [-1, 1]."""
    x, reference = rgb_to_hsv(to_unit_range(content)), rgb_to_hsv(to_unit_range(style))
    saturation = x[:, 1].clone()
    for k in range(_HUE_BINS):
        members, others = _members(x[:, 0], k), _members(reference[:, 0], k)
        if members.sum() > _ENOUGH_MEMBERS and others.sum() > _ENOUGH_MEMBERS:
            saturation[members] = match_histogram(x[:, 1][members], reference[:, 1][others])
    return hsv_to_rgb(torch.stack((x[:, 0], saturation, x[:, 2]), 1)) * 2 - 1


def adaptive_wavelet(content: Tensor, style: Tensor) -> Tensor:
    """Spec C6: the limited wavelet, giving way to `hsv` where it would leave the picture too saturated."""
    waved, matched = limited_wavelet(content, style), hsv(content, style)
    wanted = _saturation(style)
    share = torch.sigmoid(5 * (_saturation(content) - wanted - 0.15))
    share = torch.where(_saturation(waved) - wanted <= 0.075, 0.0, share)
    return waved * (1 - share) + matched * share


COLORS = {"wavelet": limited_wavelet, "adain": adain, "lab": lab, "hsv": hsv, "wavelet_adaptive": adaptive_wavelet}


def fade_weights(overlap: int) -> Tensor:
    """Spec D5: weight of the old frames, `(overlap,)`."""
    if overlap < 3:
        return torch.tensor([1.0, 0.0][:overlap])
    u = (3 * torch.arange(overlap, dtype=torch.float32) / (overlap - 1) - 1).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(math.pi * u)


def fade(old: Tensor, new: Tensor) -> Tensor:
    """Spec D5: cross-fade of as many frames `(v, ...)` of two batches."""
    weight = fade_weights(len(old)).view(-1, *[1] * (old.ndim - 1))
    return old * weight + new * (1 - weight)


def resize_by_side(x: Tensor, shortest: int, max_edge: int) -> Tensor:
    """Spec D1: `(T, C, h, w)` resized once, or twice when the long edge is limited; not clamped."""
    source = Size(x.shape[-1], x.shape[-2])
    for size in shortest_edge_sizes(source, shortest, max_edge):
        x = resize_bicubic(x, size)
    return x


@dataclass(frozen=True, slots=True)
class BatchRun:
    """Result of `run_batches`: pictures in [0, 1], which of them are cross-faded, and the plan that was followed."""

    pictures: Tensor  # (T, 3, H, W)
    uncolored: Tensor  # (T, 3, H, W) in [-1, 1], before the colour fix: the guide of alpha
    faded: list[bool]
    written: list[list[int]]  # [start, stop, batch, original length], counting prepended frames
    encoded_frames: list[int]


def run_batches(
    unit: Tensor, shortest: int, batch: int, overlap: int, *, prepend: int = 0, uniform: bool = False, color: str = ""
) -> BatchRun:
    """Spec D1-D6 on `unit` `(T, 3, h, w)` in [0, 1], around a codec whose k-th decode gives 0.9 x + 0.05 k."""
    source = unit[mirror_before(len(unit), prepend)]
    resized = resize_by_side(source, shortest, 0).clamp(0.0, 1.0) * 2 - 1
    style = crop(resized, even_size(Size(resized.shape[-1], resized.shape[-2])))
    overlap = 0 if overlap >= batch else overlap
    done, faded = style[:0], list[bool]()
    written, encoded, colors = list[list[int]](), list[int](), list[Tensor]()
    for k, (start, stop) in enumerate(batch_spans(len(style), batch, overlap)):
        length = stop - start
        extended = max(length, batch) if uniform else length
        indices = mirror_after(length, extended - length)
        indices = [indices[i] for i in mirror_to_4n1(extended)]
        decoded = (style[start:stop][indices] * 0.9 + 0.05 * (k + 1))[:length]
        shared = overlap if k > 0 and overlap < length and len(done) >= overlap else 0
        if shared:
            done = torch.cat((done[:-shared], fade(done[-shared:], decoded[:shared])))
            faded[-shared:] = [True] * shared
        written.append([len(done), len(done) + length - shared, k, length])
        encoded.append(len(indices))
        colors.append(style[start + shared : stop])
        done, faded = torch.cat((done, decoded[shared:])), [*faded, *[False] * (length - shared)]
    uncolored = done
    if color:
        parts = [COLORS[color](done[w[0] : w[1]], s) for w, s in zip(written, colors, strict=True)]
        done = torch.cat(parts)
    cut = prepend if prepend < len(done) else 0
    return BatchRun(to_unit_range(done)[cut:], uncolored[cut:], faded[cut:], written, encoded)


def _members(hue: Tensor, k: int) -> Tensor:
    members = (hue >= k / _HUE_BINS) & (hue < (k + 1) / _HUE_BINS)
    return members | (hue >= (_HUE_BINS - 1) / _HUE_BINS) if k == 0 else members


def _saturation(x: Tensor) -> Tensor:
    return rgb_to_hsv(to_unit_range(x))[:, 1:2]
