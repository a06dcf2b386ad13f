"""Owns the training material: real clips, photos turned into moving clips, and the split that keeps validation unseen.

Clips are `(T, H, W, 3) uint8` RGB. The folder has `manifest.json` (`clips` with shots, `photos`), `clips/`, `photos/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Clip = NDArray[np.uint8]

VALIDATION = frozenset(
    [
        "t04_coffee",
        "t08_roof_hlg",
        "t2i_sintel",
        "g_sand",
        "l_picos",
        "g_pixel",
        "m_elephants",
        "l_aitzgorri",
        "g_baby",
        "g_haze",
    ]
)
"""Stems of the files that are never trained on."""

WINDOWS = 4
"""Clips that are cut from one shot, at most."""
PHOTO_SIZE = (288, 480)
"""Height and width of a clip made from a photo."""


@dataclass(frozen=True, slots=True)
class Source:
    """One clip of the material: its name and its frames `(T, H, W, 3) uint8`, all of one shot."""

    name: str
    frames: Clip


def load_sources(folder: Path, num_frames: int, validation: bool = False, seed: int = 0) -> Iterator[Source]:
    """Clips of at most `num_frames` frames each, cut at `4 n + 1`, from one side of the split, in a fixed order."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["clips"]:
        path = folder / entry["file"]
        if (path.stem in VALIDATION) is validation:
            for start, stop in entry["shots"]:
                for begin in range(start, stop - 8, max(num_frames, (stop - start) // WINDOWS)):
                    frames = read_clip(path, begin, min(begin + num_frames, stop))
                    if len(frames) >= 9:
                        yield Source(f"{path.stem}@{begin}", frames[: (len(frames) - 1) // 4 * 4 + 1])
    rng = np.random.default_rng(seed)
    for entry in manifest["photos"]:
        path = folder / entry["file"]
        if (path.stem in VALIDATION) is validation and path.is_file():
            yield Source(path.stem, moving_clip(read_photo(path), min(num_frames, 17), rng))


def read_clip(path: Path, start: int, stop: int) -> Clip:
    """Frames `start` to `stop` of a video file, `(T, H, W, 3) uint8` RGB."""
    frames = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= stop:
                break
            if index >= start:
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8)


def read_photo(path: Path) -> Clip:
    """A photo as `(1, H, W, 3) uint8` RGB."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))[None]


def moving_clip(photo: Clip, num_frames: int, rng: np.random.Generator) -> Clip:
    """A clip `(T, H, W, 3) uint8` of a camera that drifts and zooms over a photo `(1, h, w, 3)`, sub-pixel exact.

    The photo is scaled down a little first, so that the clip is as sharp as its pixels allow.
    """
    height, width = PHOTO_SIZE
    pixels = torch.from_numpy(np.ascontiguousarray(photo)).permute(0, 3, 1, 2).float()
    zoom = rng.uniform(1.2, 2.0) * max(height / pixels.shape[2], width / pixels.shape[3])
    zoom = min(1.0, max(zoom, 0.5))
    scaled = (max(height, round(pixels.shape[2] * zoom)), max(width, round(pixels.shape[3] * zoom)))
    pixels = F.interpolate(pixels, size=scaled, mode="bicubic", antialias=True).clamp_(0, 255)
    speed = rng.uniform(-2.5, 2.5, size=2) * (rng.random() > 0.15)
    grow = 1.0 + rng.uniform(-0.004, 0.004)
    centre = np.array([rng.uniform(height / 2, scaled[0] - height / 2), rng.uniform(width / 2, scaled[1] - width / 2)])
    frames = []
    for index in range(num_frames):
        y, x = centre + speed * (index - num_frames / 2)
        span = grow ** (index - num_frames / 2)
        rows = (torch.arange(height) - (height - 1) / 2) * span + y
        columns = (torch.arange(width) - (width - 1) / 2) * span + x
        grid = torch.stack(
            torch.broadcast_tensors(columns[None, :] / scaled[1] * 2 - 1, rows[:, None] / scaled[0] * 2 - 1), dim=-1
        ).float()
        frame = F.grid_sample(pixels, grid[None], mode="bicubic", padding_mode="reflection", align_corners=False)
        frames.append(frame[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy())
    return np.stack(frames)
