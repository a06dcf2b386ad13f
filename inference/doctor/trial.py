"""The process that runs checks: `python -m inference.doctor.trial OPTIONS CHECK...`, one JSON line for each step.

    {"load": check}    torch is imported for it, which takes a while
    {"begin": check}   {"finding": {...}}   {"end": check}

Whatever ends this process, or holds it up, is charged to the check that has begun (`inference.doctor.examine`).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inference.doctor.faults import found
from inference.doctor.findings import Finding

Check = Callable[[], Iterator[Finding]]

MACHINE = ("driver", "memory", "shm", "disk", "filesystem", "hub", "weights")
"""Checks without torch."""

BACKENDS = (
    "torch", "architecture", "vram", "attention", "norms", "convolutions", "kernels", "flash-attn", "apex", "codecs",
)  # fmt: skip
"""Checks that import torch."""

CHECKS = (*MACHINE, *BACKENDS)
"""All checks, in their order. `clock` is found with the hub's."""


def check_of(name: str, data: Path, weights: str) -> Check:
    """The check `name` for a data folder and `engine.weights`."""
    if name in MACHINE:
        from inference.doctor import files, machine

        checks: Mapping[str, Check] = {
            "driver": machine.check_driver,
            "memory": machine.check_memory,
            "shm": machine.check_shm,
            "disk": partial(machine.check_disk, data),
            "filesystem": partial(machine.check_filesystem, data),
            "hub": machine.check_hub_and_clock,
            "weights": partial(files.check_weights, weights),
        }
        return checks[name]
    module = importlib.import_module("inference.doctor.backends")
    check: Check = getattr(module, f"check_{name.replace('-', '_')}")
    return check


def main(arguments: list[str]) -> None:
    """Run the checks that `arguments` name; the first argument is a JSON document with `data` and `weights`."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not speak for us

    def tell(message: Mapping[str, Any]) -> None:
        output.write(json.dumps(message) + "\n")
        output.flush()

    options = json.loads(arguments[0])
    for name in arguments[1:]:
        if name in BACKENDS and "torch" not in sys.modules:
            tell({"load": name})
            try:
                importlib.import_module("torch")
            except (Exception, SystemExit) as error:  # noqa: BLE001  a broken wheel may raise anything
                tell({"finding": found("torch.missing", reason=f"{type(error).__name__}: {error}").to_dict()})
                return
        tell({"begin": name})
        for finding in check_of(name, Path(options["data"]), options["weights"])():
            tell({"finding": finding.to_dict()})
        tell({"end": name})


if __name__ == "__main__":
    main(sys.argv[1:])
