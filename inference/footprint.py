"""How much device memory the networks take, before they run: the same code, run on tensors without values.

`LiveBytes` adds up the memory of all tensors that are alive while PyTorch runs on the meta device, so a prediction
follows every change of the network by itself. Weights are not counted. Sizes are in bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.dit import DiTConfig, Mlp
from models.gpu import FastVAE
from models.packing import PATCH
from models.video_vae import VAEConfig, VAEState, VideoVAE


class LiveBytes(TorchDispatchMode):
    """Inside this context: `now`, the bytes of all tensors made in it that are still alive, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        identity = storage._cdata
        if identity not in self._storages:
            self._storages[identity] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, identity)

    def _drop(self, identity: int) -> None:
        self.now -= self._storages.pop(identity, 0)


@dataclass(frozen=True, slots=True)
class VAEFootprint:
    """Most memory during a slice in the middle of a clip, its states included, and what stays between slices."""

    encode_peak: int
    encode_state: int
    decode_peak: int
    decode_state: int


@lru_cache(maxsize=64)
def vae_footprint(
    config: VAEConfig,
    width: int,
    height: int,
    dtype: torch.dtype,
    encode_frames: int,
    decode_latents: int,
    max_frames: int | None,
) -> VAEFootprint:
    """Memory of the fast form for GPUs, for pictures of `width` x `height` (multiples of 8)."""
    vae = _meta_vae(config, dtype)
    with torch.no_grad(), torch.device("meta"):
        video = torch.empty(1, 3, 1 + encode_frames, height, width, dtype=dtype)
        latent = torch.empty(1, config.latent_channels, 1 + decode_latents, height // 8, width // 8, dtype=dtype)
        encode_peak, encode_state = _second_slice(
            lambda part, state: vae.encode(part, state, None), video.split([1, encode_frames], dim=2)
        )
        decode_peak, decode_state = _second_slice(
            lambda part, state: vae.decode(part, state, None, max_frames), latent.split([1, decode_latents], dim=2)
        )
    return VAEFootprint(encode_peak, encode_state, decode_peak, decode_state)


def dit_footprint(config: DiTConfig, latents: int, width: int, height: int, dtype: torch.dtype) -> int:
    """Most memory during one pass of the transformer over `latents` latent frames of `width` x `height` pixels.

    The widest moment is in the feed-forward network: the residual stream, its normed input and the hidden layers.
    """
    tokens = latents * (height // (8 * PATCH)) * (width // (8 * PATCH))
    hidden = 3 if config.mlp is Mlp.SWIGLU else 2
    attention = config.width * 2 + 7 * config.inner_width
    channels = max(attention, config.width * 3 + hidden * config.mlp_width)
    rotation = 2 * 8 * (config.head_dim // 2)  # complex64, for both kinds of windows
    return int(tokens * (channels * dtype.itemsize + rotation) * 1.05)


def _second_slice(
    step: Callable[[Tensor, VAEState | None], tuple[Tensor, VAEState]], parts: Sequence[Tensor]
) -> tuple[int, int]:
    """Peak of the second of two slices with what the first one left, and the bytes that are left after it."""
    with LiveBytes() as live:
        result, state = step(parts[0], None)
        del result
        live.peak = live.now
        result, state = step(parts[1], state)
        del result
        left = live.now
    del state
    return live.peak, left


@lru_cache(maxsize=4)
def _meta_vae(config: VAEConfig, dtype: torch.dtype) -> FastVAE:
    with torch.device("meta"):
        vae = VideoVAE(config).to(dtype).requires_grad_(False)
    return FastVAE(vae.encoder, vae.decoder)
