"""One-step restoration in latent space, and the general sampler that it is a special case of.

With the linear schedule `x_t = (1 - t/T) x_0 + t/T x_T` and velocity `v = x_T - x_0`, one step from t = T is
`x_0 = x_T - v`. Source of the formulas: specification of the transformer, sections 14 and 15. Legend: t h w latent
grid, C channels, M text tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.attention import Attend, attention
from models.dit import DiT

MAX_TIMESTEP = 1000.0


def make_condition(latent: Tensor) -> Tensor:
    """The `(t, h, w, C + 1)` condition of a degraded latent `(t, h, w, C)`: its channels and a mask of ones."""
    return torch.cat([latent, torch.ones_like(latent[..., :1])], dim=-1)


def unit_noise(seed: int, start: int, size: tuple[int, int, int, int]) -> Tensor:
    """Standard normal noise `(t, h, w, C)` float32 for latent frames `start`, `start + 1`, ... of a clip.

    Each frame is drawn on the CPU from (seed, its absolute index) alone, so a frame gets the same noise in whatever
    window, process or device it is restored.
    """
    frames, *frame_size = size
    noise = torch.empty(size, dtype=torch.float32)
    for offset in range(frames):
        digest = hashlib.blake2b(f"{seed}:{start + offset}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
        noise[offset] = torch.randn(frame_size, generator=generator)
    return noise


def denoise(
    dit: DiT, noise: Tensor, latent: Tensor, text: Tensor, on_block: Callable[[], None] | None = None
) -> Tensor:
    """Restore the degraded `latent` in one step: `noise - v(noise, condition, text, t = 1000)`.

    `noise` and `latent` are `(t, h, w, C)` with even h and w, `text` is `(M, text_width)`; all on the device of `dit`.
    Returns `(t, h, w, C)` float32. `on_block` is called before each block of the network; what it raises passes on.
    """
    velocity = velocity_of(dit, make_condition(latent), text, on_block)
    return euler_sample(velocity, noise, [MAX_TIMESTEP])


def velocity_of(
    dit: DiT,
    condition: Tensor,
    text: Tensor,
    on_block: Callable[[], None] | None = None,
    *,
    attend: Attend = attention,
) -> Callable[[Tensor, float], Tensor]:
    """The function `(x_t, t) -> v` of one video, for `euler_sample`; condition `(t, h, w, C + 1)`."""
    video_shape = torch.tensor([condition.shape[:3]])
    text_shape = torch.tensor([len(text)])

    def velocity(sample: Tensor, timestep: float) -> Tensor:
        video = torch.cat([sample.to(condition.dtype), condition], dim=-1).flatten(0, 2)
        packed = dit(video, text, torch.tensor([timestep]), video_shape, text_shape, on_block, attend=attend)
        return packed.view(sample.shape)

    return velocity


def interpolate(clean: Tensor, noise: Tensor, timestep: float) -> Tensor:
    """The schedule: `(1 - t/T) clean + t/T noise`."""
    noise_share = timestep / MAX_TIMESTEP
    return (1.0 - noise_share) * clean + noise_share * noise


def timesteps(num_steps: int, shift: float = 1.0) -> list[float]:
    """Timesteps of `num_steps` equal steps from 1000 down, 0 excluded, optionally shifted."""
    return [shift_time(MAX_TIMESTEP * (num_steps - k) / num_steps, shift) for k in range(num_steps)]


def shift_time(timestep: float, shift: float) -> float:
    """`T s u / (1 + (s - 1) u)` with `u = timestep / T`."""
    share = timestep / MAX_TIMESTEP
    return MAX_TIMESTEP * shift * share / (1.0 + (shift - 1.0) * share)


def shift_timestep(timestep: float, latent_size: tuple[int, int, int]) -> float:
    """Shift by resolution, for condition noise only: larger videos need more noise for the same effect.

    `latent_size` is (t, h, w). The shift is not clamped; below 65536 pixels it is less than 1.
    """
    frames, height, width = 4 * (latent_size[0] - 1) + 1, 8 * latent_size[1], 8 * latent_size[2]
    if frames == 1:
        shift = _line(height * width, (256 * 256, 1.0), (1024 * 1024, 3.2))
    else:
        shift = _line(height * width * frames, (256 * 256 * 37, 1.0), (1280 * 720 * 145, 5.0))
    return shift_time(timestep, shift)


def _line(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    (x0, y0), (x1, y1) = first, second
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


def euler_sample(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, steps: Sequence[float]) -> Tensor:
    """Integrate from `noise` along `steps` (timesteps, falling); one call of `velocity` each. Returns float32 `x_0`."""
    sample = noise.float()
    for current, following in zip(steps, [*steps[1:], 0.0], strict=True):
        share = current / MAX_TIMESTEP
        v = velocity(sample, current).float()
        sample = interpolate(sample - share * v, sample + (1.0 - share) * v, following)
    return sample
