"""Fixtures for all tests. Importable without torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test processes run side by side on few cores; one thread each is faster than many that wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the specifications, stored results and media: beside the checkout, or `SEEDVR_SHARED`."""
    folder = Path(os.environ.get("SEEDVR_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.fail(f"No test material in {folder}; put it beside the checkout or set SEEDVR_SHARED.")
    return folder


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """What a program under test makes of the root logger is undone: its handlers write into a stream that is closed."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
