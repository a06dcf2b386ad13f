"""Synthetic checkpoints: every key of the released files, at tiny width, with seeded random values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.dit import DiT, DiTConfig
from models.presets import NANO_DIT, SEEDVR2_3B, SEEDVR2_7B, VIDEO_VAE
from models.video_vae import VideoVAE

TINY_3B = replace(SEEDVR2_3B, width=16, text_width=24, num_heads=1, head_dim=16, rope_dim=16, mlp_ratio=1)
TINY_7B = replace(SEEDVR2_7B, width=16, text_width=24, num_heads=1, head_dim=16, mlp_ratio=2)
TINY_NANO = replace(NANO_DIT, width=16, text_width=24, num_heads=1, head_dim=16, latent_channels=16, num_layers=2)
TINY_VAE = replace(VIDEO_VAE, widths=(8, 16, 24, 24), num_groups=4)


def dit_state(config: DiTConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A transformer's state dict."""
    return _cast(_dit_values(config), dtype)


def vae_state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict of the tiny VAE."""
    return _cast(_vae_values(), dtype)


def save(state: Mapping[str, Tensor], path: Path) -> Path:
    """Writes a state dict in the format that the suffix names."""
    if path.suffix == ".safetensors":
        save_file(dict(state), path)
    else:
        torch.save(dict(state), path)
    return path


@cache
def _dit_values(config: DiTConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = DiT(config)
    return _random_values(network)


@cache
def _vae_values() -> dict[str, Tensor]:
    with torch.device("meta"):
        network = VideoVAE(TINY_VAE)
    return _random_values(network)


def _random_values(network: nn.Module) -> dict[str, Tensor]:
    """Multiples of 1/64 in -1..1, which float32, float16 and bfloat16 all hold exactly."""
    rng = torch.Generator().manual_seed(0)
    return {key: torch.randint(-64, 65, value.shape, generator=rng) / 64 for key, value in network.state_dict().items()}


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) for key, value in state.items()}
