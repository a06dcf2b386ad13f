"""Owns the fast form of the video VAE for GPUs: the numbers of ``video_vae.py`` to rounding, as fast as its products.

What makes it fast:

- Frames ``(T, H, W, C)`` are channels last from end to end, so the time axis lies outermost in memory and cuDNN's
  tensor-core convolutions need no conversion.
- What a causal convolution reads is one buffer: its history, then the new frames, which the step before it writes
  there. Nothing is concatenated or padded by copying.
- A norm is one read for its statistics, which the residual addition before it takes on its way, and one read and write
  with SiLU; biases ride along (``fused_ops.py``).
- Pairs of frames are convolved by minimal filtering in time (``pair_ops.py``): a third less arithmetic.
- Upsamplers are merged (``merged_upsampler.py``): a fifth less arithmetic in the decoder, and less history.
- A lone first frame is convolved with the sum of the three taps in time: its past is a copy of itself.

One clip at a time: the batch axis of the plain form is 1 here. Legend: T frames, H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.buffer_stream import BufferStream
from models.causal_conv import VAEState
from models.fused_ops import add, norm_silu, picture_in, picture_out, softmax
from models.gpu_conv import Conv, MergedConv, Sealed, SealedPairs, TimeConv
from models.merged_upsampler import FIRST, SECOND, SPATIAL, STEADY
from models.vae_memory import VAEMemory, wait_for_host_copies

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

SCORE_BYTES = 2**27
"""Of the attention scores that are alive at a time. Fewer would stay in the card's cache, but make many small calls."""


