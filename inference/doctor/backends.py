"""Checks of what computes: each backend is called on the device and compared with the plain result. Needs torch.

They run in a process of their own (`inference.doctor.trial`), since foreign code may raise anything, crash or hang.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.doctor.card import judge_architecture, judge_driver, judge_vram
from inference.doctor.faults import found
from inference.doctor.findings import Finding
from inference.doctor.machine import ask_driver, expects_card
from inference.without import APEX, FLASH_ATTN, KERNELS, switched_off
from models import fused_ops, pair_ops, token_ops
from models.attention import OPTIONAL, Backend, admit, available_backends, probe

_HEAD_DIM = 128


def device() -> torch.device:
    """What jobs compute on with `engine.device=auto`."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def dtype(on: torch.device) -> torch.dtype:
    """The number format of the released models there."""
    if on.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(on)[0] >= 8 else torch.float16


# --- torch and the card ---


def check_torch() -> Iterator[Finding]:
    """Whether torch and driver go together."""
    version, cuda = str(torch.__version__), torch.version.cuda
    try:
        driver, _ = ask_driver()
    except OSError:
        driver = ""
    if cuda is None:
        is_wrong = bool(driver) or expects_card()
        yield (
            found("torch.cpu-build", version=version)
            if is_wrong
            else found("torch.ok", version=version, device="the CPU")
        )
        return
    if driver and (finding := judge_driver(driver, version, cuda)):
        yield finding
        return
    if driver:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            yield found("torch.no-cuda", version=version, reason=_reason(error))
            return
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "the CPU"
    yield found("torch.ok", version=f"{version} (CUDA {cuda})", device=name)


def check_architecture() -> Iterator[Finding]:
    """Whether torch has kernels for the card, by its list and by a first computation."""
    if not torch.cuda.is_available():
        yield found("architecture.unused")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_name(index)
        finding = judge_architecture(card, torch.cuda.get_device_capability(index), torch.cuda.get_arch_list())
        if finding.key == "architecture.ok":
            try:
                total = (torch.arange(8.0, device=f"cuda:{index}") + 1).sum().item()
                if total != 36:
                    finding = found("architecture.refused", card=card, reason=f"1 + ... + 8 gave {total}")
            except RuntimeError as error:
                finding = found("architecture.refused", card=card, reason=_reason(error))
        yield finding


def check_vram() -> Iterator[Finding]:
    """How much device memory is free."""
    if not torch.cuda.is_available():
        yield found("vram.unused")
        return
    for index in range(torch.cuda.device_count()):
        yield judge_vram(*torch.cuda.mem_get_info(index))


# --- what is built in ---


def check_attention() -> Iterator[Finding]:
    """Every built-in way to compute attention."""
    on = device()
    is_used = True
    for result in available_backends(on, dtype(on), _HEAD_DIM):
        if result.backend in OPTIONAL:
            continue
        if result.works:
            yield found("attention.ok" if is_used else "attention.spare", backend=result.backend)
            is_used = False
        else:
            is_unfit = result.backend is Backend.VARLEN and on.type != "cuda"
            key = "attention.unused" if is_unfit else "attention.broken"
            yield found(key, backend=result.backend, reason=result.reason)


def check_norms() -> Iterator[Finding]:
    """RMS norm, which is torch's own, against its formula in float64."""
    x, weight = _random(64, 256), _random(256, seed=2)
    expected = x.double() * (x.double().square().mean(1, keepdim=True) + token_ops.EPS).rsqrt() * weight.double()
    on = device()
    reason = _difference(lambda: token_ops.rms_norm(x.to(on), weight.to(on)), expected, 1e-5)
    yield found("norms.broken", reason=reason) if reason else found("norms.ok")


