"""Owns the model in training: transformer, codec and decoder together, its start, and its weights files.

What the program does with a clip is done here too: enlarge, encode, one step of the transformer at t = 1000, decode,
back-project. Legend: B batch, T H W pixels, t h w latent grid, C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.dit import DiT, DiTConfig
from models.video_vae import VAEConfig, VideoVAE
from training.bank import Example
from training.codec import Codec, CodecDecoder, write_codec

BACK_PROJECTIONS = 2
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


class Nano(nn.Module):
    """Everything between small and restored clip. `vae` is None while the autoencoder is still the linear codec."""

    def __init__(self, dit: DiTConfig, vae: VAEConfig, codec: Codec) -> None:
        super().__init__()
        self.config = vae
        self.codec = codec
        self.restorer = LatentRestorer(dit)
        start_as_identity(self.restorer.dit, codec.scale)
        self.decoder = CodecDecoder(codec, vae)
        self.vae: VideoVAE | None = None
        self.skips_restorer = False
        """While the transformer is still the identity, nothing is lost by leaving it out."""

    def become_joint(self) -> None:
        """Replaces the linear codec by the autoencoder that computes the same, all of whose weights can be trained."""
        self.vae = self.make_vae().to(next(self.restorer.parameters()).device)

    def make_vae(self) -> VideoVAE:
        """The autoencoder as it is now."""
        if self.vae is not None:
            return self.vae
        vae = VideoVAE(self.config)
        write_codec(vae, self.codec, self.decoder.cpu())
        return vae

    def encode(self, video: Tensor) -> Tensor:
        """`(B, 3, T, H, W)` -> `(B, C, t, h, w)`."""
        return self.codec.analyse(video) if self.vae is None else self.vae.encode(video)[0].mean

    def decode(self, latent: Tensor) -> Tensor:
        """`(B, C, t, h, w)` -> `(B, 3, T, H, W)`."""
        return self.decoder(latent) if self.vae is None else self.vae.decode(latent)[0]

    def forward(self, examples: Sequence[Example], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Restored `(B, 3, T, *size)`, its latent before decoding, and the enlarged input."""
        enlarged = torch.stack([resize(example.small, size) for example in examples]).clamp(-1, 1)
        latent = self.encode(enlarged)
        if not self.skips_restorer:
            latent = self.restorer(latent)
        decoded = self.decode(latent)
        restored = [back_project(video, example) for video, example in zip(decoded, examples, strict=True)]
        return torch.stack(restored), latent, enlarged


def resize(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic of `(3, T, h, w)`, as the program does it."""
    resized = F.interpolate(video.transpose(0, 1), size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.transpose(0, 1)


def back_project(video: Tensor, example: Example) -> Tensor:
    """The differentiable twin of `inference.back_projection.back_projection` for one `(3, T, H, W)`."""
    size, small = (video.shape[-2], video.shape[-1]), (example.small.shape[-2], example.small.shape[-1])
    for _ in range(BACK_PROJECTIONS):
        video = video + example.strength * resize(example.small - resize(video, small), size)
    return video


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
