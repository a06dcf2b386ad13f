"""The full-width transformer and the released VAE with random weights on a CUDA card: time, rate, memory.

    ./run.sh bench gpu --baseline
    ./run.sh bench gpu --model seedvr2-7b --size 1920x1080 --frames 21 --runs 5 --save

Encodes, denoises and decodes one clip as the pipeline does: in slices of the streaming VAE, one window of the
transformer. Weights are random, so that nothing is downloaded: time and memory do not depend on their values. The
card's own matrix product and copy are measured first. ``--baseline`` also runs the plain PyTorch path, in the same
process; ``--fp8`` has the transformer's large products in 8 bits, and measures it in bfloat16 before. TFLOP are those
of the plain path, whatever the fast one leaves out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.gpu_accuracy import MAX_RATIO, compare, same_with_moved_states
from benchmarks.report import add_save_option, publish, table
from benchmarks.whole_job import measure_job
from inference.allocator import grow_segments
from inference.budget import Budget, Need, plan_budget, predict
from inference.checkpoint import CONFIGS
from inference.devices import describe_precision
from inference.diffusion import denoise, unit_noise
from inference.offload import offloaded, onload
from inference.sizes import Size
from models.dit import DiT, DiTConfig
from models.fp8 import fp8_support
from models.fused_ops import plain_pytorch
from models.vae_memory import VAEMemory
from models.video_vae import VAEConfig, VAEState, VideoVAE

Result = TypeVar("Result")
IN_BFLOAT16 = "DiT in bfloat16"
TEXT_TOKENS = 58
"""Length of the released text embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """seconds: of each measured run. peak_bytes: most device memory allocated while the stage ran (0 on the CPU).

    held_bytes: what was allocated before it, weights included.
    """

    name: str
    seconds: list[float]
    peak_bytes: int
    held_bytes: int = 0
    predicted_bytes: int = 0
    flop: int = 0
    plain_seconds: float | None = None

    @property
    def median_ms(self) -> float:
        return statistics.median(self.seconds) * 1e3

    @property
    def tflops(self) -> float:
        """TFLOP/s."""
        return self.flop / self.median_ms / 1e9

    def to_row(self, ceiling: float) -> list[str]:
        """A line of the table; `ceiling` in TFLOP/s."""
        row = [self.name, f"{self.median_ms:.0f}", f"{self.flop / 1e12:.0f}", f"{self.tflops:.0f}"]
        row += [f"{100 * self.tflops / ceiling:.0f} %"]
        row += [f"{self.peak_bytes / 2**30:.2f}", f"{self.predicted_bytes / 2**30:.2f}"]
        if self.plain_seconds is not None:
            row += [f"{self.plain_seconds * 1e3:.0f}", f"{self.plain_seconds * 1e3 / self.median_ms:.2f}"]
        return row


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


def encode(vae: VideoVAE, video: Tensor, slice_frames: int, memory: VAEMemory) -> Tensor:
    """Latent ``(1, C, t, h, w)`` of ``video`` (1, 3, 4n+1, H, W), streamed in slices of ``slice_frames``."""
    state: VAEState | None = None
    latents = []
    for part in [video[:, :, : 1 + slice_frames], *video[:, :, 1 + slice_frames :].split(slice_frames, dim=2)]:
        if part.shape[2]:
            posterior, state = vae.encode(part, state, memory=memory)
            latents.append(posterior.mean)
    return torch.cat(latents, dim=2)


def decode(vae: VideoVAE, latent: Tensor, slice_latents: int, memory: VAEMemory) -> int:
    """Decode in slices, each dropped once it is there, as a writer would take it; returns the number of frames."""
    state: VAEState | None = None
    frames = 0
    for part in latent.split(slice_latents, dim=2):
        video, state = vae.decode(part, state, memory=memory)
        frames += video.shape[2]
        del video
    return frames


