"""Owns the causal video autoencoder: VAEConfig, VideoVAE, Posterior; the plain form that every faster form must equal.

Video ``(B, 3, T, H, W)`` in [-1, 1] becomes a latent ``(B, C, t, h, w)`` with ``T = 4 (t - 1) + 1``, ``H = 8 h``,
``W = 8 w`` and back. Everything is causal or works on single frames, so a clip cut into slices gives the same numbers
as the whole clip. Legend: B batch, T H W pixels, t h w latent grid, C channels, G norm groups, P pixels of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from models import cpu, gpu
from models.causal_conv import CausalConv3d, ConvStream, VAEState
from models.vae_memory import VAEMemory

__all__ = ["Posterior", "VAEConfig", "VAEMemory", "VAEState", "VideoVAE", "rename_legacy_keys"]

NORM_EPS = 1e-6
MAX_SCORES = 2**27
"""Attention scores (query-key pairs) of one call; bounds memory where no fused kernel takes the head width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEConfig:
    """Sizes of a VideoVAE. ``widths`` are the channels of the four stages, full size first."""

    widths: tuple[int, int, int, int] = (128, 256, 512, 512)
    num_blocks: int = 2
    num_groups: int = 32
    latent_channels: int = 16


@dataclass(frozen=True, slots=True)
class Posterior:
    """Gaussian over the latent: ``mean`` and ``logvar`` (clamped to [-30, 20]), each (B, C, t, h, w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Splits the encoder output (B, 2C, t, h, w)."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, eps: Tensor) -> Tensor:
        """``mean + std * eps`` for standard normal ``eps`` of the mean's shape."""
        return self.mean + self.std * eps


class FrameNorm(nn.GroupNorm):
    """Group norm whose statistics cover one frame at a time, so that time never mixes."""

    def __init__(self, num_groups: int, num_channels: int) -> None:
        super().__init__(num_groups, num_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T, H, W)
        frames = rearrange(x, "B C T H W -> (B T) C H W")
        return rearrange(super().forward(frames), "(B T) C H W -> B C T H W", B=x.shape[0])


class ResnetBlock(nn.Module):
    """Two normalised causal 3x3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(num_groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, (3, 3), padding=1)
        self.norm2 = FrameNorm(num_groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, (3, 3), padding=1)
        self.conv_shortcut = CausalConv3d(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), stream)
        h = self.conv2(F.silu(self.norm2(h)), stream)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x, stream))


class Downsample(nn.Module):
    """Halves height and width, and with ``temporal`` the frames."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        time = (3, 2) if temporal else (1, 1)
        self.conv = CausalConv3d(channels, channels, (time[0], 3), (time[1], 2))

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)), stream)


class Upsample(nn.Module):
    """Doubles height and width, and with ``temporal`` the frames; a clip's first frame stays one frame."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.conv = CausalConv3d(channels, channels, (3, 3), padding=1)
        self.upscale_conv = nn.Conv3d(channels, channels * (8 if temporal else 4), 1)

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        z = 2 if self.temporal else 1
        x = self.upscale_conv(x)
        x = rearrange(x, "B (x y z C) T H W -> B C (T z) (H x) (W y)", x=2, y=2, z=z)
        if self.temporal and stream.starts_clip:
            x = torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2)
        return self.conv(x, stream)


class FrameAttention(nn.Module):
    """One-head self-attention over the pixels of each frame, with its norm and residual."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.group_norm = FrameNorm(num_groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T, H, W)
        tokens = rearrange(self.group_norm(x), "B C T H W -> (B T) 1 (H W) C")
        out = self.to_out[0](attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))
        return x + rearrange(out, "(B T) 1 (H W) C -> B C T H W", B=x.shape[0], H=x.shape[3])


