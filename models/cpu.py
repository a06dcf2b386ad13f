"""Owns the fast form of the video VAE for CPUs: the numbers of ``video_vae.py`` to rounding, in much less time.

What makes it fast:

- Slices are lists of frames (``frame_ops.py``): nothing is concatenated, and no history is copied.
- A causal 3x3x3 convolution is 2-D convolutions over frames, combined across 4 (or 2) output frames with Winograd's
  minimal filtering in time (Lavin and Gray 2016, F(4,3) and F(2,3)): 6 in place of 12 (4 in place of 6).
- A clip's first frame is convolved with the sum of the three taps: its past is a copy of itself.
- oneDNN runs every convolution and adds the next summand on its way out; group norm's scale and shift with SiLU are one
  depthwise convolution with that activation.
- Upsamplers are merged (``merged_upsampler.py``).
- What the weights make idle is left out: residual branches that end in zeros, taps of zeros, channels that are neither
  read nor written, convolutions that hand their input on. A model that starts as a codec (``training/codec.py``) has
  many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.causal_conv import VAEState
from models.frame_ops import Frames, FrameStream, NormSilu, TimeConv, conv2d, conv2d_accumulate, dense
from models.merged_upsampler import FIRST, SECOND, SPATIAL, STEADY, MergedKernel, merge_kernel, unfold_grid
from models.vae_memory import VAEMemory

if TYPE_CHECKING:
    from models.video_vae import (
        Decoder,
        DownBlock,
        Downsample,
        Encoder,
        FrameAttention,
        MidBlock,
        ResnetBlock,
        UpBlock,
        Upsample,
    )


class Resnet:
    """Fast form of ``ResnetBlock``."""

    def __init__(self, block: ResnetBlock) -> None:
        first, second = block.conv1.weight.detach(), block.conv2.weight.detach()
        first_bias = _bias(block.conv1)
        read, alive = first.shape[1], None
        if block.norm1.num_groups == 1:
            used = first.any(dim=4).any(dim=3).any(dim=2)  # (C', C)
            read = _count_to_last(used.any(dim=0))
            hidden = used.any(dim=1) | first_bias.bool() | second.any(dim=4).any(dim=3).any(dim=2).any(dim=0)
            alive = hidden.nonzero().flatten()
            first, first_bias, second = first[alive, :read], first_bias[alive], second[:, alive]
        self.norm1, self.norm2 = NormSilu(block.norm1, wanted=read), NormSilu(block.norm2, alive)
        self.conv1 = TimeConv(first, first_bias, padding=1)
        self.conv2 = TimeConv(second, _bias(block.conv2), padding=1)
        self.is_idle = _is_zero(block.conv2)
        self.shortcut = None
        if block.conv_shortcut is not None:
            self.shortcut = (dense(block.conv_shortcut.weight[:, :, 0]), _bias(block.conv_shortcut))

    def __call__(self, x: Frames, stream: FrameStream) -> Frames:
        h = [] if self.is_idle else self.conv1([self.norm1(frame) for frame in x], stream)
        if self.shortcut is not None:
            x = [conv2d(frame, *self.shortcut, padding=0) for frame in x]
        return x if self.is_idle else self.conv2([self.norm2(frame) for frame in h], stream, residual=x)


def _count_to_last(flags: Tensor) -> int:
    """How many leading entries hold every True one; at least 1."""
    positions = flags.nonzero()
    return int(positions[-1]) + 1 if len(positions) else 1


def _resnets(block: DownBlock | UpBlock | MidBlock) -> list[Resnet]:
    return [Resnet(resnet) for resnet in cast("Sequence[ResnetBlock]", block.resnets)]


def _is_zero(layer: nn.Conv3d | nn.Linear) -> bool:
    """Whether a layer gives zeros for any input."""
    return not layer.weight.any() and (layer.bias is None or not layer.bias.any())


def _passes(conv: nn.Conv3d) -> bool:
    """Whether a 3x3x3 causal convolution gives back its input: the newest frame's centre, channel by channel."""
    identity = torch.zeros_like(conv.weight)
    index = torch.arange(conv.weight.shape[0])
    identity[index, index, -1, 1, 1] = 1
    return torch.equal(conv.weight, identity) and not _bias(conv).any()


