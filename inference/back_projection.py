"""Owns fidelity to the source: back-projection, and the estimates that say how far the source is to be believed.

Back-projection makes an enlarged picture agree with its source when it is scaled back down. Source: M. Irani and
S. Peleg, "Improving resolution by image registration", CVGIP 53 (1991). A noisy or blurred source is believed less:
agreeing with it would bring back what the network has just removed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.sizes import Size
from inference.transforms import resize_bicubic

if TYPE_CHECKING:
    import numpy as np

DEFAULT_ITERATIONS = 2
TRUSTED_NOISE = 0.02  # sigma (1 = white) at which the source is believed half as much as a clean one
HALF_LEVEL = 1 / 255
"""Half a step of an 8-bit source in [-1, 1]: a disagreement that rounding alone can make is none, and is not added."""
BLURRED_SLOPE = 0.3
"""Share of a source's finest detail that the network has to add to it until the source counts as blurred."""
LEAST_TRUST = 0.2
"""What is left of the strength for a source that is blurred all over."""
_BLOCK = 16
_QUIET_SHARE = 0.2
# Mean of |second difference in x and y| of unit white noise is 6 sqrt(2 / pi) (Immerkaer 1996). The quiet fifth of the
# blocks lies a little below the mean; the factor makes the estimate unbiased for pure noise.
_SIGMA_PER_RESPONSE = math.sqrt(math.pi / 2) / 6 * 1.08
_LUMA = (0.299, 0.587, 0.114)
_CLIPPED_SHARE = 0.1


def back_projection(content: Tensor, source: Tensor, strength: float, iterations: int = DEFAULT_ITERATIONS) -> Tensor:
    """`content (T, 3, H, W)` + strength * up(`source (T, 3, h, w)` - down(content)), `iterations` times; in [-1, 1].

    What is added is smaller by `HALF_LEVEL` than the difference, and nothing where that is larger.
    Both ways are antialiased bicubic. With strength 1 one iteration removes nearly all of the disagreement below the
    finest detail of the source, and leaves what the source cannot show untouched. Unless both sides are enlarged there
    is nothing that the source knows less about, and `content` is returned as it is. Not clamped.
    """
    if content.shape[:2] != source.shape[:2]:
        raise ValueError(f"content {tuple(content.shape)} and source {tuple(source.shape)} must be the same frames")
    large, small = _size(content), _size(source)
    if strength <= 0 or large.width <= small.width or large.height <= small.height:
        return content
    projected = torch.empty_like(content)
    for index in range(content.shape[0]):
        frame, wanted = content[index : index + 1], source[index : index + 1]
        for _ in range(iterations):
            missing = F.softshrink(wanted - resize_bicubic(frame, small), HALF_LEVEL)
            frame = torch.add(frame, resize_bicubic(missing, large), alpha=strength)
        projected[index] = frame[0]
    return projected


@dataclass(slots=True)
class SourceTrust:
    """The strength of back-projection for the frames of one shot, in their order.

    The noise is measured once (`of`); how much the network sharpened is averaged over all frames so far, so that the
    strength settles within a few frames and does not depend on how the shot is sliced. limit: the strength for a source
    that is not blurred. detail_back, detail: sums over the frames so far, see `_detail_taken_back`.
    """

    limit: float = 0.0
    detail_back: float = 0.0
    detail: float = 0.0

    @classmethod
    def of(cls, frames: Tensor | np.ndarray[Any, Any], fidelity: float) -> SourceTrust:
        """At the start of a shot, from the noise of its first frames `(T, h, w, 3) uint8`."""
        return cls(strength_for(estimate_noise(frames), fidelity) if fidelity > 0 else 0.0)

    def strength(self, content: Tensor, source: Tensor) -> float:
        """For the next frame: restored `content (1, 3, H, W)` beside its `source (1, 3, h, w)`, both in [-1, 1]."""
        if self.limit <= 0:
            return 0.0
        back, detail = _detail_taken_back(content, source)
        self.detail_back += back
        self.detail += detail
        slope = self.detail_back / self.detail if self.detail > 0 else 0.0
        return self.limit * min(1.0, max(LEAST_TRUST, 1.0 + slope / BLURRED_SLOPE))


def _detail_taken_back(content: Tensor, source: Tensor) -> tuple[float, float]:
    """Products of finest details, summed: of what back-projection would add with the source, and of the source alone.

    Their quotient is the slope of a regression. It is negative where the network sharpened what the source shows, which
    it does for a blurred source, and positive where the network lost detail or removed noise.
    """
    missing = source - resize_bicubic(content, _size(source))
    detail, lost = _finest_detail(source), _finest_detail(missing)
    return float((detail * lost).sum()), float(detail.square().sum())


def _finest_detail(pictures: Tensor) -> Tensor:
    """Luma `(1, 1, h, w)` less its mean under the binomial 3x3 window."""
    luma = (pictures * torch.tensor(_LUMA, device=pictures.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    taps = torch.tensor([0.25, 0.5, 0.25], device=pictures.device)
    window = (taps[:, None] * taps)[None, None]
    return luma - F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), window)


def strength_for(noise_sigma: float, fidelity: float) -> float:
    """Strength of back-projection: `fidelity` * s^2 / (s^2 + noise_sigma^2) with s = TRUSTED_NOISE.

    The share that a Wiener estimate gives to an observation with noise `noise_sigma` beside a prediction whose own
    error is s: all of `fidelity` (0..1) for a clean source, half at sigma 0.02 (5 of 255 levels), a tenth at 0.06.
    """
    return fidelity * TRUSTED_NOISE**2 / (TRUSTED_NOISE**2 + noise_sigma**2)


def estimate_noise(frames: Tensor | np.ndarray[Any, Any]) -> float:
    """Standard deviation of the luma noise of frames `(T, h, w, 3) uint8`, where 1 is white.

    The second difference in both axes cancels smooth content (J. Immerkaer, "Fast noise variance estimation", CVIU 64
    (1996)). It is averaged in blocks of 16 pixels. The quietest fifth of them counts, so texture is not taken for
    noise; blocks with more than a tenth of black or white pixels, where clipping hides noise, count only if there are
    no others. Noise with grains wider than a pixel is underestimated.
    """
    pixels = torch.as_tensor(frames)
    height, width = pixels.shape[1:3]
    if min(height, width) < 3:
        return 0.0
    return sum(_frame_noise(frame) for frame in pixels) / len(pixels)


def _frame_noise(frame: Tensor) -> float:
    luma = (frame.float() @ torch.tensor(_LUMA, device=frame.device)).div_(255.0)
    across = luma[:, 2:] - 2 * luma[:, 1:-1] + luma[:, :-2]
    response = (across[2:] - 2 * across[1:-1] + across[:-2]).abs_()
    block = min(_BLOCK, *response.shape)
    clipped = F.avg_pool2d(((luma - 0.5).abs() > 0.5 - 1 / 255).float()[1:-1, 1:-1][None, None], block).flatten()
    responses = F.avg_pool2d(response[None, None], block).flatten()
    readable = responses[clipped <= _CLIPPED_SHARE]
    return _SIGMA_PER_RESPONSE * float((readable if len(readable) else responses).quantile(_QUIET_SHARE))


def _size(pictures: Tensor) -> Size:
    return Size(pictures.shape[-1], pictures.shape[-2])