def count_flop(dit: DiTConfig, vae: VAEConfig, size: tuple[int, int], num_frames: int) -> list[int]:
    """Floating-point operations of the plain encoder, transformer and decoder, counted on tensors without values."""
    width, height = size
    latents = (num_frames + 3) // 4
    with torch.device("meta"):
        network, autoencoder = DiT(dit), VideoVAE(vae)
        video = torch.empty(1, 3, num_frames, height, width)
        latent = torch.empty(1, vae.latent_channels, latents, height // 8, width // 8)
        tokens = torch.empty(latent[0, 0].numel(), dit.in_channels)
        text = torch.empty(TEXT_TOKENS, dit.text_width)
    shape = torch.tensor([list(latent.shape[2:])])
    steps: list[Callable[[], object]] = [
        lambda: autoencoder.encode(video),
        lambda: network(tokens, text, torch.tensor([1000.0]), shape, torch.tensor([TEXT_TOKENS])),
        lambda: autoencoder.decode(latent),
    ]
    counts = []
    for step in steps:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            step()
        counts.append(counter.get_total_flops())
    return counts


def time_stage(name: str, work: Callable[[], Result], runs: int, device: torch.device) -> tuple[Stage, Result]:
    """Run ``work`` once to warm up, then ``runs`` times; the last result is returned."""
    result = work()
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device) if is_cuda else 0
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        if is_cuda:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if is_cuda else 0
    return Stage(name=name, seconds=seconds, peak_bytes=peak, held_bytes=held), result


@torch.inference_mode()
def measure(
    dit: DiT, vae: VideoVAE, size: tuple[int, int], num_frames: int, runs: int, memory: int | None = None
) -> tuple[list[Stage], Budget]:
    """Time the three stages for a clip of ``size`` (width, height: multiples of 16) and ``num_frames`` (4n+1).

    ``memory`` in bytes, weights included, plans for a card of which so much can be used; None for what is free. What
    the plan moves is moved: the transformer's time then includes that of its weights. Each direction of the VAE runs
    without the other one's state, as it does where states are parked.
    """
    parameter = next(vae.parameters())
    device, dtype = parameter.device, parameter.dtype
    width, height = size
    num_latents = (num_frames + 3) // 4
    need = Need(
        dit=dit.config,
        vae=vae.config,
        dtype=dtype,
        fp8=dit.is_fp8,
        size=Size(width, height),
        num_frames=num_frames,
    )
    budget = plan_budget(device, need, num_latents, memory)
    # Here and in the job, the other direction's state is on the device only when nothing is parked.
    predicted = predict(replace(budget, parks_states=True), need)
    with offloaded(dit) if budget.offloads_dit else nullcontext():
        stages = _measure_stages(dit, vae, size, num_frames, runs, budget)
    flop = count_flop(dit.config, vae.config, size, num_frames)
    peaks = (predicted.encode, predicted.denoise, predicted.decode)
    held = num_frames * 3 * width * height * dtype.itemsize  # the whole clip
    described = [
        replace(stage, predicted_bytes=peak + held, flop=count)
        for stage, peak, count in zip(stages, peaks, flop, strict=True)
    ]
    return described, budget


def _measure_stages(
    dit: DiT, vae: VideoVAE, size: tuple[int, int], num_frames: int, runs: int, budget: Budget
) -> list[Stage]:
    parameter = next(vae.parameters())
    device, dtype = parameter.device, parameter.dtype
    video = torch.rand(1, 3, num_frames, size[1], size[0], device=device, dtype=dtype) * 2 - 1
    text = torch.randn(TEXT_TOKENS, dit.config.text_width, device=device, dtype=dtype)
    way = budget.vae_memory
    encoding, latent = time_stage("VAE encode", lambda: encode(vae, video, budget.encode_frames, way), runs, device)
    grid = latent[0].permute(1, 2, 3, 0).contiguous()
    t, h, w, channels = grid.shape
    noise = unit_noise(0, 0, (t, h, w, channels)).to(device)

    def run_dit() -> Tensor:
        with onload(dit, device):
            return denoise(dit, noise, grid, text)

    denoising, restored = time_stage("DiT", run_dit, runs, device)
    back = restored.permute(3, 0, 1, 2)[None].to(dtype)
    decoding, frames = time_stage("VAE decode", lambda: decode(vae, back, budget.decode_latents, way), runs, device)
    if frames != num_frames:
        raise AssertionError(f"{frames} frames came out of {num_frames}")
    return [encoding, denoising, decoding]


