"""The measures against values that are known from their definitions or from an independent program."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.metrics import PSNR_CAP_DB, Scores, flicker, gmsd, luma, mean_scores, psnr, score, ssim


def waves() -> Tensor:
    """Luma (1, 40, 56) with soft gradients everywhere."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    return (127 + 100 * torch.sin(x / 3) * torch.cos(y / 5))[None]


def disturbed(truth: Tensor) -> Tensor:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")
    return (truth + ((x // 4) * 7 + (y // 4) * 13) % 34 - 17).clamp(0, 255)


def test_luma_has_the_weights_of_bt709() -> None:
    colors = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]]], dtype=np.uint8)
    assert luma(colors).flatten().tolist() == pytest.approx([54.213, 182.376, 18.411, 255.0])


def test_an_error_of_one_step_is_48_13_db() -> None:
    assert psnr(waves() + 1, waves()).item() == pytest.approx(48.1308, abs=1e-3)


def test_equal_frames_have_the_capped_psnr() -> None:
    assert psnr(waves(), waves()).item() == PSNR_CAP_DB


def test_psnr_is_taken_per_frame() -> None:
    truth = waves().repeat(2, 1, 1)
    out = truth + torch.tensor([1.0, 10.0])[:, None, None]
    assert psnr(out, truth).tolist() == pytest.approx([48.1308, 28.1308], abs=1e-3)


def test_ssim_of_equal_frames_is_one_and_falls_with_noise() -> None:
    assert ssim(waves(), waves()).item() == pytest.approx(1.0)
    assert ssim(disturbed(waves()), waves()).item() < 0.98


def test_ssim_is_taken_per_frame() -> None:
    truth = waves().repeat(2, 1, 1)
    out = torch.cat([waves(), disturbed(waves())])
    values = ssim(out, truth)
    assert values.shape == (2,)
    assert values[0] > values[1]


def test_gmsd_of_equal_frames_is_zero() -> None:
    assert gmsd(waves(), waves()).item() == pytest.approx(0.0, abs=1e-6)


def test_gmsd_equals_what_an_independent_program_gives() -> None:
    """The number is piqa 1.3.2's, corrected from its sample deviation to the paper's population deviation."""
    assert gmsd(disturbed(waves()), waves()).item() == pytest.approx(0.0391737, abs=2e-6)


def test_a_constant_offset_does_not_flicker() -> None:
    truth = waves().repeat(3, 1, 1)
    assert flicker(truth + 5, truth).tolist() == [0.0, 0.0]


def test_flicker_counts_changes_that_the_truth_does_not_have() -> None:
    truth = waves().repeat(3, 1, 1)
    out = truth + torch.tensor([0.0, 2.0, 0.0])[:, None, None]
    assert flicker(out, truth).tolist() == pytest.approx([2.0, 2.0], abs=1e-4)


def test_a_clip_of_many_frames_is_scored_frame_by_frame(frames: NDArray[np.uint8]) -> None:
    truth = np.concatenate([frames, frames, frames])
    out = np.where(np.arange(18)[:, None, None, None] == 17, 255 - truth, truth).astype(np.uint8)
    one = psnr(luma(out[-1:]), luma(truth[-1:])).item()
    assert score(out, truth).psnr_y == pytest.approx((17 * PSNR_CAP_DB + one) / 18, abs=1e-3)


def test_one_frame_has_no_flicker(frames: NDArray[np.uint8]) -> None:
    assert score(frames[:1], frames[:1]).flicker == 0.0


def test_clips_of_different_length_are_refused(frames: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        score(frames[:-1], frames)


def test_scores_are_averaged_and_subtracted_measure_by_measure() -> None:
    low, high = Scores(psnr_y=30, ssim=0.8, gmsd=0.2, flicker=2), Scores(psnr_y=32, ssim=0.9, gmsd=0.1, flicker=1)
    assert mean_scores([low, high]).psnr_y == 31
    assert high.minus(low).gmsd == pytest.approx(-0.1)
