"""Moves a network's weights between a device and host memory, for as long as a block of code takes.

    with offloaded(dit):                # its weights wait in page-locked host memory
        ...
        with onload(dit, device):       # and are on the device only in here
            ...

Devices are as they were afterwards, whatever happens inside. Weights never change, so nothing is copied back from the
device: the copy there is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.vae_memory import page_locked_bytes, to_host, wait_for_host_copies

_CHUNK_BYTES = 2**30
_ALIGNMENT = 512


@contextmanager
def offloaded(network: nn.Module) -> Iterator[None]:
    """Inside, the weights are in host memory and their memory on the device is free."""
    places, chunks = _places(network), _Chunks()
    devices = [place.value.device for place in places]
    try:
        for place in places:
            place.put(chunks.to_host)
        for device in set(devices):
            wait_for_host_copies(device)
        yield
    finally:
        for place, device in zip(places, devices, strict=True):
            place.put(partial(_to_device, device=device))


@contextmanager
def onload(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the weights are on `device`; those that are there already stay where they are."""
    places = [place for place in _places(network) if place.value.device != device]
    before = [place.value for place in places]
    try:
        for place in places:
            place.put(partial(_to_device, device=device))
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.tensors[place.name] = value


def offloaded_bytes(network: nn.Module) -> int:
    """Host memory that `offloaded` takes for a network on a CUDA device. Its tensors may be without values."""
    chunks = _Chunks()
    for place in _places(network):
        chunks.add(place.value)
    return chunks.num_bytes


class _Chunks:
    """Host memory for many tensors. Page-locked blocks are rounded up to a power of two; one for each weight would take
    almost twice what the weights do."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._chunk: Tensor | None = None
        self._size = self._start = self._stop = 0

    def to_host(self, tensor: Tensor) -> Tensor:
        """As `vae_memory.to_host`."""
        if tensor.is_meta:
            return to_host(tensor)
        if self.add(tensor):
            self._chunk = torch.empty(self._size, dtype=torch.uint8, pin_memory=tensor.is_cuda)
        assert self._chunk is not None
        place = self._chunk[self._start : self._start + tensor.nbytes]
        return to_host(tensor, place.view(tensor.dtype).view(tensor.shape))

    def add(self, tensor: Tensor) -> bool:
        """Find a place for `tensor`; True if it is in a new chunk."""
        self._start = -(-self._stop // _ALIGNMENT) * _ALIGNMENT
        is_new = self._start + max(1, tensor.nbytes) > self._size
        if is_new:
            self._start, self._size = 0, page_locked_bytes(max(_CHUNK_BYTES, tensor.nbytes))
            self.num_bytes += self._size
        self._stop = self._start + tensor.nbytes
        return is_new


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module keeps one weight or buffer."""

    tensors: dict[str, Any]
    name: str

    @property
    def value(self) -> Tensor:
        value: Tensor = self.tensors[self.name]
        return value

    def put(self, move: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensor by a moved one. Weights stay weights, and are never tensors of inference mode."""
        before = self.value
        with torch.inference_mode(False), torch.no_grad():
            after = move(before.detach())
            is_weight = isinstance(before, nn.Parameter)
            self.tensors[self.name] = nn.Parameter(after, before.requires_grad) if is_weight else after


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _places(network: nn.Module) -> list[_Place]:
    return [
        _Place(tensors, name)
        for module in network.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
