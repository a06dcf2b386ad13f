"""The before/after picture of the README."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import picture


def test_the_close_up_shows_where_the_detail_is() -> None:
    frame = np.full((1, 80, 120, 3), 90, dtype=np.uint8)
    frame[0, 50:60, 70:90:2] = 255
    left, upper, right, lower = picture.most_detailed(frame, zoom=4)
    assert (right - left, lower - upper) == (30, 20)
    assert left <= 70 <= 89 <= right
    assert upper <= 50 <= 59 <= lower


def test_the_picture_shows_both_frames_and_a_close_up_of_each(clips: Path, tiny_weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs" / "picture.png"
    options = ["--source", str(clips / "texture.mkv"), "--target", str(target), "--frame", "3", "--model", "nano"]
    assert picture.main([*options, "--weights", str(tiny_weights)]) == 0
    with Image.open(target) as sheet:
        width, height = 2 * 50, 2 * 34  # of the restored clip
        assert sheet.size == (2 * width + picture.GAP, picture.LABEL_HEIGHT + 2 * height + picture.GAP)
        halves = np.asarray(sheet)[picture.LABEL_HEIGHT : picture.LABEL_HEIGHT + height]
    assert (halves[:, :width] != halves[:, -width:]).any()
