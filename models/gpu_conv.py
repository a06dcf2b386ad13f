"""Owns the convolutions of the fast form for GPUs: over buffers with the past in front, merged upsamplers included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from models.buffer_stream import BufferStream
from models.causal_conv import CausalConv3d
from models.conv_ops import PICTURE_CHANNELS, Taps, convolve, is_faster
from models.fused_ops import add, moments, picture_in, unfold
from models.merged_upsampler import MergedKernel, TimeMap, merge_kernel

if TYPE_CHECKING:
    from models.video_vae import Upsample

MIN_CHANNELS = 8
"""Convolutions with fewer input or output channels are padded with zeros: tensor cores take multiples of 8."""

MAX_ELEMENTS = 2**31 - 1
"""Of a tensor that cuDNN convolves with its fast kernels. Longer slices are convolved some frames at a time, and where
even the taps of one output frame are more (4K), some rows at a time."""

STRIP_ELEMENTS = 2**29
"""Of a strip of rows, which is a copy: large enough to fill the card, small beside the frames."""


class Conv:
    """A convolution over a buffer (past + T, H, W, C), by cuDNN or, where that is faster, with what follows it.

    Called, it leaves the bias to later steps.
    """

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
        self._may_be_direct = stride == (1, 1, 1) and padding == 1 and weight.shape[3] == 3
        self._taps: Taps | None = None

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

    def direct(self, buffer: Tensor) -> Taps | None:
        """The weight for our own kernel, where that is the faster one."""
        if not (self._may_be_direct and is_faster(self.weight, buffer.shape[2])):
            return None
        if self._taps is None:
            self._taps = Taps(self.weight)
        return self._taps

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
        self._conv, self._taps = conv, conv.direct(buffer)
        self._buffer: Tensor | None = buffer
        self._result: Tensor | None = None

    def convolve(self) -> Tensor:
        """The result (T, H, W, C') without its bias."""
        return self._conv(self._take())

    def convolve_with_moments(self, bias: Tensor, num_groups: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """The result, the bias if that is still to be added, and the moments of both together."""
        if self._taps is not None:
            out, stats = convolve(self._take(), self._taps, bias, None, num_groups)
            return out, None, stats
        out = self.convolve()
        return out, bias, moments(out, bias, num_groups)

    def convolve_early(self) -> None:
        """For `add_to`, before the memory for what that adds and gives is taken, where cuDNN convolves by itself."""
        if self._taps is None:
            self._result = self.convolve()

    def add_to(
        self, residual: Tensor, bias: Tensor, num_groups: int, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The result with bias and residual, and its moments; into `out` as for `fused_ops.add`."""
        if self._taps is not None:
            return convolve(self._take(), self._taps, bias, residual, num_groups, out)
        result, self._result = self._result, None
        assert result is not None
        return add(result, bias, residual, num_groups, out)

    def _take(self) -> Tensor:
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        return buffer


class TimeConv:
    """A causal 3x3x3 convolution with stride 1 in its two forms; `bias` is left to who uses them."""

    def __init__(self, conv: CausalConv3d) -> None:
        weight = conv.weight.detach()
        self.conv = Conv(weight)
        self.still = Conv(weight.double().sum(dim=2, keepdim=True).to(weight.dtype))
        assert conv.bias is not None
        self.bias = conv.bias.detach()

    def open(self, frames: Tensor, stream: BufferStream) -> Tensor:
        """The input's buffer; its caller writes what is convolved, of the size of ``frames``, behind the history."""
        return stream.buffer(frames, (*frames.shape[:3], self.conv.num_in), past=2)

    def seal(self, buffer: Tensor, stream: BufferStream) -> Sealed:
        """To be called once the buffer is filled."""
        stream.seal(buffer, past=2, kept=2)
        if len(buffer) == 3 and stream.starts_clip:
            return Sealed(self.still, buffer[2:])
        return Sealed(self.conv, buffer)


class PictureConv:
    """The causal 3x3x3 convolution of three colours that an encoder begins with."""

    def __init__(self, conv: CausalConv3d) -> None:
        assert conv.bias is not None
        self.weight, self.bias = conv.weight.detach(), conv.bias.detach()
        self._wide = F.pad(self.weight, (0, 0, 0, 0, 0, 0, 0, PICTURE_CHANNELS - self.weight.shape[1]))
        self._taps = Taps(self._wide)

    def __call__(self, video: Tensor, stream: BufferStream, num_groups: int) -> tuple[Tensor, Tensor]:
        """Video (1, 3, T, H, W) -> (T, H, W, C') and its moments."""
        _, colours, frames, height, width = video.shape
        if is_faster(self._wide, width):
            buffer = stream.buffer(video, (frames, height, width, PICTURE_CHANNELS), past=2)
            buffer[2:, ..., :colours] = video[0].permute(1, 2, 3, 0)
            buffer[2:, ..., colours:] = 0
            stream.seal(buffer, past=2, kept=2)
            return convolve(buffer, self._taps, self.bias, None, num_groups)
        buffer = stream.buffer(video, (frames, colours, height, width), past=2)
        buffer[2:] = video[0].transpose(0, 1)
        stream.seal(buffer, past=2, kept=2)
        return picture_in(buffer, self.weight, self.bias, num_groups)


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
