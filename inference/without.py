"""What is switched off on this machine by name: `--without NAME`, or `SEEDVR_WITHOUT`, which children inherit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from inference.errors import SettingsError

VARIABLE = "SEEDVR_WITHOUT"
FLASH_ATTN, APEX, KERNELS = "flash-attn", "apex", "kernels"
NAMES = (FLASH_ATTN, APEX, KERNELS)


def switched_off() -> frozenset[str]:
    """The names that are switched off. Raises SettingsError for a name that there is not."""
    return _check(re.split(r"[\s,]+", os.environ.get(VARIABLE, "")))


def switch_off(names: Iterable[str]) -> None:
    """Switch `names` off too, here and in processes that are started from now on. Raises SettingsError."""
    wanted = switched_off() | _check(names)
    if wanted:
        os.environ[VARIABLE] = " ".join(sorted(wanted))


def _check(names: Iterable[str]) -> frozenset[str]:
    found = frozenset(name for name in names if name)
    if unknown := sorted(found - set(NAMES)):
        raise SettingsError(f"There is no part named {unknown[0]!r} to do without; it can be {', '.join(NAMES)}.")
    return found
