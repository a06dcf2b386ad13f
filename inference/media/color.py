"""Owns colour: decoded frames to 8-bit BT.709 RGB, RGB to limited-range BT.709 YUV, HDR and wide gamut to SDR.

Numbers of matrices, transfers and primaries are those of ITU-T H.273. Untagged video is taken as BT.709 from 720 lines
on and as BT.601 below, as players do.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from inference.media.info import ColorTags

BT709, UNSPECIFIED, BT2020 = 1, 2, 9
PQ, HLG = 16, 18
_HD_LINES = 720
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_TO_RGB = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
_TO_YUV = Interpolation.BICUBIC | Interpolation.ACCURATE_RND

# Linear BT.2020 -> BT.709 primaries (ITU-R BT.2087-0, 4).
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_REFERENCE_WHITE = 203.0  # cd/m2 of diffuse white in HDR (ITU-R BT.2408)
_PEAK = 1000.0  # cd/m2 that still map below full white
_KNEE = 0.6  # of reference white: below it nothing is compressed
_STEPS = 4096


def matrix_of(tags: ColorTags, stored_height: int) -> Colorspace:
    """The YUV matrix to decode with."""
    untagged = Colorspace.ITU709 if stored_height >= _HD_LINES else Colorspace.ITU601
    return _MATRICES.get(tags.matrix, untagged)


def needs_tone_map(tags: ColorTags) -> bool:
    """True when plain decoding would not show BT.709 colours: PQ, HLG, or BT.2020 primaries."""
    return tags.is_hdr or tags.primaries == BT2020


class ToRgb:
    """Converts decoded frames of one video to (height, width, 3) uint8 RGB of one size, whatever size comes in."""

    def __init__(self, width: int, height: int, tags: ColorTags, stored_height: int) -> None:
        """`width`, `height`: result, as stored, square pixels. `stored_height` chooses the matrix of untagged video."""
        self._size = (width, height)
        self._tags = tags
        self._matrix = matrix_of(tags, stored_height)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        if needs_tone_map(self._tags):
            return tone_map(self._convert(frame, "rgb48le").to_ndarray().view(np.uint16), self._tags)
        if _has_alpha(frame):
            return flatten(self._convert(frame, "rgba").to_ndarray().view(np.uint8))
        return self._convert(frame, "rgb24").to_ndarray().view(np.uint8)

    def _convert(self, frame: VideoFrame, pixel_format: str) -> VideoFrame:
        width, height = self._size
        if frame.format.is_rgb or frame.format.has_palette:
            return self._reformatter.reformat(frame, width, height, pixel_format, interpolation=_TO_RGB, threads=1)
        return self._reformatter.reformat(
            frame,
            width,
            height,
            pixel_format,
            src_colorspace=self._matrix,
            src_color_range=ColorRange.JPEG if _is_full_range(frame, self._tags) else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=_TO_RGB,
            threads=1,
        )


def _is_full_range(frame: VideoFrame, tags: ColorTags) -> bool:
    if frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG:
        return True
    return tags.full_range is True and frame.color_range != ColorRange.MPEG


def _has_alpha(frame: VideoFrame) -> bool:
    return frame.format.has_palette or len(frame.format.components) in (2, 4)


def flatten(rgba: NDArray[np.uint8], background: int = 0) -> NDArray[np.uint8]:
    """(h, w, 4) straight alpha over a gray `background` (0 black to 255 white) -> (h, w, 3)."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[..., :3])
    mixed = rgba[..., :3] * alpha + background * (255 - alpha) + 127
    return (mixed // 255).astype(np.uint8)


def to_yuv420(rgb: NDArray[np.uint8], reformatter: VideoReformatter) -> VideoFrame:
    """(h, w, 3) RGB of even size -> yuv420p frame, BT.709, limited range, tagged so."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    frame.colorspace, frame.color_range = BT709, ColorRange.JPEG
    yuv = reformatter.reformat(
        frame,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_TO_YUV,
        threads=1,
    )
    yuv.colorspace, yuv.color_range = BT709, ColorRange.MPEG
    yuv.color_primaries, yuv.color_trc = BT709, BT709
    return yuv


def tone_map(rgb16: NDArray[np.uint16], tags: ColorTags) -> NDArray[np.uint8]:
    """(h, w, 3) uint16 R'G'B' of `tags` -> (h, w, 3) uint8 BT.709 for a BT.1886 display.

    Linear light relative to 203 cd/m2 (PQ: SMPTE ST 2084; HLG: ITU-R BT.2100 with the 1000 cd/m2 system gamma of 1.2;
    other transfers: BT.1886), BT.2020 to BT.709 primaries, then one curve on the largest channel, so hue is kept: the
    identity up to 0.6 of white, above it an extended Reinhard shoulder that reaches white at 1000 cd/m2.
    """
    light = _linear_table(tags.transfer)[rgb16 >> 4]
    if tags.transfer == HLG:
        luma = light @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
        light *= (np.power(luma, 0.2, dtype=np.float32) * (_PEAK / _REFERENCE_WHITE))[..., None]
    if tags.primaries in (BT2020, UNSPECIFIED):
        light = np.maximum(light @ _BT2020_TO_BT709.T, 0)
    if tags.is_hdr:
        largest = np.maximum(light.max(axis=-1), 1e-6)
        light *= (_shoulder(largest) / largest)[..., None]
    shown: NDArray[np.uint8] = _display_table()[(np.clip(light, 0, 1) ** 0.5 * (_STEPS - 1) + 0.5).astype(np.uint16)]
    return shown


def _shoulder(light: NDArray[np.float32]) -> NDArray[np.float32]:
    over = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    peak = (_PEAK / _REFERENCE_WHITE - _KNEE) / (1 - _KNEE)
    rolled = _KNEE + (1 - _KNEE) * over * (1 + over / peak**2) / (1 + over)
    return np.where(light <= _KNEE, light, rolled)


@lru_cache(maxsize=4)
def _linear_table(transfer: int) -> NDArray[np.float32]:
    """Signal in 4096 steps -> light; 1.0 is diffuse white (HLG: scene light of the signal, before its system gamma)."""
    signal = np.linspace(0, 1, _STEPS)
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        base = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        light = 10_000 / _REFERENCE_WHITE * base ** (1 / 0.1593017578125)
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**2.4
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _display_table() -> NDArray[np.uint8]:
    """Square root of light in 4096 steps -> 8-bit signal of a BT.1886 display (gamma 2.4)."""
    return np.rint(255 * np.linspace(0, 1, _STEPS) ** (2 / 2.4)).astype(np.uint8)