def check_convolutions() -> Iterator[Finding]:
    """A channels-last convolution over time, as the video VAE makes them, against float64 on the CPU."""
    x, weight = _random(1, 16, 5, 12, 14), _random(24, 16, 3, 3, 3, seed=2)
    expected = F.conv3d(x.double(), weight.double(), padding=(0, 1, 1))
    on = device()
    kind = dtype(on)

    def convolve() -> Tensor:
        last = torch.channels_last_3d
        moved, kernel = (part.to(on, kind).contiguous(memory_format=last) for part in (x, weight))
        return F.conv3d(moved, kernel, None, 1, (0, 1, 1))

    reason = _difference(convolve, expected, 2e-2 if on.type == "cuda" else 1e-5)
    yield found("convolutions.broken", reason=reason) if reason else found("convolutions.ok")


def check_kernels() -> Iterator[Finding]:
    """The Triton kernels of the VAE and the transformer against their plain twins."""
    if KERNELS in switched_off():
        yield found("kernels.off")
    elif device().type != "cuda":
        yield found("kernels.unused")
    else:
        reason = kernels_fault(device())
        yield found("kernels.broken", reason=reason) if reason else found("kernels.ok")


def kernels_fault(on: torch.device) -> str:
    """Why the Triton kernels are of no use on a card; empty if every one of them equals its plain twin there."""
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for step in _kernel_steps(on):
            with fused_ops.plain_pytorch():
                expected = torch.cat([part.double().cpu().flatten() for part in step()])
            reason = _difference(lambda step=step: torch.cat([part.flatten() for part in step()]), expected, 5e-3)  # type: ignore[misc]
            if reason:
                return reason
    return "" if fused_ops.uses_kernels(torch.empty(1, device=on)) else "Triton is not installed"


def _kernel_steps(on: torch.device) -> list[Callable[[], list[Tensor]]]:
    def small(*shape: int, seed: int = 1) -> Tensor:
        return _random(*shape, seed=seed).to(on)

    norm = torch.nn.GroupNorm(8, 32, eps=1e-6).to(on).requires_grad_(False)

    def frames() -> list[Tensor]:
        x, bias = small(2, 7, 9, 32), small(32, seed=2)
        total, moments = fused_ops.add(x, bias, small(2, 7, 9, 32, seed=3), 8)
        out = torch.empty_like(total)
        fused_ops.norm_silu(total, None, moments, norm, out)
        return [total, moments, out]

    def pairs() -> list[Tensor]:
        results, residual, bias = [], small(4, 7, 9, 32, seed=3), small(32, seed=4)
        for count in (4, 5):  # with an even one, the new history takes the place of the old one
            x, history = small(count, 7, 9, 32), small(2, 7, 9, 32, seed=2)
            split = pair_ops.norm_silu_pairs(x, None, fused_ops.moments(x, None, 8), norm, history)
            out = torch.empty(4, 7, 9, 32, device=on)
            results += [*split.factors, split.tail, pair_ops.join_pairs(split.factors, bias, residual, 8, out), out]
        return results

    def unfold() -> list[Tensor]:
        out = torch.empty(4, 6, 8, 32, device=on)
        return [fused_ops.unfold(small(2, 4, 5, 256), small(3, 3, 256, seed=2), 2, 8, out), out]

    def pictures() -> list[Tensor]:
        inside, moments = fused_ops.picture_in(small(4, 3, 6, 9), small(32, 3, 3, 3, 3, seed=2), small(32, seed=3), 8)
        outside = fused_ops.picture_out(small(4, 6, 9, 32), small(3, 32, 3, 3, 3, seed=2), small(3, seed=3))
        return [inside, moments, outside]

    def scores() -> list[Tensor]:
        return [fused_ops.softmax(small(5, 70), 0.3, torch.float32)]

    def tokens() -> list[Tensor]:
        x, rest, row, other = small(9, 48), small(9, 48, seed=2), small(1, 48, seed=3), small(1, 48, seed=4)
        return [
            token_ops.norm_scale_shift(x, row, other), token_ops.gate_add(x, row, rest), token_ops.silu_mul(x, rest)
        ]  # fmt: skip

    def queries() -> list[Tensor]:
        stream = token_ops.ProjectedTokens(small(15, 144), small(16, seed=5), small(16, seed=6))
        rotation = torch.polar(torch.ones(15, 8, device=on), small(15, 8, seed=7))
        rows = torch.arange(15, device=on).flip(0)
        return list(token_ops.window_qkv([stream], rotation, rows, 3))

    return [tokens, frames, pairs, unfold, pictures, scores, queries]


