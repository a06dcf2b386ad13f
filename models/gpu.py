"""Owns the fast form of the video VAE for GPUs: the numbers of ``video_vae.py`` to rounding, as fast as its products.

What makes it fast:

- Frames ``(T, H, W, C)`` are channels last from end to end, so the time axis lies outermost in memory and cuDNN's
  tensor-core convolutions need no conversion.
- What a causal convolution reads is one buffer: its history, then the new frames, which the step before it writes
  there. Nothing is concatenated or padded by copying.
- A norm is one read for its statistics, which the residual addition before it takes on its way, and one read and write
  with SiLU; biases ride along (``fused_ops.py``).
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

from models.causal_conv import CausalConv3d, VAEState
from models.fused_ops import add, moments, norm_silu, picture_in, picture_out, softmax, unfold
from models.merged_upsampler import FIRST, SECOND, SPATIAL, STEADY, MergedKernel, TimeMap, merge_kernel
from models.vae_memory import VAEMemory, to_host, wait_for_host_copies

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

MIN_CHANNELS = 8
"""Convolutions with fewer input or output channels are padded with zeros: tensor cores take multiples of 8."""

MAX_ELEMENTS = 2**31 - 1
"""Of a tensor that cuDNN convolves with its fast kernels. Longer slices are convolved some frames at a time, and where
even the taps of one output frame are more (4K), some rows at a time."""

STRIP_ELEMENTS = 2**29
"""Of a strip of rows, which is a copy: large enough to fill the card, small beside the frames."""

SCORE_BYTES = 2**27
"""Of the attention scores that are alive at a time. Fewer would stay in the card's cache, but make many small calls."""


class BufferStream:
    """One pass over one slice: makes the buffers of convolutions, with their history in front, and keeps the new one.

    The histories of ``state`` are taken out of it, so that their memory is free once they are copied. ``on_step`` is
    called before each convolution and may raise to give the pass up; ``state`` is then of no more use.
    """

    def __init__(
        self,
        state: VAEState | None,
        on_step: Callable[[], None] | None = None,
        memory: VAEMemory | None = None,
    ) -> None:
        self._old = None if state is None else state.histories
        self._new: list[Tensor] = []
        self._taken: Tensor | None = None
        self.on_step, self.memory = on_step, memory or VAEMemory()
        self.num_frames = 0 if state is None else state.num_frames

    @property
    def starts_clip(self) -> bool:
        """True when no frame came before this slice."""
        return self._old is None

    def buffer(self, like: Tensor, shape: Sequence[int], past: int) -> Tensor:
        """A (past + T, H, W, C) for a slice of ``shape``, in the type of ``like``; only its history is filled in.

        Raises:
            ValueError: the state belongs to another model, frame size or direction.
        """
        frames, *frame = shape
        buffer = like.new_empty(past + frames, *frame)
        if self._old is not None:
            history = self._old.pop(0) if self._old else None
            if history is None or history.shape != (past, *frame):
                raise ValueError(
                    "This streaming state belongs to another model, direction or frame size; pass the state that the "
                    "previous slice of the same clip returned, or None to start a clip."
                )
            buffer[:past].copy_(history, non_blocking=True)
            if self.memory.states_on_host:
                self._taken = history
        return buffer

    def seal(self, buffer: Tensor, past: int, kept: int) -> None:
        """The new frames of ``buffer`` are written: a clip's start gets its past, and the end is kept."""
        if self.on_step is not None:
            self.on_step()
        if self._old is None:
            for frame in buffer[:past]:
                frame.copy_(buffer[past])
        last = buffer[len(buffer) - kept :]
        # What was just read back is of the same shape, and its copy stands before this one in the queue.
        self._new.append(to_host(last, self._taken) if self.memory.states_on_host else last.clone())
        self._taken = None

    def nested(self) -> BufferStream:
        """A stream for the first of several sub-slices in which the next steps of this pass are done.

        It takes the histories of these steps from those of this stream, and no others.
        """
        state = None if self._old is None else VAEState(self._old, self.num_frames)
        return BufferStream(state, self.on_step, self.memory)

    def following(self, num_frames: int) -> BufferStream:
        """The nested stream for the next sub-slice, after this one of ``num_frames`` frames."""
        return BufferStream(VAEState(self._new, self.num_frames + num_frames), self.on_step, self.memory)

    def join(self, last: BufferStream) -> None:
        """Takes over what the last nested stream left."""
        self._new += last._new

    def finish(self, num_frames: int) -> VAEState:
        """The state after this slice of ``num_frames`` frames."""
        if self._old:
            raise ValueError("This streaming state belongs to another model or direction; start the clip with None.")
        return VAEState(self._new, self.num_frames + num_frames)


