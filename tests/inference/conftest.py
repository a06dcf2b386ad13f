"""Tiny random models in the files and with the keys of the embedded one, and tiny clips to restore with them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from inference import checkpoint
from inference.checkpoint import TEXT_KEY, Models, load_models
from models.dit import DiT, DiTConfig, Mlp, Rope
from models.presets import NANO_DIT, NANO_VAE
from models.video_vae import VAEConfig, VideoVAE

TINY_DIT = DiTConfig(
    width=32,
    text_width=8,
    num_layers=2,
    num_heads=2,
    head_dim=32,
    latent_channels=4,
    mlp=Mlp.GELU,
    mlp_ratio=1,
    rope=Rope.PIXEL,
    num_separate_layers=0,
    last_layer_video_only=False,
    output_modulation=False,
)
TINY_VAE = VAEConfig(widths=(8, 8, 8, 8), num_blocks=1, num_groups=1, latent_channels=4)


def write_random_model(folder: Path, dit_config: DiTConfig, vae_config: VAEConfig) -> None:
    """Weights of the embedded model's file names, drawn at random."""
    torch.manual_seed(0)
    dit, vae = DiT(dit_config).state_dict(), VideoVAE(vae_config).state_dict()
    text = torch.randn(3, dit_config.text_width)
    save_file(
        {key: value.half().contiguous() for key, value in (dit | {TEXT_KEY: text}).items()},
        folder / "nano_dit.safetensors",
    )
    save_file({key: value.half().contiguous() for key, value in vae.items()}, folder / "nano_vae.safetensors")


@pytest.fixture(scope="session")
def nano_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random model of the embedded model's true sizes, for processes that are started."""
    folder = tmp_path_factory.mktemp("nano")
    write_random_model(folder, NANO_DIT, NANO_VAE)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a random model of much smaller sizes; needs `tiny_model` to be loaded."""
    folder = tmp_path_factory.mktemp("tiny")
    write_random_model(folder, TINY_DIT, TINY_VAE)
    return folder


@pytest.fixture
def tiny_model(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes "nano" the tiny model in this process; gives the folder with its weights."""
    monkeypatch.setitem(checkpoint.CONFIGS, "nano", (TINY_DIT, TINY_VAE))
    return tiny_weights


@pytest.fixture
def tiny_models(tiny_model: Path) -> Models:
    """The tiny model, loaded."""
    return load_models("nano", tiny_model)


def make_frames(count: int, height: int = 10, width: int = 14, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Frames `(height, width, 3)` of waves that drift slowly; another picture for each `seed`."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.uniform(-1, 1, (4, 2, 1, 1, 3)) * 2 * np.pi, rng.uniform(0, 2 * np.pi, (4, 1, 1, 3))
    y, x = np.mgrid[0:height, 0:width][..., None] / np.array([height, width])[:, None, None, None]

    def picture(time: float) -> NDArray[np.uint8]:
        parts = [
            np.sin(wave[0] * (y + time) + 2 * wave[1] * x + phase) for wave, phase in zip(waves, phases, strict=True)
        ]
        return (127.5 + 31 * sum(parts)).astype(np.uint8)

    return [picture(index / 100) for index in range(count)]


@pytest.fixture(scope="session")
def moving_frames() -> Callable[..., list[NDArray[np.uint8]]]:
    """`moving_frames(count, height, width, seed)`, see `make_frames`."""
    return make_frames


@pytest.fixture
def make_clip(tmp_path: Path) -> MakeClip:
    """Writes clips into the test's folder."""
    return MakeClip(tmp_path)


class MakeClip:
    """Writes `name`: shots of `lengths` frames, each of another picture, with a tone if `sound`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, name: str, *lengths: int, height: int = 16, width: int = 24, sound: bool = False, fps: int = 24
    ) -> Path:
        path = self._folder / name
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            audio = container.add_stream("aac", rate=48000, layout="mono") if sound else None
            for shot, length in enumerate(lengths):
                for picture in make_frames(length, height, width, seed=shot):
                    container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode(None))
            if audio is not None:
                for start in range(0, sum(lengths) * 48000 // fps, 1024):
                    tone = np.sin((start + np.arange(1024)) * (2 * np.pi * 440 / 48000)).astype(np.float32) * 0.2
                    frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
                    frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
                    container.mux(audio.encode(frame))
                container.mux(audio.encode(None))
        return path


def decode_frames(path: Path) -> list[NDArray[np.uint8]]:
    """Every frame of a video as `(h, w, 3)`."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="session")
def decoded() -> Callable[[Path], list[NDArray[np.uint8]]]:
    """`decoded(path)`, see `decode_frames`."""
    return decode_frames