# --- optional packages ---


def check_flash_attn() -> Iterator[Finding]:
    """flash-attn as a way to compute attention, on the device and in the format of the released models."""
    if FLASH_ATTN in switched_off():
        yield found("flash-attn.off")
    elif not _is_installed("flash_attn"):
        yield found("flash-attn.absent")
    else:
        reason = flash_attn_fault(device(), dtype(device()), _HEAD_DIM)
        yield found("flash-attn.broken", reason=reason) if reason else found("flash-attn.ok")


def flash_attn_fault(on: torch.device, kind: torch.dtype, head_dim: int) -> str:
    """Why flash-attn is of no use there; empty if a real call equals the plain result."""
    admit(Backend.FLASH_ATTN)
    try:
        result = probe(Backend.FLASH_ATTN, on, kind, head_dim)
    except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code may raise anything
        return f"it fails: {_reason(error)}"
    finally:
        admit(Backend.FLASH_ATTN, is_admitted=False)
    return "" if result.works else f"it fails: {result.reason}"


def check_apex() -> Iterator[Finding]:
    """NVIDIA's apex, of which only the fused RMS norm could be of use. It is never used, see ARCHITECTURE.md."""
    if APEX in switched_off():
        yield found("apex.off")
    elif not _is_installed("apex"):
        yield found("apex.absent")
    else:
        reason = _apex_fault(device())
        yield found("apex.broken", reason=reason) if reason else found("apex.ok")


def _apex_fault(on: torch.device) -> str:
    try:
        from apex.normalization import FusedRMSNorm
    except ModuleNotFoundError:
        return "it is not NVIDIA's apex but another package of that name"
    except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code may raise anything
        return f"it fails: {_reason(error)}"
    x = _random(16, 64)
    expected = F.rms_norm(x.double(), (64,), None, token_ops.EPS)

    def call() -> Tensor:
        norm: Tensor = FusedRMSNorm(64, eps=token_ops.EPS).to(on)(x.to(on))
        return norm

    reason = _difference(call, expected, 1e-3)
    return f"it fails: {reason}" if reason else ""


# --- codecs ---


def check_codecs() -> Iterator[Finding]:
    """Write a clip as H.264 and read it back; look for the decoders of what people bring."""
    import av
    import numpy as np

    names = ("h264", "hevc", "vp9", "av1", "prores", "mpeg4", "png", "mjpeg", "webp", "aac")
    missing = [name for name in names if name not in av.codecs_available]
    try:
        clip = io.BytesIO()
        with av.open(clip, "w", format="mp4") as target:
            stream = target.add_stream("libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for shade in (60, 120, 180):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
                target.mux(stream.encode(frame))
            target.mux(stream.encode(None))
        clip.seek(0)
        with av.open(clip, "r") as source:
            shades = [frame.to_ndarray(format="gray").mean() for frame in source.decode(video=0)]
        if len(shades) != 3 or not shades[0] < shades[1] < shades[2]:
            yield found("codecs.broken", reason=f"{len(shades)} of 3 frames came back, or other ones")
            return
    except (av.FFmpegError, ValueError, OSError) as error:
        yield found("codecs.broken", reason=_reason(error))
        return
    if missing:
        yield found("codecs.missing", codecs=", ".join(missing))
    else:
        yield found("codecs.ok", codecs=", ".join(names))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module without a spec: something is there, and the call will tell
        return True


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _difference(call: Callable[[], Tensor], expected: Tensor, tolerance: float) -> str:
    """Why the result of `call` is not `expected`, relative to its largest value; empty if it is."""
    try:
        result = call().double().cpu()
        if result.shape != expected.shape:
            return f"a result of shape {tuple(result.shape)} instead of {tuple(expected.shape)}"
        distance = ((result - expected).abs().max() / expected.abs().max()).item()
    except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code and drivers may raise anything
        return _reason(error)
    return "" if distance <= tolerance else f"differs from the plain result by {distance:.1e}"


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}" if text else type(error).__name__
