"""Owns the merged upsampler: expansion, unfold and 3x3x3 convolution of an ``Upsample`` as one convolution.

Nothing stands between the three steps, so they fold into one linear map. Along each axis the three taps of an output
phase touch two source positions only, which leaves 8 (temporal) or 12 products of C x C per output pixel in place of
28. All phases together are one 2x2 convolution on a grid with one more row and column than the source: grid row g sees
source rows g-1 and g, and gives output row 2g (phase 0) and 2g-1 (phase 1).

The expansion's bias acts as one more input channel of ones that ends at the picture's border, because the 3x3x3
convolution pads with zeros after the expansion. Inside, that is a constant; the outermost grid rows and columns get a
correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

TimeMap = tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], ...]
"""For each output time phase and each of its three taps: (source frame in the kernel, time phase there)."""

STEADY: TimeMap = (((0, 0), (0, 1), (1, 0)), ((0, 1), (1, 0), (1, 1)))
"""Kernel frames: previous, current."""
SECOND: TimeMap = (((0, 0), (0, 0), (1, 0)), ((0, 0), (1, 0), (1, 1)))
"""As STEADY where the previous frame is the clip's first one, which has time phase 0 only."""
FIRST: TimeMap = (((0, 0), (0, 0), (0, 0)),)
"""The clip's first frame: one output frame, its past a copy of itself."""
SPATIAL: TimeMap = (((0, 0), (1, 0), (2, 0)),)
"""No change in time: three source frames, oldest first."""


@dataclass(frozen=True, slots=True)
class MergedKernel:
    """One folded convolution.

    ``taps`` (K, 4zC, C, 2, 2), one 2-D kernel per source frame, output channels in the order (row phase, column phase,
    time phase, channel); ``bias`` (4zC,) valid inside the picture; ``border`` (4zC, 2, 2) the share of the expansion's
    bias that each of the four kernel positions contributes, to be taken away where that position is outside.
    """

    taps: Tensor
    bias: Tensor
    border: Tensor

    def fix_border(self, grid: Tensor) -> None:
        """Takes the bias of positions outside the picture out of ``grid`` (B, 4zC, H+1, W+1), in place."""
        rows, columns = self.border.sum(dim=2), self.border.sum(dim=1)  # both (4zC, 2)
        for edge, index in ((0, 0), (1, grid.shape[2] - 1)):
            grid[:, :, index] -= rows[:, edge, None]
        for edge, index in ((0, 0), (1, grid.shape[3] - 1)):
            grid[:, :, :, index] -= columns[:, edge, None]
        for row in (0, 1):
            for column in (0, 1):
                grid[:, :, -row, -column] += self.border[:, row, column]  # counted in both its row and its column


def merge_kernel(expand: nn.Conv3d, conv: nn.Conv3d, time_map: TimeMap) -> MergedKernel:
    """Folds the pointwise ``expand`` (C -> 4zC) and the 3x3x3 ``conv`` (C -> C) for the phases of ``time_map``."""
    channels, num_phases = conv.out_channels, len(time_map)
    z = expand.out_channels // (4 * channels)
    assert expand.bias is not None
    assert conv.bias is not None
    weight = torch.cat([expand.weight.detach().flatten(1), expand.bias.detach()[:, None]], dim=1).double()
    phases = weight.view(2, 2, z, channels, channels + 1)
    kernel = conv.weight.detach().double()
    num_frames = 1 + max(frame for taps in time_map for frame, _ in taps)
    merged = kernel.new_zeros(num_frames, 2, 2, num_phases, channels, channels + 1, 2, 2)
    axis = [
        (phase, tap, (phase + tap - 1) % 2, (phase + tap - 1) // 2 + 1 - phase) for phase in (0, 1) for tap in (0, 1, 2)
    ]
    for time_phase, taps in enumerate(time_map):
        for time_tap, (frame, source_time) in enumerate(taps):
            for x, row_tap, source_x, row in axis:
                for y, column_tap, source_y, column in axis:
                    product = kernel[:, :, time_tap, row_tap, column_tap] @ phases[source_x, source_y, source_time]
                    merged[frame, x, y, time_phase, :, :, row, column] += product
    merged = merged.flatten(1, 4)
    border = merged[:, :, -1].sum(dim=0)
    bias = border.sum(dim=(1, 2)) + conv.bias.detach().double().repeat(4 * num_phases)
    dtype = conv.weight.dtype
    return MergedKernel(merged[:, :, :-1].contiguous().to(dtype), bias.to(dtype), border.to(dtype))


def unfold_grid(grid: Tensor, num_phases: int) -> list[Tensor]:
    """Frames (B, C, 2H, 2W), channels last, of a grid (B, 4zC, H+1, W+1): one per time phase."""
    batch, _, height, width = grid.shape
    height, width = height - 1, width - 1
    channels = grid.shape[1] // (4 * num_phases)
    phases = grid.permute(0, 2, 3, 1).view(batch, height + 1, width + 1, 2, 2, num_phases, channels)
    frames = []
    for time_phase in range(num_phases):
        frame = grid.new_empty(batch, height, 2, width, 2, channels)
        for x in (0, 1):
            for y in (0, 1):
                frame[:, :, x, :, y] = phases[:, x : x + height, y : y + width, x, y, time_phase]
        frames.append(frame.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2))
    return frames
