"""Builds networks from weight files: strict keys and shapes, on a meta-device module, cast once.

A network is filled completely or an error is raised; nothing half-loaded is ever returned. Files are memory-mapped, so
the peak memory of loading is that of the finished network. When no cast is needed on the CPU the weights stay mapped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from inference.catalogue import ModelEntry, Part, find_model
from inference.download import model_files
from inference.durable import sha256_of_samples
from inference.errors import CheckpointError
from inference.state_file import open_state, open_tensor
from inference.verify import ReportBytes
from models.dit import DiT, DiTConfig
from models.fp8_ops import quantize_rows
from models.presets import NANO_DIT, NANO_VAE, SEEDVR2_3B, SEEDVR2_7B, VIDEO_VAE
from models.video_vae import VAEConfig, VideoVAE, rename_legacy_keys

log = logging.getLogger(__name__)

TEXT_KEY = "text_embedding"
"""Key of the text embedding in a transformer's file that carries its own."""

CONFIGS: dict[str, tuple[DiTConfig, VAEConfig]] = {
    "nano": (NANO_DIT, NANO_VAE),
    "seedvr2-3b": (SEEDVR2_3B, VIDEO_VAE),
    "seedvr2-7b": (SEEDVR2_7B, VIDEO_VAE),
    "seedvr2-7b-sharp": (SEEDVR2_7B, VIDEO_VAE),
}
"""Networks of the catalogue's models."""

_NAMED = 3  # keys spelled out in a message


@dataclass(frozen=True, slots=True)
class Models:
    """Everything that one job needs of a model, on one device.

    text: the text embedding, `(L, text_width)`. latent_scale: VAE latents times this enter the transformer.
    fingerprint: tells these weights from others of the same name.
    """

    dit: DiT
    vae: VideoVAE
    text: Tensor
    latent_scale: float
    entry: ModelEntry
    fingerprint: str = ""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.vae.parameters()).device


def load_models(
    name: str,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    offline: bool = False,
    report_bytes: ReportBytes | None = None,
    fp8: bool = False,
) -> Models:
    """The networks and constants of a catalogue model, downloaded and verified if needed.

    weights: folder that is looked into first. report_bytes: see `inference.download.model_files`. fp8: the
    transformer's large products are in 8 bits (`models.fp8`).
    Raises SettingsError for an unknown name and CheckpointError for anything wrong with the files.
    """
    entry = find_model(name)
    dit_config, vae_config = CONFIGS[name]
    paths = model_files(entry, weights, offline, report_bytes)
    return load_entry(entry, paths, dit_config, vae_config, device, dtype, fp8)


def load_entry(
    entry: ModelEntry,
    paths: Mapping[Part, Path],
    dit_config: DiTConfig,
    vae_config: VAEConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    fp8: bool = False,
) -> Models:
    """The networks of `entry` from files that are already here. Small parts first, so that mistakes show early."""
    text = load_text(paths.get(Part.TEXT, paths[Part.DIT]), dit_config.text_width, device, dtype)
    vae = load_vae(paths[Part.VAE], vae_config, device, dtype)
    dit = load_dit(paths[Part.DIT], dit_config, device, dtype, fp8)
    vae.prepare_for_inference()
    return Models(dit, vae, text, entry.latent_scale, entry, _fingerprint(paths))


def _fingerprint(paths: Mapping[Part, Path]) -> str:
    return " ".join(f"{part}:{sha256_of_samples(path)}" for part, path in sorted(paths.items()))


def load_dit(
    path: Path,
    config: DiTConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
) -> DiT:
    """The transformer in `path`; its rotary frequencies are float32 and computed, whatever the file says.

    fp8: the weights of the large products become 8 bits one by one, so that the device never holds more than it keeps.
    """
    with torch.device("meta"):
        dit = DiT(config)
    state = open_state(path)
    tensors = {key: state[key] for key in state if key != TEXT_KEY}
    _check_file(dit, tensors, path)
    in_fp8 = dit.to(dtype).use_fp8() if fp8 else []
    _fill(dit, tensors, path, torch.device(device), dtype, frozenset(in_fp8))
    return dit


def load_vae(
    path: Path, config: VAEConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoVAE:
    """The video VAE in `path`; older names of its attention's projections are understood."""
    with torch.device("meta"):
        vae = VideoVAE(config)
    tensors = rename_legacy_keys(open_state(path))
    _check_file(vae, tensors, path)
    _fill(vae, tensors, path, torch.device(device), dtype)
    return vae


def load_text(
    path: Path, text_width: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The text embedding `(L, text_width)`: a `.pt` file of one tensor, or a key of the transformer's own file."""
    if path.suffix == ".pt":
        text = open_tensor(path)
    else:
        state = open_state(path)
        if TEXT_KEY not in state:
            raise CheckpointError(
                f"{path} carries no text embedding (key {TEXT_KEY}); use the file that belongs to this model."
            )
        text = state[TEXT_KEY]
    if text.ndim != 2 or text.shape[1] != text_width or not text.shape[0]:
        raise CheckpointError(
            f"The text embedding in {path} has shape {list(text.shape)}, expected [tokens, {text_width}]; use the file"
            " that belongs to this model."
        )
    _check_precision({TEXT_KEY: text}, path)
    return _cast(text, torch.device(device), dtype).clone()


def _check_file(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    _check_keys(network.state_dict(), tensors, path)
    _check_precision(tensors, path)


@torch.no_grad()
def _fill(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    in_fp8: frozenset[str] = frozenset(),
) -> None:
    """Gives a meta-device network the tensors of `path`, all of them. `in_fp8`: names of its layers in 8 bits."""
    log.info("loading %s: %d tensors as %s on %s", path, len(tensors), dtype, device)
    if in_fp8:
        log.info("%d layers compute in fp8", len(in_fp8))
    state = {}
    for key, tensor in tensors.items():
        state[key] = _cast(tensor, device, dtype)
        layer, _, name = key.rpartition(".")
        if layer in in_fp8 and name == "weight":
            rows = quantize_rows(state[key])
            state[key], state[f"{key}_scale"] = rows.values, rows.scales
    # Networks restore what must not come from a file (rotary frequencies) in a hook of this call.
    network.load_state_dict(state, strict=True, assign=True)
    network.eval().requires_grad_(False)


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # The cast comes first: it halves what crosses the bus when a float32 file is used in half precision.
    return tensor.to(dtype).contiguous().to(device)


def _check_keys(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} is {list(found[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    complaints = [
        f"{len(keys)} {problem} ({_some(keys)})"
        for problem, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if complaints:
        raise CheckpointError(
            f"{path} does not fit this model: of {len(wanted)} tensors, {'; '.join(complaints)}. Choose the model that"
            " the file belongs to, or the file that belongs to the model."
        )


def _check_precision(tensors: Mapping[str, Tensor], path: Path) -> None:
    low = [key for key, tensor in tensors.items() if not tensor.is_floating_point() or tensor.dtype.itemsize < 2]
    if low:
        kind = str(tensors[low[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{path} holds {kind} weights ({len(low)} tensors, such as {low[0]}), which lose too much precision; use"
            " the float32, float16 or bfloat16 file of this model."
        )


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
