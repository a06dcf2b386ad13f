"""Degradation: sizes, repeatability, and consistency in time."""

import numpy as np
import pytest

from training.degrade import Degradation, degrade, draw


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    rows, columns = np.mgrid[0:48, 0:96]
    still = np.stack([(rows * 5) % 256, (columns * 2) % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    return np.repeat(still[None], 5, axis=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_codec_keeps_frame_count_and_divides_the_size(clip: np.ndarray, scale: int) -> None:
    draws = Degradation(scale=scale, blur=0.6, noise=0.01, jpeg_quality=80, h264_crf=23)
    assert degrade(clip, draws, seed=1).shape == (5, 48 // scale, 96 // scale, 3)


def test_the_same_seed_gives_the_same_clip_and_another_does_not(clip: np.ndarray) -> None:
    draws = Degradation(scale=2, noise=0.02)
    first = degrade(clip, draws, seed=1)
    assert np.array_equal(first, degrade(clip, draws, seed=1))
    assert not np.array_equal(first, degrade(clip, draws, seed=2))


def test_a_still_clip_without_noise_stays_still(clip: np.ndarray) -> None:
    small = degrade(clip, Degradation(scale=2, kernel="area", blur=1.0), seed=0)
    assert (small == small[:1]).all()


def test_draws_cover_clean_and_degraded_and_depend_on_the_generator_only() -> None:
    rng = np.random.default_rng(0)
    draws = [draw(2, rng) for _ in range(40)]
    assert any(d.h264_crf for d in draws)
    assert any(not d.h264_crf and not d.noise and not d.blur for d in draws)
    again = np.random.default_rng(0)
    assert draws == [draw(2, again) for _ in range(40)]


def test_a_size_that_the_scale_does_not_divide_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="multiple of 10"):
        degrade(clip, Degradation(scale=5), seed=0)
