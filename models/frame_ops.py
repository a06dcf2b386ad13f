"""Owns the fast CPU operators on frames: convolutions through oneDNN, minimal filtering in time, norm with SiLU.

A slice is a list of channels-last frames ``(B, C, H, W)``, each in its own memory, so the last frames of a list are a
history as they are. ``cpu.py`` builds the video VAE from these operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.causal_conv import VAEState

WINOGRAD_MIN_CHANNELS = 16
"""Below this the transforms cost more time than the convolutions that they save."""

NUM_PARTIAL_SUMS = 32

Frames = list[Tensor]


def has_onednn() -> bool:
    """Whether this torch has the fused oneDNN convolutions, shown by a real call."""
    x = torch.ones(1, 1, 2, 2)
    try:
        out = _onednn_conv(x, torch.ones(1, 1, 1, 1), torch.ones(1), 0, 1, add=x, swish=False)
        act = _onednn_conv(x, torch.ones(1, 1, 1, 1), torch.ones(1), 0, 1, add=None, swish=True)
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.equal(out, 3 * x)) and bool(torch.allclose(act, F.silu(2 * x)))


def _onednn_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    stride: int,
    add: Tensor | None,
    swish: bool,
    groups: int = 1,
) -> Tensor:
    geometry = ([padding, padding], [stride, stride], [1, 1], groups)
    if add is None:
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "swish" if swish else "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise.binary(x, add, weight, bias, *geometry, "add", None, None, [], None)


_ONEDNN: bool | None = None


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, stride: int = 1, add: Tensor | None = None
) -> Tensor:
    """2-D convolution plus ``add``, through oneDNN where it takes the type."""
    global _ONEDNN
    if _ONEDNN is None:
        _ONEDNN = has_onednn()
    if _ONEDNN and x.dtype == torch.float32:
        return _onednn_conv(x, weight, bias, padding, stride, add, swish=False)
    out = F.conv2d(x, weight, bias, stride, padding)
    return out if add is None else out.add_(add)


def conv2d_accumulate(total: Tensor, x: Tensor, weight: Tensor, padding: int, stride: int = 1) -> None:
    """Adds a 2-D convolution without bias to ``total`` in place."""
    if _ONEDNN and x.dtype == torch.float32:
        geometry = ([padding, padding], [stride, stride], [1, 1], 1)
        torch.ops.mkldnn._convolution_pointwise_.binary(total, x, weight, None, *geometry, "add", None, None, [], None)
    else:
        total += F.conv2d(x, weight, None, stride, padding)


class FrameStream:
    """One pass over one slice: hands out histories, lists of frames, and collects the new ones.

    ``on_step`` is called before each convolution of a frame or two to four frames and may raise to give the pass up.
    """

    def __init__(self, state: VAEState | None, on_step: Callable[[], None] | None = None) -> None:
        self._old = None if state is None else state.histories
        self._new: list[Tensor] = []
        self._on_step = on_step
        self.num_frames = 0 if state is None else state.num_frames

    def step(self) -> None:
        """A convolution comes next."""
        if self._on_step is not None:
            self._on_step()

    def take(self, count: int, like: Tensor) -> Frames | None:
        """The next ``count`` history frames, oldest first, each of the shape of ``like``; None at the clip start."""
        if self._old is None:
            return None
        frames = list(self._old[len(self._new) : len(self._new) + count])
        if len(frames) != count or any(frame.shape != like.shape for frame in frames):
            raise ValueError(
                "This streaming state belongs to another model, direction or frame size; pass the state that the "
                "previous slice of the same clip returned, or None to start a clip."
            )
        return frames

    def put(self, frames: Frames) -> None:
        """Stores frames for the next slice; they must own their memory and never be written again."""
        self._new.extend(frames)

    def finish(self, num_frames: int) -> VAEState:
        """The state after this slice of ``num_frames`` frames."""
        if self._old is not None and len(self._old) != len(self._new):
            raise ValueError("This streaming state belongs to another model or direction; start the clip with None.")
        return VAEState(self._new, self.num_frames + num_frames)


def dense(weight: Tensor) -> Tensor:
    return weight.detach().contiguous(memory_format=torch.channels_last)


class TimeConv:
    """Causal convolution with three taps in time over frames; stride 1."""

    def __init__(self, weight: Tensor, bias: Tensor, padding: int) -> None:
        """``weight`` is (C', C, 3, k, k)."""
        self.bias, self.padding = bias.detach(), padding
        self.newest: Tensor | None = None
        if not weight[:, :, :2].any():
            kernel = weight.detach()[:, :, 2]
            centre = kernel[:, :, padding : padding + 1, padding : padding + 1]
            if kernel.count_nonzero() == centre.count_nonzero():
                kernel, self.padding = centre, 0
            self.newest = dense(kernel)
            return
        g0, g1, g2 = (weight.detach()[:, :, tap].double() for tap in range(3))

        def pack(kernels: Sequence[Tensor]) -> list[Tensor]:
            return [dense(kernel.to(weight.dtype)) for kernel in kernels]

        self.taps = pack([g0, g1, g2])
        self.still = pack([g0 + g1 + g2])[0]
        self.uses_winograd = min(weight.shape[:2]) >= WINOGRAD_MIN_CHANNELS
        if self.uses_winograd:
            even, odd = g0 + g2, g1
            self.kernels2 = pack([g0, (even + odd) / 2, (even - odd) / 2, g2])
            near, far = (g0 + 4 * g2) / 24, g1 / 12
            self.kernels4 = pack([g0 / 4, -(even + odd) / 6, -(even - odd) / 6, near + far, near - far, g2])

    def __call__(self, frames: Frames, stream: FrameStream, residual: Frames | None = None) -> Frames:
        """Convolves the slice and adds ``residual`` frame by frame."""
        if self.newest is not None:  # no past: no history either
            adds = [None] * len(frames) if residual is None else residual
            now: Frames = []
            for frame, add in zip(frames, adds, strict=True):
                stream.step()
                now.append(conv2d(frame, self.newest, self.bias, self.padding, add=add))
            return now
        history = stream.take(2, frames[0])
        out: Frames = []
        if history is None:
            add = None if residual is None else residual[0]
            out.append(conv2d(frames[0], self.still, self.bias, self.padding, add=add))
            history = [frames[0], frames[0]]
        seen = history + frames  # the frame that output i is aligned with is seen[i + 2]
        stream.put(seen[-2:])
        while len(out) < len(frames):
            stream.step()
            left = len(frames) - len(out)
            size = 1 if not self.uses_winograd or left == 1 else 4 if left >= 4 else 2
            run = {1: self._one, 2: self._two, 4: self._four}[size]
            adds = [None] * size if residual is None else residual[len(out) : len(out) + size]
            out += run(seen[len(out) : len(out) + size + 2], adds)
        return out

    def _conv(self, x: Tensor, weight: Tensor, add: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return conv2d(x, weight, bias, self.padding, add=add)

    def _one(self, x: Frames, adds: Sequence[Tensor | None]) -> Frames:
        out = self._conv(x[0], self.taps[0], adds[0], self.bias)
        conv2d_accumulate(out, x[1], self.taps[1], self.padding)
        conv2d_accumulate(out, x[2], self.taps[2], self.padding)
        return [out]

    def _two(self, x: Frames, adds: Sequence[Tensor | None]) -> Frames:
        k = self.kernels2
        plus = self._conv(x[1] + x[2], k[1], bias=self.bias)
        minus = self._conv(x[2] - x[1], k[2])
        late = plus - minus
        early = plus.add_(minus)
        _add_in_place([early, late], adds)
        conv2d_accumulate(early, x[0] - x[2], k[0], self.padding)
        conv2d_accumulate(late, x[3] - x[1], k[3], self.padding)
        return [early, late]

    def _four(self, x: Frames, adds: Sequence[Tensor | None]) -> Frames:
        k = self.kernels4
        a, b = torch.sub(x[4], x[2], alpha=4), torch.sub(x[3], x[1], alpha=4)
        m1, m2 = self._conv(a + b, k[1], bias=self.bias), self._conv(a.sub_(b), k[2])
        a, b = x[4] - x[2], x[3] - x[1]
        m3, m4 = self._conv(torch.add(a, b, alpha=2), k[3]), self._conv(a.sub_(b, alpha=2), k[4])
        d1, s1 = m1 - m2, m1.add_(m2)
        d2, s2 = m3 - m4, m3.add_(m4)
        out = [s1 + s2, torch.add(d1, d2, alpha=2), s1.add_(s2, alpha=4), d1.add_(d2, alpha=8)]
        _add_in_place(out, adds)
        first = torch.add(x[4], x[0], alpha=4).sub_(x[2], alpha=5)
        last = torch.add(x[5], x[1], alpha=4).sub_(x[3], alpha=5)
        conv2d_accumulate(out[0], first, k[0], self.padding)
        conv2d_accumulate(out[3], last, k[5], self.padding)
        # The bias came in through m1, which s1 and d1 share: each output holds it exactly once.
        return out


def _add_in_place(frames: Frames, adds: Sequence[Tensor | None]) -> None:
    for frame, add in zip(frames, adds, strict=True):
        if add is not None:
            frame += add


class NormSilu:
    """Group norm of each frame, then SiLU.

    With one group, channels that do nothing may be left out: ``present`` of the norm's channels come in (the others are
    zeros that only count), and the first ``wanted`` of these go out.
    """

    def __init__(self, norm: nn.GroupNorm, present: Tensor | None = None, wanted: int | None = None) -> None:
        self.groups, self.eps, self.num_channels = norm.num_groups, norm.eps, norm.num_channels
        self.weight, self.bias = norm.weight.detach(), norm.bias.detach()
        if present is not None:
            self.weight, self.bias = self.weight[present], self.bias[present]
        self.wanted = len(self.weight) if wanted is None else wanted
        self.is_whole = self.wanted == len(self.weight) == self.num_channels

    def __call__(self, x: Tensor) -> Tensor:
        if self.groups != 1 or (self.is_whole and not self._is_fast(x)):
            return F.silu(F.group_norm(x, self.groups, self.weight, self.bias, self.eps), inplace=True)
        if not self._is_fast(x):
            count = self.num_channels * x.shape[2] * x.shape[3]
            mean = x.sum((1, 2, 3), keepdim=True) / count
            absent = (self.num_channels - x.shape[1]) * x.shape[2] * x.shape[3]
            variance = ((x - mean).square().sum((1, 2, 3), keepdim=True) + absent * mean.square()) / count
            x = (x - mean) * (variance + self.eps).rsqrt() * self.weight[:, None, None] + self.bias[:, None, None]
            return F.silu(x[:, : self.wanted]).contiguous(memory_format=torch.channels_last)
        average, spread = _moments(x, self.num_channels)
        scale = self.weight * (spread + self.eps) ** -0.5
        shift = self.bias - average * scale
        kept = self.wanted
        if kept < x.shape[1]:
            x = x[:, :kept].contiguous(memory_format=torch.channels_last)
        weight = scale[:kept].view(kept, 1, 1, 1)
        return _onednn_conv(x, weight, shift[:kept], 0, 1, add=None, swish=True, groups=kept)

    @staticmethod
    def _is_fast(x: Tensor) -> bool:
        return x.shape[0] == 1 and x.dtype == torch.float32 and bool(_ONEDNN)


def _moments(x: Tensor, num_channels: int) -> tuple[float, float]:
    """Mean and biased variance of ``x`` (1, C, H, W) and of zeros in its missing channels, each sum in one read."""
    values = x.permute(0, 2, 3, 1).reshape(-1)
    count = num_channels * x.shape[2] * x.shape[3]
    mean = values.sum().item() / count
    # A few dozen dot products: one long float32 sum would lose digits.
    square = sum(torch.dot(part, part).item() for part in values.chunk(NUM_PARTIAL_SUMS)) / count
    variance = square - mean * mean
    if variance < 1e-2 * square:  # cancellation: most digits of the difference are gone
        variance = ((values - mean).square_().sum().item() + (count - x.numel()) * mean * mean) / count
    return mean, variance
