"""Judgements about card, driver and torch build from their numbers. Values only: no torch, no card needed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from inference.doctor.faults import found
from inference.doctor.findings import Finding
from inference.doctor.machine import to_gib

LITTLE_VRAM = 0.8
"""Share of the device memory that should be free before a model is loaded."""

_NEEDED_DRIVER = {11: 450, 12: 525, 13: 580}
"""The oldest driver for each CUDA generation: NVIDIA's table of minor version compatibility."""


def kernels_for(capability: tuple[int, int], archs: Sequence[str]) -> str | None:
    """The entry of torch's arch list whose kernels run on a card of this compute capability, or None.

    Machine code (`sm_86`) runs on cards of its generation with the same or a later minor number, code for one card
    (`sm_90a`) on that one only; PTX (`compute_80`) is compiled for any later card.
    """
    fitting: list[tuple[bool, int, int, str]] = []
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        kind, major, minor, only = match[1], int(match[2]), int(match[3]), match[4]
        if only == "a":
            runs = (major, minor) == capability
        elif kind == "sm":
            runs = major == capability[0] and minor <= capability[1]
        else:
            runs = (major, minor) <= capability
        if runs:
            fitting.append((kind == "sm", major, minor, arch))
    return max(fitting)[-1] if fitting else None


def judge_architecture(card: str, capability: tuple[int, int], archs: Sequence[str]) -> Finding:
    """Whether the installed torch has kernels for a card."""
    entry = kernels_for(capability, archs)
    words = f"{capability[0]}.{capability[1]}"
    if entry is None:
        return found("architecture.missing", card=card, capability=words, archs=", ".join(archs) or "no card")
    return found("architecture.ok", card=card, capability=words, entry=entry)


def judge_driver(version: str, torch: str, cuda: str) -> Finding | None:
    """The finding if the driver is too old for torch's CUDA; None if it is not, or if that cannot be told."""
    number, generation = re.match(r"\d+", version), re.match(r"\d+", cuda)
    needed = _NEEDED_DRIVER.get(int(generation[0])) if generation else None
    if number is None or needed is None or int(number[0]) >= needed:
        return None
    return found("torch.old-driver", driver=version, cuda=cuda, version=torch, needed=needed)


def judge_vram(free: int, total: int) -> Finding:
    """Whether something else takes the card's memory."""
    key = "vram.ok" if free >= LITTLE_VRAM * total else "vram.little"
    return found(key, free=to_gib(free), total=to_gib(total))
