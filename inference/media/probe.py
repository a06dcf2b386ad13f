"""Owns the first look at a file: what it is, whether it can be read, and what of it will not be kept."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from inference.errors import MediaError
from inference.media.boundary import check_source, open_input, reading, why_unreadable
from inference.media.images import is_image_file, probe_image
from inference.media.info import AudioTrack, ColorTags, Kind, MediaInfo, Orientation, SubtitleTrack
from inference.media.limits import check_dimensions

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

_SCAN_LIMIT_BYTES = 4 << 30
_FIRST_FRAME_PACKETS = 600
_DEFAULT_RATE = Fraction(25)
_MAX_RATE = 1000
_RATE_FAMILY = [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)]


def probe(path: Path | str) -> MediaInfo:
    """Look at `path` and decode its first frame; video files up to 4 GiB are read through once to count frames.

    Raises MediaError, one sentence with the next step, when the file cannot be restored: missing, empty, no media,
    cut short before its index, sound only, absurd picture size, nothing decodable.
    """
    path = Path(path)
    check_source(path)
    if is_image_file(path):
        return probe_image(path)
    with reading(path), open_input(path) as container:
        stream = video_stream(container, path)
        check_dimensions_of(stream, path)
        return _describe(path, container, stream, _scan(container, stream, path))


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The film's stream: the default one, else the first; cover pictures do not count. MediaError without one."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic and s.codec_context]
    if not films:
        if container.streams.audio:
            raise MediaError(f"'{path.name}' has sound but no picture; choose a file with video.")
        raise MediaError(why_unreadable(path))
    return next((s for s in films if s.disposition & Disposition.default), films[0])


def check_dimensions_of(stream: VideoStream, path: Path) -> None:
    """Raise MediaError for an absurd declared size; a size of zero is one that only the first frame can tell."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width or height:
        check_dimensions(path, width, height)


@dataclass
class _Scan:
    """What reading a file through once has shown. `times`: frame times in ticks, in file order."""

    first: VideoFrame
    times: array[int] = field(default_factory=lambda: array("q"))
    num_packets: int = 0
    num_untimed: int = 0
    last_duration: int = 0
    is_complete: bool = False


def _scan(container: InputContainer, stream: VideoStream, path: Path) -> _Scan:
    first: VideoFrame | None = None
    scan = _Scan(first=None)  # type: ignore[arg-type]  # set before it is returned
    whole = path.stat().st_size <= _SCAN_LIMIT_BYTES
    latest = -(2**62)
    try:
        for packet in container.demux(stream):
            if first is None:
                first = _first_frame(packet)
                if first is None and scan.num_packets > _FIRST_FRAME_PACKETS:
                    break
            if packet.size and not packet.is_discard and _is_shown(packet, stream):
                scan.num_packets += 1
                time = packet.pts if packet.pts is not None else packet.dts
                if packet.pts is None:
                    scan.num_untimed += 1
                elif whole and time is not None:
                    scan.times.append(time)
                    if time > latest:
                        latest, scan.last_duration = time, packet.duration or 0
            if first is not None and not whole:
                break
        else:
            scan.is_complete = whole
    except av.error.FFmpegError:
        if first is None:
            raise
    if first is None:
        raise MediaError(
            f"None of the pictures in '{path.name}' can be decoded; it is damaged or its codec is not supported, "
            "so convert it to H.264 MP4."
        )
    scan.first = first
    return scan


def _first_frame(packet: Packet[VideoStream]) -> VideoFrame | None:
    try:
        frames = packet.decode()
    except av.error.FFmpegError:
        return None
    return frames[0] if frames else None


def _is_shown(packet: Packet[VideoStream], stream: VideoStream) -> bool:
    """False for VP8's hidden reference frames (RFC 6386, 9.1: show_frame is bit 4 of the first byte)."""
    if stream.codec_context.name in ("vp8", "libvpx"):
        return bool(memoryview(packet)[0] & 0x10)
    return True


