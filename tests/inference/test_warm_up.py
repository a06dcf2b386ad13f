"""Histories that are made again are those of the undisturbed stream to the last bit, in the form for cards as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inference import shot_state
from inference.shot_state import ShotState
from inference.warm_up import num_warm_up_frames, remember
from models import gpu_conv
from models.gpu import FastVAE
from models.vae_memory import VAEMemory
from models.video_vae import VAEState, VideoVAE
from tests.models.vae_models import GROUPED, make_vae, random_tensor

NUM_SLICES = 24


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> VideoVAE:
    """In the form for cards, run on the CPU; pairs of frames round otherwise than single ones."""
    monkeypatch.setattr(gpu_conv, "PAIRED_CHANNELS", 1)
    monkeypatch.setattr(shot_state, "LARGE_HISTORIES_BYTES", 0)
    vae = make_vae(GROUPED, torch.float32)
    monkeypatch.setattr(vae, "_fast", FastVAE(vae.encoder, vae.decoder))
    return vae


def encode(vae: VideoVAE, video: Tensor, size: int, way: VAEMemory) -> VAEState:
    state: VAEState | None = None
    for part in [video[:, :, : size + 1], *video[:, :, size + 1 :].split(size, dim=2)]:
        _, state = vae.encode(part, state, memory=way)
    assert state is not None
    return state


@pytest.mark.parametrize("max_frames", [1, 3, 16, None])
@pytest.mark.parametrize("size", [4, 16])
def test_the_encoder_forgets_how_it_began(vae: VideoVAE, size: int, max_frames: int | None) -> None:
    taken = 1 + NUM_SLICES * size
    video, way = random_tensor(1, 3, taken, 16, 16, dtype=torch.float32), VAEMemory(max_frames)
    count = num_warm_up_frames(vae, size, taken)
    whole, again = encode(vae, video, size, way), encode(vae, video[:, :, taken - count :], size, way)

    assert count < taken or size == 4
    assert all(torch.equal(a, b) for a, b in zip(whole.histories, again.histories, strict=True))


@pytest.mark.parametrize("max_frames", [1, 3, None])
@pytest.mark.parametrize("lengths", [[1], [4], [4, 3], [3, 2]])
def test_the_decoder_forgets_how_it_began(vae: VideoVAE, lengths: list[int], max_frames: int | None) -> None:
    count = 3 * vae.decoder_past // sum(lengths)
    pieces = random_tensor(1, GROUPED.latent_channels, count * sum(lengths), 2, 2, dtype=torch.float32).split(
        lengths * count, dim=2
    )
    state, way = ShotState(), VAEMemory(max_frames)
    for piece in pieces:
        _, state.decoder = vae.decode(piece, state.decoder, memory=way)
        remember(state, piece, vae)
    again: VAEState | None = None
    for piece in state.recent:
        _, again = vae.decode(piece, again, memory=way)

    assert again is not None
    assert state.decoder is not None
    assert len(state.recent) < len(pieces)
    assert all(torch.equal(a, b) for a, b in zip(state.decoder.histories, again.histories, strict=True))