def attend(q: Tensor, k: Tensor, v: Tensor, max_scores: int = MAX_SCORES) -> Tensor:
    """``softmax(q k^T / sqrt(C)) v`` over (F, 1, P, C) with at most about ``max_scores`` scores alive at a time."""
    rows = max(1, max_scores // (q.shape[0] * k.shape[2]))
    if rows >= q.shape[2]:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.cat([F.scaled_dot_product_attention(part, k, v) for part in q.split(rows, dim=2)], dim=2)


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest size."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels, num_groups)])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, num_groups) for _ in range(2)])

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        x = self.resnets[0](x, stream)
        x = self.attentions[0](x)
        return self.resnets[1](x, stream)


def _resnets(in_channels: int, out_channels: int, count: int, num_groups: int) -> nn.ModuleList:
    blocks = [ResnetBlock(in_channels if i == 0 else out_channels, out_channels, num_groups) for i in range(count)]
    return nn.ModuleList(blocks)


class DownBlock(nn.Module):
    """One encoder stage."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, down: Downsample | None) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, config.num_blocks, config.num_groups)
        self.downsamplers = nn.ModuleList([] if down is None else [down])

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, stream)
        for downsampler in self.downsamplers:
            x = downsampler(x, stream)
        return x


class UpBlock(nn.Module):
    """One decoder stage."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, up: Upsample | None) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, config.num_blocks + 1, config.num_groups)
        self.upsamplers = nn.ModuleList([] if up is None else [up])

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, stream)
        for upsampler in self.upsamplers:
            x = upsampler(x, stream)
        return x


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) -> moments (B, 2C, t, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c0, c1, c2, c3 = config.widths
        self.conv_in = CausalConv3d(3, c0, (3, 3), padding=1)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(c0, c0, config, Downsample(c0, temporal=False)),
                DownBlock(c0, c1, config, Downsample(c1, temporal=True)),
                DownBlock(c1, c2, config, Downsample(c2, temporal=True)),
                DownBlock(c2, c3, config, None),
            ]
        )
        self.mid_block = MidBlock(c3, config.num_groups)
        self.conv_norm_out = FrameNorm(config.num_groups, c3)
        self.conv_out = CausalConv3d(c3, 2 * config.latent_channels, (3, 3), padding=1)

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        x = self.conv_in(x, stream)
        for block in self.down_blocks:
            x = block(x, stream)
        x = self.mid_block(x, stream)
        return self.conv_out(F.silu(self.conv_norm_out(x)), stream)


