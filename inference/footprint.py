"""How much device memory the networks take, before they run: the same code, run on tensors without values.

`LiveBytes` adds up the memory of all tensors that are alive while PyTorch runs on the meta device, so a prediction
follows every change of the network by itself. Sizes are in bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference.diffusion import MAX_TIMESTEP, euler_sample, make_condition, velocity_of
from inference.offload import offloaded_bytes
from models.attention import SequenceLengths
from models.dit import DiT, DiTConfig
from models.gpu import FastVAE
from models.vae_memory import VAEMemory, page_locked_bytes
from models.video_vae import VAEConfig, VAEState, VideoVAE

_TEXT_TOKENS = 58
"""Of the released text embedding."""

_WORKSPACE = 32 * 2**20
"""What cuBLAS keeps for itself, by PyTorch's default for capability 9.0, once it has multiplied."""

_BLOCKS_OF_A_KIND = 4

_FINISH_PICTURES = 8
"""What `finish_footprint` counts with: 6 of the colour fix in Lab, the source and the result."""


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
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and _storage_of(value) not in self._storages:
                given = (entry for entry in tree_leaves((args, kwargs)) if isinstance(entry, Tensor))
                # A view of what was there before (weights) was not made in here.
                if all(_storage_of(entry) != _storage_of(value) for entry in given):
                    self._count(value)
        return result

    def _count(self, value: Tensor) -> None:
        storage, identity = value.untyped_storage(), _storage_of(value)
        self._storages[identity] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, identity)

    def _drop(self, identity: int) -> None:
        self.now -= self._storages.pop(identity, 0)


def _storage_of(value: Tensor) -> int:
    identity: int = value.untyped_storage()._cdata
    return identity


@dataclass(frozen=True, slots=True)
class VAEFootprint:
    """Most memory during a slice of a clip, its own states included, and what stays of these between slices.

    encode_histories, decode_histories: what the states take of main memory, if they are there. pair_taps: what stays
    from the first pair of frames on.
    """

    encode_peak: int
    encode_state: int
    decode_peak: int
    decode_state: int
    encode_histories: int
    decode_histories: int
    pair_taps: int


