"""Tiny video VAEs with seeded weights, and ways to run them in slices, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.video_vae import VAEConfig, VAEState, VideoVAE

GROUPED = VAEConfig(widths=(8, 8, 16, 24), num_blocks=1, num_groups=4, latent_channels=4)
ONE_GROUP = VAEConfig(widths=(8, 16, 16, 24), num_blocks=1, num_groups=1, latent_channels=16)


def make_vae(config: VAEConfig = GROUPED, dtype: torch.dtype = torch.float64, *, fast: bool = False) -> VideoVAE:
    """A VAE whose norms are not trivial; the same weights each time."""
    generator = torch.Generator().manual_seed(5)
    vae = VideoVAE(config)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + (1.0 if name.endswith("weight") else 0.0))
            elif parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    vae = vae.to(dtype).eval().requires_grad_(False)
    if fast:
        vae.prepare_for_inference()
    return vae


def random_tensor(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * 2 - 1


def encode_slices(vae: VideoVAE, video: Tensor, lengths: Sequence[int]) -> tuple[Tensor, VAEState | None]:
    """Mean of the whole clip and the last state."""
    state, parts = None, []
    for part in video.split(list(lengths), dim=2):
        posterior, state = vae.encode(part, state)
        parts.append(posterior.mean)
    return torch.cat(parts, dim=2), state


def decode_slices(vae: VideoVAE, latent: Tensor, lengths: Sequence[int]) -> tuple[Tensor, VAEState | None]:
    """Video of the whole clip and the last state."""
    state, parts = None, []
    for part in latent.split(list(lengths), dim=2):
        video, state = vae.decode(part, state)
        parts.append(video)
    return torch.cat(parts, dim=2), state
