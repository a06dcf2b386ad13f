"""Owns the degradation: from a sharp clip to the small, blurred, noisy, compressed clip that the model is given.

Clips are `(T, H, W, 3) uint8` RGB. What is drawn is drawn once for a clip, so that it is consistent in time; only noise
differs from frame to frame. The order of the steps is random too, as for real material that went through many hands.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Clip = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """One draw. Sigmas of blur are in pixels of the sharp clip, of noise in 0..1; qualities are the codecs' own."""

    scale: int
    kernel: str = "bicubic"
    blur: float = 0.0
    noise: float = 0.0
    jpeg_quality: int | None = None
    h264_crf: int | None = None
    h264_preset: str = "veryfast"
    order: tuple[str, ...] = ("blur", "resize", "noise", "jpeg", "h264")

    @property
    def is_clean(self) -> bool:
        """Whether the clip lost nothing but its size."""
        return not (self.blur or self.noise or self.jpeg_quality or self.h264_crf)


def draw(scale: int, rng: np.random.Generator) -> Degradation:
    """A random degradation; one in three is a plain reduction in size, as of a clean small clip."""
    if rng.random() < 0.33:
        return Degradation(scale=scale, kernel=str(rng.choice(["bicubic", "bicubic", "bicubic", "area"])))
    order = ["blur", "resize", "noise"]
    if rng.random() < 0.3:
        rng.shuffle(order)
    return Degradation(
        scale=scale,
        kernel=str(rng.choice(["bicubic", "area", "bilinear"], p=[0.6, 0.2, 0.2])),
        blur=float(rng.uniform(0.2, 0.9) * scale) if rng.random() < 0.7 else 0.0,
        noise=float(rng.uniform(0.0, 0.02)) if rng.random() < 0.6 else 0.0,
        jpeg_quality=int(rng.integers(60, 95)) if rng.random() < 0.15 else None,
        h264_crf=int(rng.integers(17, 30)) if rng.random() < 0.7 else None,
        h264_preset=str(rng.choice(["veryfast", "medium"])),
        order=(*order, "jpeg", "h264"),
    )


def degrade(clip: Clip, degradation: Degradation, seed: int) -> Clip:
    """The degraded clip `(T, H // scale, W // scale, 3)`; H and W must be multiples of twice the scale (for 4:2:0).

    Raises ValueError for other sizes.
    """
    _, height, width, _ = clip.shape
    if height % (2 * degradation.scale) or width % (2 * degradation.scale):
        raise ValueError(f"{width}x{height} is not a multiple of {2 * degradation.scale}")
    size = (height // degradation.scale, width // degradation.scale)
    generator = torch.Generator().manual_seed(seed)
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        "blur": lambda x: _blur(x, degradation.blur),
        "resize": lambda x: _resize(x, size, degradation.kernel),
        "noise": lambda x: (
            x + degradation.noise * torch.randn(x.shape, generator=generator) if degradation.noise else x
        ),
        "jpeg": lambda x: _through(x, _jpeg, degradation.jpeg_quality),
        "h264": lambda x: _through(x, partial(_h264, preset=degradation.h264_preset), degradation.h264_crf),
    }
    pictures = to_unit(clip)
    for name in degradation.order:
        pictures = steps[name](pictures)
    return to_uint8(pictures)


def to_unit(clip: Clip) -> Tensor:
    """`(T, H, W, 3) uint8` -> `(T, 3, H, W)` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float().div_(255.0)


def to_uint8(pictures: Tensor) -> Clip:
    """`(T, 3, H, W)` in [0, 1] -> `(T, H, W, 3) uint8`, clamped and rounded."""
    return pictures.clamp(0, 1).mul(255.0).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _blur(x: Tensor, sigma: float) -> Tensor:
    if sigma <= 0:
        return x
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float32) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=3)
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel[:, :, :, None], groups=3)


def _resize(x: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    if kernel == "area":
        return F.interpolate(x, size=size, mode="area")
    return F.interpolate(x, size=size, mode=kernel, antialias=True, align_corners=False)


def _through(x: Tensor, codec: Callable[[Clip, int], Clip], setting: int | None) -> Tensor:
    return x if setting is None else to_unit(codec(to_uint8(x), setting))


def _jpeg(clip: Clip, quality: int) -> Clip:
    frames = []
    for frame in clip:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        frames.append(np.asarray(Image.open(buffer)))
    return np.stack(frames)


def _h264(clip: Clip, crf: int, preset: str) -> Clip:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": str(crf), "preset": preset})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
