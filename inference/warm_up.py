"""Owns which frames and latents bring large histories of the VAE back, instead of a file that holds them.

The past of a causal network is finite: after `VideoVAE.encoder_past` frames, or `decoder_past` latents, nothing is
left of how a stream began. So a stream that begins anew so much earlier, with slices of the same sizes at the same
places, comes to the same histories, bit for bit. Its first slice does not count: it begins with a frame without a past,
so its frames are paired and cut otherwise than those of a later slice, and round otherwise.
"""

from __future__ import annotations

from torch import Tensor

from inference.shot_state import ShotState
from models.video_vae import VideoVAE


def num_warm_up_frames(vae: VideoVAE, slice_frames: int, taken: int) -> int:
    """How many of the latest of `taken` source frames have to be encoded again.

    They are a first slice of `slice_frames + 1`, and later ones of `slice_frames`. At most all frames of the shot.
    """
    num_slices = 1 + -(-vae.encoder_past // slice_frames)
    return min(taken, 1 + num_slices * slice_frames)


def remember(state: ShotState, latent: Tensor, vae: VideoVAE) -> None:
    """Keep `latent`, the slice that was decoded last, and of those before it what a warm-up needs."""
    if not state.has_large_histories:
        state.recent.clear()
        return
    state.recent.append(latent)
    lengths = [piece.shape[2] for piece in state.recent]
    while sum(lengths[2:]) >= vae.decoder_past:
        lengths.pop(0)
        state.recent.pop(0)
