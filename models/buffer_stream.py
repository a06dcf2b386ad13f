"""Owns the buffers that the fast form for GPUs convolves, each with its history in front, and the histories' way on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from models.causal_conv import VAEState
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
