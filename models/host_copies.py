"""Owns the copies of histories between host and device that run beside the computation, where they live on the host.

A card has an engine for each direction of the bus, and both work while it computes. So the history that the next
convolution needs is fetched while this one runs, and what this one leaves goes back while the next one runs; which
ones are not, for want of memory, `BufferStream` decides. On CUDA each direction has a stream of its own; elsewhere a
copy is done at once. What is on its way is held here, at the same moments on tensors without values, so that a
prediction of memory has it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from models.vae_memory import to_host


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that was begun: `tensor` is the side of it that is on the device. `done`: None if it was made at once."""

    tensor: Tensor
    done: torch.cuda.Event | None


@cache
def _streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """To the device and from it."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class HostCopies:
    """The copies of one pass. `settle` or `give_up` ends it; until then tensors on the host may not be read."""

    def __init__(self) -> None:
        self._fetched: dict[int, _Copy] = {}
        self._leaving: _Copy | None = None

    def fetch(self, history: Tensor, device: torch.device) -> None:
        """Begin to copy ``history`` to ``device``."""
        fetched = torch.empty(history.shape, dtype=history.dtype, device=device)
        if device.type != "cuda":
            self._fetched[id(history)] = _Copy(fetched.copy_(history), None)
            return
        stream, _ = _streams(device)
        stream.wait_stream(torch.cuda.current_stream(device))  # which may still use the memory of `fetched`
        with torch.cuda.stream(stream):
            fetched.copy_(history, non_blocking=True)
            self._fetched[id(history)] = _Copy(fetched, stream.record_event())

    def arrived(self, history: Tensor) -> Tensor:
        """What `fetch` has copied, for the current stream; ``history`` itself if it was not asked to."""
        copy = self._fetched.pop(id(history), None)
        if copy is None:
            return history
        _await(copy)
        return copy.tensor

    def leave(self, history: Tensor, reuse: Tensor | None) -> Tensor:
        """Begin to copy ``history`` to the host, as `to_host`; the one before has left when the current stream goes on.

        Nothing may be written into ``history`` any more.
        """
        self.settle()
        if history.device.type != "cuda":
            self._leaving = _Copy(history, None)
            return to_host(history, reuse)
        _, stream = _streams(history.device)
        stream.wait_stream(torch.cuda.current_stream(history.device))
        with torch.cuda.stream(stream):
            copy = to_host(history, reuse)
            self._leaving = _Copy(history, stream.record_event())
        return copy

    def settle(self) -> None:
        """What is leaving has left when the current stream goes on."""
        copy, self._leaving = self._leaving, None
        if copy is not None:
            _await(copy)

    def give_up(self, device: torch.device) -> None:
        """Wait until nothing is on its way, since memory that is written to in another stream may not be freed."""
        if device.type == "cuda":
            for stream in _streams(device):
                stream.synchronize()
        self._fetched.clear()
        self._leaving = None


def _await(copy: _Copy) -> None:
    if copy.done is not None:
        torch.cuda.current_stream(copy.tensor.device).wait_event(copy.done)
