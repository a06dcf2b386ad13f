"""The process behind `inference.media_proxy`: looks at one file, or makes the preview of one result. PyAV, no torch.

A video preview is one H.264 file with the source above the result, frame by frame, with the result's sound. A player
that cuts this picture apart shows both sides with one decoder, so they cannot drift apart. Both sides have the same
size, at most 1920x1080 (or 1080x1920); the source is enlarged with a plain bicubic filter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from inference.errors import MediaError, RestoreError, to_message
from inference.media.boundary import open_input, writing
from inference.media.color import to_yuv420
from inference.media.images import read_image
from inference.media.info import MediaInfo
from inference.media.probe import probe
from inference.media.reader import FrameReader
from inference.media.shots import ShotDetector
from inference.partial import join_finished
from inference.units import finished_units

PREVIEW_VIDEO = "preview.mp4"
PREVIEW_BEFORE = "preview_before.jpg"
PREVIEW_AFTER = "preview_after.jpg"

_THUMBNAIL = (192, 120)
_MAX_SIDES = (1920, 1080)
_MAX_IMAGE_SIDES = (4096, 4096)
_CLOCK = 90_000
_SOUND_RATE = 48_000
_SOUND_FRAME = 1024  # samples; what AAC takes at once
_MACROBLOCK = 16
_NICE = 19


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where both sides lie in the preview: the source at the top, the result at the bottom, `cell` rows for each."""

    width: int
    height: int
    cell: int

    @property
    def after_top(self) -> int:
        """The first row of the result."""
        return 2 * self.cell - self.height


