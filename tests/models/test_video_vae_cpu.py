"""The fast CPU form: equal to the plain form to rounding, in float32 also through oneDNN."""

from __future__ import annotations

import pytest
import torch

from models import frame_ops
from models.video_vae import VAEConfig
from tests.models.vae_models import GROUPED, ONE_GROUP, make_vae, random_tensor


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
def test_fast_encode_in_float32_equals_plain_to_rounding(config: VAEConfig) -> None:
    video = random_tensor(1, 3, 13, 32, 40, dtype=torch.float32)
    plain, _ = make_vae(config).encode(video.double())
    fast, _ = make_vae(config, torch.float32, fast=True).encode(video)
    torch.testing.assert_close(fast.mean.double(), plain.mean, rtol=0, atol=2e-5)


@pytest.mark.parametrize("config", [GROUPED, ONE_GROUP])
def test_fast_decode_in_float32_equals_plain_to_rounding(config: VAEConfig) -> None:
    latent = random_tensor(1, config.latent_channels, 4, 4, 5, dtype=torch.float32)
    plain, _ = make_vae(config).decode(latent.double())
    fast, _ = make_vae(config, torch.float32, fast=True).decode(latent)
    torch.testing.assert_close(fast.double(), plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("with_residual", [False, True])
def test_combined_frames_equal_the_direct_convolution(num_frames: int, with_residual: bool) -> None:
    channels = frame_ops.WINOGRAD_MIN_CHANNELS
    weight, bias = random_tensor(channels, channels, 3, 3, 3), random_tensor(channels, seed=2)
    video, residual = (random_tensor(1, channels, num_frames, 5, 6, seed=seed) for seed in (3, 4))
    extended = torch.cat([video[:, :, :1], video[:, :, :1], video], dim=2)
    expected = torch.nn.functional.conv3d(extended, weight, bias, padding=(0, 1, 1))
    conv = frame_ops.TimeConv(weight, bias, padding=1)
    adds = list(residual.unbind(dim=2)) if with_residual else None
    out = torch.stack(conv(list(video.unbind(dim=2)), frame_ops.FrameStream(None), adds), dim=2)
    torch.testing.assert_close(out, expected + residual if with_residual else expected, rtol=0, atol=1e-11)


def test_norm_of_a_frame_far_from_zero_keeps_its_digits() -> None:
    vae = make_vae(ONE_GROUP, torch.float32, fast=True)
    norm = vae.encoder.down_blocks[0].resnets[0].norm1
    x = 300 + 0.5 * random_tensor(1, 8, 24, 40, dtype=torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    expected = torch.nn.functional.group_norm(x.double(), 1, norm.weight.double(), norm.bias.double(), norm.eps)
    out = frame_ops.NormSilu(norm)(x)
    torch.testing.assert_close(out.double(), torch.nn.functional.silu(expected), rtol=0, atol=1e-3)


def test_without_onednn_the_numbers_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, latent = make_vae(ONE_GROUP, torch.float32, fast=True), random_tensor(1, 16, 3, 2, 3, dtype=torch.float32)
    expected, _ = vae.decode(latent)
    monkeypatch.setattr(frame_ops, "_ONEDNN", False)
    torch.testing.assert_close(vae.decode(latent)[0], expected, rtol=0, atol=2e-5)
