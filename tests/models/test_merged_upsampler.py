"""The merged upsampler: one convolution with the numbers of expansion, unfold and 3x3x3 convolution."""

from __future__ import annotations

import pytest
import torch

from models.causal_conv import ConvStream
from models.cpu import SpatialUp, TemporalUp
from models.frame_ops import FrameStream
from models.merged_upsampler import SPATIAL, STEADY, merge_kernel
from models.video_vae import Upsample
from tests.models.vae_models import random_tensor


def make_upsample(temporal: bool) -> Upsample:
    torch.manual_seed(3)
    up = Upsample(5, temporal).double().requires_grad_(False)
    assert up.upscale_conv.bias is not None
    up.upscale_conv.bias.copy_(torch.linspace(-2, 2, up.upscale_conv.out_channels))  # borders must show
    return up


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [5], [1, 1, 2], [1, 3], [2, 1, 2], [3, 3]])
def test_merged_equals_the_three_steps_in_every_slice(temporal: bool, lengths: list[int]) -> None:
    up = make_upsample(temporal)
    fast = TemporalUp(up) if temporal else SpatialUp(up)
    plain_state, fast_state = None, None
    for part in random_tensor(2, 5, sum(lengths), 3, 4).split(lengths, dim=2):
        plain_stream, fast_stream = ConvStream(plain_state), FrameStream(fast_state)
        expected = up(part, plain_stream)
        out = torch.stack(fast(list(part.unbind(dim=2)), fast_stream), dim=2)
        plain_state, fast_state = plain_stream.finish(part.shape[2]), fast_stream.finish(part.shape[2])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("temporal", "num_frames"), [(False, 3), (True, 2)])
def test_the_merged_kernel_needs_few_products(temporal: bool, num_frames: int) -> None:
    up = make_upsample(temporal)
    taps = merge_kernel(up.upscale_conv, up.conv, STEADY if temporal else SPATIAL).taps
    assert taps.shape == (num_frames, 40 if temporal else 20, 5, 2, 2)