def measure_both(
    dit: DiT,
    vae: VideoVAE,
    size: tuple[int, int],
    num_frames: int,
    runs: int,
    *,
    baseline: bool,
    memory: int | None = None,
    fp8: bool = False,
) -> tuple[list[Stage], Budget]:
    """The stages of the fast path and its plan, with the times of the plain one if ``baseline``.

    ``vae`` is not prepared yet. From here on this process cannot allocate more than ``memory``. With ``fp8`` the
    transformer is in 8 bits from here on, and a fourth stage is the transformer before that.
    """
    plain: list[float | None] = [None] * 3
    if baseline:
        with plain_pytorch():
            plain = [statistics.median(stage.seconds) for stage in measure(dit, vae, size, num_frames, runs)[0]]
        torch.cuda.empty_cache()
    vae.prepare_for_inference()
    if memory is not None:
        limit_memory(next(vae.parameters()).device, memory)
    before: list[Stage] = []
    if fp8:
        before = [replace(measure(dit, vae, size, num_frames, runs, memory)[0][1], name=IN_BFLOAT16)]
        dit.use_fp8()
        torch.cuda.empty_cache()
    stages, budget = measure(dit, vae, size, num_frames, runs, memory)
    stages = [replace(stage, plain_seconds=seconds) for stage, seconds in zip(stages, plain, strict=True)]
    return stages + before, budget


