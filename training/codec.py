"""Owns the start of the autoencoder: a linear transform codec, fitted in closed form and written into a VideoVAE.

A small autoencoder that starts from random weights spends its training on learning to copy. This one starts as a
principal component transform: blocks of 2x2 pixels, then 2x2x2 of those, then 2x2x2 again, each step keeping the
components with the most variance; the decoder is the way back. Strided convolutions, 1x1x1 shortcuts and upsamplers
hold these matrices, residual branches and attention start at zero, and the two norms with SiLU that stand before the
last convolutions are made linear by channels with large constants. Legend: B batch, T H W pixels, t h w latent grid,
C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.causal_conv import CausalConv3d
from models.video_vae import ResnetBlock, Upsample, VAEConfig, VideoVAE

CONSTANT = 112.0
"""Value of the channels that fix a norm's statistics; the variance of the signal beside them hardly counts.
A multiple of the number of constants (56 and 4 in nano), so that weights made from it are exact in float16."""
SILU_OFFSET = 16.0
"""SiLU of 16 + x is 16 + x to 1e-4 for |x| < 4."""
SHRINK = 16.0
"""What a signal is divided by on its way through SiLU, so that outliers stay where SiLU is linear."""


SPARE = 4
"""Channels beside the signals of a stage: minus their sum (so that the mean is zero), two constants, and nothing."""
PIXEL_GROUP = 12
"""Channels of 2x2 pixels."""


@dataclass(frozen=True, slots=True)
class Codec:
    """The analysis side. `steps[0]` is `(c0, 3, 1, 2, 2)`, the others `(c', c, 2, 2, 2)`; `scale (C,)` whitens."""

    steps: tuple[Tensor, Tensor, Tensor]
    scale: Tensor

    def analyse(self, video: Tensor) -> Tensor:
        """Video `(B, 3, T, H, W)` in [-1, 1], T = 4 n + 1 -> latent `(B, C, n + 1, H / 8, W / 8)` of unit variance."""
        return _analyse(video, self.steps) * self.scale[:, None, None, None]


def _analyse(video: Tensor, steps: Iterable[Tensor]) -> Tensor:
    for kernel in steps:
        if kernel.shape[2] == 2:
            video = torch.cat([video[:, :, :1], video], dim=2)
        video = F.conv3d(video, kernel, stride=kernel.shape[2:])
    return video


def fit_codec(videos: Iterable[Tensor], config: VAEConfig) -> Codec:
    """Principal components of each step over `videos`, each `(1, 3, T, H, W)` in [-1, 1].

    Raises ValueError when a stage is too narrow or the latent does not equal the third width.
    """
    c0, c1, c2, c3 = config.widths
    if config.latent_channels != c2 or c3 <= c2 or c1 < PIXEL_GROUP + SPARE or c0 < 8:
        raise ValueError(
            "The codec start needs latent_channels == widths[2] < widths[3], widths[1] >= 16 and widths[0] >= 8."
        )
    videos = list(videos)
    steps: list[Tensor] = []
    for kept, time in ((c0, 1), (c1, 2), (c2, 2)):
        blocks = [_blocks(_analyse(video, steps), time) for video in videos]
        steps.append(_components(blocks, kept, time))
    latents = torch.cat([_analyse(video, steps).transpose(0, 1).flatten(1) for video in videos], dim=1)
    return Codec((steps[0], steps[1], steps[2]), latents.pow(2).mean(1).rsqrt())


def _blocks(x: Tensor, time: int) -> Tensor:
    """`(1, C, T, H, W)` -> `(N, C * time * 4)` blocks, in the order of a convolution kernel."""
    if time == 2:
        x = torch.cat([x[:, :, :1], x], dim=2)
    return rearrange(x, "1 C (T p) (H q) (W r) -> (T H W) (C p q r)", p=time, q=2, r=2)


def _components(blocks: list[Tensor], kept: int, time: int) -> Tensor:
    covariance = sum(part.double().T @ part.double() / len(part) for part in blocks)
    _, vectors = torch.linalg.eigh(torch.as_tensor(covariance))
    kernel = vectors[:, -kept:].flip(1).T.float()
    kernel = kernel * kernel.sum(1, keepdim=True).sign()
    return rearrange(kernel, "k (C p q r) -> k C p q r", p=time, q=2, r=2).contiguous()


class Refine(nn.Module):
    """A residual block on `channels` signals, without a norm: what a residual block of the decoder computes here.

    `hidden` channels lie between its two convolutions.

    Starts as the identity.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gains = nn.ParameterList([torch.ones(channels), torch.ones(hidden)])
        self.shifts = nn.ParameterList([torch.zeros(channels), torch.zeros(hidden)])
        self.conv1 = nn.Conv3d(channels, hidden, 3, padding=(0, 1, 1))
        self.conv2 = nn.Conv3d(hidden, channels, 3, padding=(0, 1, 1))
        nn.init.zeros_(self.conv2.weight)
        for conv in (self.conv1, self.conv2):
            nn.init.zeros_(_bias(conv))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, T, H, W)` of the start of a clip."""
        h = x
        for conv, gain, shift in zip((self.conv1, self.conv2), self.gains, self.shifts, strict=True):
            h = F.silu(h * gain[:, None, None, None] + shift[:, None, None, None])
            h = conv(torch.cat([h[:, :, :1]] * 2 + [h], dim=2))
        return x + h


class CodecDecoder(nn.Module):
    """The synthesis side, trainable: what the decoder computes while most of its residual branches are zero.

    `conv_in` mixes neighbouring latents, `split` takes a latent block apart into 2x2x2 parts, `pixels` each of these
    into 2x2x2 groups of 2x2 pixels. `refine_parts` and `refine_pixels` are the residual blocks that are in use.
    """

    def __init__(self, codec: Codec, config: VAEConfig) -> None:
        super().__init__()
        _, c1, c2, c3 = config.widths
        self.conv_in = nn.Conv3d(c2, c3, 3, padding=(0, 1, 1))
        parts = c2 - SPARE
        with torch.no_grad():
            self.conv_in.weight.mul_(0.1)
            self.conv_in.weight[:c2] = 0
            self.conv_in.weight[:c2, :, 2, 1, 1] = torch.diag(1 / codec.scale)
            _bias(self.conv_in).zero_()
        first, second, third = codec.steps
        kept = min(c1, parts)
        split = torch.zeros(parts, 2, 2, 2, c3)
        split[:kept, :, :, :, :c2] = rearrange(third, "k C p q r -> C q r p k")[:kept]
        pixels = rearrange(second, "k C p q r -> q r p C k")
        pixels = torch.einsum("c x q r, a b p c k -> a b p q r x k", first[:, :, 0], pixels)
        self.split = nn.Parameter(rearrange(split, "C q r p k -> (q r p C) k").contiguous())
        full = torch.zeros(8 * PIXEL_GROUP, parts)
        full[:, :kept] = rearrange(pixels, "a b p q r x k -> (a b p q r x) k")[:, :kept]
        self.pixels = nn.Parameter(full)
        self.refine_parts = Refine(parts, c2 // 3)
        self.refine_pixels = nn.ModuleList([Refine(PIXEL_GROUP, c1 - SPARE) for _ in range(2)])
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, latent: Tensor) -> Tensor:
        """Latent `(B, C, t, h, w)` -> video `(B, 3, T, H, W)`."""
        x = self.conv_in(torch.cat([latent[:, :, :1]] * 2 + [latent], dim=2))
        x = self.refine_parts(_take_apart(x, self.split))
        x = _take_apart(x, self.pixels)
        for refine in self.refine_pixels:
            x = refine(x)
        x = rearrange(x, "B (q r C) T h w -> B C T (h q) (w r)", q=2, r=2)
        return x + self.bias[:, None, None, None]


def _take_apart(x: Tensor, matrix: Tensor) -> Tensor:
    x = torch.einsum("o c, b c t h w -> b o t h w", matrix, x)
    x = rearrange(x, "B (q r p C) t h w -> B C (t p) (h q) (w r)", p=2, q=2, r=2)
    return torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2)


@torch.no_grad()
def write_codec(vae: VideoVAE, codec: Codec, decoder: CodecDecoder) -> None:
    """Makes `vae` compute `codec.analyse` as its posterior mean and `decoder` as its decoder, to rounding."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.weight.zero_()
            _bias(module.conv2).zero_()
    for mid in (vae.encoder.mid_block, vae.decoder.mid_block):
        mid.attentions[0].to_out[0].weight.zero_()
        mid.attentions[0].to_out[0].bias.zero_()
    _write_encoder(vae, codec)
    _write_decoder(vae, decoder)


def _write_encoder(vae: VideoVAE, codec: Codec) -> None:
    encoder, channels = vae.encoder, vae.config.latent_channels
    _identity(encoder.conv_in, 3)
    for block, kernel in zip(encoder.down_blocks, codec.steps, strict=False):
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            _identity(shortcut, kernel.shape[1])
        down = block.downsamplers[0].conv
        down.weight.zero_()
        _bias(down).zero_()
        down.weight[: kernel.shape[0], : kernel.shape[1], -kernel.shape[2] :, :2, :2] = kernel
    last = encoder.down_blocks[3].resnets[0].conv_shortcut
    assert last is not None
    last.weight.zero_()
    last.weight[:channels, :, 0, 0, 0] = torch.diag(codec.scale)
    _constants(_bias(last), channels)
    _linear_norm(encoder.conv_norm_out, channels)
    _read_signal(encoder.conv_out, channels)
    encoder.conv_out.weight[channels:] = 0
    _bias(encoder.conv_out)[channels:] = -30.0


def _write_decoder(vae: VideoVAE, trained: CodecDecoder) -> None:
    decoder = vae.decoder
    decoder.conv_in.load_state_dict(trained.conv_in.state_dict())
    first, second, third, last = decoder.up_blocks
    parts = len(trained.refine_parts.gains[0])
    _write_upsampler(first.upsamplers[0], rearrange(trained.split, "(p C) k -> p C k", p=8))
    _identity(second.resnets[0].conv_shortcut, parts, signals_only=False)
    _write_refine(second.resnets[1], trained.refine_parts)
    _write_upsampler(second.upsamplers[0], rearrange(trained.pixels, "(p C) k -> p C k", p=8), signals_only=False)
    _identity(third.resnets[0].conv_shortcut, PIXEL_GROUP, signals_only=False)
    for resnet, refine in zip(third.resnets, trained.refine_pixels, strict=True):
        _write_refine(resnet, refine)
    _write_upsampler(third.upsamplers[0], rearrange(torch.eye(PIXEL_GROUP), "(p C) k -> p C k", p=4))
    _identity(last.resnets[0].conv_shortcut, 3)
    _constants(_bias(last.resnets[0].conv_shortcut), 3)
    _linear_norm(decoder.conv_norm_out, 3)
    _read_signal(decoder.conv_out, 3)
    _bias(decoder.conv_out).add_(trained.bias)


def _identity(conv: nn.Conv3d | None, channels: int, *, signals_only: bool = True) -> None:
    """The first `channels` pass (newest frame, centre), nothing else does; spare channels are filled when asked."""
    assert conv is not None
    conv.weight.zero_()
    _bias(conv).zero_()
    index = torch.arange(channels)
    centre = conv.weight.shape[-1] // 2
    conv.weight[index, index, -1, centre, centre] = 1.0
    if not signals_only:
        _fill_spare(conv.weight, _bias(conv), channels)


def _fill_spare(weight: Tensor, bias: Tensor, channels: int, constant: float | None = None) -> None:
    """The row after the signals becomes minus their sum; the next two hold +constant and -constant."""
    weight[channels : channels + SPARE] = 0.0
    weight[channels] = -weight[:channels].sum(0)
    bias[channels] = -bias[:channels].sum()
    bias[channels + 1] = CONSTANT if constant is None else constant
    bias[channels + 2] = -bias[channels + 1]


def _write_refine(resnet: ResnetBlock, trained: Refine) -> None:
    norms, convs = (resnet.norm1, resnet.norm2), (resnet.conv1, resnet.conv2)
    sources, constants = (trained.conv1, trained.conv2), (CONSTANT, 0.0)
    for norm, conv, source, gain, shift, constant in zip(
        norms, convs, sources, trained.gains, trained.shifts, constants, strict=True
    ):
        outputs, inputs = source.weight.shape[:2]
        norm.weight.zero_()
        norm.bias.zero_()
        norm.weight[:inputs] = gain * CONSTANT * (2 / norm.num_channels) ** 0.5
        norm.bias[:inputs] = shift
        conv.weight.zero_()
        _bias(conv).zero_()
        conv.weight[:outputs, :inputs] = source.weight
        _bias(conv)[:outputs] = _bias(source)
        _fill_spare(conv.weight, _bias(conv), outputs, constant)


def _write_upsampler(upsampler: Upsample, matrices: Tensor, *, signals_only: bool = True) -> None:
    """`matrices (phases, out, in)` become the 1x1x1 convolution; the 3x3x3 one after it passes."""
    phases, outputs, inputs = matrices.shape
    channels = upsampler.conv.weight.shape[0]
    weight, bias = torch.zeros(phases, channels, channels), torch.zeros(phases, channels)
    weight[:, :outputs, :inputs] = matrices
    if not signals_only:
        for phase in range(phases):
            _fill_spare(weight[phase], bias[phase], outputs)
    upsampler.upscale_conv.weight.copy_(weight.flatten(0, 1)[:, :, None, None, None])
    _bias(upsampler.upscale_conv).copy_(bias.flatten())
    _identity(upsampler.conv, channels)


def _bias(conv: nn.Conv3d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _constants(bias: Tensor, first: int) -> None:
    """Channels from `first` on hold +CONSTANT and -CONSTANT in turn (an odd one out holds nothing)."""
    bias.zero_()
    pairs = (len(bias) - first) // 2
    bias[first : first + 2 * pairs : 2] = CONSTANT
    bias[first + 1 : first + 2 * pairs : 2] = -CONSTANT


def _deviation(channels: int, first: int) -> float:
    """Standard deviation over `channels` that the constants alone give a norm."""
    return CONSTANT * (((channels - first) // 2 * 2) / channels) ** 0.5


def _linear_norm(norm: nn.GroupNorm, first: int) -> None:
    """Gain and shift that undo the division by the deviation and carry SiLU into its linear range."""
    norm.weight.fill_(_deviation(norm.num_channels, first) / SHRINK)
    norm.weight[first:] *= SHRINK / CONSTANT
    norm.bias.fill_(SILU_OFFSET)


def _read_signal(conv: CausalConv3d, channels: int) -> None:
    """Reads `channels` back: their value minus the norm's mean, which the constants (+1 and -1 here) show."""
    conv.weight.zero_()
    _bias(conv).zero_()
    index = torch.arange(channels)
    conv.weight[index, index, -1, 1, 1] = SHRINK
    pairs = (conv.in_channels - channels) // 2
    share = CONSTANT / (2 * pairs)
    conv.weight[:channels, channels : channels + 2 * pairs, -1, 1, 1] = -share
    _bias(conv)[:channels] = SILU_OFFSET * (CONSTANT - SHRINK)
