"""Owns the causal 3-D convolution and its streaming state.

A causal convolution never looks at later frames. Its past is either a copy of the clip's first frame (clip start) or
the history that the previous slice left. History goes in and comes out as a value: nothing is kept on the modules.
Shapes: B batch, C channels, T frames, H W pixels; tensors are ``(B, C, T, H, W)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class VAEState:
    """What one direction (encode or decode) of a clip's stream carries from slice to slice; opaque to its owner.

    ``histories`` holds, in the order in which the convolutions run, the last frames that each of them has seen. Every
    tensor owns its memory, so a state never keeps a whole activation alive. ``num_frames`` counts the input frames so
    far. The fast form for GPUs uses a state up: it takes the histories out as it goes, since two sets of them would be
    most of its memory.
    """

    histories: list[Tensor]
    num_frames: int

    @property
    def num_bytes(self) -> int:
        """Memory of the histories."""
        return sum(history.nbytes for history in self.histories)

    def to(self, device: torch.device | str) -> VAEState:
        """The same state on another device."""
        return VAEState([history.to(device) for history in self.histories], self.num_frames)


class ConvStream:
    """One pass over one slice: hands each convolution its history and collects the new one.

    Histories are matched by position, which is safe because a pass always runs the same convolutions in the same order.
    ``on_step`` is called before each convolution and may raise to give the pass up.
    """

    def __init__(self, state: VAEState | None, on_step: Callable[[], None] | None = None) -> None:
        self._old = None if state is None else state.histories
        self._new: list[Tensor] = []
        self._on_step = on_step
        self._num_frames = 0 if state is None else state.num_frames

    @property
    def starts_clip(self) -> bool:
        """True when no frame came before this slice."""
        return self._old is None

    def step(self) -> None:
        """A convolution comes next."""
        if self._on_step is not None:
            self._on_step()

    def take(self, x: Tensor) -> Tensor | None:
        """The next convolution's history, (B, C, kept, H, W), or None at the clip start.

        Raises:
            ValueError: the state belongs to another model, frame size or direction than ``x``.
        """
        if self._old is None:
            return None
        position = len(self._new)
        history = self._old[position] if position < len(self._old) else None
        if history is None or history.shape[:2] != x.shape[:2] or history.shape[3:] != x.shape[3:]:
            raise ValueError(
                "This streaming state belongs to another model, direction or frame size; pass the state that the "
                "previous slice of the same clip returned, or None to start a clip."
            )
        return history.to(x.dtype)

    def put(self, history: Tensor) -> None:
        """Stores the history for the next slice; ``history`` must own its memory."""
        self._new.append(history)

    def finish(self, num_frames: int) -> VAEState:
        """The state after this slice of ``num_frames`` input frames.

        Raises:
            ValueError: the state that came in had more histories than this pass used.
        """
        if self._old is not None and len(self._old) != len(self._new):
            raise ValueError("This streaming state belongs to another model or direction; start the clip with None.")
        return VAEState(self._new, self._num_frames + num_frames)


class CausalConv3d(nn.Conv3d):
    """Convolution that is causal in time: output frame t sees input frames up to t (times the stride) only.

    Space is zero padded by ``padding`` on each side, after the extension in time; time is never padded at the end. The
    first frame of a clip is repeated ``kt - 1`` times in front; a later slice gets ``kt - stride`` frames of history.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: int = 0,
    ) -> None:
        """``kernel`` and ``stride`` are (time, space)."""
        super().__init__(
            in_channels,
            out_channels,
            (kernel[0], kernel[1], kernel[1]),
            (stride[0], stride[1], stride[1]),
            (0, padding, padding),
        )

    def forward(self, x: Tensor, stream: ConvStream) -> Tensor:  # type: ignore[override] # a stream comes with the video
        """(B, C, T, H, W) -> (B, C', T', H', W')."""
        stream.step()
        if self.kernel_size[0] > 1:
            x = self._extend(x, stream)
        return F.conv3d(x, self.weight, self.bias, self.stride, self.padding)

    def _extend(self, x: Tensor, stream: ConvStream) -> Tensor:
        history = stream.take(x)
        if history is None:
            history = x[:, :, :1].expand(-1, -1, self.kernel_size[0] - 1, -1, -1)
        x = torch.cat([history, x], dim=2)
        stream.put(x[:, :, x.shape[2] - (self.kernel_size[0] - self.stride[0]) :].clone())
        return x