def plan_sheet(width: int, height: int) -> Sheet:
    """Sides as large as the result, within the limit, even; cells of whole macroblocks with a margin between them."""
    width, height = _fit(width, height, _MAX_SIDES)
    width, height = max(2, width - width % 2), max(2, height - height % 2)
    return Sheet(width, height, -(-(height + 2) // _MACROBLOCK) * _MACROBLOCK)


def check(source: Path, thumbnail: Path) -> dict[str, Any]:
    """Facts about `source`, and its first frame as a small JPEG. Raises MediaError if the file cannot be used."""
    info = probe(source)
    with FrameReader(source, info) as reader:
        first = next(reader, None)
    if first is None:
        raise MediaError(f"'{source.name}' holds no picture that can be decoded; copy or upload it again.")
    picture = Image.fromarray(first.pixels)
    picture.thumbnail(_THUMBNAIL)
    picture.save(thumbnail, quality=85)
    return {
        "width": info.width,
        "height": info.height,
        "is_image": info.is_image,
        "fps": float(info.fps),
        "num_frames": info.num_frames,
        "duration": float(info.duration),
        "has_audio": info.has_audio,
    }


def preview(source: Path, result: Path, folder: Path) -> dict[str, Any]:
    """Write the preview of `result` into `folder` and describe it; see `inference.media_proxy.make_preview`."""
    info = probe(result)
    return _preview_images(source, result, folder) if info.is_image else _preview_video(source, info, folder)


def _preview_images(source: Path, result: Path, folder: Path) -> dict[str, Any]:
    sizes = []
    for path, name in ((source, PREVIEW_BEFORE), (result, PREVIEW_AFTER)):
        with FrameReader(path) as reader:
            pixels = next(reader).pixels if not reader.info.is_image else read_image(path).pixels
        picture = Image.fromarray(pixels)
        picture.thumbnail(_MAX_IMAGE_SIDES)
        picture.save(folder / name, quality=95, subsampling=0)
        sizes.append(picture.size)
    width, height = sizes[1]
    return {"kind": "image", "before": PREVIEW_BEFORE, "after": PREVIEW_AFTER, "width": width, "height": height}


def _preview_video(source: Path, info: MediaInfo, folder: Path) -> dict[str, Any]:
    sheet = plan_sheet(info.width, info.height)
    target = folder / PREVIEW_VIDEO
    part = target.with_suffix(".part.mp4")
    with writing(target), av.open(str(part), "w", options={"movflags": "+faststart"}) as output:
        stream = output.add_stream("libx264", rate=info.fps, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = sheet.width, 2 * sheet.cell, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _CLOCK)
        stream.codec_context.gop_size = max(1, min(60, round(info.fps)))
        sound = _Sound(info, output) if info.has_audio else None
        for frame, elapsed in _sheets(source, info, sheet):
            output.mux(stream.encode(frame))
            if sound is not None:
                sound.write_until(elapsed)
        output.mux(stream.encode(None))
        if sound is not None:
            sound.finish()
    os.replace(part, target)
    return {
        "kind": "video",
        "video": PREVIEW_VIDEO,
        "width": sheet.width,
        "height": sheet.height,
        "after_top": sheet.after_top,
        "fps": float(info.fps),
        "has_audio": info.has_audio,
    }


def _sheets(source: Path, info: MediaInfo, sheet: Sheet) -> Iterator[tuple[VideoFrame, Fraction]]:
    """The frames of the preview with their times in seconds: frame i of the source above frame i of the result."""
    to_side, to_yuv = VideoReformatter(), VideoReformatter()
    with FrameReader(source) as before, FrameReader(info.path, info) as after:
        upper = None
        for lower in after:
            upper = next(before, upper)
            if upper is None:
                raise MediaError(f"'{source.name}' has no pictures to compare with; the result is complete.")
            canvas = np.concatenate(
                [
                    _pad(_resize(upper.pixels, sheet, to_side), sheet, is_top=True),
                    _pad(_resize(lower.pixels, sheet, to_side), sheet, is_top=False),
                ]
            )
            frame = to_yuv420(canvas, to_yuv)
            elapsed = lower.pts - info.start
            frame.pts, frame.time_base = round(elapsed * _CLOCK), Fraction(1, _CLOCK)
            yield frame, elapsed


def _resize(pixels: NDArray[np.uint8], sheet: Sheet, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (sheet.height, sheet.width):
        return pixels
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    scaled = reformatter.reformat(frame, sheet.width, sheet.height, interpolation=Interpolation.BICUBIC)
    return np.asarray(scaled.to_ndarray(), dtype=np.uint8)


def _pad(pixels: NDArray[np.uint8], sheet: Sheet, *, is_top: bool) -> NDArray[np.uint8]:
    """Repeat the row next to the other side, so that neither compression nor scaling mixes the sides."""
    rows = sheet.cell - sheet.height
    return np.pad(pixels, ((0, rows) if is_top else (rows, 0), (0, 0), (0, 0)), mode="edge")


class _Sound:
    """The first sound track of the result as stereo AAC, written in step with the pictures."""

    def __init__(self, info: MediaInfo, output: OutputContainer) -> None:
        self._start = info.start
        self._output = output
        self._stream = output.add_stream("aac", rate=_SOUND_RATE, layout="stereo", options={"b": "128k"})
        self._resampler = AudioResampler("fltp", "stereo", _SOUND_RATE, _SOUND_FRAME)
        self._input = open_input(info.path)
        self._frames = self._input.decode(self._input.streams[info.audio[0].index])
        self._time = Fraction(-1)

    def write_until(self, elapsed: Fraction) -> None:
        """Encode sound up to `elapsed` seconds after the first picture."""
        while self._time < elapsed:
            frame = next(self._frames, None)
            if frame is None:
                return
            if not isinstance(frame, AudioFrame) or frame.pts is None or frame.time_base is None:
                continue
            self._time = frame.pts * frame.time_base - self._start
            if self._time < 0:  # priming before the first picture; the browser has nothing to show there
                continue
            frame.pts = round(self._time / frame.time_base)
            self._encode(self._resampler.resample(frame))

    def finish(self) -> None:
        """Encode what is left and close the file."""
        self.write_until(Fraction(10**9))
        self._encode(self._resampler.resample(None))
        self._output.mux(self._stream.encode(None))
        self._input.close()

    def _encode(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            self._output.mux(self._stream.encode(frame))


def join_part(work: Path, source: Path, target: Path) -> dict[str, Any]:
    """See `inference.media_proxy.join_part`."""
    target.unlink(missing_ok=True)  # of an attempt that was killed
    num_units = len(finished_units(work))
    report = join_finished(work, source, target)
    return {"units": num_units, "frames": report.num_frames}


def count_shots(source: Path) -> dict[str, Any]:
    """{"num_shots"}: as many as restoring `source` will find. Other processes of the machine come first."""
    os.nice(_NICE)
    detector = ShotDetector()
    with FrameReader(source, probe(source)) as reader:
        return {"num_shots": sum(detector.push(frame.thumbnail) for frame in reader)}


def _fit(width: int, height: int, limit: tuple[int, int]) -> tuple[int, int]:
    """The size, made smaller if needed so that its long and short sides are within `limit`; same aspect."""
    scale = min(1.0, limit[0] / max(width, height), limit[1] / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def main() -> None:
    """Do what the arguments say and write one JSON line."""
    command, *paths = sys.argv[1:]
    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        "check": check, "preview": preview, "part": join_part, "shots": count_shots,
    }  # fmt: skip
    try:
        reply: Mapping[str, Any] = tasks[command](*map(Path, paths))
    except RestoreError as error:
        reply = {"error": to_message(error)}
    sys.stdout.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
