"""Colour fix: what each method takes from the source and what it leaves to the restored picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference.color.bands import smooth_low, wavelet_low
from inference.color.histogram import match_histogram
from inference.color.spaces import lab_to_rgb, rgb_to_lab
from inference.color_fix import color_fix
from inference.settings import ColorFix

METHODS = [ColorFix.BALANCED, ColorFix.WAVELET, ColorFix.ADAIN, ColorFix.LAB]


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def _scene(frames: int = 1, height: int = 96, width: int = 128) -> Tensor:
    """A smooth coloured scene with fine texture, well inside [-1, 1]."""
    y = torch.linspace(0, 3, height).view(1, 1, -1, 1)
    x = torch.linspace(0, 4, width).view(1, 1, 1, -1)
    phase = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1)
    return 0.4 * torch.sin(x + phase) * torch.cos(y - phase) + 0.1 * _noise(frames, 3, height, width)


@pytest.mark.parametrize("kind", METHODS)
def test_a_restored_picture_equal_to_the_source_is_left_as_it_is(kind: ColorFix) -> None:
    scene = _scene()
    torch.testing.assert_close(color_fix(kind, scene, scene), scene, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_a_colour_cast_is_removed(kind: ColorFix) -> None:
    scene = _scene()
    cast = scene + torch.tensor([0.2, -0.1, 0.15]).view(1, 3, 1, 1)
    assert (color_fix(kind, cast, scene) - scene).abs().mean() < 0.02


@pytest.mark.parametrize("kind", METHODS)
def test_a_clip_may_be_cut_anywhere(kind: ColorFix) -> None:
    content, style = _scene(3) * 0.8, _scene(3)
    whole = color_fix(kind, content, style)
    assert torch.equal(whole[1:2], color_fix(kind, content[1:2], style[1:2]))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 5)])
def test_tiny_pictures_are_handled(kind: ColorFix, size: tuple[int, int]) -> None:
    fixed = color_fix(kind, _noise(1, 3, *size, seed=1), _noise(1, 3, *size, seed=2))
    assert fixed.isfinite().all()


def test_none_returns_the_restored_picture_itself() -> None:
    content = _noise(1, 3, 8, 8)
    assert color_fix(ColorFix.NONE, content, torch.zeros(1, 3, 8, 8)) is content


def test_pictures_of_different_size_are_an_error() -> None:
    with pytest.raises(ValueError, match="same shape"):
        color_fix(ColorFix.WAVELET, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


def test_reduced_precision_is_computed_in_float32() -> None:
    content, style = _scene().bfloat16(), _scene().bfloat16() * 0.5
    expected = color_fix(ColorFix.WAVELET, content.float(), style.float())
    assert torch.equal(color_fix(ColorFix.WAVELET, content, style), expected)


@pytest.mark.parametrize("kind", [ColorFix.BALANCED, ColorFix.WAVELET])
def test_noise_of_the_source_stays_out(kind: ColorFix) -> None:
    clean = torch.full((1, 3, 128, 128), 0.1)
    noisy = clean + 0.4 * _noise(1, 3, 128, 128)
    assert (color_fix(kind, clean, noisy) - clean).std() < 0.04 * noisy.std()


def test_a_sharpened_edge_keeps_its_sharpness_without_a_halo() -> None:
    edge = torch.where(torch.arange(160) < 80, -0.8, 0.8).view(1, 1, 1, 160).expand(1, 3, 96, 160).contiguous()
    blurred = edge
    for _ in range(4):
        blurred = torch.nn.functional.avg_pool2d(blurred, (1, 5), 1, (0, 2), count_include_pad=False)
    fixed = color_fix(ColorFix.BALANCED, edge, blurred)
    assert (fixed - edge).abs().max() < 4 / 127.5


def test_overshoot_of_the_decoder_does_not_darken_its_surroundings() -> None:
    style = torch.full((1, 3, 96, 96), 0.5)
    style[..., 40:56, 40:56] = 1.0
    content = torch.where(style == 1.0, torch.tensor(1.6), style)
    fixed = color_fix(ColorFix.BALANCED, content, style)
    torch.testing.assert_close(fixed, content, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 128), (90, 121), (7, 9), (360, 640)])
def test_the_smooth_low_band_keeps_constants_at_every_size(shape: tuple[int, int]) -> None:
    x = torch.full((1, 3, *shape), 0.3)
    torch.testing.assert_close(smooth_low(x), x, rtol=0, atol=1e-6)


def test_the_smooth_low_band_does_not_move_the_picture() -> None:
    ramp = torch.linspace(-1, 1, 160).view(1, 1, 1, 160).expand(1, 1, 160, 160)
    inner = slice(48, 112)
    torch.testing.assert_close(smooth_low(ramp)[..., inner, inner], ramp[..., inner, inner], rtol=0, atol=1e-4)


def test_the_smooth_low_band_drops_fine_texture() -> None:
    stripes = torch.where(torch.arange(160) % 4 < 2, 1.0, -1.0).view(1, 1, 1, 160).expand(1, 1, 160, 160)
    assert smooth_low(stripes).abs().max() < 1e-3


def test_the_wavelet_low_band_spreads_one_pixel_over_63() -> None:
    impulse = torch.zeros(1, 1, 127, 127)
    impulse[..., 63, 63] = 1
    low = wavelet_low(impulse)
    assert (low[0, 0, 63] > 0).nonzero().flatten()[[0, -1]].tolist() == [32, 94]
    assert low.sum() == pytest.approx(1, abs=1e-5)


def test_adain_takes_mean_and_contrast_of_each_channel() -> None:
    content, style = _scene(), _scene() * 0.5 + 0.2
    fixed = color_fix(ColorFix.ADAIN, content, style)
    torch.testing.assert_close(fixed.mean((2, 3)), style.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std((2, 3)), style.std((2, 3)), rtol=1e-3, atol=0)


def test_matching_gives_the_values_of_the_reference_in_the_order_of_the_source() -> None:
    assert match_histogram(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0])).tolist() == [30, 10, 20]


def test_ties_are_ranked_by_position() -> None:
    assert match_histogram(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.arange(4.0)).tolist() == [1, 0, 2, 3]


def test_a_larger_reference_is_read_at_even_ranks() -> None:
    assert match_histogram(torch.tensor([0.0, 2.0, 1.0]), torch.arange(5.0)).tolist() == [0, 4, 2]


def test_lab_of_white_and_primaries_is_as_tabulated() -> None:
    rgb = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).view(4, 3, 1, 1)
    expected = torch.tensor([[100.0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0, 0, 0]])
    torch.testing.assert_close(rgb_to_lab(rgb).view(4, 3), expected, rtol=0, atol=0.02)


def test_lab_and_back_is_the_same_colour() -> None:
    rgb = _noise(1, 3, 20, 20) + 0.5
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-5)
