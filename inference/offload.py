"""Moves a network's weights between a device and host memory, for as long as a block of code takes.

    with offloaded(dit):                # its weights wait in page-locked host memory
        ...
        with onload(dit, device):       # and are on the device only in here
            ...

Devices are as they were afterwards, whatever happens inside. Weights never change, so nothing is copied back from the
device: the copy there is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from models.vae_memory import to_host, wait_for_host_copies


@contextmanager
def offloaded(network: nn.Module) -> Iterator[None]:
    """Inside, the weights are in host memory and their memory on the device is free."""
    tensors = _tensors(network)
    devices = [tensor.device for tensor in tensors]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for tensor in tensors:
                tensor.data = to_host(tensor.data)
            for device in set(devices):
                wait_for_host_copies(device)
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, device in zip(tensors, devices, strict=True):
                tensor.data = tensor.data.to(device, non_blocking=True)


@contextmanager
def onload(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the weights are on `device`; those that are there already stay where they are."""
    tensors = _tensors(network)
    before = [tensor.data for tensor in tensors]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for tensor in tensors:
                tensor.data = tensor.data.to(device, non_blocking=True)
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, data in zip(tensors, before, strict=True):
                tensor.data = data


def _tensors(network: nn.Module) -> list[Tensor]:
    return list(chain(network.parameters(), network.buffers()))
