"""Owns the final file: segments joined as packets, with the source's sound, subtitles, chapters and title.

Nothing is published before it was read back and its frame count, length and sound were found right.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from inference.durable import part_path, publish
from inference.errors import MediaError
from inference.media.boundary import open_input, reading, writing
from inference.media.info import Kind, MediaInfo
from inference.media.target import VIDEO_FORMATS, check_target
from inference.media.tracks import EncodedAudioTrack, Span, Track, add_audio, add_subtitles
from inference.media.verify import verify

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

_MUXER_KEYS = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MuxReport:
    """What the final file holds. `notes`: sentences about what was converted or not kept."""

    path: Path
    num_frames: int
    fps: Fraction
    duration: Fraction
    num_audio_copied: int = 0
    num_audio_converted: int = 0
    num_subtitles: int = 0
    num_chapters: int = 0
    notes: tuple[str, ...] = ()


def mux(
    segments: Sequence[Path],
    source: Path | None,
    target: Path | str,
    info: MediaInfo,
    *,
    keep_audio: bool = True,
    num_frames: int | None = None,
    is_part: bool = False,
    check: Callable[[], None] | None = None,
) -> MuxReport:
    """Join `segments` (SegmentWriter's, in order) and the other tracks of `source` into `target`.

    `info` is the source's; `source` None leaves everything but the video out. `num_frames`: how many frames the
    segments must hold together. `is_part`: they are the beginning of the video only, and everything else ends with them
    (sound within one packet). `check` is called now and then and may raise to stop. Raises MediaError when the
    segments do not fit together, the disk is full, or the finished file is not what it should be; then nothing is left
    under the final name.
    """
    target = Path(target)
    check_target(target, Kind.VIDEO, source)
    if not segments:
        raise MediaError(f"There are no frames to write to '{target.name}'; check that the source has any.")
    part = part_path(target)
    try:
        if source is None or info.is_animated_image or info.is_image:
            report = _write(segments, None, part, target, info, keep_audio, is_part, check)
        else:
            with reading(source), open_input(source) as origin:
                report = _write(segments, origin, part, target, info, keep_audio, is_part, check)
        if num_frames is not None and report.num_frames != num_frames:
            raise MediaError(
                f"'{target.name}' would hold {report.num_frames} of {num_frames} frames; start the job again."
            )
        with writing(target):
            publish(part, target)
    finally:
        part.unlink(missing_ok=True)
    return report


def _write(
    segments: Sequence[Path],
    source: InputContainer | None,
    part: Path,
    target: Path,
    info: MediaInfo,
    keep_audio: bool,
    is_part: bool,
    check: Callable[[], None] | None,
) -> MuxReport:
    notes: list[str] = []
    file_format = VIDEO_FORMATS[target.suffix.lower()]
    origin = _origin(info, keep_audio and source is not None)
    # Matroska would number the file and its tracks at random: the same job has to give the same bytes.
    options = {"fflags": "+bitexact"}
    if file_format != "matroska":
        options = {"movflags": "+faststart", "movie_timescale": "90000"}
    with writing(target), av.open(part, "w", format=file_format, container_options=options) as container:
        video = _Video(segments, container, info, origin)
        tracks = _add_tracks(source, container, origin, keep_audio, notes)
        end = video.end if is_part else None
        num_chapters = _copy_labels(source, container, origin, end)
        others = _source_packets(source, tracks, notes, None if end is None else origin + end)
        for number, packet in enumerate(_merge(video.packets(), others)):
            if check is not None and number % 256 == 0:
                check()
            container.mux(packet)
    audio = [track for track in tracks if track.source.type == "audio"]
    verify(part, target.name, info, video.span, video.num_frames, [track.span for track in audio])
    converted = sum(isinstance(track, EncodedAudioTrack) for track in audio)
    return MuxReport(
        path=target,
        num_frames=video.num_frames,
        fps=info.fps,
        duration=video.span.length,
        num_audio_copied=len(audio) - converted,
        num_audio_converted=converted,
        num_subtitles=len(tracks) - len(audio),
        num_chapters=num_chapters,
        notes=tuple(notes),
    )


def _origin(info: MediaInfo, keep_audio: bool) -> Fraction:
    """Time of the source that becomes 0: its earliest track, so leading silence of recordings is not kept."""
    starts = [info.start, *(track.start for track in info.audio if keep_audio)]
    return max(Fraction(0), min(starts))


class _Video:
    """The segments as one stream of packets with continuous times."""

    def __init__(self, segments: Sequence[Path], container: OutputContainer, info: MediaInfo, origin: Fraction) -> None:
        self._segments = segments
        self._tick = info.output_time_base
        self._origin = origin
        self.span = Span()
        times = array("q")
        with _segment(segments[0]) as (_, stream):
            self._parameters = _parameters(stream)
            self._delay = stream.codec_context.reorder_depth
            self._stream = container.add_stream_from_template(stream, opaque=True)
            self._stream.time_base = self._tick
            self._stream.codec_context.framerate = info.fps
        for packet in self._stored_packets():
            times.append(self._ticks(packet))
        self.num_frames = len(times)
        self._step = max(1, round(1 / (info.fps * self._tick)))
        self._times = np.sort(np.frombuffer(times, dtype=np.int64))
        self._durations = np.diff(self._times, append=self._end(info))
        self.end: Fraction = int(self._times[-1] + self._durations[-1]) * self._tick

    def packets(self) -> Iterator[Packet[Any]]:
        """Packets in decoding order. A frame's decoding time is the display time of `delay` frames earlier: so it
        rises across segments, which each start anew with their encoder's own decoding times."""
        for number, packet in enumerate(self._stored_packets()):
            pts = self._ticks(packet)
            place = number - self._delay
            packet.dts = int(self._times[place]) if place >= 0 else int(self._times[0]) + place * self._step
            packet.pts, packet.time_base = pts, self._tick
            packet.duration = int(self._durations[np.searchsorted(self._times, pts)])
            packet.stream = self._stream
            self.span.add(packet)
            yield packet

    def _end(self, info: MediaInfo) -> int:
        """When the last frame's time is over: as in the source when all of its frames are here, else a frame later."""
        last = int(self._times[-1])
        end = round((info.start + info.duration - self._origin) / self._tick)
        is_whole = self.num_frames == info.num_frames and not info.constant_rate
        return end if is_whole and end > last else last + self._step

    def _ticks(self, packet: Packet[Any]) -> int:
        return round(((packet.pts or 0) * Fraction(packet.time_base) - self._origin) / self._tick)

    def _stored_packets(self) -> Iterator[Packet[Any]]:
        for path in self._segments:
            with _segment(path) as (container, stream):
                if _parameters(stream) != self._parameters:
                    raise MediaError(
                        f"The piece '{path.name}' was encoded with other settings than the first; start the job again."
                    )
                yield from (packet for packet in container.demux(stream) if packet.size and packet.pts is not None)


class _segment:  # noqa: N801 - reads as a function
    """Opens a segment: (container, its video stream)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[InputContainer, VideoStream]:
        with reading(self._path):
            self._container = av.open(self._path, "r", format="nut")
        return self._container, self._container.streams.video[0]

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _parameters(stream: VideoStream) -> tuple[int, int, bytes | None]:
    context = stream.codec_context
    return context.width, context.height, context.extradata


def _add_tracks(
    source: InputContainer | None, container: OutputContainer, origin: Fraction, keep_audio: bool, notes: list[str]
) -> list[Track]:
    if source is None:
        return []
    tracks: list[Track] = []
    for stream in source.streams.audio:
        if keep_audio and stream.codec_context:
            tracks.append(add_audio(container, stream, origin, notes))
        elif keep_audio:
            notes.append("A sound track of an unknown kind was not kept.")
    for subtitles in source.streams.subtitles:
        if (track := add_subtitles(container, subtitles, origin, notes)) is not None:
            tracks.append(track)
    others = len(source.streams.data) + len(source.streams.attachments)
    if others and not source.chapters():
        notes.append("Attached files and data tracks were not kept.")
    return tracks


def _copy_labels(
    source: InputContainer | None, container: OutputContainer, origin: Fraction, end: Fraction | None
) -> int:
    """Title and other tags, and chapters moved to the result's clock, which stops at `end`; returns the number of
    chapters."""
    if source is None:
        return 0
    for key, value in source.metadata.items():
        if key.lower() not in _MUXER_KEYS:
            container.metadata[key] = value
    chapters = []
    for chapter in source.chapters():
        tick = Fraction(chapter["time_base"] or 1)
        shift = round(origin / tick)
        chapter["start"] = max(0, chapter["start"] - shift)
        chapter["end"] = max(chapter["start"], chapter["end"] - shift)
        if end is not None and chapter["start"] * tick >= end:
            continue
        if end is not None:
            chapter["end"] = min(chapter["end"], round(end / tick))
        chapters.append(chapter)
    if chapters:
        container.set_chapters(chapters)
    return len(chapters)


def _source_packets(
    source: InputContainer | None, tracks: Sequence[Track], notes: list[str], until: Fraction | None
) -> Iterator[Packet[Any]]:
    """Packets of the other tracks that begin before `until` seconds of the source."""
    if source is None or not tracks:
        return
    by_index = {track.source.index: track for track in tracks}
    audio = {track.source.index for track in tracks if track.source.type == "audio"}
    sounding = set(audio)
    packets = source.demux([track.source for track in tracks])
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            notes.append("The source is damaged: its sound could not be read to the end.")
            break
        if packet is None:
            break
        if until is not None and packet.pts is not None:
            left = until - packet.pts * Fraction(packet.time_base)
            if left <= 0:
                sounding.discard(packet.stream_index)
                if audio and not sounding:
                    break
                continue
            if packet.stream_index not in audio and packet.duration:  # a subtitle may last for long
                packet.duration = min(packet.duration, round(left / Fraction(packet.time_base)))
        if packet.size:
            yield from by_index[packet.stream_index].packets(packet)
    for track in tracks:
        yield from track.flush()


def _merge(video: Iterator[Packet[Any]], others: Iterator[Packet[Any]]) -> Iterator[Packet[Any]]:
    """Both in order of decoding time, so that the muxer never has to hold back more than a few packets."""
    left, right = next(video, None), next(others, None)
    while left is not None or right is not None:
        if right is None or (left is not None and _time(left) <= _time(right)):
            assert left is not None
            yield left
            left = next(video, None)
        else:
            yield right
            right = next(others, None)


def _time(packet: Packet[Any]) -> Fraction:
    return (packet.dts or 0) * Fraction(packet.time_base or 0)
