"""Full-reference measures of a restored clip: PSNR-Y, SSIM, GMSD and flicker.

All work on luma in 8-bit steps, float32 ``(T, H, W)`` in [0, 255]: Y = 0.2126 R + 0.7152 G + 0.0722 B of the R'G'B'
values (the weights of BT.709), full range and unrounded. No border is cut off. A clip's value is the mean over its
frames. SSIM is torchmetrics'. GMSD is written here from its paper, because the libraries that have it (piq, piqa)
import torchvision, which does not load beside a CPU torch.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Frames = NDArray[np.uint8]

PSNR_CAP_DB = 100.0
GMSD_C = 170.0
"""The constant of GMSD for 8-bit luma (Xue et al. 2014, section III)."""
FRAMES_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One clip against ground truth. Higher is better for psnr_y (dB) and ssim, lower for gmsd and flicker (8-bit)."""

    psnr_y: float
    ssim: float
    gmsd: float
    flicker: float

    def minus(self, other: "Scores") -> "Scores":
        """The difference, measure by measure."""
        return Scores(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})


def mean_scores(scores: list[Scores]) -> Scores:
    """The mean over clips, measure by measure. ``scores`` must not be empty."""
    return Scores(**{f.name: sum(getattr(s, f.name) for s in scores) / len(scores) for f in fields(Scores)})


def luma(frames: Frames) -> Tensor:
    """Luma ``(T, H, W)`` float32 in [0, 255] of RGB frames ``(T, H, W, 3)`` uint8."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float32)
    return torch.from_numpy(np.ascontiguousarray(frames)).float() @ weights


def psnr(out: Tensor, truth: Tensor) -> Tensor:
    """PSNR in dB of each frame, ``(T,)``, from luma ``(T, H, W)``; equal frames give ``PSNR_CAP_DB``."""
    error = (out - truth).square().mean(dim=(1, 2))
    return (10 * torch.log10(255.0**2 / error)).clamp(max=PSNR_CAP_DB)


def ssim(out: Tensor, truth: Tensor) -> Tensor:
    """SSIM of each frame, ``(T,)``, from luma ``(T, H, W)``: Gaussian window of sigma 1.5 (Wang et al. 2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(out[:, None], truth[:, None], data_range=255.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(-1)


def gmsd(out: Tensor, truth: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation of each frame, ``(T,)``, from luma ``(T, H, W)``; 0 for equal frames.

    W. Xue, L. Zhang, X. Mou, A. C. Bovik: Gradient Magnitude Similarity Deviation, IEEE Transactions on Image
    Processing 23(2), 2014. Both are averaged 2x2 and halved, Prewitt gradients give the magnitudes m, and the value is
    the standard deviation over the frame of (2 m_out m_truth + c) / (m_out^2 + m_truth^2 + c).
    """
    m_out, m_truth = _gradient_magnitude(out), _gradient_magnitude(truth)
    similarity = (2 * m_out * m_truth + GMSD_C) / (m_out.square() + m_truth.square() + GMSD_C)
    return similarity.flatten(1).std(dim=1, correction=0)


def _gradient_magnitude(y: Tensor) -> Tensor:
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]
    halved = F.avg_pool2d(y[:, None], 2)
    gradients = F.conv2d(halved, kernels, padding=1)  # zeros outside, as in the authors' code
    return gradients.square().sum(dim=1).sqrt()


def flicker(out: Tensor, truth: Tensor) -> Tensor:
    """Mean |change from frame to frame of ``out`` minus that of ``truth``| in 8-bit steps, ``(T - 1,)``."""
    return (out.diff(dim=0) - truth.diff(dim=0)).abs().mean(dim=(1, 2))


def score(out: Frames, truth: Frames) -> Scores:
    """All measures of the clip ``out`` against ``truth``, both ``(T, H, W, 3)`` uint8 and of equal shape."""
    if out.shape != truth.shape:
        raise ValueError(f"The clip {out.shape} and its ground truth {truth.shape} differ in shape.")
    y_out, y_truth = luma(out), luma(truth)
    per_frame = {"psnr_y": psnr, "ssim": ssim, "gmsd": gmsd}
    values = {
        name: torch.cat(
            [measure(a, b) for a, b in zip(y_out.split(FRAMES_AT_ONCE), y_truth.split(FRAMES_AT_ONCE), strict=True)]
        )
        .mean()
        .item()
        for name, measure in per_frame.items()
    }
    changes = flicker(y_out, y_truth)
    return Scores(**values, flicker=changes.mean().item() if len(changes) else 0.0)
