"""Which device to compute on, in which number format, and what fits into its memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference.catalogue import AUTO_MODEL, ModelEntry, default_model, find_model
from inference.errors import SettingsError
from inference.footprint import dit_footprint, vae_footprint
from inference.settings import Precision
from inference.sizes import Size
from models.dit import DiTConfig
from models.video_vae import VAEConfig

_DTYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FLOAT16: torch.float16,
}


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a shot is in work at once.

    `encode_frames`: frames per VAE encode slice, a multiple of 4. `decode_latents`: latents per VAE decode slice.
    `window_latents`: latents per pass of the transformer. `max_frames`: frames that are decoded at full size at a time;
    None means all of a slice.
    """

    encode_frames: int
    decode_latents: int
    window_latents: int
    max_frames: int | None = None


def choose_device(name: str) -> torch.device:
    """The torch device for `engine.device`; `auto` is the first CUDA device, else the CPU. Raises SettingsError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise SettingsError("No CUDA device can be used here; set engine.device=cpu, or check the driver (nvidia-smi).")
    index = device.index or 0
    count = torch.cuda.device_count()
    if index >= count:
        raise SettingsError(f"There is no device cuda:{index}; this machine has cuda:0 to cuda:{count - 1}.")
    return torch.device("cuda", index)


def choose_dtype(precision: Precision, device: torch.device, needs_float32: bool = False) -> torch.dtype:
    """The number format of the networks; `auto` is bfloat16 on CUDA where the card computes in it, else float32.

    `needs_float32` is the model's: `auto` is then float32 everywhere.
    """
    if precision is not Precision.AUTO:
        return _DTYPES[precision]
    if device.type != "cuda" or needs_float32:
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def choose_model(name: str, device: torch.device) -> ModelEntry:
    """The catalogue entry for `engine.model`; `auto` is the largest that fits a CUDA card, else nano."""
    if name != AUTO_MODEL:
        return find_model(name)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return find_model(default_model(memory))


def describe_device(device: torch.device) -> str:
    """The device in words, for the summary."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def device_memory(device: torch.device) -> int | None:
    """The bytes of memory that a CUDA device has; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


_ROOM = 0.92
"""Share of the free memory that is planned with; the rest is for the allocator's gaps and cuDNN's workspaces."""

_SLICES = ((8, 2, 4), (4, 1, 4), (4, 1, 2), (4, 1, 1))
"""Frames per encode slice, latents per decode slice, frames at full size at a time: fastest first. Longer slices than
the first are not faster (`benchmarks/results`)."""

_LATENTS = (25, 21, 17, 13, 11, 9, 7, 5)


def plan_budget(
    device: torch.device,
    dtype: torch.dtype,
    size: Size,
    dit: DiTConfig,
    vae: VAEConfig,
    window_latents: int = 0,
    free_bytes: int | None = None,
) -> Budget:
    """Sizes of the pieces of a shot with padded pictures of `size`.

    On the CPU the pieces are small and always the same, so that a result does not depend on the machine. On CUDA they
    are the largest whose predicted memory is free (`free_bytes`; None asks the driver), a longer window first, since it
    restores better. `window_latents` > 0 is the user's own choice.
    """
    if device.type != "cuda":
        return Budget(encode_frames=8, decode_latents=2, window_latents=window_latents or 9)
    if free_bytes is None:
        free_bytes = torch.cuda.mem_get_info(device)[0] + _reusable_bytes(device)
    windows = (window_latents,) if window_latents else _LATENTS
    plans = [
        Budget(encode_frames=frames, decode_latents=latents, window_latents=window, max_frames=most)
        for window in windows
        for frames, latents, most in _SLICES
    ]
    fits = (plan for plan in plans if predict_bytes(plan, dtype, size, dit, vae) <= free_bytes * _ROOM)
    return next(fits, plans[-1])


def predict_bytes(budget: Budget, dtype: torch.dtype, size: Size, dit: DiTConfig, vae: VAEConfig) -> int:
    """Most device memory that a shot takes, beside the weights; both streams of the VAE are open at once."""
    part = vae_footprint(
        vae, size.width, size.height, dtype, budget.encode_frames, budget.decode_latents, budget.max_frames
    )
    states = part.encode_state + part.decode_state
    window = dit_footprint(dit, budget.window_latents, size.width, size.height, dtype)
    return max(part.encode_peak + part.decode_state, part.decode_peak + part.encode_state, window + states)


def _reusable_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
