"""The degraded inputs: real files, read back."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.clips import crop_to_multiple, find_clips, moving_texture, read_clip, repeat_to, write_h264
from benchmarks.degrade import Kind, blur_and_noise, down_scale, write_degraded
from inference.errors import MediaError


def test_the_clean_input_loses_nothing_but_the_resolution(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    truth = crop_to_multiple(frames, 4)
    write_degraded(tmp_path / "clean.mkv", truth, Fraction(24), 2, Kind.CLEAN)
    read, fps = read_clip(tmp_path / "clean.mkv")
    assert fps == 24
    np.testing.assert_array_equal(read, down_scale(truth, 2))


def test_the_degraded_input_is_h264_in_bt709(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    write_degraded(tmp_path / "degraded.mkv", crop_to_multiple(frames, 4), Fraction(30000, 1001), 2, Kind.DEGRADED)
    with av.open(str(tmp_path / "degraded.mkv")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert (stream.width, stream.height, stream.average_rate) == (24, 16, Fraction(30000, 1001))
        assert sum(1 for _ in container.decode(stream)) == 6


def test_colors_survive_the_encoder(tmp_path: Path) -> None:
    red = np.full((3, 32, 32, 3), (200, 30, 30), dtype=np.uint8)
    write_h264(tmp_path / "red.mkv", red, Fraction(24), 5)
    read, _ = read_clip(tmp_path / "red.mkv")
    assert np.abs(read.astype(int) - red).max() <= 3


def test_down_scaling_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 200
    middle = down_scale(stripes, 4)[0, 2:-2, 2:-2]
    assert np.abs(middle.astype(int) - 100).max() <= 2


def test_noise_has_its_strength_and_is_new_for_every_frame() -> None:
    gray = np.full((2, 64, 64, 3), 128, dtype=np.uint8)
    noisy = blur_and_noise(gray, seed=1).astype(float) - 128
    assert noisy.std() == pytest.approx(255 * 0.008, rel=0.05)
    assert np.abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.05


def test_the_same_seed_degrades_the_same_way(frames: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(blur_and_noise(frames, 3), blur_and_noise(frames, 3))
    assert (blur_and_noise(frames, 3) != blur_and_noise(frames, 4)).any()


def test_cropping_keeps_the_upper_left_part(frames: NDArray[np.uint8]) -> None:
    cropped = crop_to_multiple(frames, 8)
    assert cropped.shape == (6, 32, 48, 3)
    np.testing.assert_array_equal(cropped, frames[:, :32, :48])


def test_a_clip_is_repeated_forth_and_back() -> None:
    frames = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    assert repeat_to(frames, 8).ravel().tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


def test_the_made_clip_moves_and_has_no_cut() -> None:
    clip = moving_texture(48, 32, 300).astype(int)
    steps = np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3))
    assert np.median(steps) > 0
    assert steps.max() < 5 * np.median(steps)


def test_clips_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mkv", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_clips(tmp_path)] == ["a.mkv", "b.mp4"]


def test_a_folder_without_clips_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="There is no video in"):
        find_clips(tmp_path)
