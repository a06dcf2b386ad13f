"""Owns what is known about a media file before its frames are read: MediaInfo and its parts. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

from inference.sizes import Size

_MIN_TICKS_PER_SECOND = 90_000


class Kind(StrEnum):
    VIDEO = "video"
    IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorTags:
    """Colour description as tagged in the file: the numbers of ITU-T H.273; 2 is "unspecified"."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    full_range: bool | None = None

    @property
    def is_hdr(self) -> bool:
        """True for the PQ (16) and HLG (18) transfer functions."""
        return self.transfer in (16, 18)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """How stored pixels become upright: transpose first, then flip rows (top-bottom), then columns (left-right)."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @property
    def rotation(self) -> int:
        """Clockwise degrees that turn the stored picture upright (of its rotation part, when mirrored)."""
        if self.transpose:
            return 90 if self.flip_columns else 270
        return 180 if self.flip_rows else 0

    @property
    def is_mirrored(self) -> bool:
        return self.transpose ^ self.flip_rows ^ self.flip_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioTrack:
    """One sound track; `index` is its stream number in the file, `start` in seconds on the file's clock."""

    index: int
    codec: str
    sample_rate: int
    channels: int
    language: str = ""
    start: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubtitleTrack:
    """One subtitle track; `index` is its stream number in the file."""

    index: int
    codec: str
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """A readable video or image. Times are exact seconds on the file's own clock.

    `width`, `height`: the picture as people see it (upright, square pixels). `stored_*`: the pixels in the file.
    `num_frames`: exact count of frames the file holds, None when only decoding could tell; a damaged file may give
    fewer. `start`: time of the first frame. `constant_rate`: frame i is at start + i / fps; else the frames' own times
    count and `fps` is their average. `warnings`: sentences about what will not be kept or is damaged.
    """

    path: Path
    kind: Kind
    container: str
    codec: str
    width: int
    height: int
    stored_width: int
    stored_height: int
    sar: Fraction = Fraction(1)
    orientation: Orientation = Orientation()
    fps: Fraction = Fraction(25)
    num_frames: int | None = 1
    duration: Fraction = Fraction(0)
    start: Fraction = Fraction(0)
    time_base: Fraction = Fraction(1, 1000)
    constant_rate: bool = True
    stream_index: int = 0
    color: ColorTags = ColorTags()
    bit_depth: int = 8
    has_alpha: bool = False
    interlaced: bool = False
    is_animated_image: bool = False
    audio: tuple[AudioTrack, ...] = ()
    subtitles: tuple[SubtitleTrack, ...] = ()
    num_chapters: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return self.kind is Kind.IMAGE

    @property
    def size(self) -> Size:
        """Upright size with square pixels."""
        return Size(self.width, self.height)

    @property
    def has_audio(self) -> bool:
        return bool(self.audio)

    @property
    def rotation(self) -> int:
        """Clockwise degrees by which the stored picture is turned for display."""
        return self.orientation.rotation

    @property
    def output_time_base(self) -> Fraction:
        """Clock of the result: at least 90 000 ticks a second, exact for every frame time of the source."""
        ticks = self.fps.numerator if self.constant_rate else self.time_base.denominator
        return Fraction(1, ticks * -(-_MIN_TICKS_PER_SECOND // ticks))
