"""Checks of the machine: driver, memory, disk, clock and network. Without torch."""

from __future__ import annotations

import datetime
import email.utils
import errno
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil

from inference.doctor.faults import found
from inference.doctor.findings import Finding
from inference.download import is_offline

GIB = 2**30
LITTLE_MEMORY = 2 * GIB
LITTLE_SHM = 256 * 2**20
LITTLE_DISK = 5 * 10**9
NO_DISK = 256 * 2**20  # below it no job starts, see seedvr_ui/storage.py
SLOW_MB_S = 20
CLOCK_TOLERANCE_S = 300
MADE = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
"""This program is not older than that, so no clock can be right that says so."""

NETWORK_KINDS = re.compile(r"nfs|cifs|smb|9p|fuse|ceph|gluster|lustre|beegfs|gpfs|afs|virtiofs", re.IGNORECASE)
_CONTAINER_KINDS = ("overlay", "aufs")
_MEMORY_KINDS = ("tmpfs", "ramfs")
_CARD_SIGNS = (Path("/dev/nvidia0"), Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))
_SHM = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")
_SMI_LIMIT_S = 15.0
_HUB_LIMIT_S = 8.0
_BLOCK = 2**20
_BLOCKS = 32


def to_gib(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"


# --- the card, as far as its driver tells ---


def expects_card() -> bool:
    """Whether this machine says that it has an NVIDIA card, by device files or by how the container was started."""
    asked = os.environ.get("NVIDIA_VISIBLE_DEVICES", "")
    return any(sign.exists() for sign in _CARD_SIGNS) or asked not in ("", "void", "none")


def ask_driver() -> tuple[str, list[str]]:
    """(version of the driver, names of the cards with their memory). Raises OSError with the reason."""
    query = ["nvidia-smi", "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_LIMIT_S, check=False)
    except FileNotFoundError:
        raise OSError("there is no nvidia-smi") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"nvidia-smi did not answer within {_SMI_LIMIT_S:.0f} s") from None
    lines = [line.split(", ") for line in answer.stdout.strip().splitlines()]
    if answer.returncode != 0 or not lines or any(len(line) != 3 for line in lines):
        raise OSError(answer.stderr.strip() or answer.stdout.strip() or f"exit code {answer.returncode}")
    return lines[0][0], [f"{name}, {memory}" for _, name, memory in lines]


def check_driver() -> Iterator[Finding]:
    """Whether an NVIDIA driver answers, if there should be one."""
    try:
        version, cards = ask_driver()
    except OSError as error:
        if expects_card():
            yield found("driver.missing", reason=error)
        else:
            yield found("driver.none")
        return
    yield found("driver.ok", version=version, cards="; ".join(cards))


# --- memory ---


def memory() -> tuple[int, int]:
    """(free, total) bytes of main memory that this process may use; a container may have less than its host."""
    host = psutil.virtual_memory()
    free, total = int(host.available), int(host.total)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            allowed = int((_CGROUP / limit).read_text())
            taken = int((_CGROUP / used).read_text()) - _page_cache()
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
        if allowed < total:
            free, total = min(free, max(0, allowed - taken)), allowed
    return free, total


def _page_cache() -> int:
    """What the container's group counts as used, but would be given back."""
    for name in ("memory.stat", "memory/memory.stat"):
        try:
            text = (_CGROUP / name).read_text()
        except OSError:
            continue
        if match := re.search(r"^inactive_file (\d+)$", text, re.MULTILINE):
            return int(match[1])
    return 0


def check_memory() -> Iterator[Finding]:
    """How much main memory is free."""
    free, total = memory()
    key = "memory.ok" if free >= LITTLE_MEMORY else "memory.little"
    yield found(key, free=to_gib(free), total=to_gib(total))


def check_shm() -> Iterator[Finding]:
    """How much room /dev/shm has."""
    try:
        free = shutil.disk_usage(_SHM).free
    except OSError:
        yield found("shm.missing")
        return
    yield found("shm.ok" if free >= LITTLE_SHM else "shm.little", free=to_gib(free))


# --- the disk of the data folder ---


def check_disk(data: Path) -> Iterator[Finding]:
    """Room, right to write, and speed of the disk of the folder `data`, by writing and reading a file there."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(data).free
        if free < NO_DISK:
            _write(data, 1)  # a disk that is read-only as well is no better when there is room
            yield found("disk.full", free=to_gib(free))
            return
        write, read = _write(data, _BLOCKS)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            yield found("disk.full", free="0 MiB")
        else:
            yield found("disk.read-only", folder=data, reason=error.strerror or error)
        return
    if free < LITTLE_DISK:
        yield found("disk.low", free=to_gib(free))
    speeds = {"write": f"{write:.0f}", "read": f"{read:.0f}"}
    if min(write, read) < SLOW_MB_S:
        yield found("disk.slow", **speeds)
    elif free >= LITTLE_DISK:
        yield found("disk.ok", free=to_gib(free), **speeds)


def _write(folder: Path, blocks: int) -> tuple[float, float]:
    """(MB/s written and synced, MB/s read back) of so many MiB. Raises OSError."""
    path = folder / f".doctor-{os.getpid()}"
    block = os.urandom(_BLOCK)
    try:
        began = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(blocks):
                if file.write(block) != len(block):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            wrote_s = time.perf_counter() - began
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, not the cache
        began = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass
        read_s = time.perf_counter() - began
    finally:
        path.unlink(missing_ok=True)
    megabytes = blocks * _BLOCK / 1e6
    return megabytes / max(wrote_s, 1e-6), megabytes / max(read_s, 1e-6)


def filesystem_kind(folder: Path) -> str:
    """The type of the file system that `folder` is on, such as ext4; empty if it cannot be told."""
    path = folder.resolve()
    partitions = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    # Of several mounts at one place the last one counts.
    return (
        str(max(enumerate(partitions), key=lambda part: (len(part[1].mountpoint), part[0]))[1].fstype)
        if partitions
        else ""
    )


def check_filesystem(data: Path) -> Iterator[Finding]:
    """Whether what is in the folder `data` outlives the container, and how it is reached."""
    kind = filesystem_kind(data)
    if kind in _CONTAINER_KINDS:
        key = "filesystem.container"
    elif kind in _MEMORY_KINDS:
        key = "filesystem.memory"
    else:
        key = "filesystem.network" if NETWORK_KINDS.search(kind) else "filesystem.ok"
    yield found(key, kind=kind or "a file system of unknown type")


# --- clock and network ---


def check_hub_and_clock() -> Iterator[Finding]:
    """Whether the hub of models answers, and whether its clock agrees with this one."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    theirs = None
    if is_offline():
        yield found("hub.offline")
    else:
        try:
            asked_at = time.time()
            answer = httpx2.head(endpoint, timeout=_HUB_LIMIT_S, follow_redirects=False)
            yield found("hub.ok", endpoint=_host(endpoint))
            theirs = _date(answer.headers.get("date", ""))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            yield found("hub.unreachable", endpoint=_host(endpoint), reason=error or type(error).__name__)
    yield judge_clock(time.time() if theirs is None else asked_at, theirs)


def judge_clock(ours: float, theirs: float | None) -> Finding:
    """The finding on a clock that says `ours` while the hub's says `theirs`, in seconds since 1970."""
    if ours < MADE.timestamp():
        date = datetime.datetime.fromtimestamp(ours, datetime.UTC).date()
        return found("clock.past", date=date)
    if theirs is None:
        return found("clock.unknown")
    if abs(ours - theirs) <= CLOCK_TOLERANCE_S:
        return found("clock.ok")
    minutes = abs(ours - theirs) / 60
    difference = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
    return found("clock.wrong", difference=difference, direction="fast" if ours > theirs else "slow")


def _date(header: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None


def _host(address: str) -> str:
    """An address without name, password, path and query, which may be secrets."""
    url = httpx2.URL(address)
    return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")