class Resnet:
    """Fast form of ``ResnetBlock``: takes and returns frames with their moments for the next norm."""

    def __init__(self, block: ResnetBlock) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2 = TimeConv(block.conv1), TimeConv(block.conv2)
        self.bias = self.conv2.bias
        self.shortcut: Tensor | None = None
        if block.conv_shortcut is not None:
            self.shortcut = block.conv_shortcut.weight.detach().flatten(1)
            assert block.conv_shortcut.bias is not None
            self.bias = self.bias + block.conv_shortcut.bias.detach()

    def __call__(self, x: Tensor, stats: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        """``num_groups`` are those of the norm that comes next."""
        return self.finish(self.begin(x, stats, stream), x, num_groups)

    @property
    def convolutions(self) -> list[TimeConv]:
        """Those over time."""
        return [self.conv1, self.conv2]

    def begin(self, x: Tensor, stats: Tensor, stream: BufferStream) -> Sealed | SealedPairs:
        """All but the shortcut."""
        sealed = self.conv1.after_norm(x, None, stats, self.norm1, stream)
        h, bias, stats = sealed.convolve_with_moments(self.conv1.bias, self.norm2.num_groups)
        sealed = self.conv2.after_norm(h, bias, stats, self.norm2, stream)
        del h
        sealed.convolve_early()
        return sealed

    def finish(
        self, begun: Sealed | SealedPairs, x: Tensor, num_groups: int, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of both branches and its moments; into ``out``, frames that may have gaps between rows."""
        shortcut = x if self.shortcut is None else F.linear(x, self.shortcut)
        return begun.add_to(shortcut, self.bias, num_groups, out)


class Down:
    """Fast form of ``Downsample``; its input stands in a buffer one row and column larger than the picture."""

    def __init__(self, last: Resnet, down: Downsample) -> None:
        """``last`` is the block whose result is made smaller; it writes into the buffer."""
        conv = down.conv
        self.last = last
        self.convolutions = last.convolutions
        self.past, self.kept = conv.kernel_size[0] - 1, conv.kernel_size[0] - conv.stride[0]
        self.conv = Conv(conv.weight, cast("tuple[int, int, int]", conv.stride), padding=0)
        assert conv.bias is not None
        self.bias = conv.bias.detach()

    def __call__(self, x: Tensor, stats: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        begun = self.last.begin(x, stats, stream)
        frames, height, width, channels = *x.shape[:3], self.conv.num_in
        # A clip starts with two copies of its first frame, later slices with what the stride left over.
        past = self.past if stream.starts_clip else self.kept
        shape = (frames, height + 1, width + 1, channels)
        buffer = stream.buffer(x, shape, past) if past else x.new_empty(shape)
        buffer[past:, height] = 0
        buffer[past:, :, width] = 0
        self.last.finish(begun, x, num_groups, buffer[past:, :height, :width])
        if past:
            stream.seal(buffer, past, self.kept)
        return add(self.conv(buffer), self.bias, None, num_groups)


class Up:
    """Fast form of ``Upsample``: merged, and its input is written into the buffer by the block before it."""

    def __init__(self, last: Resnet, up: Upsample) -> None:
        """``last`` is the block whose result is made larger."""
        self.last, self.temporal, self.convolutions = last, up.temporal, last.convolutions
        self.past = 1 if up.temporal else 2
        self.kernels = [
            MergedConv(up, time_map) for time_map in ((FIRST, SECOND, STEADY) if up.temporal else (SPATIAL,))
        ]

    def __call__(self, x: Tensor, stats: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        begun = self.last.begin(x, stats, stream)
        height, width, channels = *x.shape[1:3], self.last.conv2.conv.num_out
        buffer = stream.buffer(x, (len(x), height, width, channels), self.past)
        self.last.finish(begun, x, num_groups, buffer[self.past :])
        stream.seal(buffer, self.past, self.past)
        spans = self._spans(buffer, stream)
        count = sum(kernel.num_phases * (len(part) - kernel.past) for kernel, part in spans)
        out = buffer.new_empty(count, 2 * height, 2 * width, channels)
        stats_of, start = [], 0
        for kernel, part in spans:
            stop = start + kernel.num_phases * (len(part) - kernel.past)
            stats_of.append(kernel(part, num_groups, out[start:stop]))
            start = stop
        return out, torch.cat(stats_of)

    def _spans(self, buffer: Tensor, stream: BufferStream) -> list[tuple[MergedConv, Tensor]]:
        """Which kernel sees which frames. The clip's first frame, and the one after it, have kernels of their own."""
        if not self.temporal:
            return [(self.kernels[0], buffer)]
        first, second, steady = self.kernels
        spans, done = [], stream.num_frames
        if stream.starts_clip:
            buffer, done = buffer[1:], 1
            spans.append((first, buffer[:1]))
        if len(buffer) > 1 and done == 1:
            spans.append((second, buffer[:2]))
            buffer = buffer[1:]
        return spans if len(buffer) == 1 else [*spans, (steady, buffer)]


class Attention:
    """Fast form of ``FrameAttention``: one head over the pixels of each frame, a block of queries at a time."""

    def __init__(self, attention: FrameAttention) -> None:
        self.norm = attention.group_norm
        layers = (attention.to_q, attention.to_k, attention.to_v)
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        self.bias = torch.cat([layer.bias.detach() for layer in layers])
        self.out = cast("nn.Linear", attention.to_out[0])

    def __call__(self, x: Tensor, stats: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        tokens = torch.empty_like(x)
        norm_silu(x, None, stats, self.norm, tokens, silu=False)
        qkv = F.linear(tokens.flatten(1, 2), self.weight, self.bias)
        mixed = tokens.flatten(1, 2)
        for index, (q, k, v) in enumerate(zip(*qkv.chunk(3, dim=-1), strict=True)):
            _attend(q, k, v, mixed[index])
        return add(F.linear(mixed, self.out.weight).view_as(x), self.out.bias, x, num_groups)


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """``softmax(q k^T / sqrt(C)) v`` into ``out``, all (P, C); scores and their softmax are float32 (or wider)."""
    scale, wide = q.shape[1] ** -0.5, torch.float64 if q.dtype is torch.float64 else torch.float32
    size = max(128, SCORE_BYTES // (4 * len(k)) // 128 * 128)
    # On tensors without values only the memory is of interest, and that does not grow after the second block.
    for start in range(0, min(len(q), 2 * size) if q.is_meta else len(q), size):
        rows = q[start : start + size]
        if rows.is_cuda and rows.dtype in (torch.bfloat16, torch.float16):
            scores = torch.mm(rows, k.T, out_dtype=torch.float32)
        else:
            scores = torch.mm(rows, k.T).to(wide)
        out[start : start + size] = softmax(scores, scale, v.dtype) @ v


class Mid:
    """Fast form of ``MidBlock``."""

    def __init__(self, mid: MidBlock) -> None:
        self.before, self.after = (Resnet(block) for block in cast("Sequence[ResnetBlock]", mid.resnets))
        self.attention = Attention(cast("FrameAttention", mid.attentions[0]))
        self.convolutions = self.before.convolutions + self.after.convolutions

    def __call__(self, x: Tensor, stats: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        x, stats = self.before(x, stats, stream, num_groups)
        x, stats = self.attention(x, stats, num_groups)
        return self.after(x, stats, stream, num_groups)


class FastEncoder:
    """Fast form of ``Encoder``."""

    def __init__(self, encoder: Encoder) -> None:
        self.num_groups = encoder.conv_norm_out.num_groups
        conv = encoder.conv_in
        assert conv.bias is not None
        self.weight_in, self.bias_in = conv.weight.detach(), conv.bias.detach()
        self.blocks: list[Resnet | Down | Mid] = []
        for block in cast("Sequence[DownBlock]", encoder.down_blocks):
            resnets = [Resnet(resnet) for resnet in cast("Sequence[ResnetBlock]", block.resnets)]
            downs = [Down(resnets[-1], down) for down in cast("Sequence[Downsample]", block.downsamplers)]
            self.blocks += [*resnets[: len(resnets) - len(downs)], *downs]
        self.blocks.append(Mid(encoder.mid_block))
        front = 1 + next(index for index, block in enumerate(self.blocks) if isinstance(block, Down))
        self.front_blocks, self.blocks = self.blocks[:front], self.blocks[front:]
        self.norm_out, self.conv_out = encoder.conv_norm_out, TimeConv(encoder.conv_out)

    def __call__(self, video: Tensor, stream: BufferStream) -> Tensor:
        """Video (1, 3, T, H, W) -> moments (1, 2C, t, h, w)."""
        x, stats = self._enter_in_parts(video, stream)
        for block in self.blocks:
            x, stats = block(x, stats, stream, self.num_groups)
        buffer = self.conv_out.open(x, stream)
        norm_silu(x, None, stats, self.norm_out, buffer[2:])
        sealed = self.conv_out.seal(buffer, stream)
        return (sealed.convolve() + self.conv_out.bias).permute(3, 0, 1, 2)[None]

    def _enter_in_parts(self, video: Tensor, stream: BufferStream) -> tuple[Tensor, Tensor]:
        max_frames, num_frames = stream.memory.max_frames, video.shape[2]
        if max_frames is None or num_frames <= max_frames:
            return self._enter(video, stream)
        x, stats_of, nested = video, [], stream.nested()
        for start in range(0, num_frames, max_frames):
            part, stats = self._enter(video[:, :, start : start + max_frames], nested)
            if start == 0:
                x = part.new_empty(num_frames, *part.shape[1:])
            x[start : start + len(part)] = part
            stats_of.append(stats)
            last, nested = nested, nested.following(len(part))
            del part
        stream.join(last)
        return x, torch.cat(stats_of)

    def _enter(self, video: Tensor, stream: BufferStream) -> tuple[Tensor, Tensor]:
        """All that is done at full size, and the first downsampling, which is one of space alone."""
        frames, height, width = video.shape[2:]
        buffer = stream.buffer(video, (frames, 3, height, width), past=2)
        buffer[2:] = video[0].transpose(0, 1)
        stream.seal(buffer, past=2, kept=2)
        x, stats = picture_in(buffer, self.weight_in, self.bias_in, self.num_groups)
        del buffer
        for block in self.front_blocks:
            x, stats = block(x, stats, stream, self.num_groups)
        return x, stats


class FastDecoder:
    """Fast form of ``Decoder``."""

    def __init__(self, decoder: Decoder) -> None:
        self.num_groups = decoder.conv_norm_out.num_groups
        self.conv_in = TimeConv(decoder.conv_in)
        self.blocks: list[Resnet | Up | Mid] = [Mid(decoder.mid_block)]
        for block in cast("Sequence[UpBlock]", decoder.up_blocks):
            resnets = [Resnet(resnet) for resnet in cast("Sequence[ResnetBlock]", block.resnets)]
            ups = [Up(resnets[-1], up) for up in cast("Sequence[Upsample]", block.upsamplers)]
            self.blocks += [*resnets[: len(resnets) - len(ups)], *ups]
        last_up = max(index for index, block in enumerate(self.blocks) if isinstance(block, Up))
        self.blocks, self.last_blocks = self.blocks[:last_up], self.blocks[last_up:]
        conv = decoder.conv_out
        assert conv.bias is not None
        self.norm_out, self.weight_out, self.bias_out = decoder.conv_norm_out, conv.weight.detach(), conv.bias.detach()

    def __call__(self, latent: Tensor, stream: BufferStream) -> Tensor:
        """Latent (1, C, t, h, w) -> video (1, 3, T, H, W)."""
        max_frames = stream.memory.max_frames
        frames = latent[0].permute(1, 2, 3, 0)
        buffer = self.conv_in.open(frames, stream)
        buffer[2:, ..., : frames.shape[3]] = frames
        buffer[2:, ..., frames.shape[3] :] = 0
        sealed = self.conv_in.seal(buffer, stream)
        del buffer
        x, stats = add(sealed.convolve(), self.conv_in.bias, None, self.num_groups)
        for block in self.blocks:
            x, stats = block(x, stats, stream, self.num_groups)
        if max_frames is None or len(x) <= max_frames:
            return self._leave(x, stats, stream)[None]
        # Each part owns its memory and is given away, so that it is free while its frames are at full size.
        parts = [part.clone() for part in x.split(max_frames)]
        del x
        pictures, nested = [], stream.nested()
        for part_stats in stats.split(max_frames):
            pictures.append(self._leave(parts.pop(0), part_stats, nested))
            last, nested = nested, nested.following(len(part_stats))
        stream.join(last)
        return torch.cat(pictures, dim=1)[None]

    def _leave(self, x: Tensor, stats: Tensor, stream: BufferStream) -> Tensor:
        """The last upsampling and all that is done at full size: (3, T, H, W)."""
        for block in self.last_blocks:
            x, stats = block(x, stats, stream, self.num_groups)
        buffer = stream.buffer(x, x.shape, past=2)
        norm_silu(x, None, stats, self.norm_out, buffer[2:])
        stream.seal(buffer, past=2, kept=2)
        return picture_out(buffer, self.weight_out, self.bias_out)


class FastVAE:
    """Both directions in their fast form. Without gradients."""

    LOOK_BACK = 2
    """Earlier frames that one convolution may depend on."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        self._encoder, self._decoder = FastEncoder(encoder), FastDecoder(decoder)

    def make_pairs(self) -> int:
        """Makes what convolving in pairs needs, which is else made at its first use; the bytes of all that is kept."""
        blocks = [*self._encoder.front_blocks, *self._encoder.blocks, *self._decoder.blocks, *self._decoder.last_blocks]
        convolutions = [conv for block in blocks for conv in block.convolutions if conv.is_pairable]
        return sum(taps.nbytes for conv in convolutions for taps in conv.pairs())

    @torch.no_grad()
    def encode(
        self,
        video: Tensor,
        state: VAEState | None,
        on_step: Callable[[], None] | None,
        memory: VAEMemory | None = None,
    ) -> tuple[Tensor, VAEState]:
        """``VideoVAE.encode``, but for the posterior: its moments (B, 2C, t, h, w)."""
        return self._run(self._encoder, video, state, on_step, memory)

    @torch.no_grad()
    def decode(
        self,
        latent: Tensor,
        state: VAEState | None,
        on_step: Callable[[], None] | None,
        memory: VAEMemory | None = None,
    ) -> tuple[Tensor, VAEState]:
        """``VideoVAE.decode``."""
        return self._run(self._decoder, latent, state, on_step, memory)

    def _run(
        self,
        network: FastEncoder | FastDecoder,
        x: Tensor,
        state: VAEState | None,
        on_step: Callable[[], None] | None,
        memory: VAEMemory | None,
    ) -> tuple[Tensor, VAEState]:
        if len(x) != 1:
            raise ValueError(f"The fast form takes one clip at a time, not {len(x)}; call it for each.")
        stream = BufferStream(state, on_step, memory)
        try:
            result, state = network(x, stream), stream.finish(x.shape[2])
        except BaseException:
            stream.copies.give_up(x.device)
            raise
        stream.copies.settle()
        if stream.memory.states_on_host:
            wait_for_host_copies(x.device)  # a state may be written to a file at once
        return result, state
