"""Fidelity to the source, and how far a noisy source is believed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference.back_projection import LEAST_TRUST, SourceTrust, back_projection, estimate_noise, strength_for
from inference.sizes import Size
from inference.transforms import resize_bicubic


def _smooth(*shape: int, seed: int = 0) -> Tensor:
    """Random picture with detail of about 4 pixels, in [-1, 1]."""
    *lead, height, width = shape
    coarse = torch.rand(*lead, height // 4, width // 4, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return resize_bicubic(coarse, Size(width, height)).clamp(-1, 1)


def _disagreement(content: Tensor, source: Tensor) -> float:
    return float((resize_bicubic(content, Size(source.shape[-1], source.shape[-2])) - source).abs().mean())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_result_scaled_down_agrees_with_the_source(scale: int) -> None:
    source = _smooth(1, 3, 40, 48)
    content = _smooth(1, 3, 40 * scale, 48 * scale, seed=1)
    assert _disagreement(back_projection(content, source, 1.0), source) < 0.2 * _disagreement(content, source)


def test_a_second_iteration_agrees_better() -> None:
    source, content = _smooth(1, 3, 40, 48), _smooth(1, 3, 80, 96, seed=1)
    once, twice = (_disagreement(back_projection(content, source, 1.0, n), source) for n in (1, 2))
    assert twice < 0.7 * once


def test_half_the_strength_makes_half_the_change() -> None:
    source, content = _smooth(1, 3, 40, 48), _smooth(1, 3, 80, 96, seed=1)
    full, half = (back_projection(content, source, strength, iterations=1) - content for strength in (1.0, 0.5))
    torch.testing.assert_close(half, full / 2, rtol=0, atol=1e-6)


def test_detail_finer_than_the_source_stays() -> None:
    source = torch.zeros(1, 3, 48, 48)
    checker = (torch.arange(96)[:, None] + torch.arange(96)).remainder(2).mul(2.0).sub(1.0).expand(1, 3, 96, 96)
    inner = slice(8, -8)
    restored = back_projection(checker, source, 1.0)
    torch.testing.assert_close(restored[..., inner, inner], checker[..., inner, inner], rtol=0, atol=0.02)


def test_a_perfect_picture_is_not_changed() -> None:
    content = _smooth(1, 3, 80, 96)
    source = resize_bicubic(content, Size(48, 40))
    torch.testing.assert_close(back_projection(content, source, 1.0), content, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 48), (30, 40), (40, 60)])
def test_nothing_happens_unless_both_sides_are_enlarged(size: tuple[int, int]) -> None:
    content = _smooth(1, 3, *size)
    assert back_projection(content, _smooth(1, 3, 40, 48, seed=1), 1.0) is content


def test_a_difference_that_rounding_can_make_is_not_added() -> None:
    content = _smooth(1, 3, 80, 96)
    source = resize_bicubic(content, Size(48, 40))
    rounded = ((source + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(back_projection(content, rounded, 1.0), content, rtol=0, atol=1e-6)


def test_nothing_happens_at_strength_zero() -> None:
    content = _smooth(1, 3, 80, 96)
    assert back_projection(content, _smooth(1, 3, 40, 48), 0.0) is content


def test_each_frame_is_projected_on_its_own_source() -> None:
    content, source = _smooth(3, 3, 80, 96), _smooth(3, 3, 40, 48, seed=1)
    assert torch.equal(back_projection(content, source, 0.7)[1:2], back_projection(content[1:2], source[1:2], 0.7))


def test_different_numbers_of_frames_are_an_error() -> None:
    with pytest.raises(ValueError, match="same frames"):
        back_projection(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 4, 4), 1.0)


def _noisy(picture: Tensor, sigma: float) -> Tensor:
    """`picture` `(h, w)` in [0, 1] as grey frames with noise."""
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(3)) * sigma
    levels = ((picture + noise) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels[None, :, :, None].expand(-1, -1, -1, 3)


def _gradient() -> Tensor:
    return torch.linspace(0.2, 0.8, 240).expand(160, 240)


@pytest.mark.parametrize("sigma", [0.01, 0.02, 0.05, 0.1])
def test_noise_on_a_smooth_picture_is_measured(sigma: float) -> None:
    assert estimate_noise(_noisy(_gradient(), sigma)) == pytest.approx(sigma, rel=0.1)


def test_a_clean_picture_has_less_noise_than_one_level() -> None:
    assert estimate_noise(_noisy(_gradient(), 0.0)) < 1 / 255


def test_texture_in_half_of_the_picture_is_not_noise() -> None:
    picture = _gradient().clone()
    picture[:, 120:] += 0.3 * (torch.rand(160, 120, generator=torch.Generator().manual_seed(4)) - 0.5)
    assert estimate_noise(_noisy(picture, 0.01)) < 0.013


def test_black_bars_do_not_hide_the_noise() -> None:
    picture = _gradient().clone()
    picture[:60] = picture[100:] = -1.0
    assert estimate_noise(_noisy(picture, 0.04)) == pytest.approx(0.04, rel=0.15)


def test_a_picture_of_two_rows_has_no_measurable_noise() -> None:
    assert estimate_noise(torch.zeros(1, 2, 50, 3, dtype=torch.uint8)) == 0.0


def test_a_small_picture_is_measured() -> None:
    assert estimate_noise(_noisy(_gradient()[:10, :12], 0.05)) == pytest.approx(0.05, rel=0.5)


def test_a_clean_source_is_believed_as_far_as_asked() -> None:
    assert strength_for(0.0, 0.8) == 0.8


def test_the_noisier_the_source_the_less_it_is_believed() -> None:
    strengths = [strength_for(sigma, 1.0) for sigma in (0.0, 0.01, 0.02, 0.05, 0.2)]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[2] == pytest.approx(0.5)
    assert strengths[-1] < 0.02


def _trust(content: Tensor, source: Tensor, fidelity: float = 1.0) -> float:
    trust = SourceTrust.of(torch.full((1, 40, 48, 3), 128, dtype=torch.uint8), fidelity)
    return trust.strength(content, source)


def _blurred(pictures: Tensor) -> Tensor:
    taps = torch.tensor([0.25, 0.5, 0.25])
    window = (taps[:, None] * taps).expand(3, 1, 3, 3)
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, window, groups=3)


def test_a_result_that_only_lost_detail_gets_it_back_in_full() -> None:
    content = _smooth(1, 3, 80, 96)
    source = resize_bicubic(content, Size(48, 40))
    assert _trust(content, source) == 1.0
    assert _trust(_blurred(content), source) == 1.0


def test_a_result_that_sharpened_its_source_is_not_blurred_again() -> None:
    content = torch.rand(1, 3, 80, 96, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.8
    source = _blurred(resize_bicubic(content, Size(48, 40)))
    assert _trust(content, source) == LEAST_TRUST
    assert _trust(content, source, fidelity=0.5) == LEAST_TRUST / 2
    assert _trust(content, source, fidelity=0.0) == 0.0


def test_trust_is_an_average_over_the_frames_so_far() -> None:
    sharp = torch.rand(1, 3, 80, 96, generator=torch.Generator().manual_seed(5)) * 1.6 - 0.8
    blurred = _blurred(resize_bicubic(sharp, Size(48, 40)))
    honest = resize_bicubic(sharp, Size(48, 40))
    trust = SourceTrust.of(torch.full((1, 40, 48, 3), 128, dtype=torch.uint8), 1.0)
    strengths = [trust.strength(sharp, source) for source in (honest, blurred, honest, honest)]
    assert strengths[0] == 1.0
    assert strengths[1] < strengths[2] < strengths[3] <= 1.0


def test_a_black_frame_says_nothing() -> None:
    assert _trust(torch.full((1, 3, 80, 96), -1.0), torch.full((1, 3, 40, 48), -1.0)) == 1.0
