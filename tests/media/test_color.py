"""Colour against the formulas of ITU-R BT.601, BT.709, BT.2020 and SMPTE ST 2084."""

from __future__ import annotations

import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from inference.media.color import ToRgb, flatten, to_yuv420, tone_map
from inference.media.info import ColorTags

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
COLORS = np.array(
    [[0, 0, 0], [255, 255, 255], [128, 128, 128], [200, 30, 30], [30, 180, 40], [20, 40, 210], [210, 190, 30]]
)


def yuv_of(rgb: NDArray[np.float64], matrix: int, full_range: bool) -> NDArray[np.uint8]:
    red, blue = WEIGHTS[matrix]
    signal = rgb / 255
    luma = signal @ [red, 1 - red - blue, blue]
    cb, cr = (signal[..., 2] - luma) / (2 - 2 * blue), (signal[..., 0] - luma) / (2 - 2 * red)
    scale, offset, chroma = (255, 0, 255) if full_range else (219, 16, 224)
    planes = [offset + scale * luma, 128 + chroma * cb, 128 + chroma * cr]
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def patch(color: NDArray[np.int64], matrix: int, full_range: bool) -> VideoFrame:
    planes = np.repeat(yuv_of(color.astype(float), matrix, full_range), 32 * 32).reshape(3, 32, 32)
    return VideoFrame.from_ndarray(planes, format="yuv444p")


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 5, 9], ids=["BT.709", "BT.601", "BT.2020"])
@pytest.mark.parametrize("color", COLORS, ids=str)
def test_tagged_yuv_becomes_the_right_rgb(color: NDArray[np.int64], matrix: int, full_range: bool) -> None:
    convert = ToRgb(32, 32, ColorTags(matrix=matrix, full_range=full_range), 1080 if matrix == 5 else 270)
    assert np.abs(convert(patch(color, matrix, full_range))[16, 16].astype(int) - color).max() <= 3


@pytest.mark.parametrize(("lines", "matrix"), [(576, 5), (720, 1), (1080, 1)])
def test_untagged_video_is_taken_by_its_number_of_lines(lines: int, matrix: int) -> None:
    color = np.array([200, 30, 30])
    convert = ToRgb(32, 32, ColorTags(), lines)
    assert np.abs(convert(patch(color, matrix, False))[16, 16].astype(int) - color).max() <= 3


@pytest.mark.parametrize("color", COLORS, ids=str)
def test_rgb_is_written_as_limited_bt709(color: NDArray[np.int64]) -> None:
    pixels = np.broadcast_to(color.astype(np.uint8), (32, 32, 3))
    frame = to_yuv420(pixels, VideoReformatter())
    planes = frame.to_ndarray()
    found = [planes[8, 8], planes[32 + 4, 8], planes[40 + 4, 8]]
    assert np.abs(np.array(found, dtype=int) - yuv_of(color.astype(float), 1, False)).max() <= 1
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


def pq_signal(light: float) -> float:
    power = (light / 10_000) ** 0.1593017578125
    return float(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def tone_mapped_gray(light: float) -> NDArray[np.uint8]:
    signal = np.full((2, 2, 3), round(65535 * pq_signal(light)), dtype=np.uint16)
    return tone_map(signal, ColorTags(matrix=9, primaries=9, transfer=16))[0, 0]


def test_hdr_light_rises_to_white_at_its_peak() -> None:
    levels = [int(tone_mapped_gray(light)[1]) for light in (0.01, 1, 10, 50, 100, 203, 400, 700, 1000)]
    assert levels == sorted(set(levels))
    assert levels[-1] >= 254
    assert levels[0] <= 8


def test_hdr_below_the_knee_shows_as_bright_as_it_is() -> None:
    assert abs(int(tone_mapped_gray(50)[1]) - 255 * (50 / 203) ** (1 / 2.4)) <= 2


def test_hdr_gray_stays_gray() -> None:
    assert np.ptp(tone_mapped_gray(120).astype(int)) <= 1


def test_transparency_is_mixed_with_the_background() -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], dtype=np.uint8)
    assert flatten(rgba).tolist() == [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]
    assert flatten(rgba, background=255)[0, 1].tolist() == [255, 255, 255]
