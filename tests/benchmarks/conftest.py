"""Random weights of the embedded model's names and a tiny ground-truth clip, for running the benchmarks for real."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.clips import moving_texture, write_lossless
from inference import checkpoint
from models.dit import DiT, DiTConfig
from models.presets import NANO_DIT, NANO_VAE
from models.video_vae import VAEConfig, VideoVAE

TINY_DIT = replace(NANO_DIT, width=32, text_width=8, num_layers=1, num_heads=1, head_dim=32, latent_channels=4)
TINY_VAE = VAEConfig(widths=(8, 8, 8, 8), num_blocks=1, num_groups=1, latent_channels=4)


def write_weights(folder: Path, dit_config: DiTConfig, vae_config: VAEConfig) -> Path:
    torch.manual_seed(0)
    dit, vae = DiT(dit_config).state_dict(), VideoVAE(vae_config).state_dict()
    dit["text_embedding"] = torch.randn(3, dit_config.text_width)
    save_file({key: value.half().contiguous() for key, value in dit.items()}, folder / "nano_dit.safetensors")
    save_file({key: value.half().contiguous() for key, value in vae.items()}, folder / "nano_vae.safetensors")
    return folder


@pytest.fixture(scope="session")
def nano_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with random weights of the embedded model's true sizes, for processes that are started."""
    return write_weights(tmp_path_factory.mktemp("nano"), NANO_DIT, NANO_VAE)


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes "nano" a much smaller model in this process; the folder with its random weights."""
    monkeypatch.setitem(checkpoint.CONFIGS, "nano", (TINY_DIT, TINY_VAE))
    folder = tmp_path / "weights"
    folder.mkdir()
    return write_weights(folder, TINY_DIT, TINY_VAE)


@pytest.fixture
def frames() -> NDArray[np.uint8]:
    """Six frames (6, 34, 50, 3) of a moving texture; sides that fit no scale."""
    return moving_texture(50, 34, 6)


@pytest.fixture
def clips(tmp_path: Path, frames: NDArray[np.uint8]) -> Path:
    """Folder with one lossless ground-truth clip."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_lossless(folder / "texture.mkv", frames, Fraction(24))
    return folder
