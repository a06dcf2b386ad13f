"""What every benchmark prints and saves: a Markdown table, the machine and versions, and one JSON line."""

import argparse
import json
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).resolve().parent / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first column to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def machine() -> dict[str, Any]:
    """The machine and the versions that a number depends on. Without torch's import."""
    return {
        "cpu": _cpu_name(),
        "cores": len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "av": version("av"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def add_save_option(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--save", action="store_true", help="also write benchmarks/results/<date>-<name>.md and .json")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save (default: %(default)s)")


def publish(name: str, title: str, body: str, result: dict[str, Any], save_to: Path | None) -> None:
    """Print ``body`` and, last, ``result`` as one JSON line; with ``save_to`` write both into that folder."""
    result = {"benchmark": name, "date": date.today().isoformat(), "machine": machine(), **result}
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["machine"].items())
    text = f"# {title}\n\n{result['date']}; {about}\n\n{body}\n"
    print(text)
    if save_to:
        save_to.mkdir(parents=True, exist_ok=True)
        stem = save_to / f"{result['date']}-{name}"
        stem.with_suffix(".md").write_text(text)
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"saved {stem.name}.md and .json")
    print(json.dumps(result), flush=True)