def _bias(conv: nn.Conv3d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


def _time_conv(conv: nn.Conv3d) -> TimeConv:
    return TimeConv(conv.weight, _bias(conv), padding=1)


class Down:
    """Fast form of ``Downsample``."""

    def __init__(self, down: Downsample) -> None:
        conv = down.conv
        weight = conv.weight.detach()
        # A kernel without a last row and column never reads the padding.
        self.pads = bool(weight[..., 2, :].any() or weight[..., 2].any())
        if not self.pads:
            weight = weight[..., :2, :2]
        self.num_taps = weight.shape[2]
        self.taps = [(tap, dense(weight[:, :, tap])) for tap in range(self.num_taps) if weight[:, :, tap].any()]
        self.still = dense(weight.double().sum(dim=2).to(weight.dtype))
        self.bias = _bias(conv)

    def __call__(self, x: Frames, stream: FrameStream) -> Frames:
        if self.pads:
            x = [F.pad(frame, (0, 1, 0, 1)) for frame in x]
        stream.step()
        if self.num_taps == 1:
            return [conv2d(frame, self.still, self.bias, 0, 2) for frame in x]
        history = stream.take(1, x[0])
        stream.put(x[-1:])
        out: Frames = []
        if history is None:
            out.append(conv2d(x[0], self.still, self.bias, 0, 2))
            history, x = x[:1], x[1:]
        seen = history + x
        (first, kernel), *others = self.taps
        for i in range(0, len(x), 2):
            stream.step()
            frame = conv2d(seen[i + first], kernel, self.bias, 0, 2)
            for tap, kernel_of_tap in others:
                conv2d_accumulate(frame, seen[i + tap], kernel_of_tap, 0, 2)
            out.append(frame)
        return out


class PassingUp:
    """Fast form of an ``Upsample`` whose 3x3x3 convolution hands its input on: one 1x1x1 convolution and the unfold."""

    def __init__(self, up: Upsample) -> None:
        self.weight, self.bias = dense(up.upscale_conv.weight[:, :, 0]), _bias(up.upscale_conv)
        self.num_phases = 2 if up.temporal else 1

    def __call__(self, x: Frames, stream: FrameStream) -> Frames:
        out: Frames = []
        for frame in x:
            stream.step()
            grid = conv2d(frame, self.weight, self.bias, 0)
            phases = grid.permute(0, 2, 3, 1).unflatten(-1, (2, 2, self.num_phases, -1))  # (B, H, W, 2, 2, z, C)
            for phase in range(self.num_phases):
                pixels = phases[..., phase, :].permute(0, 1, 3, 2, 4, 5)  # (B, H, 2, W, 2, C)
                out.append(pixels.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2))  # channels last
        if self.num_phases == 2 and stream.num_frames == 0:
            del out[1]
        return out


def _up(up: Upsample) -> PassingUp | TemporalUp | SpatialUp:
    if _passes(up.conv):
        return PassingUp(up)
    return TemporalUp(up) if up.temporal else SpatialUp(up)


class SpatialUp:
    """Fast form of an ``Upsample`` that leaves time alone."""

    def __init__(self, up: Upsample) -> None:
        self.kernel = merge_kernel(up.upscale_conv, up.conv, SPATIAL)
        self.conv = TimeConv(self.kernel.taps.permute(1, 2, 0, 3, 4), self.kernel.bias, padding=1)

    def __call__(self, x: Frames, stream: FrameStream) -> Frames:
        out: Frames = []
        for grid in self.conv(x, stream):
            self.kernel.fix_border(grid)
            out += unfold_grid(grid, 1)
        return out


class TemporalUp:
    """Fast form of an ``Upsample`` that doubles the frames."""

    def __init__(self, up: Upsample) -> None:
        self.steady, self.second, self.first = (
            merge_kernel(up.upscale_conv, up.conv, time_map) for time_map in (STEADY, SECOND, FIRST)
        )
        self.first_taps, self.second_taps, self.steady_taps = (
            [dense(tap) for tap in kernel.taps] for kernel in (self.first, self.second, self.steady)
        )
        self.sum_taps = dense(self.steady.taps.double().sum(dim=0).to(self.steady.taps.dtype))

    def __call__(self, x: Frames, stream: FrameStream) -> Frames:
        history = stream.take(1, x[0])
        stream.put(x[-1:])
        start = stream.num_frames  # latent frames before this slice: upsampling keeps their order
        out: Frames = []
        if history is None:
            out += self._unfold(conv2d(x[0], self.first_taps[0], self.first.bias, 1), self.first, 1)
            history, x = x[:1], x[1:]
            start = 1
        return out + self._later(history + x, stream, second=start == 1)

    def _later(self, seen: Frames, stream: FrameStream, second: bool) -> Frames:
        out: Frames = []
        i = 1
        while i < len(seen):
            stream.step()
            if i == 1 and second:
                out += self._direct(seen[0], seen[1], self.second, self.second_taps)
            elif i + 1 < len(seen):
                out += self._pair(*seen[i - 1 : i + 2])
                i += 1
            else:
                out += self._direct(seen[i - 1], seen[i], self.steady, self.steady_taps)
            i += 1
        return out

    def _direct(self, before: Tensor, now: Tensor, kernel: MergedKernel, taps: list[Tensor]) -> Frames:
        grid = conv2d(before, taps[0], kernel.bias, 1)
        conv2d_accumulate(grid, now, taps[1], 1)
        return self._unfold(grid, kernel, 2)

    def _pair(self, before: Tensor, now: Tensor, after: Tensor) -> Frames:
        """Two steps from three products in place of four: F(2,2)."""
        both = conv2d(now, self.sum_taps, self.steady.bias, 1)
        grids = [
            conv2d(before - now, self.steady_taps[0], None, 1, add=both),
            conv2d(after - now, self.steady_taps[1], None, 1, add=both),
        ]
        return [frame for grid in grids for frame in self._unfold(grid, self.steady, 2)]

    def _unfold(self, grid: Tensor, kernel: MergedKernel, num_phases: int) -> Frames:
        kernel.fix_border(grid)
        return unfold_grid(grid, num_phases)


