"""Owns how the allocators of main memory and of a card treat freed memory in this process. Imports without torch."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h> of glibc
_MMAP_THRESHOLD_BYTES = 2**30
_TRIM_THRESHOLD_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks for the next tensor instead of handing them back to the system.

    By default a block of more than 32 MB is mapped anew each time, and the kernel zeroes every page of it on first
    touch; for tensors that live for milliseconds this costs more than the arithmetic on them. The process's peak stays
    what its largest moment needs, but it does not shrink between jobs.

    Returns:
        Whether the allocator took the settings; False, with nothing changed, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = ((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def grow_segments() -> None:
    """Makes PyTorch map a card's memory in pages that it can join anew, instead of in blocks of one size each.

    A plan that fills a card leaves no room for gaps: with blocks, a fifth of 18.6 GiB was free and of no use. To be
    called before the first tensor is on a card. What the user set in PyTorch's own variable stays.
    """
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def hand_back_page_locked() -> None:
    """Gives the system back what PyTorch keeps of freed page-locked memory, up to all of it after a job that moved
    things. Nobody else can use it, and who plans would count it as taken. Does nothing without a CUDA card.
    """
    import torch

    if not torch.cuda.is_available():
        return
    # The public name is newer than torch 2.11; the other one is the same function, in builds for CUDA.
    accelerator = getattr(torch, "accelerator", None)
    empty = getattr(accelerator, "empty_host_cache", None) or getattr(torch._C, "_host_emptyCache", None)
    if empty is not None:
        empty()
