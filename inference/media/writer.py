"""Owns encoding restored frames: SegmentWriter writes one closed piece of H.264 in a background thread.

A segment is a NUT file: FFmpeg's own container, the one that stores any time base and any start time exactly. All
segments of a job are written with the same parameters, so `mux` can join them as packets without encoding again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from inference.durable import part_path, publish
from inference.errors import MediaError
from inference.media.boundary import writing
from inference.media.color import BT709, to_yuv420
from inference.media.info import MediaInfo
from inference.media.limits import num_waiting_frames
from inference.sizes import Size

_QUEUE_BYTES = 256 * 2**20
_POLL_S = 0.1
_CLOSE_TIMEOUT_S = 600.0
_KEYFRAME_SECONDS = 2
SEGMENT_SUFFIX = ".nut"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeParameters:
    """What every segment of one job shares. `time_base`: clock of the frame times (MediaInfo.output_time_base).

    `quality` is the CRF of H.264 (0..51, lower is better), `preset` the x264 preset name. `constant_rate` False leaves
    B-frames out: then decoding times are display times, and MP4, which stores durations in decoding order, says the
    true duration of every frame.
    """

    size: Size
    fps: Fraction
    time_base: Fraction
    quality: int = 16
    preset: str = "medium"
    constant_rate: bool = True

    @classmethod
    def for_source(cls, info: MediaInfo, size: Size, quality: int = 16, preset: str = "medium") -> Self:
        """Parameters that keep the frame times of `info`."""
        return cls(
            size=size,
            fps=info.fps,
            time_base=info.output_time_base,
            quality=quality,
            preset=preset,
            constant_rate=info.constant_rate,
        )


class SegmentWriter:
    """Writes frames to `path`, complete under that name or not at all.

        with SegmentWriter(path, parameters) as segment:
            segment.write(pixels, pts)

    `write` copies nothing and returns at once unless the encoder is behind by 256 MiB of frames: a card gives frames in
    bursts, after each window of the transformer. The caller must not change an array after handing it over. Encoder
    errors are raised as MediaError by the next `write` or by `close`. Leaving the `with` block by an exception removes
    the unfinished file.

    `close` waits for the encoder, which still holds some forty frames, so another thread may call it. `abort` ends that
    wait with a MediaError.
    """

    def __init__(self, path: Path | str, parameters: EncodeParameters) -> None:
        if parameters.size.width % 2 or parameters.size.height % 2:
            raise MediaError(f"Video of {parameters.size} cannot be written; choose a size with even width and height.")
        self.path = Path(path)
        self.num_frames = 0
        self._parameters = parameters
        self._part = part_path(self.path)
        self._queue: queue.SimpleQueue[tuple[NDArray[np.uint8], Fraction] | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(num_waiting_frames(parameters.size, _QUEUE_BYTES))
        self._abort = threading.Event()
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"encode {self.path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, pixels: NDArray[np.uint8], pts: Fraction) -> None:
        """Queue one frame, (h, w, 3) uint8 RGB. `pts`: seconds, larger than that of the frame before."""
        size = self._parameters.size
        if pixels.shape != (size.height, size.width, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 frames of {size}, got {pixels.dtype} {pixels.shape}")
        if self._is_closed:
            raise ValueError("the segment is closed")
        while not self._room.acquire(timeout=_POLL_S):
            self._raise_error()
        self._raise_error()
        self._queue.put((pixels, pts))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name. Raises MediaError when it has no frames or could not be written."""
        if self._is_closed:
            self._raise_error()
            return
        try:
            self._queue.put(None)
            self._thread.join(_CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                raise MediaError(f"Writing '{self.path.name}' does not end; check the disk and start the job again.")
            self._raise_error()
            if self.num_frames == 0:
                raise MediaError(f"'{self.path.name}' got no frames; check that the source has any.")
            with writing(self.path):
                publish(self._part, self.path)
        except BaseException:
            self.abort()
            raise
        self._is_closed = True

    def abort(self) -> None:
        """Stop encoding and remove the unfinished file. Does nothing after `close`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._error = self._error or MediaError(f"Writing '{self.path.name}' was given up; start the job again.")
        self._abort.set()
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        self._part.unlink(missing_ok=True)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _frames(self) -> Iterator[tuple[NDArray[np.uint8], Fraction]]:
        """The frames as they come, until the end or `abort`."""
        while (item := self._queue.get()) is not None and not self._abort.is_set():
            self._room.release()
            yield item

    def _run(self) -> None:
        try:
            options = {"avoid_negative_ts": "disabled"}  # else a segment that starts at 0 is moved by its dts
            with writing(self.path), av.open(self._part, "w", format="nut", container_options=options) as container:
                for packet in encode_frames(container, self._parameters, self._frames()):
                    if self._abort.is_set():
                        break  # without what the encoder still holds
                    container.mux(packet)
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread, which raises it
            self._error = error


def encode_frames(
    container: OutputContainer,
    parameters: EncodeParameters,
    frames: Iterable[tuple[NDArray[np.uint8], Fraction]],
) -> Iterator[Packet[VideoStream]]:
    """The packets of `frames`, one by one as the encoder has them, to be muxed into `container`.

    Frame times are rounded to the time base, which is exact for CFR.
    """
    stream = add_h264_stream(container, parameters)

    def packets_of(frame: VideoFrame | None) -> Iterator[Packet[VideoStream]]:
        for packet in stream.codec_context.encode_lazy(frame):
            packet.stream = stream
            yield packet

    reformatter = VideoReformatter()
    latest = None
    for pixels, pts in frames:
        frame = to_yuv420(pixels, reformatter)
        ticks = round(pts / parameters.time_base)
        if latest is not None and ticks <= latest:
            raise ValueError(f"frame times must rise, got {float(pts):.6f} s twice or going back")
        frame.pts, frame.time_base = ticks, parameters.time_base
        latest = ticks
        yield from packets_of(frame)
    if latest is not None:
        yield from packets_of(None)


def add_h264_stream(container: OutputContainer, parameters: EncodeParameters) -> VideoStream:
    """An H.264 stream in `container`: yuv420p, BT.709 limited range, closed GOPs of two seconds."""
    options = {
        "preset": parameters.preset,
        "crf": str(parameters.quality),
        "profile": "high",
        "x264-params": "open-gop=0:stitchable=1" + (":asm=avx2" if _has_avx512() else ""),
    }
    if not parameters.constant_rate:
        options["bf"] = "0"
    stream = container.add_stream("libx264", rate=parameters.fps, options=options)
    context = stream.codec_context
    context.width, context.height = parameters.size.width, parameters.size.height
    context.pix_fmt = "yuv420p"
    context.time_base = stream.time_base = parameters.time_base
    context.sample_aspect_ratio = Fraction(1)
    context.gop_size = max(1, round(_KEYFRAME_SECONDS * parameters.fps))
    context.color_range = ColorRange.MPEG
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.flags |= Flags.global_header | Flags.closed_gop
    return stream


@cache
def _has_avx512() -> bool:
    """Whether x264 would use AVX-512, with which its macroblock tree (build 165) depends on what the heap held before:
    the same frames give other bytes each time. With AVX2, which every such processor has, they give the same."""
    try:
        return "avx512" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: the processor cannot be asked like this
        return False
