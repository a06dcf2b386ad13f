"""Sizes: aspect ratio kept, nothing cropped, limits told in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import SettingsError
from inference.settings import RestoreSettings
from inference.sizes import Size, padded_size, target_size


def test_without_a_setting_the_size_is_doubled() -> None:
    assert target_size(Size(320, 180), RestoreSettings()) == Size(640, 360)


def test_resolution_is_the_short_side_of_a_landscape_video() -> None:
    assert target_size(Size(640, 360), RestoreSettings(resolution=1080)) == Size(1920, 1080)


def test_resolution_is_the_short_side_of_a_portrait_video() -> None:
    assert target_size(Size(360, 640), RestoreSettings(resolution=720)) == Size(720, 1280)


def test_a_resolution_below_the_source_shrinks() -> None:
    assert target_size(Size(1920, 1080), RestoreSettings(resolution=360)) == Size(640, 360)


def test_a_fractional_factor_rounds_to_even_sides() -> None:
    assert target_size(Size(321, 181), RestoreSettings(factor=1.5)) == Size(482, 272)


def test_an_odd_video_source_gets_even_sides() -> None:
    assert target_size(Size(333, 777), RestoreSettings(factor=1)) == Size(332, 776)


def test_an_image_may_have_odd_sides() -> None:
    assert target_size(Size(333, 777), RestoreSettings(factor=1), is_image=True) == Size(333, 777)


def test_a_wide_picture_fills_the_width_of_the_box() -> None:
    assert target_size(Size(800, 200), RestoreSettings(box="1920x1080")) == Size(1920, 480)


def test_a_tall_picture_fills_the_height_of_the_box() -> None:
    assert target_size(Size(200, 800), RestoreSettings(box="1920x1080")) == Size(270, 1080)


def test_an_odd_box_is_not_exceeded() -> None:
    assert target_size(Size(100, 100), RestoreSettings(box="1081x1081")) == Size(1080, 1080)


def test_a_box_of_one_pixel_is_refused_for_video() -> None:
    with pytest.raises(SettingsError, match="too small"):
        target_size(Size(100, 100), RestoreSettings(box="1x1"))


def test_a_picture_of_a_few_pixels_is_refused() -> None:
    with pytest.raises(SettingsError, match="480x270 source would become 2x2, too small to show anything"):
        target_size(Size(480, 270), RestoreSettings(factor=0.001))


@pytest.mark.parametrize("size", [Size(1, 1), Size(5, 7), Size(8, 8)])
def test_a_tiny_source_may_stay_tiny(size: Size) -> None:
    assert target_size(size, RestoreSettings(factor=1)).short <= 8


def test_a_side_beyond_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(SettingsError, match="320x180 source would become 9600x5400, more than 8192 pixels on a side"):
        target_size(Size(320, 180), RestoreSettings(resolution=5400))


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(SettingsError, match="more than 64 megapixels; choose a smaller size"):
        target_size(Size(4050, 4050), RestoreSettings(factor=2))


def test_the_largest_allowed_side_is_accepted() -> None:
    assert target_size(Size(4096, 2160), RestoreSettings(factor=2), is_image=True) == Size(8192, 4320)


def test_a_thin_line_keeps_at_least_one_pair_of_rows() -> None:
    assert target_size(Size(4000, 3), RestoreSettings(factor=0.25)) == Size(1000, 2)


@given(
    source=st.builds(Size, st.integers(16, 3000), st.integers(16, 3000)),
    width=st.integers(64, 4000),
    height=st.integers(64, 4000),
)
def test_a_box_is_filled_on_one_side_and_exceeded_on_none(source: Size, width: int, height: int) -> None:
    size = target_size(source, RestoreSettings(box=f"{width}x{height}"))
    assert size.width <= width
    assert size.height <= height
    assert size.width > width - 2 or size.height > height - 2


@given(source=st.builds(Size, st.integers(50, 2000), st.integers(50, 2000)), factor=st.floats(0.5, 2.5))
def test_each_side_is_within_one_pixel_of_the_exact_ratio(source: Size, factor: float) -> None:
    size = target_size(source, RestoreSettings(factor=factor))
    assert abs(size.width - source.width * factor) <= 1
    assert abs(size.height - source.height * factor) <= 1


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (Size(1920, 1080), Size(1920, 1088)),
        (Size(16, 16), Size(16, 16)),
        (Size(1, 17), Size(16, 32)),
        (Size(640, 360), Size(640, 368)),
    ],
)
def test_padding_goes_up_to_the_next_multiple_of_sixteen(size: Size, padded: Size) -> None:
    assert padded_size(size) == padded


def test_a_size_without_pixels_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Size(0, 10)
