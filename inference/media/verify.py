"""Owns the last look at a finished file, before it gets its name: frames, length and sound must be what was written."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from inference.errors import MediaError
from inference.media.boundary import open_input, reading
from inference.media.info import MediaInfo
from inference.media.tracks import Span

_ROUNDING = Fraction(2, 1000)  # Matroska counts milliseconds


def verify(path: Path, name: str, info: MediaInfo, video: Span, num_frames: int, audio: Sequence[Span]) -> None:
    """Read `path` back and raise MediaError unless it holds `num_frames` frames, lasts as long as `video` and, when all
    of the source's frames are there, as long as the source (within one frame), and each sound track keeps its place
    beside the video (within one packet). `name` is what people know the file by."""
    spans: dict[int, Span] = {}
    with reading(path), open_input(path) as container:
        if len(container.streams.video) != 1 or len(container.streams.audio) != len(audio):
            raise _wrong(name, "a track is missing")
        streams = [container.streams.video[0], *container.streams.audio]
        spans = {stream.index: Span() for stream in streams}
        for packet in container.demux(streams):
            if packet.size:
                spans[packet.stream_index].add(packet)
        found_video, *found_audio = (spans[stream.index] for stream in streams)
    frame = 1 / info.fps + _ROUNDING
    if found_video.num_packets != num_frames:
        raise _wrong(name, f"it holds {found_video.num_packets} of {num_frames} frames")
    found_length, length = (span.last - (span.start or 0) for span in (found_video, video))
    if abs(found_length - length) > _ROUNDING:
        raise _wrong(name, f"its frames span {float(found_length):.3f} s, not {float(length):.3f} s")
    if num_frames == info.num_frames and abs(video.length - info.duration) > frame:
        raise _wrong(name, f"its video lasts {float(video.length):.3f} s, not {float(info.duration):.3f} s")
    for found, wanted in zip(found_audio, audio, strict=True):
        if not wanted.num_packets:
            continue
        is_end = found.end - (found_video.start or 0)
        should_end = wanted.end - (video.start or 0)
        if abs(is_end - should_end) > max(wanted.step, found.step) + _ROUNDING:
            raise _wrong(name, f"its sound ends at {float(is_end):.3f} s, not at {float(should_end):.3f} s")


def _wrong(name: str, reason: str) -> MediaError:
    return MediaError(f"'{name}' did not come out right ({reason}), so it was not kept; start the job again.")