class Conv:
    """A convolution over a buffer (past + T, H, W, C) without its bias, which later steps add."""

    def __init__(self, weight: Tensor, stride: tuple[int, int, int] = (1, 1, 1), padding: int = 1) -> None:
        """``weight`` is (C', C, kt, kh, kw); ``padding`` is that of height and width."""
        self.num_out = weight.shape[0]
        missing = [max(0, MIN_CHANNELS - size) for size in weight.shape[:2]]
        weight = weight.detach()
        if any(missing):  # a pad of nothing would be a copy
            weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing[1], 0, missing[0]))
        self.num_in = weight.shape[1]
        self.weight = weight.contiguous(memory_format=torch.channels_last_3d)
        self.stride, self.padding, self.taps = stride, (0, padding, padding), weight.shape[2]

    def __call__(self, buffer: Tensor) -> Tensor:
        """(T', H', W', C')."""
        frame = buffer.shape[1] * buffer.shape[2] * max(buffer.shape[3], len(self.weight))
        count = (len(buffer) - self.taps) // self.stride[0] + 1
        run = MAX_ELEMENTS // frame - self.taps + 1
        if count <= run:
            return self._convolve(buffer)
        rows = self._count_out(buffer, 1)
        strip = rows if run >= 1 else max(1, STRIP_ELEMENTS * rows // (frame * self.taps))
        out = buffer.new_empty(count, rows, self._count_out(buffer, 2), self.num_out)
        for start in range(0, count, max(1, run)):
            stop = min(start + max(1, run), count)
            frames = buffer[start * self.stride[0] : (stop - 1) * self.stride[0] + self.taps]
            for top in range(0, rows, strip):
                out[start:stop, top : top + strip] = self._convolve_rows(frames, top, min(top + strip, rows))
        return out

    def _count_out(self, buffer: Tensor, axis: int) -> int:
        """Rows (axis 1) or columns (axis 2) of the result."""
        reach = buffer.shape[axis] + 2 * self.padding[axis] - self.weight.shape[axis + 2]
        return reach // self.stride[axis] + 1

    def _convolve_rows(self, buffer: Tensor, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) of the result: of what lies above and below, the kernel's reach is convolved with them."""
        step, padding = self.stride[1], self.padding[1]
        assert step == 1 or padding == 0
        first = max(0, top * step - padding)
        last = min(buffer.shape[1], (bottom - 1) * step - padding + self.weight.shape[3])
        skipped = top - first if step == 1 else 0  # rows that saw zeros where the picture goes on
        strip = buffer[:, first:last].contiguous()  # cuDNN would make this copy out of sight of who plans memory
        return self._convolve(strip)[:, skipped : skipped + bottom - top]

    def _convolve(self, buffer: Tensor) -> Tensor:
        out = F.conv3d(buffer.permute(3, 0, 1, 2)[None], self.weight, None, self.stride, self.padding)
        return out[0, : self.num_out].permute(1, 2, 3, 0).contiguous()


class TimeConv:
    """A causal 3x3x3 convolution with stride 1, without its bias."""

    def __init__(self, conv: CausalConv3d) -> None:
        weight = conv.weight.detach()
        self.conv = Conv(weight)
        self.still = Conv(weight.double().sum(dim=2, keepdim=True).to(weight.dtype))
        assert conv.bias is not None
        self.bias = conv.bias.detach()

    def open(self, frames: Tensor, stream: BufferStream) -> Tensor:
        """The input's buffer; its caller writes what is convolved, of the size of ``frames``, behind the history."""
        return stream.buffer(frames, (*frames.shape[:3], self.conv.num_in), past=2)

    def __call__(self, buffer: Tensor, stream: BufferStream) -> Tensor:
        """(T, H, W, C') from a filled buffer."""
        stream.seal(buffer, past=2, kept=2)
        if len(buffer) == 3 and stream.starts_clip:
            return self.still(buffer[2:])
        return self.conv(buffer)


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
        branch = self.branch(x, stats, stream)
        return add(branch, self.bias, self.skip(x), num_groups)

    def branch(self, x: Tensor, stats: Tensor, stream: BufferStream) -> Tensor:
        """What is added to the shortcut, but for its bias."""
        buffer = self.conv1.open(x, stream)
        norm_silu(x, None, stats, self.norm1, buffer[2:])
        h = self.conv1(buffer, stream)
        del buffer
        stats = moments(h, self.conv1.bias, self.norm2.num_groups)
        buffer = self.conv2.open(h, stream)
        norm_silu(h, self.conv1.bias, stats, self.norm2, buffer[2:])
        del h
        return self.conv2(buffer, stream)

    def skip(self, x: Tensor) -> Tensor:
        """The shortcut, but for its bias."""
        return x if self.shortcut is None else F.linear(x, self.shortcut)


class Down:
    """Fast form of ``Downsample``; its input stands in a buffer one row and column larger than the picture."""

    def __init__(self, last: Resnet, down: Downsample) -> None:
        """``last`` is the block whose result is made smaller; it writes into the buffer."""
        conv = down.conv
        self.last = last
        self.past, self.kept = conv.kernel_size[0] - 1, conv.kernel_size[0] - conv.stride[0]
        self.conv = Conv(conv.weight, cast("tuple[int, int, int]", conv.stride), padding=0)
        assert conv.bias is not None
        self.bias = conv.bias.detach()

    def __call__(self, x: Tensor, stats: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        branch = self.last.branch(x, stats, stream)
        frames, height, width, channels = branch.shape
        # A clip starts with two copies of its first frame, later slices with what the stride left over.
        past = self.past if stream.starts_clip else self.kept
        shape = (frames, height + 1, width + 1, channels)
        buffer = stream.buffer(branch, shape, past) if past else branch.new_empty(shape)
        buffer[past:, height] = 0
        buffer[past:, :, width] = 0
        add(branch, self.last.bias, self.last.skip(x), num_groups, buffer[past:, :height, :width])
        del branch
        if past:
            stream.seal(buffer, past, self.kept)
        return add(self.conv(buffer), self.bias, None, num_groups)


class Up:
    """Fast form of ``Upsample``: merged, and its input is written into the buffer by the block before it."""

    def __init__(self, last: Resnet, up: Upsample) -> None:
        """``last`` is the block whose result is made larger."""
        self.last, self.temporal = last, up.temporal
        self.past = 1 if up.temporal else 2
        self.kernels = [_Merged(up, time_map) for time_map in ((FIRST, SECOND, STEADY) if up.temporal else (SPATIAL,))]

    def __call__(self, x: Tensor, stats: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        branch = self.last.branch(x, stats, stream)
        frames, height, width, channels = branch.shape
        buffer = stream.buffer(branch, branch.shape, self.past)
        add(branch, self.last.bias, self.last.skip(x), num_groups, buffer[self.past :])
        del branch
        stream.seal(buffer, self.past, self.past)
        spans = self._spans(buffer, stream)
        count = sum(kernel.num_phases * (len(part) - kernel.conv.taps + 1) for kernel, part in spans)
        out = buffer.new_empty(count, 2 * height, 2 * width, channels)
        stats_of, start = [], 0
        for kernel, part in spans:
            grid = kernel.conv(part)
            stop = start + len(grid) * kernel.num_phases
            stats_of.append(unfold(grid, kernel.bias, kernel.num_phases, num_groups, out[start:stop]))
            start = stop
        return out, torch.cat(stats_of)

    def _spans(self, buffer: Tensor, stream: BufferStream) -> list[tuple[_Merged, Tensor]]:
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


class _Merged:
    """A merged upsampling kernel with its bias for each kind of row and column."""

    def __init__(self, up: Upsample, time_map: TimeMap) -> None:
        kernel = merge_kernel(up.upscale_conv, up.conv, time_map)
        self.num_phases = len(time_map)
        self.conv = Conv(kernel.taps.movedim(0, 2))
        self.bias = _bias_table(kernel)


def _bias_table(kernel: MergedKernel) -> Tensor:
    """(3, 3, 4zC): the bias where a grid row and column are the first, an inner or the last one."""
    border = kernel.border.double()
    table = kernel.bias.double().repeat(3, 3, 1)
    rows, columns = border.sum(dim=2), border.sum(dim=1)
    for edge, kind in ((0, 0), (1, 2)):
        table[kind] -= rows[:, edge]
        table[:, kind] -= columns[:, edge]
        for other, other_kind in ((0, 0), (1, 2)):
            table[kind, other_kind] += border[:, edge, other]
    return table.to(torch.float64 if kernel.bias.dtype is torch.float64 else torch.float32)


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
        return (self.conv_out(buffer, stream) + self.conv_out.bias).permute(3, 0, 1, 2)[None]

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
        x, stats = add(self.conv_in(buffer, stream), self.conv_in.bias, None, self.num_groups)
        for block in self.blocks:
            x, stats = block(x, stats, stream, self.num_groups)
        if max_frames is None or len(x) <= max_frames:
            return self._leave(x, stats, stream)[None]
        pictures, nested = [], stream.nested()
        for part, part_stats in zip(x.split(max_frames), stats.split(max_frames), strict=True):
            pictures.append(self._leave(part, part_stats, nested))
            last, nested = nested, nested.following(len(part))
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
        result, state = network(x, stream), stream.finish(x.shape[2])
        if stream.memory.states_on_host:
            wait_for_host_copies(x.device)  # a state may be written to a file at once
        return result, state
