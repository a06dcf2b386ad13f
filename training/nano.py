"""Owns the model in training: transformer, codec and decoder together, its start, and its weights files.

What the program does with a clip is done here too: enlarge, encode, one step of the transformer at t = 1000, decode,
back-project. Legend: B batch, T H W pixels, t h w latent grid, C latent channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inference.back_projection import DEFAULT_ITERATIONS, HALF_LEVEL
from models.dit import DiT, DiTConfig
from models.video_vae import VAEConfig, VideoVAE
from training.bank import Batch
from training.codec import Codec, CodecDecoder, read_codec, write_codec

TIMESTEP = 1000.0


class LatentRestorer(nn.Module):
    """The transformer as a map of latents, and the one text embedding that it is called with.

    It is trained without noise: its input noise is zero, so that the one step `noise - velocity` is `-velocity`.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.dit = DiT(config)
        self.register_buffer("text", torch.zeros(1, config.text_width))

    def forward(self, latent: Tensor) -> Tensor:
        """`(B, C, t, h, w)` degraded -> `(B, C, t, h, w)` restored."""
        batch, channels, *size = latent.shape
        condition = latent.permute(0, 2, 3, 4, 1)
        tokens = torch.cat([torch.zeros_like(condition), condition, torch.ones_like(condition[..., :1])], dim=-1)
        velocity = self.dit(
            tokens.reshape(-1, 2 * channels + 1),
            self.text.expand(batch, -1),
            torch.full((batch,), TIMESTEP),
            torch.tensor([size] * batch),
            torch.ones(batch, dtype=torch.long),
        )
        return -velocity.view(batch, *size, channels).permute(0, 4, 1, 2, 3)


@torch.no_grad()
def start_as_identity(dit: DiT, scale: Tensor) -> None:
    """The transformer passes the condition through: its first channels carry it, every block adds nothing.

    `scale (C,)` is what whitened each latent. A step of training in a latent of much variance moves many pixels, so the
    gates of the channels that carry it start at a tenth of its scale (one at most).

    Raises ValueError when the width does not hold the four latents of a patch.
    """
    config = dit.config
    channels, patch = config.latent_channels, 4
    if config.width < patch * channels:
        raise ValueError(f"width {config.width} does not hold {patch} latents of {channels} channels")
    inner, outer = dit.vid_in.proj, dit.vid_out.proj
    inner.weight.normal_(0.0, 0.05)
    index = torch.arange(channels)
    for place in range(patch):
        inner.weight[:, place * config.in_channels :][:, :channels] = 0.0  # noise
        inner.weight[:, place * config.in_channels + 2 * channels] = 0.0  # mask
    for place in range(patch):
        rows = place * channels + index
        inner.weight[rows] = 0.0
        inner.weight[rows, place * config.in_channels + channels + index] = 1.0
    outer.weight.zero_()
    passed = torch.arange(patch * channels)
    outer.weight[passed, passed] = -1.0
    for bias in (inner.bias, outer.bias, dit.emb_in.proj_out.bias):
        bias.zero_()
    dit.emb_in.proj_out.weight.zero_()
    for name, parameter in dit.blocks.named_parameters():
        if name.endswith("_shift") or ".proj_out." in name:
            parameter.zero_()
        elif name.endswith(("_scale", "_gate")):
            parameter.fill_(1.0)
        if name.endswith("_gate"):
            parameter[: patch * channels] = (0.1 * scale).clamp(max=1.0).repeat(patch)


@dataclass(frozen=True, slots=True)
class Restored:
    """`video` restored and `enlarged` as the program enlarges it, both `(B, 3, T, H, W)`."""

    video: Tensor
    enlarged: Tensor


class Nano(nn.Module):
    """Everything between small and restored clip."""

    def __init__(self, dit: DiTConfig, vae: VAEConfig, codec: Codec) -> None:
        super().__init__()
        self.config = vae
        self.codec = codec
        self.restorer = LatentRestorer(dit)
        start_as_identity(self.restorer.dit, codec.scale)
        self.decoder = CodecDecoder(codec, vae)

    def forward(self, batch: Batch) -> Restored:
        """What the program makes of `batch.small`."""
        enlarged = resize(batch.small, (batch.sharp.shape[-2], batch.sharp.shape[-1])).clamp(-1, 1)
        decoded = self.decoder(self.restorer(self.codec(enlarged)))
        return Restored(back_project(decoded, batch), enlarged)

    def make_vae(self) -> VideoVAE:
        """The autoencoder with the weights as they are now, on the CPU."""
        vae = VideoVAE(self.config)
        write_codec(vae, copy.deepcopy(self.codec).cpu(), copy.deepcopy(self.decoder).cpu())
        return vae


def resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic of `(B, 3, T, h, w)`, as the program does it."""
    pictures = video.transpose(1, 2).flatten(0, 1)
    resized = F.interpolate(pictures, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)


def back_project(video: Tensor, batch: Batch) -> Tensor:
    """The differentiable twin of `inference.back_projection.back_projection` for `(B, 3, T, H, W)`."""
    chosen = batch.strength.nonzero().flatten()
    if not len(chosen):
        return video
    source, content = batch.small[chosen], video[chosen]
    strength = batch.strength[chosen].view(-1, 1, 1, 1, 1)
    size, small = (video.shape[-2], video.shape[-1]), (source.shape[-2], source.shape[-1])
    for _ in range(DEFAULT_ITERATIONS):
        missing = F.softshrink(source - resize(content, small), HALF_LEVEL)
        content = content + strength * resize(missing, size)
    return video.index_copy(0, chosen, content)


@torch.no_grad()
def read_weights(nano: Nano, folder: Path) -> None:
    """Puts the weights that `write_weights` left in `folder` into `nano`, whose codec decides only the units."""
    dit = {key: value.float() for key, value in load_file(folder / "nano_dit.safetensors").items()}
    nano.restorer.text.copy_(dit.pop("text_embedding"))
    nano.restorer.dit.load_state_dict(dit)
    vae = VideoVAE(nano.config)
    vae.load_state_dict({key: value.float() for key, value in load_file(folder / "nano_vae.safetensors").items()})
    read_codec(vae, nano.codec, nano.decoder)


def write_weights(nano: Nano, folder: Path) -> None:
    """`nano_dit.safetensors` and `nano_vae.safetensors`, float16, each written beside its place and moved there."""
    folder.mkdir(parents=True, exist_ok=True)
    dit = {**nano.restorer.dit.state_dict(), "text_embedding": nano.restorer.text}
    for name, state in (("nano_dit", dit), ("nano_vae", nano.make_vae().state_dict())):
        tensors = {
            key: value.detach().cpu().to(torch.float32 if key.endswith("rope.freqs") else torch.float16).contiguous()
            for key, value in state.items()
        }
        part = folder / f"{name}.safetensors.part"
        save_file(tensors, part, metadata={"format": "pt"})
        part.chmod(0o644)
        part.replace(folder / f"{name}.safetensors")
