"""Owns how a sound or subtitle track of the source reaches the result: copied, converted, or left out and told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, cast

import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

if TYPE_CHECKING:
    from av.container import OutputContainer

# What players expect inside MP4 and MOV; FFmpeg would also write Vorbis or PCM into MP4, which few players read.
_MP4_AUDIO = {"aac", "mp3", "mp3float", "mp2", "mp2float", "ac3", "eac3", "opus", "libopus", "flac", "alac", "dca"}
_MOV_AUDIO = (_MP4_AUDIO | {"pcm_s16le", "pcm_s24le", "pcm_s16be", "pcm_s24be", "pcm_f32le"}) - {
    "opus",
    "libopus",
    "flac",
}
_TEXT_SUBTITLES = {"srt", "subrip", "ass", "ssa", "webvtt", "text", "mov_text"}
_ASS_HEADER = b"[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
_MAX_AAC_RATE = 48_000
_BITS_PER_CHANNEL = 96_000


class Track(Protocol):
    """One output track: takes source packets, gives packets for the muxer."""

    span: Span

    @property
    def source(self) -> Stream: ...

    def packets(self, packet: Packet[Any]) -> Iterator[Packet[Any]]: ...

    def flush(self) -> Iterator[Packet[Any]]: ...


@dataclass
class Span:
    """Time in seconds, on the result's clock, that a track's packets cover. `last`: the latest start of a packet;
    `step`: the longest packet."""

    start: Fraction | None = None
    last: Fraction = Fraction(0)
    end: Fraction = Fraction(0)
    step: Fraction = Fraction(0)
    num_packets: int = 0

    def add(self, packet: Packet[Any]) -> None:
        if packet.pts is None or packet.time_base is None:
            return
        tick = Fraction(packet.time_base)
        start, length = packet.pts * tick, (packet.duration or 0) * tick
        self.start = start if self.start is None else min(self.start, start)
        self.last = max(self.last, start)
        self.end = max(self.end, start + length)
        self.step = max(self.step, length)
        self.num_packets += 1

    @property
    def length(self) -> Fraction:
        return self.end - (self.start or 0)


@dataclass
class CopiedTrack:
    """Packets go through unchanged except for their clock, which starts at `origin` seconds of the source."""

    source: Stream
    target: Stream
    origin: Fraction
    span: Span = field(default_factory=Span)
    _latest: int | None = None

    def packets(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        if packet.dts is None:
            packet.dts = packet.pts
        if packet.dts is None or not packet.size:
            return
        shift = round(self.origin / Fraction(packet.time_base))
        packet.pts = (packet.pts if packet.pts is not None else packet.dts) - shift
        packet.dts -= shift
        if self._latest is not None and packet.dts <= self._latest:
            packet.dts = self._latest + 1
            packet.pts = max(packet.pts, packet.dts)
        self._latest = packet.dts
        self.span.add(packet)
        packet.stream = self.target
        yield packet

    def flush(self) -> Iterator[Packet[Any]]:
        yield from ()


@dataclass
class EncodedAudioTrack:
    """Sound decoded and encoded again as AAC, because the target cannot hold its codec."""

    source: AudioStream
    target: AudioStream
    origin: Fraction
    span: Span = field(default_factory=Span)
    num_damaged: int = 0

    def packets(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        try:
            frames = cast("list[AudioFrame]", packet.decode())
        except av.error.FFmpegError:
            self.num_damaged += 1
            return
        for frame in frames:
            if frame.pts is None or frame.time_base is None:
                continue
            frame.pts -= round(self.origin / frame.time_base)
            end = frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)
            self.span.end = max(self.span.end, end)
            self.span.num_packets += 1
            yield from self.target.encode(frame)

    def flush(self) -> Iterator[Packet[Any]]:
        if self.span.num_packets:
            yield from self.target.encode(None)
        self.span.step = Fraction(2 * 1024, self.target.codec_context.sample_rate)


@dataclass
class ConvertedSubtitleTrack:
    """Text subtitles rewritten in the one text kind that the target holds."""

    source: SubtitleStream
    target: SubtitleStream
    origin: Fraction
    span: Span = field(default_factory=Span)
    _latest: int = -1

    def packets(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        if packet.pts is None or not packet.size:
            return
        decoder = self.source.codec_context
        encoder = self.target.codec_context
        try:
            text = decoder.decode2(packet)
        except av.error.FFmpegError:
            return
        if text is None or not len(text):
            return
        encoded = encoder.encode_subtitle(text)
        time = packet.pts - round(self.origin / Fraction(packet.time_base))
        encoded.pts = encoded.dts = max(time, self._latest + 1, 0)
        self._latest = encoded.pts
        encoded.duration, encoded.time_base = packet.duration, packet.time_base
        encoded.stream = self.target
        self.span.add(encoded)
        yield encoded

    def flush(self) -> Iterator[Packet[Any]]:
        yield from ()


def add_audio(container: OutputContainer, source: AudioStream, origin: Fraction, notes: list[str]) -> Track:
    """Add `source` to `container`: copied where the container takes its codec, else as AAC with a note."""
    name = source.codec_context.name
    target: Stream | None = None
    if _takes(container, name):
        try:
            target = container.add_stream_from_template(source)
        except (ValueError, av.error.FFmpegError):
            target = None
    if target is not None:
        _copy_labels(source, target)
        return CopiedTrack(source, target, origin)
    rate = min(source.codec_context.sample_rate, _MAX_AAC_RATE)
    encoded = container.add_stream(
        "aac", rate=rate, layout=source.codec_context.layout.name, bit_rate=_BITS_PER_CHANNEL * source.channels
    )
    encoded.time_base = Fraction(1, rate)
    _copy_labels(source, encoded)
    kind = container.format.name.upper().replace("MATROSKA", "MKV")
    notes.append(f"A sound track was converted from {name} to AAC, because {kind} files do not hold {name}.")
    return EncodedAudioTrack(source, encoded, origin)


def add_subtitles(
    container: OutputContainer, source: SubtitleStream, origin: Fraction, notes: list[str]
) -> Track | None:
    """Add `source` to `container`: copied, or converted to the container's text kind; None with a note if neither."""
    name = source.codec_context.name if source.codec_context else "unknown"
    is_matroska = container.format.name == "matroska"
    try:
        if name == "mov_text" if not is_matroska else name not in ("mov_text", "unknown"):
            target: Stream = container.add_stream_from_template(source)
            _copy_labels(source, target)
            return CopiedTrack(source, target, origin)
        if name in _TEXT_SUBTITLES:
            kind = "srt" if is_matroska else "mov_text"
            encoded = cast("SubtitleStream", container.add_stream(kind))
            context = encoded.codec_context
            decoder = source.codec_context
            decoder.open(strict=False)
            context.subtitle_header = decoder.subtitle_header or _ASS_HEADER
            context.time_base = encoded.time_base = Fraction(1, 1000)
            _copy_labels(source, encoded)
            notes.append(f"Subtitles were converted from {name} to {kind}; their styling may be simpler.")
            return ConvertedSubtitleTrack(source, encoded, origin)
    except (ValueError, av.error.FFmpegError):
        pass
    notes.append(f"A subtitle track ({name}) was not kept, because this kind of file cannot hold it.")
    return None


def _takes(container: OutputContainer, codec: str) -> bool:
    allowed = {"mp4": _MP4_AUDIO, "mov": _MOV_AUDIO}.get(container.format.name)
    return allowed is None or codec in allowed


def _copy_labels(source: Stream, target: Stream) -> None:
    for key in ("language", "title", "handler_name"):
        if value := source.metadata.get(key):
            target.metadata[key] = value
    target.disposition = source.disposition
