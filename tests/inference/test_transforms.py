"""Frames to model space and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.sizes import Crop, Size
from inference.transforms import (
    crop,
    pad_video,
    resize_bicubic,
    resize_to_target,
    to_frames,
    to_model_video,
    to_pictures,
    to_unit,
)


def _frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def _cubic(t: float) -> float:
    t = abs(t)
    if t < 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def _resize_matrix(n_in: int, n_out: int) -> Tensor:
    """Spec pipeline B, written out value by value."""
    ratio = n_in / n_out
    a = max(ratio, 1.0)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        centre = ratio * (i + 0.5)
        low, high = max(0, math.trunc(centre - 2 * a + 0.5)), min(n_in, math.trunc(centre + 2 * a + 0.5))
        for j in range(low, high):
            matrix[i, j] = _cubic((j - centre + 0.5) / a)
    return matrix / matrix.sum(1, keepdim=True)


@pytest.mark.parametrize("size", [Size(40, 26), Size(11, 7), Size(23, 13), Size(9, 31)])
def test_the_resize_is_the_antialiased_bicubic_of_the_specification(size: Size) -> None:
    x = torch.rand(1, 3, 17, 23, generator=torch.Generator().manual_seed(0))
    expected = _resize_matrix(17, size.height) @ x.double() @ _resize_matrix(23, size.width).T
    torch.testing.assert_close(resize_bicubic(x, size).double(), expected, rtol=0, atol=2e-6)


def test_a_resize_to_the_same_size_changes_nothing() -> None:
    x = torch.rand(1, 3, 8, 8)
    assert resize_bicubic(x, Size(8, 8)) is x


def test_reduced_precision_is_resized_in_float32() -> None:
    x = torch.rand(1, 3, 12, 12).bfloat16()
    resized = resize_bicubic(x, Size(24, 24))
    assert torch.equal(resized, resize_bicubic(x.float(), Size(24, 24)).bfloat16())


def test_black_and_white_map_to_the_ends_of_the_range() -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 4, 3)
    pictures = resize_to_target(frames, Size(8, 8))
    assert pictures[0].unique().tolist() == [-1.0]
    torch.testing.assert_close(pictures[1], torch.ones(3, 8, 8), rtol=0, atol=1e-6)


def test_overshoot_of_the_resize_is_clamped() -> None:
    frames = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    frames[:, :, 4:] = 255
    assert resize_bicubic(frames.permute(0, 3, 1, 2) / 255, Size(16, 16)).max() > 1.001
    assert resize_to_target(frames, Size(16, 16)).abs().max() <= 1.0


def test_every_frame_is_resized_by_itself() -> None:
    frames = _frames(3, 9, 7)
    together = resize_to_target(frames, Size(14, 18))
    assert torch.equal(together[2:], resize_to_target(frames[2:], Size(14, 18)))


def test_numpy_frames_are_taken_as_they_are() -> None:
    frames = _frames(2, 6, 8)
    assert torch.equal(resize_to_target(np.asarray(frames), Size(8, 6)), resize_to_target(frames, Size(8, 6)))


def test_frames_survive_the_way_to_model_space_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_frames(to_pictures(frames)), frames)


def test_the_video_is_padded_on_the_right_and_bottom_only() -> None:
    frames = _frames(2, 18, 20)
    video = to_model_video(frames, Size(20, 18), Size(32, 32))
    assert video.shape == (1, 3, 2, 32, 32)
    assert torch.equal(crop(video, Size(20, 18))[0].transpose(0, 1), resize_to_target(frames, Size(20, 18)))


def test_padding_reflects_without_repeating_the_border() -> None:
    row = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    padded = pad_video(row, Size(8, 1))
    assert padded[0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


def test_a_picture_smaller_than_its_padding_is_reflected_back_and_forth() -> None:
    column = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 3, 3, 1)
    padded = pad_video(column, Size(1, 11))
    assert padded[0, 0, 0, :, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_a_single_pixel_fills_its_padding() -> None:
    assert pad_video(torch.full((1, 3, 1, 1), 0.25), Size(16, 16)).unique().tolist() == [0.25]


def test_the_corner_is_reflected_both_ways() -> None:
    picture = torch.arange(9.0).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    assert pad_video(picture, Size(4, 4))[0, 0, 0, 3, 3] == picture[0, 0, 1, 1]


def test_padding_to_less_than_the_picture_is_an_error() -> None:
    with pytest.raises(ValueError, match="smaller"):
        pad_video(torch.zeros(1, 3, 20, 20), Size(16, 32))


def test_a_crop_rectangle_takes_its_own_corner() -> None:
    x = torch.arange(36.0).view(6, 6)
    assert crop(x, Crop(top=1, left=2, size=Size(3, 2))).tolist() == [[8, 9, 10], [14, 15, 16]]


def test_values_are_rounded_once_to_the_nearest_level() -> None:
    levels = torch.tensor([99.4, 99.6, -20.0, 300.0])
    picture = (levels / 127.5 - 1).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert to_frames(picture)[0, 0, :, 0].tolist() == [99, 100, 0, 255]


def test_written_frames_are_contiguous_and_keep_the_channel_order() -> None:
    picture = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6)
    frames = to_frames(picture)
    assert frames.is_contiguous()
    assert frames[0, 2, 3].tolist() == [0, 128, 255]


def test_unit_range_is_clamped() -> None:
    assert to_unit(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
