"""Owns decoding a video stream to upright RGB frames: damage passed over, fields joined, times made exact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, cast

import av.error
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from inference.errors import MediaError
from inference.media.boundary import open_input, reading
from inference.media.color import ToRgb
from inference.media.info import MediaInfo, Orientation
from inference.media.shots import thumbnail

if TYPE_CHECKING:
    from av.container import InputContainer

_SEEKABLE = ("mov", "matroska")
_SEEK_MARGIN = Fraction(1)  # seconds before the wanted frame: its key frame may be stored after it was due
_MAX_DAMAGE = 2000


@dataclass(frozen=True)
class Frame:
    """`pixels` (h, w, 3) uint8 RGB, upright, square pixels; `pts` and `duration` in seconds on the source's clock;
    `index` counts from 0 over the whole source.

    What is found out of the picture alone is kept, so whoever asks first does the work.
    """

    pixels: NDArray[np.uint8]
    pts: Fraction
    duration: Fraction
    index: int

    @cached_property
    def thumbnail(self) -> NDArray[np.float32]:
        """What the shot detector looks at, see `inference.media.shots`."""
        return thumbnail(self.pixels)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the picture, its shape and its time: 32 bytes."""
        digest = hashlib.sha256(f"{self.pts} {self.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.digest()


def decode_frames(
    info: MediaInfo,
    start: int,
    is_stopped: Callable[[], bool],
    warn: Callable[[str], None],
    may_seek: bool = True,
) -> Iterator[Frame]:
    """Frames of the video from number `start` on, one by one.

    `is_stopped` is asked between packets. `warn` gets a sentence for each kind of damage and for a changing picture
    size. `may_seek` False decodes and drops what lies before. Raises MediaError when the file cannot be read or nothing
    in it can be decoded.
    """
    if start > 0 and may_seek and _can_seek(info):
        with reading(info.path), open_input(info.path) as container:
            decoder = _Decoder(info, container, is_stopped)
            if (frames := decoder.seek(start)) is not None:
                yield from frames
                decoder.report(None, warn)
                return
    with reading(info.path), open_input(info.path) as container:
        decoder = _Decoder(info, container, is_stopped)
        count = 0
        for frame in decoder.frames(skip=start):
            count = frame.index + 1
            yield frame
        if is_stopped():
            return
        if decoder.count == 0:
            raise MediaError(
                f"None of the pictures in '{info.path.name}' can be decoded; it is damaged, copy or upload it again."
            )
        decoder.report(max(count, decoder.count), warn)


def _can_seek(info: MediaInfo) -> bool:
    return info.constant_rate and not info.interlaced and info.container.startswith(_SEEKABLE)


class _Decoder:
    """One pass over the video stream of an open file."""

    def __init__(self, info: MediaInfo, container: InputContainer, is_stopped: Callable[[], bool]) -> None:
        self._info = info
        self._container = container
        self._stream = cast("VideoStream", container.streams[info.stream_index])
        # Not by frames: what threads of frames make of a damaged stream differs from run to run, and a job that goes on
        # after a crash would not end in the same file. One thread decodes far faster than anything restores.
        self._stream.thread_type = "SLICE"
        self._is_stopped = is_stopped
        self._num_damaged = 0
        self._ended_early = False
        self._is_fitted = False
        size = (info.height, info.width) if info.orientation.transpose else (info.width, info.height)
        self._to_rgb = ToRgb(*size, info.color, info.stored_height)
        self.count = 0

    def frames(self, skip: int) -> Iterator[Frame]:
        """All frames; those before number `skip` are decoded but not converted."""
        clock = _Clock(self._info)
        for frame in self._whole_frames():
            pts, duration = clock.next(frame)
            index = self.count
            self.count += 1
            if index >= skip:
                yield self._convert(frame, pts, duration, index)

    def seek(self, start: int) -> Iterator[Frame] | None:
        """Frames from number `start` on after a seek; None when the seek did not lead to a frame at or before it."""
        info = self._info
        target = max(info.start, info.start + start / info.fps - _SEEK_MARGIN)
        try:
            self._container.seek(int(target / info.time_base), stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return None
        frames = self._whole_frames()
        first = next(frames, None)
        if first is None or first.pts is None or self._number(first) > start:
            return None
        return self._after_seek(first, frames, start)

    def _after_seek(self, first: VideoFrame, frames: Iterator[VideoFrame], start: int) -> Iterator[Frame]:
        clock = _Clock(self._info)
        frame: VideoFrame | None = first
        while frame is not None:
            pts, duration = clock.next(frame)
            number = round((pts - self._info.start) * self._info.fps)
            if number >= start:
                self.count += 1
                yield self._convert(frame, pts, duration, number)
            frame = next(frames, None)

    def report(self, count: int | None, warn: Callable[[str], None]) -> None:
        """Tell damage and changes of size; `count` is the number of frames that the file gave, None when it was not
        read from its start."""
        expected = self._info.num_frames
        if self._is_fitted:
            warn("The picture size changes within the video; every frame was scaled to the size of the first.")
        if count is not None and expected is not None and count < expected:
            warn(f"The file is damaged: only {count} of its {expected} frames could be decoded.")
        elif self._num_damaged:
            warn(f"The file is damaged: {self._num_damaged} pieces of its video could not be decoded.")
        elif self._ended_early:
            warn("The file is damaged: it could not be read to its end.")

    def _number(self, frame: VideoFrame) -> int:
        seconds = (frame.pts or 0) * Fraction(frame.time_base or 0)
        return round((seconds - self._info.start) * self._info.fps)

    def _convert(self, frame: VideoFrame, pts: Fraction, duration: Fraction, index: int) -> Frame:
        self._is_fitted |= (frame.width, frame.height) != (self._info.stored_width, self._info.stored_height)
        return Frame(upright(self._to_rgb(frame), self._info.orientation), pts, duration, index)

    def _whole_frames(self) -> Iterator[VideoFrame]:
        return _deinterlaced(self._decoded()) if self._info.interlaced else self._decoded()

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while not self._is_stopped() and self._num_damaged <= _MAX_DAMAGE:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                self._ended_early = True
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self._num_damaged += 1
                continue
            yield from frames


def upright(pixels: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.uint8]:
    """Turn and mirror stored (h, w, 3) pixels for display."""
    if orientation.transpose:
        pixels = pixels.swapaxes(0, 1)
    if orientation.flip_rows:
        pixels = pixels[::-1]
    if orientation.flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


class _Clock:
    """Exact, strictly increasing frame times.

    At a constant rate each time is put on the grid of the rate (a file's own clock may be as coarse as 1 ms); frames
    that damage has taken away leave their gap, so sound stays in step.
    """

    def __init__(self, info: MediaInfo) -> None:
        self._info = info
        self._place = -1  # on the grid of the constant rate
        self._previous: Fraction | None = None

    def next(self, frame: VideoFrame) -> tuple[Fraction, Fraction]:
        """Start and duration of `frame` in seconds."""
        info = self._info
        seconds = frame.pts * Fraction(frame.time_base) if frame.pts is not None and frame.time_base else None
        if info.constant_rate:
            place = self._place + 1
            if seconds is not None:
                place = max(place, round((seconds - info.start) * info.fps))
            self._place = place
            return info.start + place / info.fps, 1 / info.fps
        duration = (frame.duration or 0) * Fraction(frame.time_base or 0) or 1 / info.fps
        if seconds is None:
            seconds = info.start if self._previous is None else self._previous + duration
        if self._previous is not None and seconds <= self._previous:
            seconds = self._previous + info.time_base
        self._previous = seconds
        return seconds, duration


def _deinterlaced(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Fields joined into one full frame per frame (bwdif); frames marked progressive pass unchanged."""
    graph: Graph | None = None
    shape: tuple[int, int, str] | None = None
    for frame in frames:
        current = (frame.width, frame.height, frame.format.name)
        if current != shape:
            if graph is not None:
                yield from _flushed(graph)
            graph, shape = _bwdif(frame), current
        assert graph is not None
        graph.vpush(frame)
        yield from _ready(graph)
    if graph is not None:
        yield from _flushed(graph)


def _bwdif(frame: VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=Fraction(frame.time_base or Fraction(1, 90_000)),
    )
    graph.link_nodes(source, graph.add("bwdif", mode="send_frame", deint="interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _ready(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _flushed(graph: Graph) -> Iterator[VideoFrame]:
    graph.vpush(None)
    yield from _ready(graph)