class Mid:
    """Fast form of ``MidBlock``; the attention is the plain one, frame by frame."""

    def __init__(self, mid: MidBlock) -> None:
        self.before, self.after = _resnets(mid)
        attention = cast("FrameAttention", mid.attentions[0])
        self.attention = None if _is_zero(cast("nn.Linear", attention.to_out[0])) else attention

    def __call__(self, x: Frames, stream: FrameStream) -> Frames:
        x = self.before(x, stream)
        if self.attention is not None:
            x = [self.attention(frame[:, :, None])[:, :, 0] for frame in x]
            x = [frame.contiguous(memory_format=torch.channels_last) for frame in x]
        return self.after(x, stream)


class FastEncoder:
    """Fast form of ``Encoder``."""

    def __init__(self, encoder: Encoder) -> None:
        self.conv_in, self.conv_out = _time_conv(encoder.conv_in), _time_conv(encoder.conv_out)
        self.blocks: list[Resnet | Down] = []
        for block in cast("Sequence[DownBlock]", encoder.down_blocks):
            self.blocks += _resnets(block)
            self.blocks += [Down(down) for down in cast("Sequence[Downsample]", block.downsamplers)]
        self.mid, self.norm_out = Mid(encoder.mid_block), NormSilu(encoder.conv_norm_out)

    def __call__(self, video: Tensor, stream: FrameStream) -> Tensor:
        x = self.conv_in(_to_frames(video), stream)
        for block in self.blocks:
            x = block(x, stream)
        x = self.mid(x, stream)
        return torch.stack(self.conv_out([self.norm_out(frame) for frame in x], stream), dim=2)


class FastDecoder:
    """Fast form of ``Decoder``."""

    def __init__(self, decoder: Decoder) -> None:
        self.conv_in, self.conv_out = _time_conv(decoder.conv_in), _time_conv(decoder.conv_out)
        self.blocks: list[Resnet | PassingUp | SpatialUp | TemporalUp] = []
        for block in cast("Sequence[UpBlock]", decoder.up_blocks):
            self.blocks += _resnets(block)
            self.blocks += [_up(up) for up in cast("Sequence[Upsample]", block.upsamplers)]
        self.mid, self.norm_out = Mid(decoder.mid_block), NormSilu(decoder.conv_norm_out)

    def __call__(self, latent: Tensor, stream: FrameStream) -> Tensor:
        x = self.mid(self.conv_in(_to_frames(latent), stream), stream)
        for block in self.blocks:
            x = block(x, stream)
        return torch.stack(self.conv_out([self.norm_out(frame) for frame in x], stream), dim=2)


def _to_frames(video: Tensor) -> Frames:
    """Frames (B, C, H, W) that own their memory, of (B, C, T, H, W)."""
    return [frame.clone(memory_format=torch.channels_last) for frame in video.unbind(dim=2)]


class FastVAE:
    """Both directions in their fast form. Without gradients."""

    LOOK_BACK = 5
    """Earlier frames that one convolution may depend on: those in the same tile of F(4,3) take part in its rounding."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        self._encoder, self._decoder = FastEncoder(encoder), FastDecoder(decoder)

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        state: VAEState | None,
        on_step: Callable[[], None] | None,
        memory: VAEMemory | None = None,
    ) -> tuple[Tensor, VAEState]:
        """``VideoVAE.encode``, but for the posterior: its moments (B, 2C, t, h, w)."""
        stream = FrameStream(state, on_step)
        return self._encoder(video, stream), stream.finish(video.shape[2])

    @torch.no_grad()
    def decode(
        self,
        latent: Tensor,
        state: VAEState | None,
        on_step: Callable[[], None] | None,
        memory: VAEMemory | None = None,
    ) -> tuple[Tensor, VAEState]:
        """``VideoVAE.decode``; frames are done one by one on the host anyway, whatever ``memory`` says."""
        stream = FrameStream(state, on_step)
        return self._decoder(latent, stream), stream.finish(latent.shape[2])
