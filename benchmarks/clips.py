"""The clips of the benchmarks: found, cut to a size, repeated, written. Frames are ``(T, H, W, 3)`` uint8 RGB.

Imports no torch, so that the memory benchmark's own process stays small.
"""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from inference.errors import MediaError

Frames = NDArray[np.uint8]

SHARED = Path(os.environ.get("SEEDVR_SHARED") or Path(__file__).resolve().parents[2] / "shared")
"""The folder of test material: beside the checkout, or where SEEDVR_SHARED says."""
GROUND_TRUTH = SHARED / "media" / "gt"
SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}


def find_clips(folder: Path) -> list[Path]:
    """The videos of ``folder`` in the order of their names. Raises MediaError when there is none."""
    clips = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not clips:
        raise MediaError(f"There is no video in {folder}; name a folder of ground-truth clips with --clips.")
    return clips


def read_clip(path: Path, num_frames: int = 0) -> tuple[Frames, Fraction]:
    """The first ``num_frames`` frames (0: all) as the product decodes them, and the frame rate. Raises MediaError."""
    from inference.media.reader import FrameReader

    with FrameReader(path) as reader:
        frames = []
        for frame in reader:
            frames.append(frame.pixels)
            if len(frames) == num_frames:
                break
        fps = reader.info.fps
    if not frames:
        raise MediaError(f"'{path.name}' has no frames; choose another file.")
    return np.stack(frames), fps


def crop_to_multiple(frames: Frames, multiple: int) -> Frames:
    """The upper left part whose sides are multiples of ``multiple``."""
    _, height, width, _ = frames.shape
    return frames[:, : height - height % multiple, : width - width % multiple]


def resize(frames: Frames, width: int, height: int, method: Image.Resampling) -> Frames:
    """Each frame resized by Pillow, which widens the kernel when it makes a picture smaller (no aliasing)."""
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height), method)) for frame in frames])


def repeat_to(frames: Frames, num_frames: int) -> Frames:
    """The clip played forth and back, without a jump, until it has ``num_frames`` frames."""
    there_and_back = np.concatenate([frames, frames[-2:0:-1]]) if len(frames) > 2 else frames
    return there_and_back[np.arange(num_frames) % len(there_and_back)]


def moving_texture(width: int, height: int, num_frames: int) -> Frames:
    """A smooth random texture that pans without a cut: a clip for measuring cost, where content does not matter."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(noise).resize((width + 64, height + 64), Image.Resampling.BICUBIC))
    path = [abs(index % 126 - 63) for index in range(num_frames)]
    return np.stack([wide[step // 2 : step // 2 + height, step : step + width] for step in path])


def write_lossless(path: Path, frames: Frames, fps: Fraction) -> None:
    """Write lossless H.264 in RGB: what is read back equals ``frames``."""
    _write(path, frames, fps, "libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast"})


def write_h264(path: Path, frames: Frames, fps: Fraction, quality: int) -> None:
    """Write H.264 4:2:0, BT.709, at CRF ``quality``; sides must be even."""
    _write(path, frames, fps, "libx264", "yuv420p", {"crf": str(quality), "preset": "medium"})


def _write(path: Path, frames: Frames, fps: Fraction, codec: str, pixel_format: str, options: dict[str, str]) -> None:
    _, height, width, _ = frames.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        if pixel_format == "yuv420p":
            stream.codec_context.colorspace = Colorspace.ITU709
            stream.codec_context.color_range = ColorRange.MPEG
            stream.codec_context.color_primaries = 1
            stream.codec_context.color_trc = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if pixel_format == "yuv420p":
                frame = frame.reformat(
                    format=pixel_format, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
            else:
                frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = index, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
