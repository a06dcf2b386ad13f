"""The full-width 3B transformer and the released VAE with random weights on a CUDA card: time and peak memory.

    ./run.sh bench gpu
    ./run.sh bench gpu --model seedvr2-7b --size 1920x1080 --frames 21 --runs 5 --save

Encodes, denoises and decodes one clip as the pipeline does: in slices of the streaming VAE, one window of the
transformer. Weights are random, so that nothing is downloaded: time and memory do not depend on their values.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.report import add_save_option, publish, table
from inference.checkpoint import CONFIGS
from inference.devices import plan_budget
from inference.diffusion import denoise, unit_noise
from models.dit import DiT
from models.video_vae import VAEState, VideoVAE

Result = TypeVar("Result")
TEXT_TOKENS = 58
"""Length of the released text embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """seconds: of each measured run. peak_bytes: most device memory allocated while the stage ran (0 on the CPU)."""

    name: str
    seconds: list[float]
    peak_bytes: int

    @property
    def median_ms(self) -> float:
        return statistics.median(self.seconds) * 1e3


def randomize(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give a network on the meta device random weights that keep activations at about their size."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            values = torch.empty(tensor.shape, device=device, dtype=dtype)
            state[name] = values.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            state[name] = torch.full(tensor.shape, float(not name.endswith("bias")), device=device, dtype=dtype)
    # As for a real checkpoint: what must not come from a file (rotary frequencies) is computed in this call.
    network.load_state_dict(state, strict=True, assign=True)
    network.eval().requires_grad_(False)


def make_models(dit: DiT, vae: VideoVAE, device: torch.device, dtype: torch.dtype) -> None:
    """Fill both meta-device networks for inference."""
    randomize(dit, device, dtype)
    randomize(vae, device, dtype)
    vae.prepare_for_inference()


def encode(vae: VideoVAE, video: Tensor, slice_frames: int) -> Tensor:
    """Latent ``(1, C, t, h, w)`` of ``video`` (1, 3, 4n+1, H, W), streamed in slices of ``slice_frames``."""
    state: VAEState | None = None
    latents = []
    for part in [video[:, :, : 1 + slice_frames], *video[:, :, 1 + slice_frames :].split(slice_frames, dim=2)]:
        if part.shape[2]:
            posterior, state = vae.encode(part, state)
            latents.append(posterior.mean)
    return torch.cat(latents, dim=2)


def decode(vae: VideoVAE, latent: Tensor, slice_latents: int) -> int:
    """Decode in slices, each dropped once it is there, as a writer would take it; returns the number of frames."""
    state: VAEState | None = None
    frames = 0
    for part in latent.split(slice_latents, dim=2):
        video, state = vae.decode(part, state)
        frames += video.shape[2]
    return frames


def time_stage(name: str, work: Callable[[], Result], runs: int, device: torch.device) -> tuple[Stage, Result]:
    """Run ``work`` once to warm up, then ``runs`` times; the last result is returned."""
    result = work()
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        if is_cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else 0
    return Stage(name=name, seconds=seconds, peak_bytes=peak), result


@torch.inference_mode()
def measure(dit: DiT, vae: VideoVAE, size: tuple[int, int], num_frames: int, runs: int) -> list[Stage]:
    """Time the three stages for a clip of ``size`` (width, height: multiples of 16) and ``num_frames`` (4n+1)."""
    parameter = next(vae.parameters())
    device, dtype = parameter.device, parameter.dtype
    width, height = size
    video = torch.rand(1, 3, num_frames, height, width, device=device, dtype=dtype) * 2 - 1
    text = torch.randn(TEXT_TOKENS, dit.config.text_width, device=device, dtype=dtype)
    budget = plan_budget(device, dtype, width * height, dit.config.width, vae.config.widths[0])

    encoding, latent = time_stage("VAE encode", lambda: encode(vae, video, budget.encode_frames), runs, device)
    grid = latent[0].permute(1, 2, 3, 0).contiguous()
    t, h, w, channels = grid.shape
    noise = unit_noise(0, 0, (t, h, w, channels)).to(device)
    denoising, restored = time_stage("DiT", lambda: denoise(dit, noise, grid, text), runs, device)
    back = restored.permute(3, 0, 1, 2)[None].to(dtype)
    decoding, frames = time_stage("VAE decode", lambda: decode(vae, back, budget.decode_latents), runs, device)
    if frames != num_frames:
        raise AssertionError(f"{frames} frames came out of {num_frames}")
    return [encoding, denoising, decoding]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 2 with one sentence when there is no CUDA card."""
    parser = argparse.ArgumentParser(prog="seedvr bench gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="seedvr2-3b", choices=[name for name in CONFIGS if name != "nano"])
    parser.add_argument("--size", default="1280x720", help="size of the result (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=21, metavar="N", help="4n+1 frames (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="the median of N is reported (default: %(default)s)"
    )
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA card, and none can be used here; check nvidia-smi.", file=sys.stderr)
        return 2

    device, dtype = torch.device("cuda:0"), torch.bfloat16
    width, height = (-(-int(side) // 16) * 16 for side in arguments.size.split("x"))
    dit_config, vae_config = CONFIGS[arguments.model]
    with torch.device("meta"):
        dit, vae = DiT(dit_config), VideoVAE(vae_config)
    make_models(dit, vae, device, dtype)
    weights = torch.cuda.memory_allocated(device)
    stages = measure(dit, vae, (width, height), arguments.frames, arguments.runs)

    total = sum(stage.median_ms for stage in stages)
    rows = [
        [s.name, f"{s.median_ms:.0f}", f"{min(s.seconds) * 1e3:.0f}", f"{s.peak_bytes / 2**30:.2f}"] for s in stages
    ]
    rows.append(["**all**", f"{total:.0f}", "", f"{max(s.peak_bytes for s in stages) / 2**30:.2f}"])
    card = torch.cuda.get_device_name(device)
    software = {
        "card": card,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    body = (
        f"{arguments.model} with random weights, bfloat16, {width}x{height}, {arguments.frames} frames;"
        f" median of {arguments.runs} after one warm-up. {', '.join(f'{k} {v}' for k, v in software.items())}.\n"
        f"Weights take {weights / 2**30:.2f} GiB; peak memory includes them.\n\n"
        f"{table(['stage', 'median ms', 'best ms', 'peak GiB'], rows)}\n\n"
        f"{arguments.frames / total * 1e3:.2f} frames/s without reading and writing of files."
    )
    result = {
        "model": arguments.model,
        "weights": "random",
        "precision": "bfloat16",
        "size": [width, height],
        "frames": arguments.frames,
        "software": software,
        "stages": {s.name: {"median_ms": round(s.median_ms, 1), "peak_bytes": s.peak_bytes} for s in stages},
        "total_ms": round(total, 1),
        "weights_bytes": weights,
    }
    publish("gpu", f"{arguments.model} on {card}", body, result, arguments.results if arguments.save else None)
    return 0
