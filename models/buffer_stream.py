"""Owns the buffers that the fast form for GPUs convolves, each with its history in front, and the histories' way on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.causal_conv import VAEState
from models.host_copies import HostCopies
from models.vae_memory import VAEMemory, to_host


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
        copies: HostCopies | None = None,
    ) -> None:
        self._old = None if state is None else state.histories
        self._new: list[Tensor] = []
        self._taken: Tensor | None = None
        self._last_size = 0  # of the history that was taken last
        self.on_step, self.memory, self.copies = on_step, memory or VAEMemory(), copies or HostCopies()
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
        if (history := self._take((past, *frame), like.device)) is not None:
            buffer[:past].copy_(history, non_blocking=True)
        return buffer

    def history(self, like: Tensor, shape: Sequence[int]) -> Tensor | None:
        """The next history, of this shape, on the device of ``like``; None at the start of a clip. Raises as `buffer`.

        It is the caller's, who may write into it. `keep` has to be called with the one that takes its place.
        """
        history = self._take(shape, like.device)
        if history is None or (history.device == like.device and history is not self._taken):
            return history
        return like.new_empty(shape).copy_(history, non_blocking=True)

    def _take(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """The next history, where it is."""
        if self._old is None:
            return None
        history = self._old.pop(0) if self._old else None
        if history is None or history.shape != tuple(shape):
            raise ValueError(
                "This streaming state belongs to another model, direction or frame size; pass the state that the "
                "previous slice of the same clip returned, or None to start a clip."
            )
        if not self.memory.states_on_host:
            return history
        self._taken = history
        arrived = self.copies.arrived(history)
        # Where histories become smaller, most memory is in use: the large one has to leave, and none is fetched early.
        if history.numel() < self._last_size:
            self.copies.settle()
        self._last_size = history.numel()
        if self.memory.may_pair and self._old and self._old[0].numel() >= history.numel():
            self.copies.fetch(self._old[0], device)
        return arrived

    def seal(self, buffer: Tensor, past: int, kept: int) -> None:
        """The new frames of ``buffer`` are written: a clip's start gets its past, and the end is kept."""
        if self._old is None:
            for frame in buffer[:past]:
                frame.copy_(buffer[past])
        self.keep(buffer[len(buffer) - kept :], is_part=True)

    def keep(self, history: Tensor, *, is_part: bool) -> None:
        """The next history of the new state, before its convolution; `is_part` of a tensor that is not kept."""
        if self.on_step is not None:
            self.on_step()
        if self.memory.keeps_states:
            self._new.append(self._kept(history, is_part=is_part))
        self._taken = None

    def _kept(self, history: Tensor, *, is_part: bool) -> Tensor:
        if self.memory.states_on_host:
            # What was just read back is of the same shape, and its copy is done before this one begins.
            return to_host(history, self._taken) if is_part else self.copies.leave(history, self._taken)
        return history.clone() if is_part else history

    def nested(self) -> BufferStream:
        """A stream for the first of several sub-slices in which the next steps of this pass are done.

        It takes the histories of these steps from those of this stream, and no others.
        """
        state = None if self._old is None else VAEState(self._old, self.num_frames)
        return BufferStream(state, self.on_step, self.memory, self.copies)

    def following(self, num_frames: int) -> BufferStream:
        """The nested stream for the next sub-slice, after this one of ``num_frames`` frames."""
        self.copies.settle()  # what left in this sub-slice is read back in the next one
        return BufferStream(VAEState(self._new, self.num_frames + num_frames), self.on_step, self.memory, self.copies)

    def join(self, last: BufferStream) -> None:
        """Takes over what the last nested stream left."""
        self._new += last._new

    def finish(self, num_frames: int) -> VAEState:
        """The state after this slice of ``num_frames`` frames."""
        if self._old:
            raise ValueError("This streaming state belongs to another model or direction; start the clip with None.")
        return VAEState(self._new, self.num_frames + num_frames)
