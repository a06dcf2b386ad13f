"""The fast path on a card against the float32 plain path, beside the plain path in half precision: it may not be worse.

Fresh random inputs and odd sizes each time. Not a benchmark by itself: `./run.sh bench gpu --accuracy` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from inference.diffusion import denoise
from models.dit import DiT
from models.fused_ops import plain_pytorch
from models.vae_memory import VAEMemory
from models.video_vae import VideoVAE

MAX_RATIO = 1.2
SIZES = ((5, 96, 144), (9, 112, 208), (13, 80, 80), (1, 240, 176))
"""Frames, height, width of the clips; sizes are multiples of 16, latent windows come out uneven."""

_MOVED_SIZE = (352, 640)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Relative L2 distance to the float32 plain path, of the plain and of the fast path in half precision.

    fp8: of the fast path with the transformer's large products in 8 bits; None where it was not asked for.
    """

    stage: str
    size: tuple[int, int, int]
    plain: float
    fast: float
    fp8: float | None = None

    @property
    def ratio(self) -> float:
        """At most `MAX_RATIO` is good."""
        return self.fast / self.plain

    def to_row(self) -> list[str]:
        """A line of the table, without `fp8`."""
        size = "x".join(map(str, self.size))
        return [self.stage, size, f"{self.plain:.2e}", f"{self.fast:.2e}", f"{self.ratio:.2f}"]


@torch.inference_mode()
def compare(dit: DiT, vae: VideoVAE, text: Tensor, *, fp8: bool = False) -> list[Accuracy]:
    """Every stage, and all of them in a row, at every size. ``vae`` must not be prepared yet; it is afterwards.

    With ``fp8`` also the transformer in 8 bits, which it stays.
    """
    device, dtype = text.device, text.dtype
    with torch.device("meta"):
        copies = DiT(dit.config), VideoVAE(vae.config)
    exact_networks = _in_float32(dit, copies[0]), _in_float32(vae, copies[1])
    steps = [
        ("VAE encode", 0, _encode),
        ("DiT", 1, lambda networks, value: _denoise(networks, value, text)),
        ("VAE decode", 1, _decode),
        ("all", 0, lambda networks, value: _decode(networks, _denoise(networks, _encode(networks, value), text))),
    ]
    inputs = [_inputs(size, vae.config.latent_channels, device) for size in SIZES]
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        with plain_pytorch():
            exact = _run_all(steps, exact_networks, inputs, torch.float32)
            plain = _run_all(steps, (dit, vae), inputs, dtype)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    vae.prepare_for_inference()
    runs = [plain, _run_all(steps, (dit, vae), inputs, dtype)]
    if fp8:
        dit.use_fp8()
        runs.append(_run_all(steps, (dit, vae), inputs, dtype))
    return [Accuracy(*key, *(_distance(run[key], exact[key]) for run in runs)) for key in exact]


@torch.inference_mode()
def same_with_moved_states(vae: VideoVAE) -> bool:
    """Whether a clip comes to the same bits with the histories on the host, where copies run beside the computation.

    ``vae`` is prepared.
    """
    parameter = next(vae.parameters())
    video = torch.rand(1, 3, 21, *_MOVED_SIZE, device=parameter.device, dtype=parameter.dtype) * 2 - 1
    latent = torch.randn(
        1, vae.config.latent_channels, 6, *(side // 8 for side in _MOVED_SIZE), device=video.device, dtype=video.dtype
    )
    results = []
    for memory in (VAEMemory(2), VAEMemory(2, states_on_host=True), VAEMemory(2, states_on_host=True)):
        parts, encoding, decoding = [], None, None
        for frames in video.split([5, 4, 4, 4, 4], dim=2):
            posterior, encoding = vae.encode(frames, encoding, memory=memory)
            parts.append(posterior.mean)
        for piece in latent.split(1, dim=2):
            pictures, decoding = vae.decode(piece, decoding, memory=memory)
            parts.append(pictures)
        results.append(parts)
    device, *moved = results
    return all(torch.equal(a, b) for parts in moved for a, b in zip(device, parts, strict=True))


Network = TypeVar("Network", bound=nn.Module)
Networks = tuple[DiT, VideoVAE]
Step = tuple[str, int, Callable[[Networks, Tensor], Tensor]]


def _run_all(
    steps: Sequence[Step], networks: Networks, inputs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype
) -> dict[tuple[str, tuple[int, int, int]], Tensor]:
    return {
        (name, size): step(networks, values[index].to(dtype)).float().cpu()
        for size, values in zip(SIZES, inputs, strict=True)
        for name, index, step in steps
    }


def _inputs(size: tuple[int, int, int], channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A clip and a latent; smooth parts and noise, like pictures."""
    frames, height, width = size
    coarse = torch.rand(1, 3, frames, height // 16, width // 16, device=device)
    smooth = nn.functional.interpolate(coarse, size=size, mode="trilinear")
    video = (1.6 * smooth + 0.4 * torch.rand(1, 3, *size, device=device) - 1).clamp_(-1, 1)
    return video, torch.randn(1, channels, (frames + 3) // 4, height // 8, width // 8, device=device)


def _encode(networks: Networks, video: Tensor) -> Tensor:
    return networks[1].encode(video)[0].mean


def _denoise(networks: Networks, latent: Tensor, text: Tensor) -> Tensor:
    grid = latent[0].permute(1, 2, 3, 0).contiguous()
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(grid.shape, generator=generator).to(grid.device)
    restored = denoise(networks[0], noise, grid, text.to(grid.dtype))
    return restored.permute(3, 0, 1, 2)[None].to(grid.dtype)


def _decode(networks: Networks, latent: Tensor) -> Tensor:
    return networks[1].decode(latent)[0]


def _in_float32(network: nn.Module, copy: Network) -> Network:
    copy.load_state_dict({name: value.float() for name, value in network.state_dict().items()}, assign=True)
    return copy.eval().requires_grad_(False)


def _distance(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())
