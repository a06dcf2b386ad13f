"""Owns the convolutions of the fast form for GPUs: over buffers with the past in front, merged upsamplers included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.buffer_stream import BufferStream
from models.causal_conv import CausalConv3d
from models.fused_ops import add, moments, norm_silu, unfold
from models.merged_upsampler import MergedKernel, TimeMap, merge_kernel
from models.pair_ops import join_pairs, norm_silu_pairs, num_pairs, pair_taps

if TYPE_CHECKING:
    from models.video_vae import Upsample

MIN_CHANNELS = 8
"""Convolutions with fewer input or output channels are padded with zeros: tensor cores take multiples of 8."""

MAX_ELEMENTS = 2**31 - 1
"""Of a tensor that cuDNN convolves with its fast kernels. Longer slices are convolved some frames at a time, and where
even the taps of one output frame are more (4K), some rows at a time."""

STRIP_ELEMENTS = 2**29
"""Of a strip of rows, which is a copy: large enough to fill the card, small beside the frames."""

PAIRED_CHANNELS = 128
"""The fewest, in and out, for which pairs of frames are convolved by minimal filtering: with fewer, the frames that it
writes and reads more would cost what the products save."""


class Conv:
    """A convolution over a buffer (past + T, H, W, C) without its bias, which later steps add."""

    def __init__(
        self,
        weight: Tensor,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: int = 1,
        num_out: int | None = None,
    ) -> None:
        """``weight`` is (C', C, kt, kh, kw), of which the first ``num_out`` results count; ``padding`` is spatial."""
        self.num_out = weight.shape[0] if num_out is None else num_out
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
        """Frames (axis 0), rows (1) or columns (2) of the result."""
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
        if buffer.is_meta:  # where a convolution would not keep the layout, and cost a copy
            frames, rows, columns = (self._count_out(buffer, axis) for axis in range(3))
            return buffer.new_empty(frames, rows, columns, self.num_out)
        out = F.conv3d(buffer.permute(3, 0, 1, 2)[None], self.weight, None, self.stride, self.padding)
        return out[0, : self.num_out].permute(1, 2, 3, 0).contiguous()


class Sealed:
    """A filled buffer and the convolution that reads it, once: its memory is free as soon as that is done."""

    def __init__(self, conv: Conv, buffer: Tensor) -> None:
        self._conv = conv
        self._buffer: Tensor | None = buffer
        self._result: Tensor | None = None

    def convolve(self) -> Tensor:
        """The result (T, H, W, C') without its bias."""
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        return self._conv(buffer)

    def convolve_with_moments(self, bias: Tensor, num_groups: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """The result, the bias if that is still to be added, and the moments of both together."""
        out = self.convolve()
        return out, bias, moments(out, bias, num_groups)

    def convolve_early(self) -> None:
        """For `add_to`, before the memory for what that adds and gives is taken."""
        self._result = self.convolve()

    def add_to(
        self, residual: Tensor, bias: Tensor, num_groups: int, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The result with bias and residual, and its moments; into `out` as for `fused_ops.add`."""
        result, self._result = self._result, None
        assert result is not None
        return add(result, bias, residual, num_groups, out)


class TimeConv:
    """A causal 3x3x3 convolution with stride 1 in its forms; `bias` is left to who uses them."""

    def __init__(self, conv: CausalConv3d) -> None:
        weight = conv.weight.detach()
        self.conv = Conv(weight)
        self._pairs: list[Tensor] = []
        self.is_pairable = min(weight.shape[:2]) >= PAIRED_CHANNELS
        assert conv.bias is not None
        self.bias = conv.bias.detach()

    def still(self) -> Conv:
        """For a frame whose past is a copy of itself: all taps in time at once. Made when asked for, not kept."""
        weight = self.conv.weight
        return Conv(weight.double().sum(dim=2, keepdim=True).to(weight.dtype), num_out=self.conv.num_out)

    def pairs(self) -> list[Tensor]:
        """The taps of the four products of a pair of frames; made when first asked for, and kept."""
        if not self._pairs:
            self._pairs = pair_taps(self.conv.weight)
        return self._pairs

    def open(self, frames: Tensor, stream: BufferStream) -> Tensor:
        """The input's buffer; its caller writes what is convolved, of the size of ``frames``, behind the history."""
        return stream.buffer(frames, (*frames.shape[:3], self.conv.num_in), past=2)

    def seal(self, buffer: Tensor, stream: BufferStream) -> Sealed:
        """To be called once the buffer is filled."""
        stream.seal(buffer, past=2, kept=2)
        if len(buffer) == 3 and stream.starts_clip:
            return Sealed(self.still(), buffer[2:])
        return Sealed(self.conv, buffer)

    def after_norm(
        self, x: Tensor, bias: Tensor | None, stats: Tensor, norm: nn.GroupNorm, stream: BufferStream
    ) -> Sealed | SealedPairs:
        """What convolves ``silu(norm(x + bias))``; ``stats`` are the moments of ``x + bias``."""
        if not self._takes_pairs(x, stream):
            buffer = self.open(x, stream)
            norm_silu(x, bias, stats, norm, buffer[2:])
            return self.seal(buffer, stream)
        history = stream.history(x, (2, *x.shape[1:]))
        pairs = norm_silu_pairs(x, bias, stats, norm, history)
        stream.keep(pairs.tail[-2:], is_part=len(pairs.tail) > 2)
        return SealedPairs(self, pairs.factors, pairs.head, pairs.tail if len(pairs.tail) > 2 else None)

    def _takes_pairs(self, x: Tensor, stream: BufferStream) -> bool:
        count = num_pairs(len(x), starts_clip=stream.starts_clip)
        elements = count * x.shape[1] * x.shape[2] * max(self.conv.num_in, self.conv.num_out)
        return self.is_pairable and stream.memory.may_pair and count > 0 and elements <= MAX_ELEMENTS


class SealedPairs:
    """Like `Sealed`, by minimal filtering in time (``pair_ops.py``): a third less arithmetic."""

    def __init__(self, conv: TimeConv, factors: list[Tensor], head: Tensor | None, rest: Tensor | None) -> None:
        """``factors`` and ``head`` are those of `Pairs`; ``rest`` (3, H, W, C) is what a last lone frame depends on."""
        self._conv, self._factors, self._head, self._rest = conv, factors, head, rest
        self._products: list[Tensor] = []
        self._ends: list[Tensor] = []

    def convolve_with_moments(self, bias: Tensor, num_groups: int) -> tuple[Tensor, None, Tensor]:
        """The result (T, H, W, C') with its bias, None for what is still to be added, and its moments."""
        self.convolve_early()
        out, stats = self._join(bias, None, num_groups, None)
        return out, None, stats

    def convolve_early(self) -> None:
        """For `add_to`, before the memory for what that adds and gives is taken."""
        for taps in self._conv.pairs():
            self._products.append(_convolve_frames(self._factors.pop(0), taps))
        self._ends = [] if self._head is None else [self._conv.still()(self._head)]
        if self._rest is not None:
            self._ends.append(self._conv.conv(self._rest))

    def add_to(
        self, residual: Tensor, bias: Tensor, num_groups: int, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The result with bias and residual, and its moments; into `out` as for `fused_ops.add`."""
        return self._join(bias, residual, num_groups, out)

    def _join(
        self, bias: Tensor, residual: Tensor | None, num_groups: int, out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        products, ends, num_before = self._products, self._ends, int(self._head is not None)
        self._products, self._ends = [], []
        stop = num_before + 2 * len(products[0])
        middle, places = slice(num_before, stop), [slice(1)][:num_before] + [slice(stop, stop + 1)]
        if out is None:
            out = products[0].new_empty(2 * len(products[0]) + len(ends), *products[0].shape[1:])

        def of(place: slice) -> Tensor | None:
            return None if residual is None else residual[place]

        stats = join_pairs(products, bias, of(middle), num_groups, out[middle])
        others = [
            add(end, bias, of(place), num_groups, out[place])[1] for end, place in zip(ends, places, strict=False)
        ]
        return out, torch.cat([*others[:num_before], stats, *others[num_before:]])


def _convolve_frames(frames: Tensor, taps: Tensor) -> Tensor:
    """A convolution over space alone of (P, H, W, C) with ``taps`` (C', C, 3, 3), padded with zeros: (P, H, W, C')."""
    if frames.is_meta:
        return frames.new_empty(*frames.shape[:3], len(taps))
    return F.conv2d(frames.permute(0, 3, 1, 2), taps, None, padding=1).permute(0, 2, 3, 1).contiguous()


class MergedConv:
    """A merged upsampling kernel with its bias for each kind of row and column."""

    def __init__(self, up: Upsample, time_map: TimeMap) -> None:
        kernel = merge_kernel(up.upscale_conv, up.conv, time_map)
        self.num_phases = len(time_map)
        self.conv, self.bias = Conv(kernel.taps.movedim(0, 2)), _bias_table(kernel)
        self.past = self.conv.taps - 1

    def __call__(self, buffer: Tensor, num_groups: int, out: Tensor) -> Tensor:
        """Writes the frames (zT, 2H, 2W, C) of a buffer (past + T, H, W, C) into ``out``; returns their moments."""
        return unfold(self.conv(buffer), self.bias, self.num_phases, num_groups, out)


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