class Decoder(nn.Module):
    """Latent (B, C, t, h, w) -> video (B, 3, T, H, W), not clamped."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c0, c1, c2, c3 = config.widths
        self.conv_in = CausalConv3d(config.latent_channels, c3, (3, 3), padding=1)
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(c3, c3, config, Upsample(c3, temporal=True)),
                UpBlock(c3, c2, config, Upsample(c2, temporal=True)),
                UpBlock(c2, c1, config, Upsample(c1, temporal=False)),
                UpBlock(c1, c0, config, None),
            ]
        )
        self.mid_block = MidBlock(c3, config.num_groups)
        self.conv_norm_out = FrameNorm(config.num_groups, c0)
        self.conv_out = CausalConv3d(c0, 3, (3, 3), padding=1)

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:
        x = self.conv_in(x, stream)
        x = self.mid_block(x, stream)
        for block in self.up_blocks:
            x = block(x, stream)
        return self.conv_out(F.silu(self.conv_norm_out(x)), stream)


class VideoVAE(nn.Module):
    """The autoencoder. ``encode`` and ``decode`` each stream: pass the returned state with the clip's next slice."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self._fast: cpu.FastVAE | gpu.FastVAE | None = None

    def encode(
        self,
        video: Tensor,
        state: VAEState | None = None,
        on_step: Callable[[], None] | None = None,
        memory: VAEMemory | None = None,
    ) -> tuple[Posterior, VAEState]:
        """Encodes the next slice of a clip.

        Args:
            video: (B, 3, T, H, W) in [-1, 1]; T is 1, 5, 9, ... at the clip start, then 4, 8, 12, ...
            state: what the previous slice returned; None starts a clip.
            on_step: called before each convolution; it may raise. ``state`` is then still as it was, except on a GPU.
            memory: how the fast form for GPUs saves memory; it changes no number.

        Returns:
            The posterior of (B, C, t, h, w), t = (T + 3) // 4, and the state for the next slice.

        Raises:
            ValueError: the number of frames does not fit, or the state does not belong to this clip.
        """
        num_frames = video.shape[2]
        if state is None and num_frames % 4 != 1:
            raise ValueError(
                f"The first slice of a clip must have 1, 5, 9, ... frames to be encoded, not {num_frames}."
            )
        if state is not None and (num_frames % 4 != 0 or num_frames == 0):
            raise ValueError(f"A later slice of a clip must have 4, 8, 12, ... frames to be encoded, not {num_frames}.")
        if self._fast is not None:
            moments, state = self._fast.encode(video, state, on_step, memory)
            return Posterior.from_moments(moments), state
        stream = ConvStream(state, on_step)
        return Posterior.from_moments(self.encoder(video, stream)), stream.finish(num_frames)

    def decode(
        self,
        latent: Tensor,
        state: VAEState | None = None,
        on_step: Callable[[], None] | None = None,
        memory: VAEMemory | None = None,
    ) -> tuple[Tensor, VAEState]:
        """Decodes the next slice of a clip.

        Args:
            latent: (B, C, t, h, w), any t >= 1.
            state: what the previous slice returned; None starts a clip.
            on_step: called before each convolution; it may raise. ``state`` is then still as it was, except on a GPU.
            memory: how the fast form for GPUs saves memory; it changes no number.

        Returns:
            Video (B, 3, T, 8 h, 8 w), T = 4 (t - 1) + 1 at the clip start, else 4 t; and the state for the next slice.

        Raises:
            ValueError: no latent frame, or the state does not belong to this clip.
        """
        if latent.shape[2] == 0:
            raise ValueError("There is no latent frame to decode; pass at least one.")
        if self._fast is not None:
            return self._fast.decode(latent, state, on_step, memory)
        stream = ConvStream(state, on_step)
        return self.decoder(latent, stream), stream.finish(latent.shape[2])

    @property
    def encoder_past(self) -> int:
        """Frames before the latest one on which a bit of the encoder's state may depend.

        The sum over its convolutions in a row of the frames that each looks back, in frames of the clip.
        """
        first, second, third, fourth = (2 * self.config.num_blocks * step for step in (1, 1, 2, 4))
        return self._look_back * (1 + first + second + 1 + third + 2 + fourth + 4 * (4 + 1))

    @property
    def decoder_past(self) -> int:
        """Latents before the latest one on which a bit of the decoder's state may depend: the same sum, in latents."""
        first, second, third, fourth = (2 * (self.config.num_blocks + 1) * step for step in (4, 2, 1, 1))
        num_frames = self._look_back * (4 * (1 + 4) + first + 2 + second + 1 + third + 1 + fourth + 1)
        return -(-num_frames // 4)

    @property
    def _look_back(self) -> int:
        """Earlier frames that a convolution with three taps in time may depend on, if only in its rounding."""
        return 2 if self._fast is None else self._fast.LOOK_BACK

    def prepare_for_inference(self) -> None:
        """Builds the fast form from the loaded weights, once; results stay equal to the plain ones to rounding.

        It is ``models/cpu.py`` or ``models/gpu.py``, by the device of the weights; neither gives gradients, and the
        latter takes one clip at a time (B = 1). Call it after loading and moving the model: later changes of weights
        are not seen, and states of two forms do not mix.
        """
        weight = self.encoder.conv_in.weight
        if weight.is_cuda:
            for parameter in self.parameters():
                if parameter.ndim == 5:  # so that the fast form needs no copy of its own
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
            self._fast = gpu.FastVAE(self.encoder, self.decoder)
        elif weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64):
            self._fast = cpu.FastVAE(self.encoder, self.decoder)


_LEGACY_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_legacy_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with the older names of the attention's projections replaced by today's."""
    renamed = {}
    for key, tensor in state.items():
        head, _, leaf = key.rpartition(".")
        module, _, name = head.rpartition(".")
        if name in _LEGACY_NAMES and ".attentions." in f".{module}.":
            key = f"{module}.{_LEGACY_NAMES[name]}.{leaf}"
        renamed[key] = tensor
    return renamed