@lru_cache(maxsize=256)
def vae_footprint(
    config: VAEConfig,
    width: int,
    height: int,
    dtype: torch.dtype,
    encode_frames: int,
    decode_latents: int,
    memory: VAEMemory,
    num_frames: int | None = None,
) -> VAEFootprint:
    """Memory of the fast form for GPUs, for pictures of `width` x `height` (multiples of 8), weights left out.

    `num_frames` (4n+1) are those of a clip that is known to be short.
    """
    vae = _meta_vae(config, dtype)[0]
    taps = vae.make_pairs() if memory.may_pair and num_frames != 1 else 0
    with torch.no_grad(), torch.device("meta"):
        # A clip's first slice has a frame more, but no histories to begin with.
        encoded = _first_two(1 + encode_frames, encode_frames, num_frames)
        decoded = _first_two(decode_latents, decode_latents, None if num_frames is None else (num_frames + 3) // 4)
        video = torch.empty(1, 3, sum(encoded), height, width, dtype=dtype)
        latent = torch.empty(1, config.latent_channels, sum(decoded), height // 8, width // 8, dtype=dtype)
        encode = _measure_slices(lambda part, state: vae.encode(part, state, None, memory), video.split(encoded, dim=2))
        decode = _measure_slices(
            lambda part, state: vae.decode(part, state, None, memory), latent.split(decoded, dim=2)
        )
    return VAEFootprint(*encode[:2], *decode[:2], encode[2], decode[2], taps)


def _first_two(first: int, second: int, total: int | None) -> list[int]:
    """The lengths of a clip's first two slices: later ones take as much memory as the second."""
    if total is None:
        return [first, second]
    return [min(first, total), min(second, total - first)] if total > first else [total]


@lru_cache(maxsize=256)
def dit_footprint(
    config: DiTConfig, latents: int, width: int, height: int, dtype: torch.dtype, fp8: bool = False
) -> int:
    """Most memory during one pass of the transformer over `latents` latent frames of `width` x `height` pixels.

    Weights are left out; `fp8` as for `dit_weights`.
    """
    dit = _meta_dit(config, dtype, fp8)
    size = (latents, height // 8, width // 8, config.latent_channels)
    with torch.no_grad(), LiveBytes() as live:
        noise = torch.empty(size, device="meta")
        latent = torch.empty(size, dtype=dtype, device="meta")
        text = torch.empty(_TEXT_TOKENS, config.text_width, dtype=dtype, device="meta")
        velocity = velocity_of(dit, make_condition(latent), text, attend=_attend)
        euler_sample(velocity, noise, [MAX_TIMESTEP])
    dit.forget()
    return live.peak + _WORKSPACE


def _attend(q: Tensor, k: Tensor, v: Tensor, lengths: SequenceLengths) -> Tensor:
    """What flash attention over packed windows allocates: its result, and the sum of exponentials of each query."""
    sums = q.new_empty(q.shape[:2], dtype=torch.float32)
    result = torch.empty_like(q)
    del sums
    return result


@lru_cache(maxsize=4)
def _meta_dit(config: DiTConfig, dtype: torch.dtype, fp8: bool) -> DiT:
    """The transformer on the meta device, with few of its blocks: one after the other, alike ones take alike memory.

    What is left are blocks with weights for each stream and blocks with shared ones, each kind with windows of both
    kinds and, of the kind that comes last, a last one.
    """
    shared = _BLOCKS_OF_A_KIND if config.num_separate_layers < config.num_layers else 0
    separate = min(config.num_separate_layers, _BLOCKS_OF_A_KIND)
    few = replace(config, num_layers=separate + shared, num_separate_layers=separate)
    with torch.device("meta"):
        dit = DiT(few).to(dtype).requires_grad_(False)
    if fp8:
        dit.use_fp8()
    return dit


def finish_footprint(frames: int, width: int, height: int) -> int:
    """Most memory while `frames` decoded pictures are finished: the colour fix has about so many float32 pictures."""
    return frames * width * height * 3 * 4 * _FINISH_PICTURES


def latent_bytes(config: VAEConfig, latents: int, width: int, height: int, dtype: torch.dtype) -> int:
    """What so many latent frames take that wait: for the transformer in its type, for the decoder in float32."""
    return latents * config.latent_channels * (height // 8) * (width // 8) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DiTWeights:
    """Bytes of the transformer's weights on the device, and of main memory when they are moved there."""

    device: int
    host: int


@lru_cache(maxsize=8)
def dit_weights(config: DiTConfig, dtype: torch.dtype, fp8: bool = False) -> DiTWeights:
    """`fp8`: the weights of the large products are in 8 bits, with their scales."""
    with torch.device("meta"):
        dit = DiT(config).to(dtype)
    if fp8:
        dit.use_fp8()
    return DiTWeights(sum(weight.nbytes for weight in dit.parameters()), offloaded_bytes(dit))


def vae_weights(config: VAEConfig, dtype: torch.dtype) -> int:
    """Bytes of the video VAE's weights and of what its fast form for GPUs keeps beside them."""
    return _meta_vae(config, dtype)[1]


def _measure_slices(
    step: Callable[[Tensor, VAEState | None], tuple[Tensor, VAEState]], parts: Sequence[Tensor]
) -> tuple[int, int, int]:
    """Peak of a clip's first slices; the bytes on the device after them; main memory for the histories, if there."""
    state: VAEState | None = None
    with LiveBytes() as live:
        for part in parts:
            result, state = step(part, state)
            del result
        left = live.now
    assert state is not None
    return live.peak, left, sum(page_locked_bytes(history.nbytes) for history in state.histories)


@lru_cache(maxsize=4)
def _meta_vae(config: VAEConfig, dtype: torch.dtype) -> tuple[FastVAE, int]:
    """The fast form on the meta device, and the bytes of all that it keeps, the plain form's weights included."""
    with torch.device("meta"), LiveBytes() as live:
        vae = VideoVAE(config).to(dtype).requires_grad_(False)
        for parameter in vae.parameters():
            if parameter.ndim == 5:  # as `prepare_for_inference` leaves them
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        fast = FastVAE(vae.encoder, vae.decoder)
        kept = live.now
    return fast, kept