def _describe(path: Path, container: InputContainer, stream: VideoStream, scan: _Scan) -> MediaInfo:
    first = scan.first
    check_dimensions(path, first.width, first.height)
    sar = _pixel_aspect(stream)
    orientation = orientation_of(first)
    shown = (max(1, round(first.width * sar)), first.height)
    check_dimensions(path, *shown)
    width, height = shown[::-1] if orientation.transpose else shown
    timing = _timing(container, stream, scan)
    tags = _color_tags(stream, first)
    interlaced = bool(first.interlaced_frame) or stream.codec_context.field_order in (2, 3, 4, 5)
    has_alpha = len(first.format.components) in (2, 4) or stream.metadata.get("alpha_mode") == "1"
    depth = max(component.bits for component in first.format.components)
    info = MediaInfo(
        path=path,
        kind=Kind.VIDEO,
        container=container.format.name,
        codec=stream.codec_context.name,
        width=width,
        height=height,
        stored_width=first.width,
        stored_height=first.height,
        sar=sar,
        orientation=orientation,
        fps=timing.fps,
        num_frames=timing.num_frames,
        duration=timing.duration,
        start=timing.start,
        time_base=Fraction(stream.time_base or Fraction(1, 90_000)),
        constant_rate=timing.constant_rate,
        stream_index=stream.index,
        color=tags,
        bit_depth=depth,
        has_alpha=has_alpha,
        interlaced=interlaced,
        audio=tuple(_audio_track(s) for s in container.streams.audio if s.codec_context),
        subtitles=tuple(_subtitle_track(s) for s in container.streams.subtitles),
        num_chapters=len(container.chapters()),
        metadata=dict(container.metadata),
    )
    return _with_warnings(info, container, stream, scan)


def _with_warnings(info: MediaInfo, container: InputContainer, stream: VideoStream, scan: _Scan) -> MediaInfo:
    notes = []
    if scan.is_complete and stream.frames > scan.num_packets and not info.interlaced:
        notes.append(f"The file is damaged or cut short: it holds {scan.num_packets} of {stream.frames} frames.")
    if info.color.is_hdr:
        notes.append("HDR is converted to standard dynamic range (BT.709).")
    elif info.color.primaries == 9:
        notes.append("The wide colour gamut is converted to BT.709.")
    if info.bit_depth > 8:
        notes.append(f"The source has {info.bit_depth} bits a channel; the result has 8.")
    if info.has_alpha:
        notes.append("Transparency is not kept.")
    if info.interlaced:
        notes.append("The interlaced source is turned into full frames.")
    covers = sum(1 for s in container.streams.video if s.disposition & Disposition.attached_pic)
    if covers:
        notes.append("The cover picture is not kept.")
    if len(container.streams.video) - covers > 1:
        notes.append("Only the main video track is restored.")
    return replace(info, warnings=tuple(notes))


def orientation_of(frame: VideoFrame) -> Orientation:
    """The display matrix of a frame as one of eight orientations (ISO/IEC 14496-12, 8.3.2)."""
    try:
        matrix = cast(Any, frame.side_data)[SideDataType.DISPLAYMATRIX]  # PyAV's stub calls it a TypedDict
    except KeyError:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="<i4")[:5].astype(np.int64)
    if max(abs(b), abs(c)) > max(abs(a), abs(d)):
        return Orientation(transpose=True, flip_rows=bool(b < 0), flip_columns=bool(c < 0))
    return Orientation(flip_rows=bool(d < 0), flip_columns=bool(a < 0))


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel by its height; within half a percent of square counts as square, absurd values do too."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if abs(aspect - 1) < Fraction(1, 200) or not Fraction(1, 20) < aspect < 20:
        return Fraction(1)
    return aspect


@dataclass(frozen=True)
class _Timing:
    fps: Fraction
    num_frames: int | None
    duration: Fraction
    start: Fraction
    constant_rate: bool


