"""Parity of the video VAE: whole and in slices, plain and fast, traces, histories, posterior, tiling.

Reads the format of the VAE's fixtures (specification of the VAE, section 14). Each file says in its metadata what it
holds and which weights it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from inference.parity import read_meta
from inference.parity.report import Case, compare
from inference.parity.vae_tiling import tiled_decode, tiled_encode
from models.causal_conv import CausalConv3d
from models.video_vae import Posterior, VAEConfig, VideoVAE, rename_legacy_keys

Tensors = Mapping[str, Tensor]
Meta = Mapping[str, Any]

SAMPLE_RELATIVE = 1e-5
"""The standard deviation reaches e^10, so samples are compared relative to their size."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way to compute a case. ``split`` pixel frames per slice; 0 for the whole clip at once."""

    dtype: torch.dtype
    split: int
    fast: bool

    @property
    def label(self) -> str:
        form = "fast" if self.fast else "plain"
        return f"{str(self.dtype).removeprefix('torch.')} {form} {f'slices of {self.split}' if self.split else 'whole'}"


RUNS = (
    *(Run(torch.float32, split, False) for split in (0, 4, 8)),
    Run(torch.float32, 4, True),
    Run(torch.float64, 4, True),
)


class Models:
    """The models of a folder, loaded when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[tuple[str, torch.dtype, bool], VideoVAE] = {}

    def get(self, meta: Meta, run: Run) -> VideoVAE:
        """The model that ``meta`` names, strictly loaded."""
        key = (str(meta["weights"]), run.dtype, run.fast)
        if key not in self._loaded:
            config = meta["config"]
            vae = VideoVAE(
                VAEConfig(
                    widths=cast("tuple[int, int, int, int]", tuple(config["block_out_channels"])),
                    num_blocks=config["layers_per_block"],
                    num_groups=config["norm_num_groups"],
                    latent_channels=config["latent_channels"],
                )
            )
            vae.load_state_dict(rename_legacy_keys(load_file(self._folder / key[0])), strict=True)
            vae = vae.to(run.dtype).eval()
            if run.fast:
                vae.prepare_for_inference()
            self._loaded[key] = vae
        return self._loaded[key]


def cases(folder: Path) -> Iterator[Case]:
    """Every case of a folder of VAE fixtures.

    Raises:
        ValueError: a file of a kind that is not known.
    """
    models = Models(folder)
    kinds: dict[str, Callable[[str, Meta, Tensors, Models], Iterator[Case]]] = {
        "vae_run": _run_cases,
        "vae_trace": _trace_cases,
        "vae_posterior": _posterior_cases,
        "vae_tiled": _tiled_cases,
    }
    with torch.inference_mode():
        for path in sorted(folder.glob("*.safetensors")):
            meta = read_meta(path)
            kind = str(meta.get("kind", ""))
            if kind == "vae_weights":
                continue
            if kind not in kinds:
                raise ValueError(f"{path.name} holds fixtures of the unknown kind {kind!r}")
            yield from kinds[kind](path.stem, meta, load_file(path), models)


def slice_lengths(num_frames: int, step: int) -> list[int]:
    """Lengths of the slices of a clip: one frame more in the first; ``step`` 0 leaves the clip whole."""
    if step == 0 or num_frames - 1 <= step:
        return [num_frames]
    return [step + 1] + [min(step, num_frames - start) for start in range(step + 1, num_frames, step)]


def encode_moments(vae: VideoVAE, video: Tensor, split: int) -> Tensor:
    """Mean and clamped log-variance (B, 2C, t, h, w)."""
    state, parts = None, []
    for part in video.split(slice_lengths(video.shape[2], split), dim=2):
        posterior, state = vae.encode(part, state)
        parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1))
    return torch.cat(parts, dim=2)


def decode_video(vae: VideoVAE, latent: Tensor, split: int) -> Tensor:
    """Video (B, 3, T, H, W); ``split`` in pixel frames."""
    state, parts = None, []
    for part in latent.split(slice_lengths(latent.shape[2], split // 4), dim=2):
        video, state = vae.decode(part, state)
        parts.append(video)
    return torch.cat(parts, dim=2)


def _clamped(moments: Tensor) -> Tensor:
    posterior = Posterior.from_moments(moments)
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


def _compare(name: str, actual: Tensor, expected: Tensor) -> Case:
    base, relative = (1e-7, 1e-7) if actual.dtype == torch.float64 else (1e-5, 2e-6)
    return compare(name, actual, expected, max_abs=base + relative * expected.abs().max().item())


def _run_cases(name: str, meta: Meta, tensors: Tensors, models: Models) -> Iterator[Case]:
    for num_frames in meta["frames"]:
        for run in RUNS:
            vae = models.get(meta, run)
            video, latent = tensors[f"x.{num_frames}"].to(run.dtype), tensors[f"z.{num_frames}"].to(run.dtype)
            label = f"{name} T={num_frames} {run.label}"
            moments = encode_moments(vae, video, run.split)
            yield _compare(f"{label} encode", moments, _clamped(tensors[f"moments.{num_frames}"]))
            yield _compare(f"{label} decode", decode_video(vae, latent, run.split), tensors[f"y.{num_frames}"])


def _trace_cases(name: str, meta: Meta, tensors: Tensors, models: Models) -> Iterator[Case]:
    run = Run(torch.float32, 0, False)
    vae = models.get(meta, run)
    outputs: dict[str, Tensor] = {}
    order: dict[str, list[str]] = {"encoder": [], "decoder": []}
    handles = []
    for path, module in vae.named_modules():
        if f"act.{path}" in tensors:
            handles.append(module.register_forward_hook(_record(outputs, path)))
        if isinstance(module, CausalConv3d) and module.kernel_size[0] > 1:
            handles.append(module.register_forward_pre_hook(_note(order[path.split(".")[0]], path)))
    try:
        vae.encode(tensors["x"])
        vae.decode(tensors["z"])
    finally:
        for handle in handles:
            handle.remove()
    for key, expected in tensors.items():
        if key.startswith("act."):
            actual = outputs[key.removeprefix("act.")]
            if expected.ndim == 4:
                actual = rearrange(actual, "B C T H W -> (B T) C H W")
            yield _compare(f"{name} {key}", actual, expected)
    yield _compare(f"{name} moments", encode_moments(vae, tensors["x"], 0), _clamped(tensors["moments"]))
    yield _compare(f"{name} y", decode_video(vae, tensors["z"], 0), tensors["y"])
    yield from _history_cases(name, tensors, vae, order)


def _record(outputs: dict[str, Tensor], path: str) -> Callable[[nn.Module, object, Tensor], None]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs[path] = output.clone()

    return hook


def _note(order: list[str], path: str) -> Callable[[nn.Module, object], None]:
    def hook(_module: nn.Module, _inputs: object) -> None:
        order.append(path)

    return hook


def _history_cases(name: str, tensors: Tensors, vae: VideoVAE, order: Mapping[str, list[str]]) -> Iterator[Case]:
    video, latent = tensors["x"], tensors["z"]
    state = None
    for index, part in enumerate(video.split(slice_lengths(video.shape[2], 4), dim=2)):
        _, state = vae.encode(part, state)
        yield from _compare_histories(name, tensors, index, dict(zip(order["encoder"], state.histories, strict=True)))
    state = None
    for index, part in enumerate(latent.split(slice_lengths(latent.shape[2], 1), dim=2)):
        _, state = vae.decode(part, state)
        yield from _compare_histories(name, tensors, index, dict(zip(order["decoder"], state.histories, strict=True)))


def _compare_histories(name: str, tensors: Tensors, index: int, histories: Tensors) -> Iterator[Case]:
    for path, history in histories.items():
        if (key := f"memory.{path}.{index}") in tensors:
            yield _compare(f"{name} {key}", history, tensors[key])


def _posterior_cases(name: str, meta: Meta, tensors: Tensors, models: Models) -> Iterator[Case]:
    vae = models.get(meta, Run(torch.float32, 0, False))
    posterior, _ = vae.encode(tensors["x"])
    yield _compare(f"{name} mean", posterior.mean, tensors["mean"])
    yield _compare(f"{name} logvar", posterior.logvar, tensors["logvar"])
    for key, actual in (("std", posterior.std), ("sample", posterior.sample(tensors["eps"]))):
        size = 1 + tensors[key].abs()
        yield compare(f"{name} {key} (relative)", actual / size, tensors[key] / size, max_abs=SAMPLE_RELATIVE)
    single, _ = vae.encode(tensors["x1"])
    yield _compare(f"{name} one frame encode", single.mean, tensors["mean1"])
    video, _ = vae.decode(tensors["mean1"])
    yield _compare(f"{name} one frame decode", video.squeeze(2), tensors["y1"])


def _tiled_cases(name: str, meta: Meta, tensors: Tensors, models: Models) -> Iterator[Case]:
    vae = models.get(meta, Run(torch.float32, 4, True))

    for index, case in enumerate(meta["cases"]):
        tile, overlap = tuple(case["tile"]), tuple(case["overlap"])
        expected = _unsqueezed(tensors[f"moments.{index}"])
        moments = tiled_encode(lambda part: encode_moments(vae, part, 4), tensors[f"x.{index}"], tile, overlap)
        yield _compare(f"{name} {index} encode", moments, _clamped(expected))
        video = tiled_decode(lambda part: decode_video(vae, part, 4), tensors[f"z.{index}"], tile, overlap)
        yield _compare(f"{name} {index} decode", video, _unsqueezed(tensors[f"y.{index}"]))


def _unsqueezed(tensor: Tensor) -> Tensor:
    """The stored one-frame results lack the time axis."""
    return tensor if tensor.ndim == 5 else tensor.unsqueeze(2)
