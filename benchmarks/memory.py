"""Constant memory: peak resident memory of a 60 s clip against that of a 10 s clip of the same size.

    ./run.sh bench memory

Ends with 1 when the ratio is above the limit. Each job is a process of its own.
"""

import argparse
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from benchmarks.clips import moving_texture, write_h264
from benchmarks.jobs import JobCost, run_job
from benchmarks.report import add_save_option, publish, table

FPS = 24
LIMIT = 1.15


def measure(seconds: float, size: tuple[int, int], settings: Sequence[str], folder: Path) -> JobCost:
    """The cost of one job of a clip of ``seconds`` at ``FPS``. Raises RestoreError."""
    source = folder / f"source-{seconds:g}.mp4"
    write_h264(source, moving_texture(*size, round(seconds * FPS)), Fraction(FPS), 18)
    return run_job(source, folder / f"result-{seconds:g}.mp4", settings)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 0 when memory stays constant, 1 when it grows beyond the limit. Raises RestoreError."""
    parser = argparse.ArgumentParser(prog="seedvr bench memory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, nargs=2, default=[10.0, 60.0], metavar=("SHORT", "LONG"))
    parser.add_argument(
        "--size", default="64x36", help="size of the source; the result is twice it (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="a further setting"
    )
    add_save_option(parser)
    arguments = parser.parse_args(list(argv))

    width, height = map(int, arguments.size.split("x"))
    settings = [f"engine.device={arguments.device}", "restore.factor=2", *arguments.settings]
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in arguments.seconds:
            costs.append(measure(seconds, (width, height), settings, Path(folder)))
            print(f"{seconds:g} s clip: peak {costs[-1].peak_bytes / 1e6:.1f} MB", flush=True)
    short, long = costs
    ratio = long.peak_bytes / short.peak_bytes
    is_constant = ratio <= LIMIT
    rows = [
        [f"{seconds:g} s", str(cost.summary["frames"]), f"{cost.peak_bytes / 1e6:.1f}", f"{cost.seconds:.1f}"]
        for seconds, cost in zip(arguments.seconds, costs, strict=True)
    ]
    verdict = f"Ratio {ratio:.3f}, limit {LIMIT}: {'pass' if is_constant else 'FAIL'}."
    body = (
        f"Model {short.summary['model']} on {short.summary['device']}, {width}x{height} to twice that.\n\n"
        f"{table(['clip', 'frames', 'peak MB', 'seconds'], rows)}\n\n{verdict}"
    )
    result = {
        "model": short.summary["model"],
        "device": short.summary["device"],
        "settings": settings,
        "clips": [
            {"seconds": seconds, "frames": cost.summary["frames"], "peak_bytes": cost.peak_bytes}
            for seconds, cost in zip(arguments.seconds, costs, strict=True)
        ],
        "ratio": round(ratio, 4),
        "limit": LIMIT,
        "pass": is_constant,
    }
    publish("memory", "Peak memory against clip length", body, result, arguments.results if arguments.save else None)
    return 0 if is_constant else 1
