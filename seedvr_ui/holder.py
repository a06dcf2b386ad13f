"""Who holds a lease: the name of a running process, and whether it still runs as far as this machine can tell.

A process of another machine or container cannot be looked at; its leases end by time alone.
"""

from __future__ import annotations

import os
import secrets
import socket

import psutil

_SAME_START_S = 2.0
_SEPARATOR = "|"


def new_holder() -> str:
    """A name for this process that no other one, here or elsewhere, has or will have."""
    start = psutil.Process().create_time()
    return _SEPARATOR.join([_machine(), str(os.getpid()), f"{start:.2f}", secrets.token_hex(4)])


def is_gone(holder: str) -> bool:
    """Whether the process of that name has surely ended; False where it cannot be known."""
    machine, _, rest = holder.partition(_SEPARATOR)
    if not holder or machine != _machine():
        return not holder
    pid, start, _ = rest.split(_SEPARATOR)
    try:
        process = psutil.Process(int(pid))
        is_other = abs(process.create_time() - float(start)) > _SAME_START_S
        return is_other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _machine() -> str:
    """This machine and, on Linux, the set of processes that can be seen: ids mean nothing beyond it."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()[:80]} {space}"
