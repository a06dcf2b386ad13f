"""Owns the way from stored frames to model space and back: resize, range, padding, crop, one rounding.

Legend: T frames, H W pixels of the result, h w pixels of the source. Frames are `(T, h, w, 3) uint8`, pictures
`(T, 3, H, W)` and video `(B, 3, T, H, W)`, both float32 in [-1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.sizes import Crop, Size

if TYPE_CHECKING:
    import numpy as np

    Frames = Tensor | np.ndarray[Any, Any]


def resize_bicubic(x: Tensor, size: Size) -> Tensor:
    """Antialiased bicubic of `(T, C, h, w)` to `(T, C, size.height, size.width)` (spec pipeline B), not clamped.

    Cubic kernel with parameter -0.5, widened when shrinking, windows cut at the border and renormalised. Reduced
    precision is converted to float32 for the resize and back. A picture of that size already is returned as it is.
    """
    if x.shape[-2:] == (size.height, size.width):
        return x
    resized = F.interpolate(
        x.float(), size=(size.height, size.width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.to(x.dtype)


def to_pictures(frames: Frames, device: torch.device | str = "cpu") -> Tensor:
    """Frames `(T, h, w, 3) uint8` -> pictures `(T, 3, h, w)` float32 in [-1, 1] at their own size."""
    return _upload(frames, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def resize_to_target(frames: Frames, target: Size, device: torch.device | str = "cpu") -> Tensor:
    """Frames `(T, h, w, 3) uint8` -> pictures `(T, 3, H, W)` float32 in [-1, 1] at the target size, clamped.

    Called once per source frame: the result is what the network sees (after `pad_video`) and the colour reference.
    One frame is resized at a time, which keeps the working set in the cache.
    """
    uploaded = _upload(frames, device)
    pictures = torch.empty((uploaded.shape[0], 3, target.height, target.width), device=uploaded.device)
    for index, frame in enumerate(uploaded):
        unit = frame.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
        resized = resize_bicubic(unit[None], target)[0]
        pictures[index] = resized.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)
    return pictures


def pad_video(pictures: Tensor, padded: Size) -> Tensor:
    """Pictures `(T, 3, H, W)` -> video `(1, 3, T, padded.height, padded.width)`, reflected at the right and bottom.

    The border pixel is not repeated. A picture smaller than its padding is reflected back and forth; a single row or
    column is repeated.
    """
    height, width = pictures.shape[-2:]
    if padded.height < height or padded.width < width:
        raise ValueError(f"cannot pad {width}x{height} to the smaller {padded}")
    video = pictures.new_empty((1, 3, pictures.shape[0], padded.height, padded.width))
    inner = video[0].transpose(0, 1)
    inner[..., :height, :width] = pictures
    for column in range(width, padded.width):
        inner[..., :height, column] = pictures[..., _reflected(column, width)]
    for row in range(height, padded.height):
        inner[..., row, :] = inner[..., _reflected(row, height), :]
    return video


def to_model_video(frames: Frames, target: Size, padded: Size, device: torch.device | str = "cpu") -> Tensor:
    """Frames `(T, h, w, 3) uint8` -> video `(1, 3, T, padded.height, padded.width)` float32 in [-1, 1]."""
    return pad_video(resize_to_target(frames, target, device), padded)


def crop(pictures: Tensor, area: Size | Crop) -> Tensor:
    """View of the top-left `Size`, or of the given `Crop`, of anything shaped `(..., H, W)`."""
    if isinstance(area, Size):
        area = Crop(0, 0, area)
    return pictures[..., area.top : area.top + area.size.height, area.left : area.left + area.size.width]


def to_unit(pictures: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1], clamped (spec pipeline A13, before the rounding)."""
    return pictures.clamp(-1.0, 1.0).mul_(0.5).add_(0.5)


def to_frames(pictures: Tensor) -> Tensor:
    """Pictures `(T, 3, H, W)` in [-1, 1] -> frames `(T, H, W, 3) uint8` on the CPU: clamped, rounded once (spec A13).

    The result is contiguous, so `.numpy()` of it costs nothing. What comes from a card lies in page-locked memory, that
    the bus fills several times faster; torch keeps such blocks, as locking new pages takes longer than the copy.
    """
    count, channels, height, width = pictures.shape
    frames = torch.empty((count, height, width, channels), dtype=torch.uint8, pin_memory=pictures.is_cuda)
    for frame, picture in zip(frames, pictures, strict=True):
        levels = picture.float().mul(127.5).add_(127.5).clamp_(0.0, 255.0).round_().to(torch.uint8)
        frame.copy_(levels.permute(1, 2, 0), non_blocking=pictures.is_cuda)
    if pictures.is_cuda:
        torch.cuda.current_stream(pictures.device).synchronize()
    return frames


def _upload(frames: Frames, device: torch.device | str) -> Tensor:
    return torch.as_tensor(frames).to(device)


def _reflected(index: int, length: int) -> int:
    if length == 1:
        return 0
    folded = index % (2 * (length - 1))
    return min(folded, 2 * (length - 1) - folded)