def _timing(container: InputContainer, stream: VideoStream, scan: _Scan) -> _Timing:
    """Frame rate, count and length, from the packet times where they were read, else from what the header says."""
    tick = Fraction(stream.time_base or Fraction(1, 90_000))
    start = scan.first.pts * tick if scan.first.pts is not None else Fraction(0)
    guessed = _sane(stream.guessed_rate) or _DEFAULT_RATE
    average = _sane(stream.average_rate) or guessed
    if scan.num_untimed or not scan.times:
        fps = guessed if scan.num_untimed else average
        count = scan.num_packets if scan.is_complete else stream.frames or None
        if scan.first.interlaced_frame and scan.num_untimed:
            count = None  # a packet may be one field of a frame
        length = count / fps if scan.num_untimed and count else Fraction((stream.duration or 0) * tick)
        if not length and container.duration:
            length = Fraction(container.duration, 1_000_000)
        return _Timing(fps, count, length, start, constant_rate=bool(scan.num_untimed))
    times = np.sort(np.frombuffer(scan.times, dtype=np.int64))
    start = min(start, int(times[0]) * tick) if scan.first.pts is None else start
    for fps in _candidates(average, guessed, times, tick):
        if _is_constant(times, fps, tick):
            return _Timing(fps, len(times), len(times) / fps, start, constant_rate=True)
    last = scan.last_duration * tick or 1 / average
    length = int(times[-1] - times[0]) * tick + last
    fps = average if stream.average_rate else (len(times) / length).limit_denominator(1001)
    return _Timing(fps, len(times), length, start, constant_rate=False)


def _candidates(average: Fraction, guessed: Fraction, times: np.ndarray, tick: Fraction) -> list[Fraction]:
    candidates = [average, guessed]
    if len(times) > 1 and times[-1] > times[0]:
        measured = Fraction(len(times) - 1) / (int(times[-1] - times[0]) * tick)
        candidates += [rate for rate in (*_RATE_FAMILY, Fraction(round(measured))) if rate]
        candidates.append(measured.limit_denominator(1001))
    return [rate for rate in candidates if rate <= _MAX_RATE]


def _is_constant(times: np.ndarray, fps: Fraction, tick: Fraction) -> bool:
    """True when each frame is within one tick (at least 1 ms: Matroska's rounding) of its place at `fps`."""
    ideal = np.arange(len(times)) * float(1 / (fps * tick))
    tolerance = max(1.0, float(Fraction(1, 1000) / tick)) * 1.01
    return bool(np.abs(times - times[0] - ideal).max() <= min(tolerance, float(1 / (fps * tick)) / 2 + 0.01))


def _sane(rate: Fraction | None) -> Fraction | None:
    return Fraction(rate) if rate and 0 < rate <= _MAX_RATE else None


def _color_tags(stream: VideoStream, first: VideoFrame) -> ColorTags:
    context = stream.codec_context
    ranges = [int(value) for value in (first.color_range, context.color_range)]
    full = {1: False, 2: True}
    return ColorTags(
        matrix=_tagged(first.colorspace, context.colorspace),
        primaries=_tagged(first.color_primaries, context.color_primaries),
        transfer=_tagged(first.color_trc, context.color_trc),
        full_range=next((full[value] for value in ranges if value in full), None),
    )


def _tagged(*values: int) -> int:
    return next((int(value) for value in values if int(value) not in (2, 3)), 2)


def _audio_track(stream: AudioStream) -> AudioTrack:
    context = stream.codec_context
    tick = Fraction(stream.time_base or Fraction(1, 1000))
    return AudioTrack(
        index=stream.index,
        codec=context.name,
        sample_rate=context.sample_rate,
        channels=context.channels,
        language=stream.language or "",
        start=(stream.start_time or 0) * tick,
    )


def _subtitle_track(stream: SubtitleStream) -> SubtitleTrack:
    name = stream.codec_context.name if stream.codec_context else "unknown"
    return SubtitleTrack(index=stream.index, codec=name, language=stream.language or "")
