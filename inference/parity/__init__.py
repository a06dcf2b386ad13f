"""Comparison of the networks and the pipeline with stored results of the published implementation.

A fixture folder is recognised by what its files contain, never by their names. `dit.py`, `vae.py` and `pipeline.py`
each read one kind through `cases(folder) -> Iterator[Case]`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import cast

from rich.console import Console
from safetensors import SafetensorError, safe_open

from inference.parity.report import Case, show

TABLE_WIDTH = 160
"""Columns when the output is a file or a pipe, so that nothing is cut."""


class Kind(StrEnum):
    """Kinds of fixture folders; each is the name of the module here that reads it."""

    DIT = "dit"
    VAE = "vae"
    PIPELINE = "pipeline"


def run_parity(folder: Path) -> int:
    """Run every case in `folder`, print the table and the JSON line; returns the exit code.

    0: all pass. 1: a case failed. 2: the folder cannot be read as fixtures; one sentence on standard error says why.
    """
    try:
        kind = folder_kind(folder)
        if kind is None:
            return _refuse(f"{folder} holds no known fixtures; name a folder of dit, vae or pipeline fixtures.")
        cases: Callable[[Path], Iterator[Case]] = importlib.import_module(f"inference.parity.{kind}").cases
        results = list(cases(folder))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        return _refuse(f"The fixtures in {folder} are damaged or incomplete: {_one_line(error)}; copy them again.")
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    show(results, console)
    return 1 if any(case.passed is False for case in results) else 0


def folder_kind(folder: Path) -> Kind | None:
    """What `folder` holds, by content: an index of transformer models, the `kind` in metadata, or tables of rows."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if any(_is_dit_index(document) for document in documents):
        return Kind.DIT
    kinds = {str(read_meta(path).get("kind", "")) for path in folder.glob("*.safetensors")} - {""}
    if kinds and all(kind.startswith("vae") for kind in kinds):
        return Kind.VAE
    return Kind.PIPELINE if kinds or any(_has_tables(document) for document in documents) else None


def read_meta(path: Path) -> dict[str, object]:
    """The JSON object under `meta` in a safetensors file's metadata; empty where there is none."""
    with safe_open(path, framework="pt") as file:
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    return meta if isinstance(meta, dict) else {}


def find_dit_index(folder: Path) -> dict[str, object]:
    """The index of a folder of transformer fixtures. Raises ValueError when there is none."""
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if _is_dit_index(document):
            return cast("dict[str, object]", document)
    raise ValueError("no index of transformer models")


def _is_dit_index(document: object) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("models"), dict):
        return False
    entries = [*document["models"].values(), *_list(document.get("forward"))]
    return "forward" in document and bool(entries) and all(isinstance(entry, dict) for entry in entries)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _has_tables(document: object) -> bool:
    return isinstance(document, dict) and any(f"{key}_columns" in document for key in document)


def _one_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{text} is missing" if isinstance(error, KeyError) else text


def _refuse(sentence: str) -> int:
    sys.stderr.write(sentence + "\n")
    return 2
