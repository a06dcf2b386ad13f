"""How many CPU threads torch may use."""

from __future__ import annotations

import os

import torch


def available_cores() -> int:
    """Cores that this process may run on; respects CPU affinity, which containers use as their limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int) -> int:
    """Let torch compute with `threads` threads and return that number.

    0 means OMP_NUM_THREADS if it is set, else every core that this process may use.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "")
    count = threads or (int(wish) if wish.isdecimal() and int(wish) > 0 else available_cores())
    torch.set_num_threads(count)
    return count
