"""Owns the autoencoder in training: a transform codec fitted in closed form, and its way into a VideoVAE and back.

A small autoencoder that starts from random weights spends its training on learning to copy. This one starts as a
principal component transform: blocks of 2x2 pixels, then 2x2x2 of those, then 2x2x2 again, each step keeping the
components with the most variance; the decoder is the way back. Strided convolutions, 1x1x1 shortcuts and upsamplers
hold these matrices, the decoder's residual branches start at zero, and every norm is made linear by channels with large
constants, so that this file's form and the VideoVAE compute the same. Legend: B batch, T H W pixels, t h w latent grid,
C latent channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.causal_conv import CausalConv3d
from models.video_vae import ResnetBlock, Upsample, VAEConfig, VideoVAE

CONSTANT = 112.0
"""Value of the channels that fix the statistics of the last norms; beside it the signal hardly counts."""
BRANCH_CONSTANT = 1024.0
"""The same for the norms of residual branches, whose signals are larger."""
SILU_OFFSET = 16.0
"""SiLU of 16 + x is 16 + x to 1e-4 for |x| < 4."""
SHRINK = 16.0
"""What a signal is divided by on its way through SiLU, so that outliers stay where SiLU is linear."""
MEAN_READERS = 8
"""Constants that the mean of a last norm is read from: a power of two, so that the weights are exact in float16."""
SPARE = 4
"""Channels beside the signals of a stage: minus their sum (so that the mean is zero), two constants, and nothing."""
PIXEL_GROUP = 12
"""Channels of 2x2 pixels."""
MAX_GAIN = 20.0
UNITS = (0.01, 0.05)
"""Least and largest size of what a residual block adds to a signal."""


class Codec(nn.Module):
    """The analysis side, trainable, and the bases that the synthesis starts from.

    `steps` are the kernels of the three strided convolutions, `(c0, 3, 1, 3, 3)` and `(c', c, 3, 3, 3)`, whose last
    taps in space reach into the next block; they start at zero. `scale (C,)` whitens the latents. `first (12, 12)` and
    `second (96, 96)` are complete bases, rows by falling variance, of 2x2 pixels `(colour, row, column)` and of 2x2x2
    of these `(component, frame, row, column)`; `first_deviation` and `second_deviation` belong to their rows.
    """

    scale: Tensor
    first: Tensor
    first_deviation: Tensor
    second: Tensor
    second_deviation: Tensor

    def __init__(self, steps: Iterable[Tensor], **buffers: Tensor) -> None:
        super().__init__()
        self.steps = nn.ParameterList(list(steps))
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, video: Tensor) -> Tensor:
        """Video `(B, 3, T, H, W)` in [-1, 1], T = 4 n + 1 -> latent `(B, C, n + 1, H / 8, W / 8)` of unit variance."""
        return _analyse(video, self.steps) * self.scale[:, None, None, None]


def _analyse(video: Tensor, steps: Iterable[Tensor]) -> Tensor:
    for kernel in steps:
        time = kernel.shape[2]
        if time == 3:
            video = torch.cat([video[:, :, :1]] * 2 + [video], dim=2)
        video = F.conv3d(F.pad(video, (0, 1, 0, 1)), kernel, stride=((time + 1) // 2, 2, 2))
    return video


def fit_codec(videos: Iterable[Tensor], config: VAEConfig) -> Codec:
    """Principal components of each step over `videos`, each `(1, 3, T, H, W)` in [-1, 1].

    Raises ValueError when a stage is too narrow or the latent does not equal the third width.
    """
    c0, c1, c2, c3 = config.widths
    enough = c3 >= c2 + MEAN_READERS and c1 >= PIXEL_GROUP + SPARE and c0 >= 3 + MEAN_READERS
    if config.latent_channels != c2 or not enough:
        raise ValueError(
            "The codec start needs latent_channels == widths[2] <= widths[3] - 8, widths[1] >= 16, widths[0] >= 11."
        )
    videos = list(videos)
    steps: list[Tensor] = []
    bases: list[Tensor] = []
    deviations: list[Tensor] = []
    for kept, time in ((PIXEL_GROUP, 1), (c1, 2), (c2, 2)):
        basis, deviation = _components([_blocks(_analyse(video, steps), time) for video in videos])
        bases.append(basis)
        deviations.append(deviation)
        kernel = rearrange(basis[:kept], "k (C p q r) -> k C p q r", p=time, q=2, r=2)
        steps.append(F.pad(kernel, (0, 1, 0, 1, time - 1, 0)))
    return Codec(
        steps,
        scale=1 / deviations[2][:c2],
        first=bases[0],
        first_deviation=deviations[0],
        second=bases[1],
        second_deviation=deviations[1],
    )


def _blocks(x: Tensor, time: int) -> Tensor:
    """`(1, C, T, H, W)` -> `(N, C * time * 4)` blocks, in the order of a convolution kernel."""
    if time == 2:
        x = torch.cat([x[:, :, :1], x], dim=2)
    return rearrange(x, "1 C (T p) (H q) (W r) -> (T H W) (C p q r)", p=time, q=2, r=2)


def _components(blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Principal components as rows, and the root mean square of each."""
    covariance = torch.as_tensor(sum(part.double().T @ part.double() / len(part) for part in blocks)) / len(blocks)
    energies, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1).T
    basis = basis * torch.where(basis.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return basis.float().contiguous(), energies.flip(0).clamp(min=1e-8).sqrt().float()


class Refine(nn.Module):
    """A residual block on signals, without a norm: what a residual block of the decoder computes here.

    `deviation` holds the root mean square of each signal, which decides the first gains; `hidden` channels lie between
    the two convolutions. What is added is in units of what is usually missing: one rate of Adam fits all signals.
    Starts as the identity.
    """

    unit: Tensor

    def __init__(self, deviation: Tensor, hidden: int) -> None:
        super().__init__()
        channels = len(deviation)
        self.gains = nn.ParameterList([(1 / deviation).clamp(max=MAX_GAIN), torch.ones(hidden)])
        self.shifts = nn.ParameterList([torch.zeros(channels), torch.zeros(hidden)])
        self.conv1 = nn.Conv3d(channels, hidden, 3, padding=(0, 1, 1))
        self.conv2 = nn.Conv3d(hidden, channels, 3, padding=(0, 1, 1))
        self.register_buffer("unit", deviation.clamp(*UNITS))
        nn.init.zeros_(self.conv2.weight)
        for conv in (self.conv1, self.conv2):
            nn.init.zeros_(_bias(conv))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, T, H, W)` of the start of a clip."""
        h = x
        for conv, gain, shift in zip((self.conv1, self.conv2), self.gains, self.shifts, strict=True):
            h = F.silu(h * gain[:, None, None, None] + shift[:, None, None, None])
            h = conv(torch.cat([h[:, :, :1]] * 2 + [h], dim=2))
        return torch.addcmul(x, h, self.unit[:, None, None, None])

    def folded(self) -> tuple[nn.Conv3d, nn.Conv3d]:
        """Both convolutions, the second with `unit` in its weights."""
        last = copy.deepcopy(self.conv2)
        last.weight.mul_(self.unit[:, None, None, None, None])
        _bias(last).mul_(self.unit)
        return self.conv1, last


class CodecDecoder(nn.Module):
    """The synthesis side, trainable: what the decoder computes while its other residual branches are zero.

    `conv_in` mixes neighbouring latents, `split` takes a latent block apart into 2x2x2 parts, `groups` each of these
    into 2x2x2 groups of 2x2 pixels, `pixels` a group into its pixels. The `refine_` modules are the residual blocks in
    use: at the resolution of latents, parts and groups. The last stage, at full resolution, adds nothing.
    """

    def __init__(self, codec: Codec, config: VAEConfig) -> None:
        super().__init__()
        _, c1, c2, c3 = config.widths
        latents, parts = c3 - SPARE, c2 - SPARE
        self.conv_in = nn.Conv3d(c2, latents, 3, padding=(0, 1, 1))
        with torch.no_grad():
            self.conv_in.weight.mul_(0.1)
            self.conv_in.weight[:c2] = 0
            self.conv_in.weight[:c2, :, 2, 1, 1] = torch.diag(1 / codec.scale)
            _bias(self.conv_in).zero_()
        third = codec.steps[2].detach()[..., 1:, :2, :2]
        split = torch.zeros(parts, 2, 2, 2, latents)
        kept = min(c1, parts)
        split[:kept, :, :, :, :c2] = rearrange(third, "k C p q r -> C q r p k")[:kept]
        self.split = nn.Parameter(rearrange(split, "C q r p k -> (q r p C) k").contiguous())
        groups = rearrange(codec.second[:parts], "k (C p q r) -> (q r p C) k", p=2, q=2, r=2)
        full = torch.zeros(8 * PIXEL_GROUP, parts)
        full[:, : groups.shape[1]] = groups
        self.groups = nn.Parameter(full)
        self.pixels = nn.Parameter(rearrange(codec.first, "k (C q r) -> (q r C) k", q=2, r=2).contiguous())
        deviation = torch.ones(latents)
        deviation[:c2] = 1 / codec.scale
        self.refine_latents = nn.ModuleList([Refine(deviation, latents) for _ in range(2)])
        deviation = torch.ones(parts)
        deviation[: groups.shape[1]] = codec.second_deviation[:parts]
        self.refine_parts = nn.ModuleList([Refine(deviation, parts) for _ in range(2)])
        self.refine_groups = nn.ModuleList([Refine(codec.first_deviation, c1 - SPARE) for _ in range(2)])
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, latent: Tensor) -> Tensor:
        """Latent `(B, C, t, h, w)` -> video `(B, 3, T, H, W)`."""
        x = self.conv_in(torch.cat([latent[:, :, :1]] * 2 + [latent], dim=2))
        for refine in self.refine_latents:
            x = refine(x)
        x = _take_apart(x, self.split)
        for refine in self.refine_parts:
            x = refine(x)
        x = _take_apart(x, self.groups)
        for refine in self.refine_groups:
            x = refine(x)
        x = torch.einsum("o c, b c t h w -> b o t h w", self.pixels, x)
        x = rearrange(x, "B (q r C) T h w -> B C T (h q) (w r)", q=2, r=2)
        return x + self.bias[:, None, None, None]


def _take_apart(x: Tensor, matrix: Tensor) -> Tensor:
    x = torch.einsum("o c, b c t h w -> b o t h w", matrix, x)
    x = rearrange(x, "B (q r p C) t h w -> B C (t p) (h q) (w r)", p=2, q=2, r=2)
    return torch.cat([x[:, :, :1], x[:, :, 2:]], dim=2)


@torch.no_grad()
def write_codec(vae: VideoVAE, codec: Codec, decoder: CodecDecoder) -> None:
    """Makes `vae` compute `codec` as its posterior mean and `decoder` as its decoder, to rounding."""
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
        down.weight[: kernel.shape[0], : kernel.shape[1]] = kernel
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
    first, second, third, last = decoder.up_blocks
    parts = trained.groups.shape[1]
    _write_conv(decoder.conv_in, trained.conv_in, BRANCH_CONSTANT)
    in_use = (
        (decoder.mid_block, trained.refine_latents),
        (second, trained.refine_parts),
        (third, trained.refine_groups),
    )
    for block, refines in in_use:
        for resnet, refine in zip(block.resnets, refines, strict=True):
            _write_refine(resnet, refine)
    _write_upsampler(first.upsamplers[0], rearrange(trained.split, "(p C) k -> p C k", p=8))
    _identity(second.resnets[0].conv_shortcut, parts, constant=BRANCH_CONSTANT)
    _write_upsampler(second.upsamplers[0], rearrange(trained.groups, "(p C) k -> p C k", p=8))
    _identity(third.resnets[0].conv_shortcut, PIXEL_GROUP, constant=BRANCH_CONSTANT)
    _write_upsampler(third.upsamplers[0], rearrange(trained.pixels, "(p C) k -> p C k", p=4), fill=False)
    _identity(last.resnets[0].conv_shortcut, 3)
    _constants(_bias(last.resnets[0].conv_shortcut), 3)
    _bias(last.resnets[0].conv_shortcut)[:3] = trained.bias
    _linear_norm(decoder.conv_norm_out, 3)
    _read_signal(decoder.conv_out, 3)


def _write_conv(conv: nn.Conv3d, trained: nn.Conv3d, constant: float) -> None:
    """The trained convolution of signals, and spare channels beside its result."""
    outputs, inputs = trained.weight.shape[:2]
    conv.weight.zero_()
    _bias(conv).zero_()
    conv.weight[:outputs, :inputs] = trained.weight
    _bias(conv)[:outputs] = _bias(trained)
    _fill_spare(conv.weight, _bias(conv), outputs, constant)


def _identity(conv: nn.Conv3d | None, channels: int, *, constant: float | None = None) -> None:
    """The first `channels` pass (newest frame, centre), nothing else does; `constant` fills the spare ones."""
    assert conv is not None
    conv.weight.zero_()
    _bias(conv).zero_()
    index = torch.arange(channels)
    centre = conv.weight.shape[-1] // 2
    conv.weight[index, index, -1, centre, centre] = 1.0
    if constant is not None:
        _fill_spare(conv.weight, _bias(conv), channels, constant)


def _fill_spare(weight: Tensor, bias: Tensor, channels: int, constant: float) -> None:
    """The row after the signals becomes minus their sum; the next two hold +constant and -constant."""
    weight[channels : channels + SPARE] = 0.0
    weight[channels] = -weight[:channels].sum(0)
    bias[channels] = -bias[:channels].sum()
    bias[channels + 1] = constant
    bias[channels + 2] = -constant


def _write_refine(resnet: ResnetBlock, trained: Refine) -> None:
    norms, convs = (resnet.norm1, resnet.norm2), (resnet.conv1, resnet.conv2)
    sources, constants = trained.folded(), (BRANCH_CONSTANT, 0.0)
    for norm, conv, source, gain, shift, constant in zip(
        norms, convs, sources, trained.gains, trained.shifts, constants, strict=True
    ):
        signals = source.in_channels
        norm.weight.zero_()
        norm.bias.zero_()
        norm.weight[:signals] = gain * BRANCH_CONSTANT * (2 / norm.num_channels) ** 0.5
        norm.bias[:signals] = shift
        _write_conv(conv, source, constant)


def _write_upsampler(upsampler: Upsample, matrices: Tensor, *, fill: bool = True) -> None:
    """`matrices (phases, out, in)` become the 1x1x1 convolution; the 3x3x3 one after it passes."""
    phases, outputs, inputs = matrices.shape
    channels = upsampler.conv.weight.shape[0]
    weight, bias = torch.zeros(phases, channels, channels), torch.zeros(phases, channels)
    weight[:, :outputs, :inputs] = matrices
    if fill:
        for phase in range(phases):
            _fill_spare(weight[phase], bias[phase], outputs, BRANCH_CONSTANT)
    upsampler.upscale_conv.weight.copy_(weight.flatten(0, 1)[:, :, None, None, None])
    _bias(upsampler.upscale_conv).copy_(bias.flatten())
    _identity(upsampler.conv, channels)


@torch.no_grad()
def read_codec(vae: VideoVAE, codec: Codec, decoder: CodecDecoder) -> None:
    """Takes the trained weights of `codec` and `decoder` back from a VideoVAE that `write_codec` made."""
    for block, kernel in zip(vae.encoder.down_blocks, codec.steps, strict=False):
        kernel.copy_(block.downsamplers[0].conv.weight[: kernel.shape[0], : kernel.shape[1]])
    last = vae.encoder.down_blocks[3].resnets[0].conv_shortcut
    assert last is not None
    codec.scale.copy_(last.weight[: len(codec.scale), : len(codec.scale), 0, 0, 0].diagonal())
    _read_conv(vae.decoder.conv_in, decoder.conv_in)
    first, second, third, last_block = vae.decoder.up_blocks
    in_use = (
        (vae.decoder.mid_block, decoder.refine_latents), (second, decoder.refine_parts), (third, decoder.refine_groups)
    )  # fmt: skip
    for block, refines in in_use:
        for resnet, refine in zip(block.resnets, refines, strict=True):
            _read_refine(resnet, refine)
    for block, matrix, phases in ((first, decoder.split, 8), (second, decoder.groups, 8), (third, decoder.pixels, 4)):
        weight = block.upsamplers[0].upscale_conv.weight[:, : matrix.shape[1], 0, 0, 0]
        signals = len(matrix) // phases
        matrix.copy_(rearrange(rearrange(weight, "(p C) k -> p C k", p=phases)[:, :signals], "p C k -> (p C) k"))
    decoder.bias.copy_(_bias(last_block.resnets[0].conv_shortcut)[:3])


def _read_conv(conv: nn.Conv3d, trained: nn.Conv3d) -> None:
    outputs, inputs = trained.weight.shape[:2]
    trained.weight.copy_(conv.weight[:outputs, :inputs])
    _bias(trained).copy_(_bias(conv)[:outputs])


def _read_refine(resnet: ResnetBlock, trained: Refine) -> None:
    norms, convs = (resnet.norm1, resnet.norm2), (resnet.conv1, resnet.conv2)
    targets = (trained.conv1, trained.conv2)
    for norm, conv, target, gain, shift in zip(norms, convs, targets, trained.gains, trained.shifts, strict=True):
        gain.copy_(norm.weight[: len(gain)] / (BRANCH_CONSTANT * (2 / norm.num_channels) ** 0.5))
        shift.copy_(norm.bias[: len(shift)])
        _read_conv(conv, target)
    trained.conv2.weight.div_(trained.unit[:, None, None, None, None])
    _bias(trained.conv2).div_(trained.unit)


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
    conv.weight[:channels, channels : channels + MEAN_READERS, -1, 1, 1] = -CONSTANT / MEAN_READERS
    _bias(conv)[:channels] = SILU_OFFSET * (CONSTANT - SHRINK)