def limit_memory(device: torch.device, memory: int) -> None:
    """Makes the card as small as ``memory`` bytes for this process: more is an out-of-memory error."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), device)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 1 when the fast path is too far off, 2 with one sentence when there is no CUDA card."""
    parser = argparse.ArgumentParser(prog="seedvr bench gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="seedvr2-3b", choices=[name for name in CONFIGS if name != "nano"])
    parser.add_argument("--size", default="1280x720", help="size of the result (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=21, metavar="N", help="4n+1 frames (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="the median of N is reported (default: %(default)s)"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="plan as for a card with so much to use")
    parser.add_argument("--job-seconds", type=float, default=10, help="length of the whole job, 0: none (%(default)g)")
    parser.add_argument("--clip", type=Path, help="video for the whole job (default: a clip of the test material)")
    parser.add_argument("--accuracy", action="store_true", help="compare with float32 first; fail if it is too far off")
    parser.add_argument("--fp8", action="store_true", help="the transformer's large products in 8 bits")
    parser.add_argument("--baseline", action="store_true", help="run the plain PyTorch path too, and print the ratio")
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA card, and none can be used here; check nvidia-smi.", file=sys.stderr)
        return 2

    grow_segments()
    device, dtype = torch.device("cuda:0"), torch.bfloat16
    if arguments.fp8 and not (support := fp8_support(device)).works:
        print(f"--fp8 is not possible here, since {support.reason}; leave it out.", file=sys.stderr)
        return 2
    width, height = (-(-int(side) // 16) * 16 for side in arguments.size.split("x"))
    limits = measure_ceilings(device, dtype)
    torch.cuda.empty_cache()
    dit_config, vae_config = CONFIGS[arguments.model]
    with torch.device("meta"):
        dit, vae = DiT(dit_config), VideoVAE(vae_config)
    randomize(dit, device, dtype)
    randomize(vae, device, dtype)
    text = torch.randn(TEXT_TOKENS, dit_config.text_width, device=device, dtype=dtype)
    accuracies = compare(dit, vae, text, fp8=arguments.fp8) if arguments.accuracy else []
    is_same = not accuracies or same_with_moved_states(vae)
    if accuracies:
        with torch.device("meta"):
            vae = VideoVAE(vae_config)  # the plain path is measured with networks that were not prepared
            dit = DiT(dit_config) if arguments.fp8 else dit
        randomize(vae, device, dtype)
        if arguments.fp8:
            randomize(dit, device, dtype)
    torch.cuda.empty_cache()
    memory = None if arguments.memory is None else int(arguments.memory * 2**30)
    stages, budget = measure_both(
        dit,
        vae,
        (width, height),
        arguments.frames,
        arguments.runs,
        baseline=arguments.baseline,
        memory=memory,
        fp8=arguments.fp8,
    )
    body, result = describe(stages, limits, device)
    precision = describe_precision(dtype, fp8=arguments.fp8)
    body = (
        f"{arguments.model} with random weights, {precision}, {width}x{height}, {arguments.frames} frames; median of"
        f" {arguments.runs} after one warm-up. {body}\n\n"
        f"Moved to host memory: {' and '.join(budget.moved(arguments.frames)) or 'nothing'}; slices of"
        f" {budget.encode_frames} and {4 * budget.decode_latents} frames, {budget.max_frames} at full size.\n\n"
        f"{arguments.frames / result['total_ms'] * 1e3:.2f} frames/s without reading and writing of files."
    )
    if arguments.job_seconds:
        short_side = min(int(side) for side in arguments.size.split("x"))
        job = measure_job(arguments.model, dit, vae, text, short_side, arguments.job_seconds, arguments.clip)
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in job.seconds.items())
        waits = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in job.waits.items())
        body += (
            f"\n\nWhole job, file to file: {job.clip} to {job.size[0]}x{job.size[1]}, {job.num_frames} frames:"
            f" {job.frames_per_second:.2f} frames/s, {100 * job.share:.0f} % of what its networks reach alone"
            f" ({parts}). The card waited for: {waits}. Peak {job.peak_bytes / 2**30:.2f} GiB."
        )
        result["job"] = {
            **asdict(job), "frames_per_second": job.frames_per_second, "share": job.share, "waits": job.waits
        }  # fmt: skip
    if accuracies:
        header = ["stage", "TxHxW", "plain", "fast", "ratio"] + (["fp8"] if arguments.fp8 else [])
        rows = [[*a.to_row(), f"{a.fp8:.2e}"] if arguments.fp8 else a.to_row() for a in accuracies]
        body += (
            "\n\nRelative L2 distance to the float32 plain path; the fast path may have"
            f" {MAX_RATIO} times that of the plain one.\n\n{table(header, rows)}"
        )
        body += f"\n\nWith the VAE's states on the host, bits are {'the same' if is_same else 'NOT THE SAME'}."
        result["accuracy"] = [{**asdict(a), "ratio": a.ratio} for a in accuracies]
        result["same_with_moved_states"] = is_same
    about = {"model": arguments.model, "weights": "random", "precision": precision, "size": [width, height]}
    values = {**about, "frames": arguments.frames, "memory_gib": arguments.memory, "plan": asdict(budget), **result}
    title = f"{arguments.model} on {result['card']}"
    publish("gpu", title, body, values, arguments.results if arguments.save else None)
    return int(not is_same or any(accuracy.ratio > MAX_RATIO for accuracy in accuracies))


def describe(stages: list[Stage], limits: Ceilings, device: torch.device) -> tuple[str, dict[str, Any]]:
    """The stages as text with a table, and as JSON-able values. What was measured beside them is not in the sum."""
    beside = [stage for stage in stages if stage.name == IN_BFLOAT16]
    stages = [stage for stage in stages if stage not in beside]
    plain = [stage.plain_seconds for stage in stages if stage.plain_seconds is not None]
    whole = Stage(
        name="**all**",
        seconds=[sum(stage.median_ms for stage in stages) / 1e3],
        peak_bytes=max(stage.peak_bytes for stage in stages),
        predicted_bytes=max(stage.predicted_bytes for stage in stages),
        flop=sum(stage.flop for stage in stages),
        plain_seconds=sum(plain) if plain else None,
    )
    header = ["stage", "ms", "TFLOP", "TFLOP/s", "of ceiling", "peak GiB", "predicted GiB"]
    header += ["plain ms", "ratio"] if plain else []
    rows = [stage.to_row(limits.product) for stage in (*stages, whole, *beside)]
    rows = [row + [""] * (len(header) - len(row)) for row in rows]
    software = {
        "card": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    text = (
        f"{', '.join(f'{key} {value}' for key, value in software.items())}. Ceilings measured first:"
        f" {limits.to_text()}. Memory includes the weights.\n\n"
        f"{table(header, rows)}"
    )
    values = {
        stage.name: {
            "median_ms": round(stage.median_ms, 1),
            "plain_ms": None if stage.plain_seconds is None else round(stage.plain_seconds * 1e3, 1),
            "tflop": round(stage.flop / 1e12, 2),
            "peak_bytes": stage.peak_bytes,
            "held_bytes": stage.held_bytes,
            "predicted_bytes": stage.predicted_bytes,
        }
        for stage in (*stages, *beside)
    }
    return text, {**software, **limits.to_dict(), "stages": values, "total_ms": round(whole.median_ms, 1)}
